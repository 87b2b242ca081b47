"""Stand-ins for small packages that a few of s3prl's tasks import and hardly use.

`offer` puts a finder behind all others, so that an installed package is always taken, and a stand-in is made only at
the moment a missing one is imported. `wavcube_plugins.s3prl.run` calls it.

    catalyst    keyword spotting's sampler for several GPUs
    dtw         query by example's dynamic time warping with asymmetric steps, for dtw-python
    lxml        the few elements of XML that query by example writes, by Python's own library
    sox         pysox's Transformer, which speaker verification imports and never uses
    asteroid    the metrics of enhancement and separation
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import permutations
from types import ModuleType
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler


class StandInFinder:
    """A finder for `sys.meta_path` that knows the modules of `CONTENTS`."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in CONTENTS:
            return None
        parent = name.partition(".")[0]
        # Below an installed package nothing is added.
        if name != parent and not getattr(sys.modules.get(parent), "stand_in", False):
            return None
        return ModuleSpec(name, StandInFinder, origin="a stand-in of wavcube_plugins", is_package=True)

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        if "." not in module.__name__:
            print(f"wavcube: stand-in for {module.__name__}, which is not installed", file=sys.stderr)
        module.stand_in = True
        vars(module).update(CONTENTS[module.__name__])


def offer() -> None:
    """Make the stand-ins known to Python's import, behind everything that is installed."""
    if StandInFinder not in sys.meta_path:
        sys.meta_path.append(StandInFinder)


class DistributedSamplerWrapper(DistributedSampler):
    """Shares what another sampler draws among the processes of a distributed run.

    Args:
        sampler: Draws indices, anew in every process; with the same seed everywhere they are the same.
        options: Of `DistributedSampler`.
    """

    def __init__(self, sampler, **options: Any):
        self.inner = sampler
        super().__init__(range(len(sampler)), **{"shuffle": False, **options})

    def __iter__(self):
        drawn = list(self.inner)
        return (drawn[index] for index in super().__iter__())


@dataclass
class Warping:
    """What dynamic time warping found: the total distance, and that per element of the query."""

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
    """Align a query with a document, or with any part of it, as dtw-python's `dtw` does.

    Args:
        x: Local distances (query, document).
        step_pattern: "asymmetric": every step takes one element of the query and none, one or two of the document.
        open_begin: The part may begin anywhere.
        open_end: It may end anywhere.
        keep_internals: Not supported, nothing is kept.
        distance_only: No difference.

    Raises:
        ValueError: another step pattern, or no alignment exists.
    """
    if step_pattern != "asymmetric" or keep_internals:
        raise ValueError(f"the step pattern {step_pattern!r} needs dtw-python: pip install dtw-python")
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
        raise ValueError("no alignment: the document is more than twice as long as the query")
    return Warping(distance, distance / len(x))


def get_metrics(
    mix: np.ndarray,
    clean: np.ndarray,
    estimate: np.ndarray,
    sample_rate: int = 16000,
    metrics_list: tuple[str, ...] = ("si_sdr",),
    compute_permutation: bool = False,
) -> dict[str, float]:
    """Measure estimated sources, and the mixture in their place, as asteroid's `get_metrics` does.

    Args:
        mix: The mixture (1, T).
        clean: The sources (K, T).
        estimate: Estimates of them (K, T).
        sample_rate: In Hz.
        metrics_list: Of si_sdr (dB), stoi and pesq (wide band at 16 kHz).
        compute_permutation: Match estimates to sources by the best mean SI-SDR. (asteroid matches by SDR.)

    Returns:
        The mean over the sources by name, and that of the mixture with `input_` before the name.
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


class _PrettyTree(ElementTree.ElementTree):
    def write(self, path, *, pretty_print: bool = False, **options):
        if pretty_print:
            ElementTree.indent(self)
        super().write(path, **options)


def _unusable(name: str, package: str) -> type:
    def refuse(self, *arguments, **options):
        raise ImportError(f"{name} needs the package {package}: pip install {package}")

    return type(name.rpartition(".")[2], (), {"__init__": refuse})


CONTENTS: dict[str, dict[str, Any]] = {
    "catalyst": {},
    "catalyst.data": {},
    "catalyst.data.sampler": {"DistributedSamplerWrapper": DistributedSamplerWrapper},
    "dtw": {"dtw": warp},
    "lxml": {},
    "lxml.etree": {
        "Element": ElementTree.Element, "SubElement": ElementTree.SubElement, "ElementTree": _PrettyTree
    },
    "sox": {"Transformer": _unusable("sox.Transformer", "sox")},
    "asteroid": {},
    "asteroid.metrics": {"get_metrics": get_metrics},
    "asteroid.losses": {"PITLossWrapper": _unusable("asteroid.losses.PITLossWrapper", "asteroid")},
}  # fmt: skip
