"""WavCube for ESPnet: features, frontend, vocoder and zero-shot TTS, under ESPnet's own option names.

On the command line, every tool of ESPnet runs through `wavcube_plugins.espnet.run`:

    python -m wavcube_plugins.espnet.run -m espnet2.bin.asr_train --frontend wavcube …

In Python, `register()` adds the names to ESPnet's tasks, whether they have been imported already or not.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec

_PUBLIC = {
    "WavCubeASRTask": "wavcube_plugins.espnet.asr_task",
    "WavCubeCFM": "wavcube_plugins.espnet.tts",
    "WavCubeFeatsExtract": "wavcube_plugins.espnet.features",
    "WavCubeFrontend": "wavcube_plugins.espnet.frontend",
    "WavCubeTTSTask": "wavcube_plugins.espnet.tts_task",
    "WavCubeVocoder": "wavcube_plugins.espnet.vocoder",
    "register": "wavcube_plugins.espnet.registration",
}
_RENAMED = {"WavCubeFeatures": "WavCubeFeatsExtract"}

__all__ = [*_PUBLIC]

if find_spec("espnet2") is None:
    raise ImportError("wavcube_plugins.espnet needs ESPnet; from a clone: uv pip install '.[espnet]'")


def __getattr__(name):
    # Imported on first use: ESPnet's tasks take many seconds.
    if name in _RENAMED:
        warnings.warn(f"{name} is now called {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
