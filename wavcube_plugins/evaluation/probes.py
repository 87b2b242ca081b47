"""Linear probes: how much of the phones and of the speaker a representation shows to one linear layer.

A probe is a softmax layer on frozen features, in the manner of SUPERB (Yang et al. 2021) with the heads made linear,
so that what it finds was there. Phones are told frame by frame without any context, speakers by the mean and the
standard deviation over an utterance. Everything is the same for every representation: features are whitened by the
statistics of the training set, so that neither their scale nor a linear map of them matters much, and the layer is
fitted by L-BFGS from zero. The problem is convex: there is no seed and no learning rate to choose.

>>> train = [PhoneItem(features, phones, labels), ...]
>>> scores = phone_probe(train, test, num_labels=40, silence=39)
>>> print(scores.frame_accuracy, scores.phone_error_rate)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from wavcube_plugins.models.wavcube import normalise

# The encoders' frames: frame k covers the samples 320 k … 320 k + 400.
SAMPLE_RATE, HOP, WINDOW = 16000, 320, 400

# Bands of the log-mel features; with this number and this floor their phone probe was at its best (40, 80, 100 bands
# and floors from 1e-6 to 0.1 were tried). The spectrum is padded to 1024 points: with fewer, the lowest are empty.
MEL_BANDS, _MEL_FFT = 80, 1024
# Of mel power; white noise of unit variance has 40 dB more in the narrowest band.
_MEL_FLOOR = 1e-4

# The weights' penalty is that of a Gaussian prior, which counts the less the more examples there are.
_PRIOR = 10.0
# Added to the eigenvalues of the features' correlations, the second for every channel per example: what varies less is
# rounding and noise, and from few examples the small eigenvalues are not known.
_RIDGE, _RIDGE_PER_CHANNEL = 1e-2, 0.1
_ITERATIONS = 80

# Frames that a phone must last to be counted. A linear layer without context flickers: without this it makes
# twice as many phone errors, on log-mel 120 %. Two served teacher and log-mel better than one or three.
_SHORTEST_PHONE = 2


@dataclass(frozen=True)
class PhoneItem:
    """One utterance for the phone probe.

    Args:
        features: (L, C).
        phones: What is said, as numbers; silences among them are passed over.
        labels: The phone (L,) of each frame, int64, or None where only the sequence is known.

    Raises:
        ValueError: features that are not (L, C), or another number of labels.
    """

    features: Tensor
    phones: Sequence[int]
    labels: Tensor | None = None

    def __post_init__(self):
        if self.features.ndim != 2 or not len(self.features):
            raise ValueError(f"features must have shape (frames, channels), got {tuple(self.features.shape)}")
        if self.labels is not None and self.labels.shape != self.features.shape[:1]:
            raise ValueError(f"got {len(self.features)} frames of features but {len(self.labels)} labels")


@dataclass(frozen=True)
class PhoneScores:
    """What a phone probe gets right.

    Attributes:
        frame_accuracy: Share of the frames with the right label, 0 … 1; NaN where no frame has one.
        phone_error_rate: Substitutions, insertions and deletions over the phones of the reference; may exceed 1.
        frames: Frames with a label.
        phones: Phones of the reference.
    """

    frame_accuracy: float
    phone_error_rate: float
    frames: int
    phones: int


@dataclass(frozen=True)
class SpeakerScores:
    """What a speaker probe gets right: accuracy in 0 … 1 on so many utterances, of so many speakers to choose from."""

    accuracy: float
    utterances: int
    speakers: int


@dataclass(frozen=True)
class LinearProbe:
    """A fitted layer: weight (K, C) and bias (K,), for features as they come."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the likeliest label (N,) of each of the features (N, C)."""
        return F.linear(features.float(), self.weight, self.bias).argmax(-1)


def fit_probe(features: Tensor, labels: Tensor, num_labels: int, *, iterations: int = _ITERATIONS) -> LinearProbe:
    """Fit a softmax layer.

    Args:
        features: (N, C).
        labels: (N,), in 0 … num_labels - 1.
        num_labels: K.
        iterations: Of L-BFGS.

    Raises:
        ValueError: shapes that do not fit, labels out of range, or features that are not finite.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"a probe needs features (N, C) and labels (N,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_labels:
        raise ValueError(f"labels must lie in 0 … {num_labels - 1}, got {int(labels.min())} … {int(labels.max())}")
    if not torch.isfinite(features).all():
        raise ValueError("the features have NaN or infinite values")
    mean, whitening = _whitening(features)
    inputs = ((features - mean) @ whitening).float()
    weight = torch.zeros(num_labels, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(num_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")
    penalty = _PRIOR / len(inputs)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight = weight.detach().double() @ whitening.T.double()
    return LinearProbe(weight.float(), (bias.detach() - weight @ mean.double()).float())


def phone_probe(train: Sequence[PhoneItem], test: Sequence[PhoneItem], num_labels: int, *, silence: int) -> PhoneScores:
    """Train a phone probe on some utterances and score it on others.

    Args:
        train: All with labels.
        test: With labels or without.
        num_labels: K.
        silence: The label that is no phone.

    Raises:
        ValueError: nothing to train or test on, or features that do not fit.
    """
    return score_phones(fit_phone_probe(train, num_labels), test, silence=silence)


def fit_phone_probe(train: Sequence[PhoneItem], num_labels: int) -> LinearProbe:
    """Fit a phone probe on all frames of some utterances, which must all have labels."""
    labels = [item.labels for item in train if item.labels is not None]
    if not train or len(labels) < len(train):
        raise ValueError("a phone probe is trained on utterances whose frames all have labels")
    return fit_probe(torch.cat([item.features for item in train]), torch.cat(labels), num_labels)


def score_phones(probe: LinearProbe, items: Sequence[PhoneItem], *, silence: int) -> PhoneScores:
    """Score a phone probe.

    Args:
        probe: From `fit_phone_probe`.
        items: Utterances, with labels or without.
        silence: The label that is no phone.

    Raises:
        ValueError: no phones in any of the utterances.
    """
    right = frames = errors = phones = 0
    for item in items:
        found = probe(item.features)
        if item.labels is not None:
            right += int((found == item.labels).sum())
            frames += len(found)
        said = collapse(item.phones, silence=silence)
        errors += torchaudio.functional.edit_distance(
            collapse(found.tolist(), silence=silence, shortest=_SHORTEST_PHONE), said
        )
        phones += len(said)
    if not phones:
        raise ValueError("there are no phones to score on")
    return PhoneScores(right / frames if frames else math.nan, errors / phones, frames, phones)


def collapse(labels: Iterable[int], *, silence: int, shortest: int = 1) -> list[int]:
    """Return the phones of a sequence of labels: runs of the same label as one, and no silence.

    Args:
        labels: Of frames, or phones.
        silence: The label that is no phone. It keeps two phones of a kind apart.
        shortest: Shorter runs count as never seen; what they were between is joined if it is the same.
    """
    runs = [label for label, run in itertools.groupby(labels) if len(list(run)) >= shortest]
    return [label for label, _ in itertools.groupby(runs) if label != silence]


def pool(features: Tensor) -> Tensor:
    """Return the mean and the standard deviation over time (2 C,) of features (L, C), for the speaker probe."""
    return torch.cat([features.mean(0), features.std(0, correction=0)])


def speaker_probe(train: Sequence[tuple[Tensor, str]], test: Sequence[tuple[Tensor, str]]) -> SpeakerScores:
    """Train a speaker probe on some utterances and score it on others of the same speakers.

    Args:
        train: What `pool` makes of each utterance (D,), and the speaker's name.
        test: The same.

    Raises:
        ValueError: nothing to train or test on, or a test speaker who is not in the training set.
    """
    if not train or not test:
        raise ValueError("a speaker probe needs utterances to train and to test on")
    speakers = {name: index for index, name in enumerate(sorted({name for _, name in train}))}
    strangers = sorted({name for _, name in test} - speakers.keys())
    if strangers:
        raise ValueError(f"the training set has no utterance of the speaker {strangers[0]}")
    (inputs, labels), (test_inputs, test_labels) = (
        (torch.stack([pooled for pooled, _ in part]), torch.tensor([speakers[name] for _, name in part]))
        for part in (train, test)
    )
    right = fit_probe(inputs, labels, len(speakers))(test_inputs) == test_labels
    return SpeakerScores(float(right.float().mean()), len(test), len(speakers))


def frame_labels(segments: Sequence[tuple[str, float, float]], frames: int) -> list[str]:
    """Return the phone at the centre of each frame; behind the last segment, that one's.

    Args:
        segments: Label, beginning and end in seconds, one after the other without gaps.
        frames: L, of 320 samples each at 16 kHz.
    """
    centres = (np.arange(frames) * HOP + WINDOW / 2) / SAMPLE_RATE
    ends = [end for _, _, end in segments]
    positions = np.searchsorted(ends, centres, side="right").clip(max=len(ends) - 1)
    return [segments[position][0] for position in positions]


def log_mel_frames(waveform: Tensor) -> Tensor:
    """Return log-mel features on the encoders' own frames, from the samples that each of them covers.

    Args:
        waveform: (T,) at 16 kHz; its level does not matter, as it does not for the encoders.

    Returns:
        (L, 80) of 25 ms every 20 ms, natural logarithm; L = 1 + (T - 400) // 320, at least one.
    """
    waveform = normalise(waveform[None])[0]
    waveform = F.pad(waveform, (0, max(0, WINDOW - len(waveform))))
    window, bands = _mel_tables()
    frames = waveform.unfold(0, WINDOW, HOP) * window  # (L, 400)
    power = torch.fft.rfft(frames, _MEL_FFT).abs().square()  # (L, 513)
    return (power @ bands).clamp_min(_MEL_FLOOR).log()


@lru_cache(maxsize=1)
def _mel_tables() -> tuple[Tensor, Tensor]:
    """Return the window (400,), of unit energy, and the bands (513, 80)."""
    window = torch.hann_window(WINDOW)
    bands = torchaudio.functional.melscale_fbanks(_MEL_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, MEL_BANDS, SAMPLE_RATE)
    return window / window.square().sum().sqrt(), bands


def _whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) of features (N, C), and the symmetric matrix (C, C) that removes scales and correlations."""
    features = features.double()
    mean = features.mean(0)
    deviation = features.std(0, correction=0)
    # What never changes stays zero, and does not blow up where it changes after all.
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 1.0)
    centred = (features - mean) * scale
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    ridge = _RIDGE + _RIDGE_PER_CHANNEL * features.shape[1] / len(features)
    rotation = (vectors / (values.clamp_min(0) + ridge).sqrt()) @ vectors.T
    return mean.float(), (scale[:, None] * rotation).float()
