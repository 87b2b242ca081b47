"""What happens to speech between a mouth and a recogniser: second talkers, rooms, filters, noise; a batch at a time.

Everything is drawn from one seed, so that the same batch is always disturbed in the same way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The share of crops that each disturbance falls upon. A fifth stays clean.
CLEAN, TALKER, ROOM, FILTER, NOISE = 0.2, 0.25, 0.35, 0.5, 0.6


def disturb(waveforms: Tensor, seed: int, sample_rate: int = 16000) -> Tensor:
    """Return a disturbed copy of waveforms (B, T); everything stays at its time.

    Args:
        waveforms: Crops of clean speech by different speakers.
        seed: What is drawn depends on it alone.
        sample_rate: In Hz.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    batch, samples = waveforms.shape

    def chance(share: float) -> Tensor:
        return (torch.rand(batch, 1, generator=generator) < share).float()

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator)

    disturbed = 1 - chance(CLEAN)
    loudness = _rms(waveforms)
    talkers = _talkers(waveforms, generator) * loudness * 10 ** (-between(2, 20) / 20)
    output = waveforms + disturbed * chance(TALKER) * talkers
    # Rooms and filters are one product in the frequency domain.
    size = 2 ** math.ceil(math.log2(samples + sample_rate // 2))
    room = _rooms(generator, between(0.1, 0.5), between(2, 14), size, sample_rate) - 1
    gains = _equalisers(batch, generator, size, sample_rate) - 1
    response = (1 + disturbed * chance(ROOM) * room) * (1 + disturbed * chance(FILTER) * gains)
    output = torch.fft.irfft(torch.fft.rfft(output, size) * response, size)[:, :samples]
    noise = _noises(batch, samples, generator, between(0, 1.2), sample_rate)
    ratio = 10 ** (-between(0, 30) / 20)
    return output + disturbed * chance(NOISE) * noise * _rms(output) * ratio


def _rms(waveforms: Tensor) -> Tensor:
    return waveforms.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def _talkers(waveforms: Tensor, generator: torch.Generator) -> Tensor:
    """Return for every crop another one of the batch, of unit loudness, heard for at most the half of it."""
    batch, samples = waveforms.shape
    others = waveforms.roll(1, 0)
    others = others / _rms(others)
    length = (torch.rand(batch, 1, generator=generator) * 0.4 + 0.1) * samples
    start = torch.rand(batch, 1, generator=generator) * (samples - length)
    position = torch.arange(samples)[None]
    return others * ((position >= start) & (position < start + length))


def _rooms(generator: torch.Generator, seconds: Tensor, below: Tensor, size: int, sample_rate: int) -> Tensor:
    """Return spectra of rooms: the direct sound, and after it noise that fades by 60 dB in some seconds (B, 1)."""
    samples = sample_rate // 2
    time = torch.arange(samples)[None] / sample_rate
    tails = torch.randn(len(seconds), samples, generator=generator) * 10 ** (-3 * time / seconds)
    # Walls swallow high frequencies first.
    tails = 0.5 * tails + 0.25 * (tails.roll(1, 1) + tails.roll(-1, 1))
    tails[:, :80] = 0
    tails = tails / tails.norm(dim=1, keepdim=True) * 10 ** (-below / 20)
    tails[:, 0] = 1
    return torch.fft.rfft(tails, size)


def _equalisers(batch: int, generator: torch.Generator, size: int, sample_rate: int) -> Tensor:
    """Return smooth gains of up to 10 dB each way, every fourth with the band of a telephone or less than all of it."""
    frequencies = torch.fft.rfftfreq(size, 1 / sample_rate)
    anchors = (torch.rand(batch, 1, 7, generator=generator) * 2 - 1) * 10
    octaves = frequencies.clamp_min(60).div(60).log2() / math.log2(sample_rate / 120)  # 0 … 1
    position = octaves * 6
    left = position.long().clamp(max=5)
    share = (1 - torch.cos(math.pi * (position - left))) / 2
    decibels = anchors[:, 0, left] * (1 - share) + anchors[:, 0, left + 1] * share
    limited = (torch.rand(batch, 1, generator=generator) < 0.25).float()
    high = 3000 + 4000 * torch.rand(batch, 1, generator=generator)
    low = 300 * torch.rand(batch, 1, generator=generator)
    above = torch.log2(frequencies.clamp_min(1) / high).clamp_min(0)
    beneath = torch.log2(low / frequencies.clamp_min(1)).clamp(0, 3)
    decibels = decibels - limited * (48 * above + 24 * beneath)
    return 10 ** (decibels / 20)


def _noises(batch: int, samples: int, generator: torch.Generator, slope: Tensor, sample_rate: int) -> Tensor:
    """Return slowly swelling noise of unit loudness whose magnitudes fall with the frequency to given powers (B, 1)."""
    size = 2 ** math.ceil(math.log2(samples))
    spectrum = torch.fft.rfft(torch.randn(batch, size, generator=generator))
    frequencies = torch.fft.rfftfreq(size, 1 / sample_rate).clamp_min(40)
    noise = torch.fft.irfft(spectrum * (frequencies / 1000) ** -slope, size)[:, :samples]
    swell = torch.rand(batch, 3, generator=generator) * 1.5 - 0.75
    envelope = torch.nn.functional.interpolate(swell[:, None], size=samples, mode="linear", align_corners=True)[:, 0]
    noise = noise * envelope.exp()
    return noise / _rms(noise)
