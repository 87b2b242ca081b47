"""Removal of silence as sox does it."""

from __future__ import annotations

import torch
from torch import Tensor


def remove_silence(waveform: Tensor, sample_rate: int, *, seconds: float, level: float) -> Tensor:
    """Cut out silence as sox's `silence 1 SECONDS LEVEL% -1 SECONDS LEVEL%` does.

    Sound starts where the level stays above the threshold for `seconds` and ends where it stays below for as long. The
    level is measured over the last 20 ms, a window that starts empty after each end.

    Args:
        waveform: (T,).
        sample_rate: Its rate in Hz.
        seconds: Shortest duration of sound and of silence.
        level: Threshold, as a root mean square; 1 is full scale.

    Returns:
        The parts with sound, concatenated (T',).
    """
    window, duration = sample_rate // 50, round(seconds * sample_rate)
    energy = torch.cat([waveform.new_zeros(1, dtype=torch.float64), waveform.double().square().cumsum(0)])
    kept, start = [waveform[:0]], 0
    while start < len(waveform):
        last = torch.arange(start, len(waveform), device=waveform.device) + 1
        first = (last - window).clamp_min(start)
        loud = ((energy[last] - energy[first]) / window).clamp_min(0).sqrt() > level
        sound = _first_run(loud, duration)
        if sound is None:
            break
        silence = _first_run(~loud[sound + duration :], duration)
        end = len(waveform) if silence is None else start + sound + duration + silence
        kept.append(waveform[start + sound : end])
        start = end + duration
    return torch.cat(kept)


def _first_run(flags: Tensor, length: int) -> int | None:
    """Return where the first `length` true flags in a row begin."""
    if len(flags) < length:
        return None
    count = torch.cat([flags.new_zeros(1, dtype=torch.long), flags.long().cumsum(0)])
    runs = (count[length:] - count[:-length] == length).nonzero()
    return int(runs[0]) if len(runs) else None
