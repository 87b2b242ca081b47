"""Log-mel spectrograms: that of loss, metric and pictures, and one at the latent's frame rate with a way back.

The second is the baseline that the latent is compared with:

>>> mel = mel_spectrogram(waveform)      # (L, 100), 50 frames per second
>>> waveform = mel_to_waveform(mel)      # (320 L,), by Griffin-Lim
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

SAMPLE_RATE, HOP, BANDS = 16000, 320, 100
_FFT = 1024
_FLOOR = 1e-5
# Three times as many change STOI by less than 0.01.
_ITERATIONS = 16

# Of the log-mel spectrogram in loss, metric and pictures: window and hop in samples, bands, least magnitude.
MEL_N_FFT, MEL_HOP, MEL_BANDS, MEL_FLOOR = 1024, 256, 100, 1e-7


class LogMel(nn.Module):
    """Log-mel spectrogram: magnitudes of centred windows in mel bands, natural logarithm with a floor.

    Args:
        sample_rate: In Hz.
        n_fft: Window in samples; hop and bands are in proportion, a quarter and about a tenth of it.
    """

    def __init__(self, sample_rate: int = 16000, n_fft: int = MEL_N_FFT):
        super().__init__()
        self.n_fft = n_fft
        with warnings.catch_warnings():
            # At high rates the lowest bands fall between two bins and stay at the floor.
            warnings.simplefilter("ignore", UserWarning)
            self.transform = torchaudio.transforms.MelSpectrogram(
                sample_rate,
                n_fft=n_fft,
                hop_length=n_fft * MEL_HOP // MEL_N_FFT,
                n_mels=n_fft * MEL_BANDS // MEL_N_FFT,
                center=True,
                power=1,
            )

    def forward(self, waveforms: Tensor) -> Tensor:
        """Turn waveforms (..., T) into (..., bands, 1 + T // hop), in float32; the default window has 100 and 256."""
        # Reflection at the edges needs more samples than half a window.
        shortage = self.n_fft // 2 + 1 - waveforms.shape[-1]
        if shortage > 0:
            waveforms = F.pad(waveforms, (0, shortage))
        with torch.autocast(waveforms.device.type, enabled=False):
            return self.transform(waveforms.float()).clamp_min(MEL_FLOOR).log()


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
    window = torch.hann_window(_FFT, dtype=padded.dtype)
    spectrum = torch.stft(padded, _FFT, HOP, window=window, center=False, return_complex=True)
    return (spectrum.abs().T @ _bands()).clamp_min(_FLOOR).log()


def mel_to_waveform(mel: Tensor) -> Tensor:
    """Turn a log-mel spectrogram (L, 100) into a waveform (320 L,), by Griffin-Lim."""
    magnitude = (mel.exp() @ _inverse_bands()).clamp_min(0.0).T  # (F, L)
    window = torch.hann_window(_FFT, dtype=mel.dtype)
    # The same phases at every call.
    angles = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0), dtype=mel.dtype) * (2 * torch.pi)
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
    return torchaudio.functional.melscale_fbanks(_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE).float()


@lru_cache(maxsize=1)
def _inverse_bands() -> Tensor:
    return torch.linalg.pinv(_bands())
