"""A log-mel spectrogram at the latent's frame rate, and a way back: the baseline that the latent is compared with.

>>> mel = mel_spectrogram(waveform)      # (L, 100), 50 frames per second
>>> waveform = mel_to_waveform(mel)      # (320 L,), by Griffin-Lim
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

SAMPLE_RATE, HOP, BANDS = 16000, 320, 100
_FFT = 1024
_FLOOR = 1e-5
# Three times as many change STOI by less than 0.01.
_ITERATIONS = 16


def mel_spectrogram(waveform: Tensor) -> Tensor:
    """Return the log-mel spectrogram of a waveform.

    Args:
        waveform: (T,) at 16 kHz; zeros are added to its end to fill a last hop.

    Returns:
        (L, 100) magnitudes, natural logarithm; L = ceil(T / 320).
    """
    frames = -(-len(waveform) // HOP)
    side = (_FFT - HOP) // 2
    padded = F.pad(waveform, (side, frames * HOP - len(waveform) + side))
    spectrum = torch.stft(padded, _FFT, HOP, window=torch.hann_window(_FFT), center=False, return_complex=True)
    return (spectrum.abs().T @ _bands()).clamp_min(_FLOOR).log()


def mel_to_waveform(mel: Tensor) -> Tensor:
    """Turn a log-mel spectrogram (L, 100) into a waveform (320 L,), by Griffin-Lim."""
    magnitude = (mel.exp() @ _inverse_bands()).clamp_min(0.0).T  # (F, L)
    window = torch.hann_window(_FFT)
    # The same phases at every call.
    angles = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * (2 * torch.pi)
    padded = (magnitude.shape[1] - 1) * HOP + _FFT
    side = (_FFT - HOP) // 2

    def inverse(spectrum: Tensor) -> Tensor:
        frames = torch.fft.irfft(spectrum, _FFT, dim=0) * window[:, None]  # (1024, L)
        weights = (window.square()[:, None]).expand_as(frames)
        total, weight = (
            F.fold(part[None], (1, padded), (1, _FFT), stride=(1, HOP)).flatten() for part in (frames, weights)
        )
        return total / weight.clamp_min(1e-3)

    spectrum = torch.polar(magnitude, angles)
    previous = torch.zeros_like(spectrum)
    for _ in range(_ITERATIONS):
        rebuilt = torch.stft(inverse(spectrum), _FFT, HOP, window=window, center=False, return_complex=True)
        # The fast variant (Perraudin et al. 2013).
        phase = rebuilt + 0.99 * (rebuilt - previous)
        spectrum = magnitude * phase / phase.abs().clamp_min(1e-12)
        previous = rebuilt
    return inverse(spectrum)[side : padded - side]


@lru_cache(maxsize=1)
def _bands() -> Tensor:
    return torchaudio.functional.melscale_fbanks(_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE)


@lru_cache(maxsize=1)
def _inverse_bands() -> Tensor:
    return torch.linalg.pinv(_bands())
