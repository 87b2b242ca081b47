"""One representation of a bench: what s3prl calls it, and how many layers it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.s3prl.names import FEATURE_KEYS, has_layers, is_wavcube

# Extra rows of WavCube: what each stage keeps and loses (name: upstream, -s).
FEATURES = {
    "latent": ("wavcube", None),
    "layers": ("wavcube_layers", None),
    "restored": ("wavcube", "restored"),
    "wavlm": ("wavcube", "wavlm"),
}


class BenchError(InputError):
    """The bench file, or an option, cannot be used."""


@dataclass(frozen=True)
class Row:
    """One representation, a row of the results.

    Args:
        label: Unique; used in file names, so letters, digits, `-`, `_` and `.` only.
        upstream: s3prl's name, for -u.
        checkpoint: For -k.
        options: A file, for -g.
        feature: A key of the features, for -s.
        layer: One layer, for -l.
        layers: The number of its layers; above 1, query by example tries each. 0 means find out, for WavCube's presets
            and model folders; others count as 1.
    """

    label: str
    upstream: str
    checkpoint: str | None = None
    options: str | None = None
    feature: str | None = None
    layer: int | None = None
    layers: int = 0

    def __post_init__(self):
        if not self.label or not all(letter.isalnum() or letter in "-_." for letter in self.label):
            raise BenchError(f"row {self.label!r}: a label takes letters, digits, '-', '_' and '.'")
        if not isinstance(self.upstream, str) or not self.upstream:
            raise BenchError(f"row {self.label}: `upstream` must name an upstream of s3prl")
        if not isinstance(self.layers, int) or self.layers < 0:
            raise BenchError(f"row {self.label}: `layers` must be a whole number of at least 1, got {self.layers!r}")
        if is_wavcube(self.upstream) and self.feature is not None:
            self._check_feature(self.feature)
        if not self.layers:
            object.__setattr__(self, "layers", _count_layers(self))

    def _check_feature(self, feature: str) -> None:
        """Refuse a key that is not there: s3prl would only warn and take hidden_states."""
        if feature not in FEATURE_KEYS:
            raise BenchError(f"row {self.label}: no feature {feature!r}; there are {', '.join(FEATURE_KEYS)}")
        if feature not in FEATURE_KEYS[:2] and _only_hidden_states(self.options):
            raise BenchError(
                f"row {self.label}: {self.options} sets only_hidden_states, which leaves out {feature!r}; "
                "use another options file"
            )

    def arguments(self, layer: int | None = None) -> list[str]:
        """Return run_downstream.py's options for it."""
        chosen = self.layer if layer is None else layer
        options = (("-k", self.checkpoint), ("-g", self.options), ("-s", self.feature), ("-l", chosen))
        given = (part for name, value in options if value is not None for part in (name, str(value)))
        return ["-u", self.upstream, *given]


def _only_hidden_states(options: str | None) -> bool:
    try:
        found = yaml.safe_load(Path(options).read_text(encoding="utf-8")) if options else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # the upstream itself says what is wrong
    return isinstance(found, Mapping) and found.get("only_hidden_states") is True


def _count_layers(row: Row) -> int:
    """Return how many hidden states a row has, where that is known."""
    if not (has_layers(row.upstream) or row.feature == "wavlm"):
        return 1
    from wavcube_plugins.config import PRESETS

    name = row.checkpoint or "wavcube"
    if name in PRESETS:
        return PRESETS[name].wavlm.num_layers + 1
    try:
        found = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        return int(found["config"]["wavlm"]["num_layers"]) + 1
    except (OSError, ValueError, KeyError, TypeError):
        return 1
