"""Reading speech at the model's sample rate, or refusing it."""

from __future__ import annotations

import os

from torch import Tensor

from wavcube_plugins.audio import AudioError, read_audio, read_info


def check_rate(path: str | os.PathLike, rate: int, sample_rate: int, remedy: str) -> None:
    """Check that a file of `rate` Hz can go into a model of `sample_rate` Hz.

    Raises:
        AudioError: it cannot; the message names both rates and says what to do.
    """
    if rate != sample_rate:
        raise AudioError(
            f"{path}: has a sample rate of {rate} Hz, but the model takes {sample_rate} Hz; {remedy} converts it"
        )


def read_speech(
    path: str | os.PathLike, sample_rate: int, *, resample: bool = False, remedy: str = "resample=True"
) -> Tensor:
    """Read a file as a mono waveform (T,).

    Args:
        path: Any format libsndfile reads; several channels are averaged, with a warning.
        sample_rate: What the model takes, in Hz.
        resample: Convert another rate; False refuses it.
        remedy: What converts it, for the message.

    Raises:
        AudioError: an unreadable or broken file, or another sample rate; the message names the file.
    """
    if not resample:
        check_rate(path, read_info(path).sample_rate, sample_rate, remedy)
    return read_audio(path, sample_rate)
