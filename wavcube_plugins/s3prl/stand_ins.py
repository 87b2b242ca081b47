"""Stand-ins for small packages that a few of s3prl's tasks import and hardly use.

`offer` puts a finder behind all others: an installed package always wins, and a stand-in is made only when a missing
package is imported. `wavcube_plugins.s3prl.run` calls it.

    catalyst    keyword spotting's sampler for several GPUs
    dtw         query by example's dynamic time warping with asymmetric steps, for dtw-python
    lxml        the few XML elements that query by example writes, from the standard library
    sox         pysox's Transformer, which speaker verification imports and never uses
    asteroid    the metrics of enhancement and separation
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch.utils.data import DistributedSampler


class StandInFinder:
    """A finder for `sys.meta_path` that knows the modules of `CONTENTS`."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in CONTENTS:
            return None
        parent = name.partition(".")[0]
        # Nothing is added to an installed package.
        if name != parent and not getattr(sys.modules.get(parent), "stand_in", False):
            return None
        return ModuleSpec(name, StandInFinder, origin="a stand-in of wavcube_plugins", is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        if "." not in module.__name__:
            print(f"wavcube: stand-in for {module.__name__}, which is not installed", file=sys.stderr)
        vars(module).update(stand_in=True, **CONTENTS[module.__name__]())


def offer() -> None:
    """Make the stand-ins importable, behind everything that is installed."""
    finders: list[Any] = sys.meta_path
    if StandInFinder not in finders:
        finders.append(StandInFinder)


class DistributedSamplerWrapper(DistributedSampler):
    """Divides what another sampler draws among the processes of a distributed run.

    Args:
        sampler: Draws indices anew in every process; with the same seed everywhere they are the same.
        options: Of `DistributedSampler`.
    """

    def __init__(self, sampler, **options: Any):
        self.inner = sampler
        super().__init__(range(len(sampler)), **{"shuffle": False, **options})  # type: ignore[arg-type]

    def __iter__(self):
        drawn = list(self.inner)
        return (drawn[index] for index in super().__iter__())


class _PrettyTree(ElementTree.ElementTree):
    def write(self, path, *, pretty_print: bool = False, **options):
        if pretty_print:
            ElementTree.indent(self)
        super().write(path, **options)


def _unusable(name: str, package: str) -> type:
    def refuse(self, *arguments, **options):
        raise ImportError(f"{name} needs the package {package}: pip install {package}")

    return type(name.rpartition(".")[2], (), {"__init__": refuse})


def _dtw() -> dict[str, Any]:
    from wavcube_plugins.evaluation.warping import warp

    return {"dtw": warp}


def _metrics() -> dict[str, Any]:
    from wavcube_plugins.evaluation.separation import get_metrics

    return {"get_metrics": get_metrics}


def _etree() -> dict[str, Any]:
    return {
        "Element": ElementTree.Element, "SubElement": ElementTree.SubElement, "ElementTree": _PrettyTree
    }  # fmt: skip


# What each module holds, made when it is imported.
CONTENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "catalyst": dict,
    "catalyst.data": dict,
    "catalyst.data.sampler": lambda: {"DistributedSamplerWrapper": DistributedSamplerWrapper},
    "dtw": _dtw,
    "lxml": dict,
    "lxml.etree": _etree,
    "sox": lambda: {"Transformer": _unusable("sox.Transformer", "sox")},
    "asteroid": dict,
    "asteroid.metrics": _metrics,
    "asteroid.losses": lambda: {"PITLossWrapper": _unusable("asteroid.losses.PITLossWrapper", "asteroid")},
}
