"""Pictures: two waveforms with their spectrograms, and learning curves.

Figures are built with matplotlib's objects alone, so that no window system, style or backend of the caller is touched.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavcube_plugins.evaluation.metrics import Comparison, Waveform, log_mel
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.mel import MEL_BANDS, MEL_HOP

# Decibels between black and the brightest colour: what is fainter cannot be heard beside it.
_RANGE_DB = 80.0
_TICKS_HZ = (200, 500, 1000, 2000, 4000, 8000, 16000)
_COLOURS = ("#1f5fa8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#5c6b73")
_INK, _FAINT = "#2b2b33", "#d9d9de"
# Columns of the waveform's envelope: more cannot be seen.
_COLUMNS = 1600


def save_comparison(
    path: str | os.PathLike,
    reference: Waveform,
    estimate: Waveform,
    sample_rate: int,
    *,
    title: str | None = None,
    names: tuple[str, str] = ("reference", "estimate"),
    comparison: Comparison | None = None,
) -> Path:
    """Save a picture of two waveforms (T,), each above its log-mel spectrogram, on one time and one colour scale.

    Args:
        path: Where to; the suffix chooses the format (.png, .pdf, .svg …).
        reference: (T,), in -1 … 1.
        estimate: (T',); the time axis covers the longer one.
        sample_rate: Of both, in Hz.
        title: Line above the picture.
        names: What the two are called in it.
        comparison: Its numbers are written below the title.

    Returns:
        The path.

    Raises:
        ValueError: not waveforms, or a suffix matplotlib cannot write.
        ImportError: matplotlib is missing; the message names the command that installs it.
    """
    figure = comparison_figure(reference, estimate, sample_rate, title=title, names=names, comparison=comparison)
    return _save(figure, path)


def save_curves(
    path: str | os.PathLike,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str = "step",
    ylabel: str = "",
    title: str | None = None,
) -> Path:
    """Save learning curves: a line of (x, y) points for every name. Returns the path."""
    return _save(curves_figure(curves, xlabel=xlabel, ylabel=ylabel, title=title), path)


def comparison_figure(
    reference: Waveform,
    estimate: Waveform,
    sample_rate: int,
    *,
    title: str | None = None,
    names: tuple[str, str] = ("reference", "estimate"),
    comparison: Comparison | None = None,
):
    """Build the figure that `save_comparison` saves."""
    figure = _figure((10, 6.6))
    signals = [torch.as_tensor(signal).detach().cpu().float() for signal in (reference, estimate)]
    for name, signal in zip(names, signals, strict=True):
        if signal.ndim != 1 or not len(signal):
            raise ValueError(f"the {name} must be a mono waveform (T,) with samples, got shape {tuple(signal.shape)}")
    decibels = [20 / math.log(10) * log_mel(signal, sample_rate).numpy() for signal in signals]
    # The reference sets the scale, unless it is silent.
    loudest = max(decibels[0].max(), decibels[1].max() - 20)
    seconds = max(len(signal) for signal in signals) / sample_rate
    peak = max(max(float(signal.abs().max()) for signal in signals), 1e-4)

    lines = (title is not None) + (comparison is not None)
    grid = figure.add_gridspec(
        4, 2, height_ratios=(1, 2.6, 1, 2.6), width_ratios=(60, 1), hspace=0.2, wspace=0.03,
        left=0.075, right=0.925, bottom=0.075, top=0.955 - 0.045 * lines,
    )  # fmt: skip
    first = image = None
    for row, (name, signal, mel) in enumerate(zip(names, signals, decibels, strict=True)):
        wave = figure.add_subplot(grid[2 * row, 0], sharex=first)
        first = first or wave
        _draw_waveform(wave, signal.numpy(), sample_rate, _COLOURS[row])
        wave.set_ylim(-1.1 * peak, 1.1 * peak)
        wave.set_xlim(0, seconds)
        wave.tick_params(labelbottom=False)
        wave.set_title(
            _plain(name), loc="left", weight="bold", color=_COLOURS[row], fontsize=10, pad=2, parse_math=False
        )
        axes = figure.add_subplot(grid[2 * row + 1, 0], sharex=first)
        half = MEL_HOP / sample_rate / 2
        image = axes.imshow(
            mel, origin="lower", aspect="auto", cmap="magma", vmin=loudest - _RANGE_DB, vmax=loudest,
            extent=(-half, mel.shape[1] * 2 * half - half, -0.5, MEL_BANDS - 0.5), interpolation="nearest",
        )  # fmt: skip
        axes.set_facecolor("black")
        axes.set_xlim(0, seconds)
        ticks = [frequency for frequency in _TICKS_HZ if frequency <= sample_rate / 2]
        axes.set_yticks([_mel_position(frequency, sample_rate) for frequency in ticks], [f"{tick:,}" for tick in ticks])
        axes.set_ylabel("Hz", color=_INK)
        axes.tick_params(labelbottom=row == 1, colors=_INK, labelsize=8)
    axes.set_xlabel("seconds", color=_INK)
    assert image is not None  # there are always two rows
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[:, 1]))
    bar.set_label("dB", color=_INK)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    if title is not None:
        figure.text(0.075, 0.962, _plain(title), fontsize=12, weight="bold", color=_INK, parse_math=False)
    if comparison is not None:
        figure.text(0.075, 0.961 - 0.046 * (lines - 1), describe(comparison), fontsize=9.5, color=_INK)
    return figure


def curves_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str = "step",
    ylabel: str = "",
    title: str | None = None,
):
    """Build the figure that `save_curves` saves."""
    figure = _figure((6.4, 3.6))
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.74))
    for index, (name, points) in enumerate(curves.items()):
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps,
                values,
                label=name,
                color=_COLOURS[index % len(_COLOURS)],
                linewidth=1.8,
                marker="o",
                markersize=3.5,
            )
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True)
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=8.5)
    axes.set_xlabel(xlabel, color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11, weight="bold", color=_INK)
    if any(curves.values()):
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def png_bytes(figure, *, dpi: int = 110) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def describe(comparison: Comparison) -> str:
    """Return the metrics as one line."""
    parts = (
        ("STOI", f"{comparison.stoi:.3f}"),
        ("PESQ-WB", f"{comparison.pesq:.2f}"),
        ("SI-SDR", f"{comparison.si_sdr:.1f} dB"),
        ("log-mel distance", f"{comparison.mel_distance:.3f}"),
    )
    return "    ".join(f"{name} {'not defined' if value.startswith('nan') else value}" for name, value in parts)


def _draw_waveform(axes, samples: np.ndarray, sample_rate: int, colour: str) -> None:
    columns = min(_COLUMNS, len(samples))
    edges = np.linspace(0, len(samples), columns + 1).astype(int)
    top, bottom = np.maximum.reduceat(samples, edges[:-1]), np.minimum.reduceat(samples, edges[:-1])
    times = (edges[:-1] + edges[1:]) / 2 / sample_rate
    axes.fill_between(times, bottom, top, color=colour, linewidth=0.4)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(_FAINT)
    axes.tick_params(bottom=False, colors=_INK, labelsize=8)


def _plain(text: str) -> str:
    # The names of files need not be UTF-8, and matplotlib's fonts take nothing else.
    return text.encode("utf-8", "backslashreplace").decode()


def _mel_position(frequency: float, sample_rate: int) -> float:
    """Return where a frequency lies on the axis of mel bands."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    return mel(frequency) / mel(sample_rate / 2) * (MEL_BANDS + 1) - 1


def _figure(size: tuple[float, float]):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib; from a clone: pip install '.[eval]'") from error
    return Figure(figsize=size, facecolor="white")


def _save(figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=140)
    return path
