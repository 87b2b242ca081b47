"""Scores of separated and enhanced speech with a variable number of sources."""

from __future__ import annotations

from itertools import permutations

import numpy as np


def get_metrics(
    mix: np.ndarray,
    clean: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int = 16000,
    metrics_list: tuple[str, ...] = ("si_sdr",),
    compute_permutation: bool = False,
) -> dict[str, float]:
    """Score estimated sources, and the mixture in place of each, as asteroid's `get_metrics` does.

    Args:
        mix: The mixture (1, T).
        clean: The sources (K, T).
        estimate: Their estimates (K, T).
        sample_rate: In Hz.
        metrics_list: Any of si_sdr (dB), stoi and pesq (wide band at 16 kHz).
        compute_permutation: Match estimates to sources by the best mean SI-SDR. (asteroid matches by SDR.)

    Returns:
        The mean over the sources by metric, and under `input_` and the metric that of the mixture.
    """
    mixture = np.repeat(mix[:1], len(clean), axis=0)
    if compute_permutation:
        orders = list(permutations(range(len(clean))))
        estimate = estimate[list(max(orders, key=lambda order: _mean("si_sdr", clean, estimate[list(order)], 0)))]
    results = {}
    for name in metrics_list:
        results[f"input_{name}"] = _mean(name, clean, mixture, sample_rate)
        results[name] = _mean(name, clean, estimate, sample_rate)
    return results


def _mean(name: str, references: np.ndarray, estimates: np.ndarray, rate: int) -> float:
    return float(np.mean([_MEASURES[name](one, other, rate) for one, other in zip(references, estimates, strict=True)]))


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    projection = reference * (np.sum(reference * estimate) / np.sum(reference**2))
    return float(10 * np.log10(np.sum(projection**2) / np.sum((estimate - projection) ** 2)))


def _stoi(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    from pystoi import stoi

    return float(stoi(reference, estimate, rate))


def _pesq(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    from pesq import pesq

    return float(pesq(rate, reference, estimate, "wb" if rate == 16000 else "nb"))


_MEASURES = {"si_sdr": _si_sdr, "stoi": _stoi, "pesq": _pesq}
