"""Modules that have moved: their old names, found in hyperparameter files of earlier releases, work for one more."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

_PACKAGE = "wavcube_plugins.speechbrain"

# Where the public names of each module of earlier releases are now.
_MOVED = {
    "heads": {
        "OnWavCube": f"{_PACKAGE}.modules",
        "Unchanged": f"{_PACKAGE}.modules",
        "Recurrent": "wavcube_plugins.heads.recognition",
        "Understanding": "wavcube_plugins.heads.recognition",
        "Classifier": "wavcube_plugins.heads.classification",
        "Pooled": "wavcube_plugins.heads.classification",
        "attentive_statistics": "wavcube_plugins.heads.classification",
        "check_heads": "wavcube_plugins.heads.restoration",
    },
    "restoration": {
        "WaveformRestorer": f"{_PACKAGE}.modules",
        "decode_sources": f"{_PACKAGE}.modules",
        "LatentMapper": "wavcube_plugins.heads.restoration",
        "apply_masks": "wavcube_plugins.heads.restoration",
        "log_spectrum": "wavcube_plugins.heads.restoration",
        "best_order": "wavcube_plugins.heads.losses",
        "pairwise_latent_loss": "wavcube_plugins.heads.losses",
        "pairwise_snr_loss": "wavcube_plugins.heads.losses",
    },
    "conversion": {
        "WaveformConverter": f"{_PACKAGE}.modules",
        "VoiceConverter": "wavcube_plugins.heads.conversion",
        "normalise_over_time": "wavcube_plugins.heads.conversion",
    },
    "slots": dict.fromkeys(("opening", "read_tags", "slot_f1", "tag_text"), "wavcube_plugins.heads.slots"),
    "weighted_sum": {"WeightedSum": "wavcube_plugins.heads.weighted_sum"},
}


class _Moved(ModuleType):
    """A module of an earlier release, which forwards its names with a deprecation warning."""

    def __getattr__(self, name: str) -> Any:
        places = _MOVED[self.__name__.rpartition(".")[2]]
        if name not in places:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{self.__name__}.{name} is now {places[name]}.{name}; the old name will be removed in the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(places[name]), name)


def register_old_names() -> dict[str, ModuleType]:
    """Make the old modules importable and return them by their last names."""
    modules: dict[str, ModuleType] = {}
    for name in _MOVED:
        full = f"{_PACKAGE}.{name}"
        modules[name] = sys.modules.setdefault(full, _Moved(full, "This module has moved."))
    return modules
