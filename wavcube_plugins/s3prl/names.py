"""The names under which s3prl offers WavCube."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """One group of entries: what it loads without `-k`, and whether `hidden_states` is every layer of WavLM."""

    default: str
    layers: bool


FAMILIES = {
    "wavcube": Family("wavcube", layers=False),
    "wavcube_pro": Family("wavcube_pro", layers=False),
    "wavcube_layers": Family("wavcube", layers=True),
}

# s3prl's suffixes, and what `-k` takes under each.
_ANYTHING = "a preset, a folder, a file, a hub name or a URL"
KINDS = {"": _ANYTHING, "_local": "a folder or a file", "_url": "a URL", "_custom": _ANYTHING}

ENTRIES = sorted(family + kind for family in FAMILIES for kind in KINDS)

# The keys of an upstream's output; the first two are always present.
FEATURE_KEYS = ("hidden_states", "last_hidden_state", "latent", "wavlm", "restored")


def is_wavcube(upstream: str) -> bool:
    """Return whether an s3prl upstream is one of ours."""
    return upstream in ENTRIES


def has_layers(upstream: str) -> bool:
    """Return whether an upstream's `hidden_states` are every layer of WavLM."""
    return any(upstream == family + kind for family, (_, layers) in FAMILIES.items() if layers for kind in KINDS)
