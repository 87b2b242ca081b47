"""A picture of the results: a panel of bars per metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb.results import Table, columns

COLOURS = ("#1b6ca8", "#e07b39", "#5b8c5a", "#8e5ea2", "#c0392b", "#7f8c8d", "#d4ac0d", "#16a085")
_ACROSS = 5


def draw(path: Path, table: Table, others: Table, title: str) -> None:
    """Draw a panel of bars per metric: measured rows filled, published ones hatched.

    Args:
        path: The PNG file to write.
        table: The measured rows.
        others: The published rows.
        title: Above the panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error
    metrics = columns([table, others])
    across = min(_ACROSS, len(metrics))
    down = math.ceil(len(metrics) / across)
    figure = Figure(figsize=(2.3 * across + 0.4, 2.0 * down + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axis, (task, metric) in zip(axes, metrics, strict=False):
        for label, bar in _bars(axis, task, metric, table, others).items():
            handles.setdefault(label, bar)
        _style(axis, f"{task.name.upper()}  {metric.title}", metric.higher_is_better)
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(_ACROSS, len(handles)), fontsize=7,
        frameon=False,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160)


def _bars(axis, task, metric, table: Table, others: Table) -> dict[str, Any]:
    """Draw a metric's bars and return them by their labels."""
    handles = {}
    for index, label in enumerate([*table, *others]):
        published = index >= len(table)
        cell = (others if published else table)[label].get(task.name)
        if cell is None or metric.name not in cell.scores:
            continue
        value = cell.scores[metric.name]
        bar = axis.bar(
            index, value, color=COLOURS[index % len(COLOURS)], hatch="//" if published else None,
            alpha=0.55 if published else 1.0, width=0.8,
        )  # fmt: skip
        above = "bottom" if value >= 0 else "top"
        axis.annotate(f"{value:.{metric.digits}f}", (index, value), ha="center", va=above, fontsize=6)
        handles[f"{label} (published)" if published else label] = bar
    return handles


def _style(axis, title: str, higher_is_better: bool) -> None:
    axis.set_title(title, fontsize=8, fontweight="bold")
    axis.set_xlabel("higher is better" if higher_is_better else "lower is better", fontsize=6)
    axis.set_xticks([])
    axis.tick_params(labelsize=6)
    axis.margins(y=0.15)
    if not any(bar.get_height() for bar in axis.patches):
        axis.set_ylim(0, 1)
    axis.spines[["top", "right"]].set_visible(False)
