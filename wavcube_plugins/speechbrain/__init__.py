"""WavCube for SpeechBrain: the lobe `WavCube`, modules built on it, and interfaces for trained models.

In a hyperparameter file:

    wavcube: !new:wavcube_plugins.speechbrain.WavCube
        source: wavcube
        freeze: True
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from wavcube_plugins.speechbrain.deprecated import register_old_names

_PACKAGE = "wavcube_plugins.speechbrain"

if find_spec("speechbrain") is None:
    raise ImportError(f"{_PACKAGE} needs SpeechBrain; from a clone: pip install '.[speechbrain]'")

if TYPE_CHECKING:
    from wavcube_plugins.heads.weighted_sum import WeightedSum
    from wavcube_plugins.speechbrain.codec import WavCubeCodec
    from wavcube_plugins.speechbrain.drop_in import ChannelsFirstDecoder, ChannelsFirstEncoder, WeightedWavCube
    from wavcube_plugins.speechbrain.inference import SpeechEnhancer, SpeechSeparator, SpokenLanguage, VoiceConversion
    from wavcube_plugins.speechbrain.lobe import WavCube
    from wavcube_plugins.speechbrain.modules import OnWavCube

_PUBLIC = {
    "ChannelsFirstDecoder": "drop_in",
    "ChannelsFirstEncoder": "drop_in",
    "OnWavCube": "modules",
    "SpeechEnhancer": "inference",
    "SpeechSeparator": "inference",
    "SpokenLanguage": "inference",
    "VoiceConversion": "inference",
    "WavCube": "lobe",
    "WavCubeCodec": "codec",
    "WeightedWavCube": "drop_in",
}

__all__ = [
    "ChannelsFirstDecoder",
    "ChannelsFirstEncoder",
    "OnWavCube",
    "SpeechEnhancer",
    "SpeechSeparator",
    "SpokenLanguage",
    "VoiceConversion",
    "WavCube",
    "WavCubeCodec",
    "WeightedSum",
    "WeightedWavCube",
]

_OLD = register_old_names()


def __getattr__(name: str):
    # Imported on first use: the lobe needs little of SpeechBrain, whose inference classes take seconds to import.
    if name == "WeightedSum":
        return import_module("wavcube_plugins.heads.weighted_sum").WeightedSum
    if name in _PUBLIC:
        return getattr(import_module(f"{_PACKAGE}.{_PUBLIC[name]}"), name)
    if name in _OLD:
        return _OLD[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
