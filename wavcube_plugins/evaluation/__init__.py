"""Measuring and showing how close a waveform is to its reference.

>>> from wavcube_plugins.evaluation import compare, save_comparison
>>> comparison = compare(reference, estimate, 16000)
>>> print(comparison.stoi, comparison.notes)
>>> save_comparison("comparison.png", reference, estimate, 16000)
"""

from wavcube_plugins.evaluation.metrics import (
    Comparison,
    MetricError,
    compare,
    log_mel,
    mel_distance,
    pesq,
    si_sdr,
    stoi,
)
from wavcube_plugins.evaluation.plots import save_comparison, save_curves

__all__ = [
    "Comparison",
    "MetricError",
    "compare",
    "log_mel",
    "mel_distance",
    "pesq",
    "save_comparison",
    "save_curves",
    "si_sdr",
    "stoi",
]
