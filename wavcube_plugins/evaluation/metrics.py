"""STOI, PESQ-WB, SI-SDR and log-mel distance of an estimate against its reference.

Every metric takes two mono waveforms (T,), tensors or arrays, and their sample rate in Hz. They are compared sample by
sample: nothing is aligned, since a codec must not shift its output. If one is longer, its end is cut off.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wavcube_plugins.audio import resample
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.mel import LogMel

_PESQ_RATE = 16000
# Its C code overruns a table of fifty bursts of speech; twenty seconds cannot hold more.
_PESQ_SECONDS = 20.0
_PESQ_SHORTEST = 0.25
_STOI_RATE = 10000
# pystoi holds 2 MB per second.
_STOI_SECONDS = 600.0

Waveform = Tensor | np.ndarray


class MetricError(InputError):
    """A metric is not defined for these waveforms; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """All metrics of one pair; a metric that is not defined is NaN and has a note.

    Attributes:
        stoi: Short-time objective intelligibility, up to 1.
        pesq: PESQ wide band as a mean opinion score, 1 … 4.64.
        si_sdr: Scale-invariant signal-to-distortion ratio, in dB.
        mel_distance: Mean absolute difference of the log-mel spectrograms, in nepers.
        seconds: What was compared.
        notes: Sentences on what was cut or could not be measured.
    """

    stoi: float
    pesq: float
    si_sdr: float
    mel_distance: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, float | list[str] | None]:
        """Return the numbers by name, None where there is none, and the notes; ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "notes"}
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return {**plain, "notes": list(self.notes)}


def compare(reference: Waveform, estimate: Waveform, sample_rate: int) -> Comparison:
    """Measure everything at once.

    Args:
        reference: (T,).
        estimate: (T',); the longer of the two is cut at its end, which a note says.
        sample_rate: Of both, in Hz.

    Raises:
        ValueError: not (T,), empty, or with samples that are not finite.
        ImportError: pystoi or pesq is missing; the message names the command that installs them.
    """
    longest, shortest = max(len(reference), len(estimate)), min(len(reference), len(estimate))
    reference, estimate = _pair(reference, estimate, sample_rate)
    notes = []
    if longest > shortest:
        notes.append(f"the lengths differ by {longest - shortest} samples; the first {shortest} were compared")
    values = {}
    for name, metric in (("stoi", stoi), ("pesq", pesq), ("si_sdr", si_sdr), ("mel_distance", mel_distance)):
        try:
            values[name] = metric(reference, estimate, sample_rate)
        except MetricError as error:
            values[name] = math.nan
            notes.append(str(error))
    return Comparison(**values, seconds=shortest / sample_rate, notes=tuple(notes))


def stoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), 0 … 1 for speech, by pystoi.

    What is longer than 600 s is measured in equal parts of at most that, and the mean over those with speech is
    returned.

    Raises:
        MetricError: less than about 0.4 s of the reference is speech.
        ImportError: pystoi is missing.
    """
    reference, estimate = _pair(reference, estimate, sample_rate)
    package = _optional("pystoi")
    if not reference.any():
        raise MetricError("STOI: the reference is silent")
    # pystoi resamples with scipy, whose rational factors grow huge for odd rates; it gets its own rate here.
    reference, estimate = (_resampled(signal, sample_rate, _STOI_RATE) for signal in (reference, estimate))
    scores = []
    for part, degraded in _parts(reference, estimate, _STOI_SECONDS * _STOI_RATE):
        if not part.any():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                scores.append(package.stoi(part, degraded, _STOI_RATE))
            except (RuntimeWarning, ValueError, IndexError):
                continue
    if not scores:
        raise MetricError("STOI: needs at least 0.4 s of speech in the reference")
    return float(np.mean(scores))


def pesq(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """PESQ wide band (ITU-T P.862.2), a mean opinion score of 1.04 … 4.64, by pesq.

    Other rates are resampled to 16 kHz. What is longer than 20 s is measured in equal parts of at most that, and the
    mean over those with speech is returned.

    Raises:
        MetricError: shorter than 0.25 s, or without speech.
        ImportError: pesq is missing.
    """
    reference, estimate = _pair(reference, estimate, sample_rate)
    package = _optional("pesq")
    if len(reference) < _PESQ_SHORTEST * sample_rate:
        raise MetricError(f"PESQ: needs at least {_PESQ_SHORTEST} s, got {len(reference) / sample_rate:.3f} s")
    reference, estimate = (_resampled(signal, sample_rate, _PESQ_RATE) for signal in (reference, estimate))
    scores = []
    for part, degraded in _parts(reference, estimate, _PESQ_SECONDS * _PESQ_RATE):
        if not part.any() or not degraded.any():
            continue
        try:
            scores.append(package.pesq(_PESQ_RATE, part, degraded, "wb"))
        except (package.NoUtterancesError, package.BufferTooShortError):
            continue
    if not scores:
        raise MetricError("PESQ: found no speech")
    return float(np.mean(scores))


def si_sdr(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), in dB; infinite for a scaled copy.

    Both means are removed first.

    Raises:
        MetricError: the reference or the estimate is constant, silence among that.
    """
    reference, estimate = _pair(reference, estimate, sample_rate)
    reference, estimate = (signal - signal.mean() for signal in (reference, estimate))
    energy = float(reference @ reference)
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if float(signal @ signal) < 1e-12 * len(signal):
            raise MetricError(f"SI-SDR: the {name} is silent")
    target = (float(estimate @ reference) / energy) * reference
    noise = estimate - target
    target_energy, noise_energy = float(target @ target), float(noise @ noise)
    if noise_energy == 0:
        return math.inf
    return 10 * math.log10(target_energy / noise_energy) if target_energy else -math.inf


def mel_distance(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Mean absolute difference of the two log-mel spectrograms, as the training loss has it; 0 for equal waveforms.

    Defined for silence too: the logarithm is floored at 1e-7.
    """
    reference, estimate = _pair(reference, estimate, sample_rate)
    pair = [log_mel(torch.from_numpy(signal).float(), sample_rate) for signal in (reference, estimate)]
    return float((pair[0] - pair[1]).abs().mean())


def log_mel(waveform: Tensor, sample_rate: int) -> Tensor:
    """Return the training loss's log-mel spectrogram (..., 100, 1 + T // 256) of a waveform (..., T)."""
    return _log_mel(sample_rate)(waveform)


_log_mel = lru_cache(maxsize=8)(LogMel)


def _pair(reference: Waveform, estimate: Waveform, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Check both waveforms and return them as float64 arrays of the same length."""
    if sample_rate < 1:
        raise ValueError(f"the sample rate must be positive, got {sample_rate}")
    signals = []
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if isinstance(signal, Tensor):
            signal = signal.detach().cpu().numpy()
        signal = np.asarray(signal)
        if signal.ndim != 1 or not len(signal):
            raise ValueError(f"the {name} must be a mono waveform (T,) with samples, got shape {signal.shape}")
        if not np.issubdtype(signal.dtype, np.floating):
            raise ValueError(f"the {name} must be floating point in -1 … 1, got {signal.dtype}")
        if not np.isfinite(signal).all():
            raise ValueError(f"the {name} has samples that are NaN or infinite")
        signals.append(signal.astype(np.float64))
    length = min(len(signal) for signal in signals)
    return signals[0][:length], signals[1][:length]


def _parts(reference: np.ndarray, estimate: np.ndarray, longest: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return equal parts of at most so many samples of both, pair by pair."""
    count = math.ceil(len(reference) / longest)
    return zip(np.array_split(reference, count), np.array_split(estimate, count), strict=True)


def _resampled(signal: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    return resample(torch.from_numpy(signal), source_rate, target_rate).numpy()


def _optional(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"this metric needs {package}; from a clone: pip install '.[eval]'") from error
