"""WavCube for SpeechBrain: `WavCube`, the lobe; `WeightedSum` over layers; `WavCubeCodec`, ready-made inference.

In a hyperparameter file:

    wavcube: !new:wavcube_plugins.speechbrain.WavCube
        source: nano
        freeze: True
"""

from importlib import import_module
from importlib.util import find_spec

_PUBLIC = {
    "OnWavCube": "wavcube_plugins.heads.classification",
    "WavCube": "wavcube_plugins.speechbrain.lobe",
    "WavCubeCodec": "wavcube_plugins.speechbrain.inference",
    **dict.fromkeys(
        ("SpeechEnhancer", "SpeechSeparator", "SpokenLanguage", "VoiceConversion"),
        "wavcube_plugins.speechbrain.inference",
    ),
    "WeightedSum": "wavcube_plugins.heads.weighted_sum",
}

__all__ = [
    "OnWavCube",
    "SpeechEnhancer",
    "SpeechSeparator",
    "SpokenLanguage",
    "VoiceConversion",
    "WavCube",
    "WavCubeCodec",
    "WeightedSum",
]

if find_spec("speechbrain") is None:
    raise ImportError("wavcube_plugins.speechbrain needs SpeechBrain; from a clone: pip install '.[speechbrain]'")


def __getattr__(name):
    # Imported on first use: the lobe needs little of SpeechBrain, its inference classes take seconds to import.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
