"""WavCube: one compact continuous representation of speech, for s3prl, ESPnet and SpeechBrain.

>>> from wavcube_plugins import load_model
>>> model = load_model("nano")
>>> latent, latent_lengths = model.encode(waveforms, lengths)
"""

from importlib import import_module

_PUBLIC = {
    "WavCube": "wavcube_plugins.models.wavcube",
    "WavCubeConfig": "wavcube_plugins.config",
    "load_model": "wavcube_plugins.checkpoints",
}

__all__ = ["WavCube", "WavCubeConfig", "__version__", "load_model"]


def __getattr__(name):
    # Imported on first use: torch takes seconds to import, and s3prl's hook and `wavcube --help` need none of it.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "__version__":
        from pathlib import Path

        return (Path(__file__).parent / "version.txt").read_text().strip()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
