"""The scores that s3prl leaves to other tools: diarization error, term-weighted value, mel-cepstral distortion."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wavcube_plugins.errors import InputError

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)

# QUESST 2014's prior and costs (the challenge's evaluation plan).
PRIOR, MISS_COST, FALSE_ALARM_COST = 0.0008, 100.0, 1.0

Turn = tuple[str, float, float]


class ScoringError(InputError):
    """A score is not defined for what a run left."""


# Diarization ----------------------------------------------------------------------------------------------------------


def read_rttm(path: Path) -> dict[str, list[Turn]]:
    """Return the turns (speaker, start, end), in seconds, of every recording of an RTTM file."""
    turns: dict[str, list[Turn]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split()
        if parts and parts[0] == "SPEAKER":
            start, duration = float(parts[3]), float(parts[4])
            turns.setdefault(parts[1], []).append((parts[7], start, start + duration))
    return turns


def turns_of(activity: np.ndarray, seconds_per_frame: float) -> list[Turn]:
    """Return the turns in a matrix of activity (L, speakers), whose frames are zeros and ones."""
    turns = []
    for speaker in range(activity.shape[1]):
        edges = np.flatnonzero(np.diff(np.pad(activity[:, speaker].astype(int), 1)))
        turns += [
            (str(speaker), start * seconds_per_frame, end * seconds_per_frame)
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
    return turns


def diarization_errors(reference: Sequence[Turn], hypothesis: Sequence[Turn]) -> tuple[float, float]:
    """Return the seconds in error, and the seconds of reference speech, of one recording.

    Missed, falsely detected and confused speech count once for every speaker who talks, so overlaps count twice; there
    is no collar, and speakers are mapped one to one in the best way. The DER of NIST and dscore is the ratio of the
    two, each summed over recordings.
    """
    from scipy.optimize import linear_sum_assignment

    edges = sorted({time for _, start, end in [*reference, *hypothesis] for time in (start, end)})
    names = [sorted({who for who, _, _ in turns}) for turns in (reference, hypothesis)]
    if not edges:
        return 0.0, 0.0
    lengths = np.diff(edges)
    talking = []
    for turns, people in zip((reference, hypothesis), names, strict=True):
        active = np.zeros((len(people), len(lengths)), dtype=bool)
        for who, start, end in turns:
            active[people.index(who), np.searchsorted(edges, start) : np.searchsorted(edges, end)] = True
        talking.append(active)
    together = (talking[0].astype(float) * lengths) @ talking[1].T.astype(float)  # (reference, hypothesis) seconds
    rows, columns = linear_sum_assignment(together, maximize=True)
    counts = [active.sum(axis=0) for active in talking]
    scored = float((counts[0] * lengths).sum())
    errors = float((np.maximum(*counts) * lengths).sum()) - float(together[rows, columns].sum())
    return errors, scored


def least_diarization_error(
    predictions: Mapping[str, np.ndarray], reference: Mapping[str, Sequence[Turn]], seconds_per_frame: float
) -> tuple[float, float, int]:
    """Return the least DER over SUPERB's thresholds and median filters, the threshold and the filter's frames.

    Args:
        predictions: Probabilities (L, speakers) for every recording.
        reference: The turns of every recording.
        seconds_per_frame: The hop of the predictions.

    Raises:
        ScoringError: a recording has no prediction, or nobody talks in the reference.
    """
    from scipy.signal import medfilt

    missing = sorted(set(reference) - set(predictions))
    if missing:
        raise ScoringError(f"{len(missing)} of {len(reference)} recordings have no prediction, {missing[0]} among them")
    best = (math.inf, 0.0, 0)
    for median in MEDIANS:
        for threshold in THRESHOLDS:
            errors = scored = 0.0
            for name, turns in reference.items():
                active = (predictions[name] > threshold).astype(float)
                if median > 1:
                    active = medfilt(active, (median, 1))
                error, total = diarization_errors(turns, turns_of(active, seconds_per_frame))
                errors, scored = errors + error, scored + total
            if not scored:
                raise ScoringError("nobody talks in the reference of the test set")
            best = min(best, (errors / scored, threshold, median))
    return best


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """Read the probabilities that s3prl's diarization task writes, by the name of the recording."""
    import h5py

    predictions = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            predictions[path.stem] = np.asarray(file["T_hat"])
    return predictions


# Query by example -----------------------------------------------------------------------------------------------------


def read_detections(path: Path) -> dict[str, dict[str, float]]:
    """Return the score of every document for every query, from s3prl's `benchmark.stdlist.xml`."""
    scores: dict[str, dict[str, float]] = {}
    for query in ElementTree.parse(path).getroot().iter("detected_termlist"):
        scores[query.attrib["termid"]] = {
            term.attrib["file"]: float(term.attrib["score"]) for term in query.iter("term")
        }
    return scores


def read_truth(path: Path, queries: Iterable[str], documents: Iterable[str]) -> dict[str, set[str]]:
    """Return the documents that contain each query, from a ground truth in RTTM, one line per occurrence.

    Every line that names a document and a query counts, whatever its columns are.
    """
    queries, documents = set(queries), set(documents)
    truth: dict[str, set[str]] = {query: set() for query in queries}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = re.split(r"\s+", line.strip())
        for query in queries.intersection(words):
            truth[query] |= documents.intersection(words)
    return truth


def maximum_term_weighted_value(scores: Mapping[str, Mapping[str, float]], truth: Mapping[str, set[str]]) -> float:
    """Return the greatest, over thresholds, of 1 - mean over queries of (missed + beta * falsely found).

    Queries that occur nowhere do not count. The two rates are relative to the documents with and without the query.

    Raises:
        ScoringError: no query occurs in any document.
    """
    beta = FALSE_ALARM_COST / MISS_COST * (1 / PRIOR - 1)
    rises = []  # (score, gain of accepting it)
    asked = 0
    for query, documents in scores.items():
        hits = truth.get(query, set()) & documents.keys()
        if not hits:
            continue
        asked += 1
        others = len(documents) - len(hits)
        rises += [
            (score, 1 / len(hits) if name in hits else -beta / max(others, 1)) for name, score in documents.items()
        ]
    if not asked:
        raise ScoringError("no query occurs in any document of the ground truth")
    rises.sort(reverse=True)
    best = total = 0.0
    for index, (score, gain) in enumerate(rises):
        total += gain
        if index + 1 == len(rises) or rises[index + 1][0] != score:
            best = max(best, total / asked)
    return best


# Voice conversion -----------------------------------------------------------------------------------------------------

_ORDER, _ALPHA, _SHIFT_MS, _FFT = 39, 0.466, 5.0, 1024
_POWER_DB = -20.0


def mel_cepstrum(spectra: np.ndarray, order: int = _ORDER, alpha: float = _ALPHA) -> np.ndarray:
    """Return mel-cepstra (L, order + 1) of power spectra (L, n_fft / 2 + 1), by a bilinear warp of the frequency axis.

    This is SPTK's `sp2mc`: the inverse transform of the logarithm, its first coefficient halved, warped.
    """
    cepstra = np.fft.irfft(np.log(spectra), axis=1)
    half = cepstra.shape[1] // 2
    cepstra = cepstra[:, : half + 1]
    cepstra[:, 0] /= 2
    warped = np.zeros((len(spectra), order + 1))
    for index in range(half, -1, -1):
        before = warped.copy()
        warped[:, 0] = cepstra[:, index] + alpha * before[:, 0]
        warped[:, 1] = (1 - alpha**2) * before[:, 0] + alpha * before[:, 1]
        for m in range(2, order + 1):
            warped[:, m] = before[:, m - 1] + alpha * (before[:, m] - warped[:, m - 1])
    return warped


def mel_cepstral_distortion(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Return the mel-cepstral distortion in dB between two utterances of one sentence, as in s3prl's VC task.

    WORLD's spectra every 5 ms, mel-cepstra of order 39 including coefficient 0, frames louder than 20 dB below the
    mean, dynamic time warping by Euclidean distance. The warping is exact; s3prl approximates it with `fastdtw`.

    Args:
        reference: Samples (T,) in -1 … 1.
        estimate: Samples (T',).
        rate: The sample rate of both, in Hz.

    Raises:
        ScoringError: one of them is silent.
        ImportError: pyworld or librosa is missing.
    """
    import librosa

    features = []
    for samples, name in ((reference, "reference"), (estimate, "converted speech")):
        spectra = _world_spectra(samples, rate)
        power = 2 * spectra.sum(axis=1) - spectra[:, 0] - spectra[:, -1]
        if not power.max() > 1e-3:
            raise ScoringError(f"the {name} is silent")
        loud = 10 * np.log10(power / power.mean()) > _POWER_DB
        features.append(mel_cepstrum(spectra[loud]))
    _, path = librosa.sequence.dtw(features[1].T, features[0].T, metric="euclidean")
    difference = features[1][path[:, 0]] - features[0][path[:, 1]]
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * (difference**2).sum(axis=1))))


def _world_spectra(samples: np.ndarray, rate: int) -> np.ndarray:
    try:
        import pyworld
    except ImportError as error:
        raise ImportError("the mel-cepstral distortion needs pyworld: pip install pyworld") from error
    from scipy.signal import firwin, lfilter

    wave = lfilter(firwin(255, 70, fs=rate, pass_zero=False), 1, np.asarray(samples, dtype=np.float64) * 32767)
    world: Any = pyworld  # a compiled module without types
    f0, time = world.harvest(wave, rate, f0_floor=50.0, f0_ceil=500.0, frame_period=_SHIFT_MS)
    return world.cheaptrick(wave, f0, time, rate, fft_size=_FFT)
