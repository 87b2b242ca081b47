"""Dynamic time warping with asymmetric steps, for query by example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wavcube_plugins.errors import InputError


class WarpingError(InputError):
    """Two sequences cannot be aligned, or not in the way asked for."""


@dataclass
class Warping:
    """The result of dynamic time warping: the total distance, and the distance per element of the query."""

    distance: float
    normalizedDistance: float


def warp(
    x: np.ndarray,
    step_pattern: str = "asymmetric",
    open_begin: bool = False,
    open_end: bool = False,
    keep_internals: bool = False,
    distance_only: bool = False,
) -> Warping:
    """Align a query with a document, or with a part of it, as dtw-python's `dtw` does.

    Args:
        x: Local distances (query, document).
        step_pattern: Must be "asymmetric": every step takes one element of the query and zero, one or two of the
            document.
        open_begin: Whether the alignment may begin anywhere in the document.
        open_end: Whether it may end anywhere.
        keep_internals: Must be False.
        distance_only: Makes no difference; only the distance is computed.

    Raises:
        WarpingError: another step pattern, or no alignment exists.
    """
    if step_pattern != "asymmetric" or keep_internals:
        raise WarpingError(f"the step pattern {step_pattern!r} needs dtw-python: pip install dtw-python")
    total = np.asarray(x[0], dtype=float).copy()
    if not open_begin:
        total[1:] = np.inf
    for row in x[1:]:
        best = total.copy()
        best[1:] = np.minimum(best[1:], total[:-1])
        best[2:] = np.minimum(best[2:], total[:-2])
        total = best + row
    distance = float(total.min() if open_end else total[-1])
    if not np.isfinite(distance):
        raise WarpingError("no alignment: the document is more than twice as long as the query")
    return Warping(distance, distance / len(x))
