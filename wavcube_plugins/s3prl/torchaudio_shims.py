"""What s3prl 0.4 calls in torchaudio and torchaudio 2.9 dropped, or what needs a library that is not installed.

Each shim does one thing, does nothing where it is not needed, and returns whether it did something. torchaudio from 2.9
on reads and writes files through torchcodec; where that is missing, soundfile does it.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from wavcube_plugins.audio import read_info, resample
from wavcube_plugins.data.silence import remove_silence
from wavcube_plugins.errors import InputError


class EffectError(InputError):
    """A sox effect that is not reimplemented here."""


def restore() -> bool:
    """Add everything that torchaudio dropped in 2.9; an older torchaudio stays as it is."""
    import torchaudio

    if hasattr(torchaudio, "set_audio_backend"):
        return False
    return any([audio_backend(), audio_files(), sox_effects()])


def audio_backend() -> bool:
    """Restore `set_audio_backend` for torchaudio 2.9 and later, where there is nothing left to choose."""
    import torchaudio

    if hasattr(torchaudio, "set_audio_backend"):
        return False
    torchaudio.set_audio_backend = lambda backend: None
    return True


def audio_files() -> bool:
    """Restore `info` for torchaudio 2.9 and later and, if torchcodec is missing, read and write with soundfile."""
    import torchaudio

    if hasattr(torchaudio, "info"):
        return False
    torchaudio.info = read_info
    if find_spec("torchcodec") is None:
        torchaudio.load, torchaudio.save = _load, _save
    return True


def sox_effects() -> bool:
    """Replace torchaudio's sox effects where they are gone (2.9 and later) or the system has no libsox.

    Covers the effects that s3prl's tasks use: channels, rate, gain, and silence in speaker verification's form.
    """
    import torchaudio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchaudio.sox_effects.effect_names()
    except (AttributeError, ImportError, OSError, RuntimeError):
        module = ModuleType("torchaudio.sox_effects")
        vars(module).update(apply_effects_file=apply_effects_file, apply_effects_tensor=apply_effects_tensor)
        torchaudio.sox_effects = sys.modules[module.__name__] = module
        return True
    return False


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: list[list[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply sox effects to a waveform as `torchaudio.sox_effects.apply_effects_tensor` does.

    Args:
        tensor: (channels, T) or, if not `channels_first`, (T, channels).
        sample_rate: In Hz.
        effects: Names with their arguments: channels, rate, gain (dB), silence (in the form of `remove_silence`).

    Returns:
        The waveform in the same layout, and its rate.

    Raises:
        EffectError: another effect, or one of these in another form.
    """
    waveform = tensor if channels_first else tensor.t()
    for name, *values in effects:
        if name == "channels":
            if int(values[0]) < len(waveform):
                waveform = waveform.mean(dim=0, keepdim=True)
            waveform = waveform.expand(int(values[0]), -1)
        elif name == "rate":
            waveform, sample_rate = resample(waveform, sample_rate, int(values[0])), int(values[0])
        elif name == "gain":
            waveform = (waveform * 10 ** (float(values[0]) / 20)).clamp(-1, 1)
        elif name == "silence" and len(waveform) == 1 and values == ["1", *values[1:3], "-1", *values[1:3]]:
            seconds, level = float(values[1]), float(values[2].rstrip("%")) / 100
            waveform = remove_silence(waveform[0], sample_rate, seconds=seconds, level=level)[None]
        else:
            effect = " ".join([name, *values])
            raise EffectError(f"the sox effect {effect!r} needs the library libsox (Debian: apt install libsox-dev)")
    return waveform if channels_first else waveform.t(), sample_rate


def apply_effects_file(path: str | os.PathLike, effects: list[list[str]]) -> tuple[Tensor, int]:
    """Read a file and apply sox effects to it; see `apply_effects_tensor`."""
    return apply_effects_tensor(*_load(path), effects)


def _load(uri, frame_offset: int = 0, num_frames: int = -1, channels_first: bool = True) -> tuple[Tensor, int]:
    import soundfile

    samples, rate = soundfile.read(uri, num_frames, frame_offset, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples)
    return waveform.t() if channels_first else waveform, rate


def _save(uri, src: Tensor, sample_rate: int) -> None:
    import soundfile

    soundfile.write(uri, src.t().numpy(), sample_rate)
