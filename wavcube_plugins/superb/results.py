"""Reads what the runs left, applies each task's rule, and makes tables, the SUPERB score and a picture of it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.install import upstream_folder
from wavcube_plugins.superb.bench import Bench, Run
from wavcube_plugins.superb.tasks import BY_NAME, TASKS, Metric, Task

NONE = "–"


class ResultError(InputError):
    """There is nothing to collect, or constants are not usable; one sentence."""


@dataclass
class Cell:
    """A task's result for one row.

    Args:
        scores: By the metric's name.
        choice: What was chosen on dev: a learning rate or a layer.
        dev: The score that chose it.
        tried: How many choices are complete.
        variants: How many folds or target speakers are in the mean, and of how many.
        notes: Sentences.
    """

    scores: dict[str, float]
    choice: str = ""
    dev: float = math.nan
    tried: int = 0
    variants: tuple[int, int] = (1, 1)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.variants[0] == self.variants[1]


Table = dict[str, dict[str, Cell]]  # by row, by task


def collect(runs: Sequence[Run]) -> Table:
    """Return the results of runs: the mean over folds or speakers, of the learning rate or layer that is best on dev.

    A choice with all its folds goes before one with a few of them; a row with none of a task has no cell.
    """
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.row.label, run.task.name), {}).setdefault(run.choice_name, []).append(run)
    table: Table = {}
    for (label, task_name), choices in groups.items():
        task = BY_NAME[task_name]
        best: Cell | None = None
        for choice, members in choices.items():
            states = [state for state in (run.state() for run in members) if state.get("done") and state.get("scores")]
            if not states:
                continue
            names = [name for name in (metric.name for metric in task.metrics) if name in states[0]["scores"]]
            cell = Cell(
                {name: _mean([state["scores"].get(name, math.nan) for state in states]) for name in names},
                choice,
                _mean([_number(state.get("dev")) for state in states]),
                variants=(len(states), len(members)),
                notes=sorted({state["note"] for state in states if state.get("note")}),
            )
            better = best is None or (cell.complete, 0) > (best.complete, 0) or (
                cell.complete == best.complete and task.decides.better(cell.dev, best.dev)
            )  # fmt: skip
            tried = (best.tried if best else 0) + cell.complete
            best = cell if better else best
            best.tried = tried
        if best is not None:
            table.setdefault(label, {})[task_name] = best
    return table


def published() -> dict[str, Any]:
    """Return the published rows and the score's constants, with their source and date."""
    return yaml.safe_load((upstream_folder() / "superb" / "published.yaml").read_text(encoding="utf-8"))


def published_table() -> Table:
    """Return the published rows as a table."""
    return {
        label: {task: Cell(dict(scores)) for task, scores in tasks.items()}
        for label, tasks in published()["rows"].items()
    }


def columns(tables: Sequence[Table], tasks: Sequence[Task] = TASKS) -> list[tuple[Task, Metric]]:
    """Return the metrics that any row has, in the tasks' order."""
    cells = [cell for table in tables for row in table.values() for cell in row.items()]
    return [
        (task, metric)
        for task in tasks
        for metric in task.metrics
        if any(name == task.name and metric.name in cell.scores for name, cell in cells)
    ]


def shown(cell: Cell | None, metric: Metric) -> str:
    """Return a cell as a table shows it; * marks a mean of a part of the folds."""
    if cell is None or metric.name not in cell.scores:
        return NONE
    value = cell.scores[metric.name]
    return f"{value:.{metric.digits}f}" + ("" if cell.complete else "*")


def markdown(table: Table, others: Table, tasks: Sequence[Task] = TASKS) -> str:
    """Return a table of tasks by rows, the published rows on the right, and footnotes."""
    labels = [*table, *(f"{label} (published)" for label in others)]
    rows = [["task", *labels], ["---"] * (len(labels) + 1)]
    for task, metric in columns([table, others], tasks):
        arrow = "↑" if metric.higher_is_better else "↓"
        cells = [row.get(task.name) for row in (*table.values(), *others.values())]
        rows.append([f"{task.name.upper()}, {metric.title} {arrow}", *(shown(cell, metric) for cell in cells)])
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = []
    for label, row in table.items():
        for name, cell in row.items():
            what = f"{name.upper()} of {label}"
            if not cell.complete:
                notes.append(f"\\* {what}: {cell.variants[0]} of {cell.variants[1]} {_variant_words(name)}.")
            notes += [f"{what}: {note}." for note in cell.notes]
            if cell.tried > 1:
                notes.append(f"{what}: {cell.choice}, best on dev of {cell.tried}.")
    return text + ("\n" + "\n".join(notes) + "\n" if notes else "")


def as_csv(table: Table, others: Table) -> str:
    """Return one line per row, task and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "task", "metric", "value", "choice", "dev", "variants", "of", "published"])
    for rows, flag in ((table, 0), (others, 1)):
        for label, row in rows.items():
            for name, cell in row.items():
                for metric, value in cell.scores.items():
                    dev = "" if math.isnan(cell.dev) else f"{cell.dev:.6g}"
                    writer.writerow([label, name, metric, f"{value:.6g}", cell.choice, dev, *cell.variants, flag])
    return out.getvalue()


def as_json(bench: Bench, table: Table, others: Table) -> str:
    """Return everything as JSON."""

    def plain(rows: Table) -> dict:
        return {
            label: {
                name: {
                    "scores": cell.scores, "choice": cell.choice, "dev": None if math.isnan(cell.dev) else cell.dev,
                    "variants": list(cell.variants), "notes": cell.notes,
                }
                for name, cell in row.items()
            }
            for label, row in rows.items()
        }  # fmt: skip

    source = published()
    found = {"title": bench.title, "rows": plain(table), "published": plain(others)}
    if others:
        found |= {"published_source": source["source"], "published_date": str(source["date"])}
    return json.dumps(found, indent=1) + "\n"


def save(bench: Bench, table: Table, others: Table) -> list[Path]:
    """Write `results.md`, `.csv`, `.json` and `.png` into the bench's folder, and return their paths."""
    text = f"# {bench.title}\n\n{markdown(table, others)}"
    if others:
        source = published()
        text += f"\nPublished rows: {source['source']} ({source['date']}).\n"
    written = []
    for name, content in (
        ("results.md", text),
        ("results.csv", as_csv(table, others)),
        ("results.json", as_json(bench, table, others)),
    ):
        with atomic_path(bench.folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(bench.folder / name)
    written.append(bench.folder / "results.png")
    draw(written[-1], table, others, bench.title)
    return written


def draw(path: Path, table: Table, others: Table, title: str) -> None:
    """Draw a panel of bars per metric: measured rows filled, published ones hatched.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error
    shown_columns = columns([table, others])
    labels = [*table, *others]
    colours = ["#1b6ca8", "#e07b39", "#5b8c5a", "#8e5ea2", "#c0392b", "#7f8c8d", "#d4ac0d", "#16a085"]
    across = min(5, len(shown_columns))
    down = math.ceil(len(shown_columns) / across)
    figure = Figure(figsize=(2.3 * across + 0.4, 2.0 * down + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axis, (task, metric) in zip(axes, shown_columns, strict=False):
        for index, label in enumerate(labels):
            cell = (table.get(label) if index < len(table) else others[label]).get(task.name)
            if cell is None or metric.name not in cell.scores:
                continue
            value = cell.scores[metric.name]
            published_row = index >= len(table)
            bar = axis.bar(
                index, value, color=colours[index % len(colours)], hatch="//" if published_row else None,
                alpha=0.55 if published_row else 1.0, width=0.8,
            )  # fmt: skip
            axis.annotate(
                f"{value:.{metric.digits}f}",
                (index, value),
                ha="center",
                va="bottom" if value >= 0 else "top",
                fontsize=6,
            )
            handles.setdefault(f"{label} (published)" if published_row else label, bar)
        arrow = "higher is better" if metric.higher_is_better else "lower is better"
        axis.set_title(f"{task.name.upper()}  {metric.title}", fontsize=8, fontweight="bold")
        axis.set_xlabel(arrow, fontsize=6)
        axis.set_xticks([])
        axis.tick_params(labelsize=6)
        axis.margins(y=0.15)
        if not any(bar.get_height() for bar in axis.patches):
            axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(shown_columns) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), fontsize=7,
                  frameon=False)  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160)


# The SUPERB score -----------------------------------------------------------------------------------------------------

Constants = Mapping[str, Mapping[str, float]]  # by task, by metric


def read_constants(path: Path | None = None) -> tuple[Constants, Constants, str]:
    """Return Fbank's and the state of the art's values, and their source.

    Args:
        path: A YAML file with `fbank`, `sota` and `source`; None takes the packaged ones.

    Raises:
        ResultError: it is not such a file.
    """
    if path is None:
        found = published()["score"]
    else:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ResultError(f"{path}: not a YAML file") from error
    where = path or "the packaged constants"
    for name in ("fbank", "sota"):
        values = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(values, Mapping):
            raise ResultError(f"{where}: `{name}` must map tasks to metrics and their values")
        for task, metrics in values.items():
            known = [metric.name for metric in BY_NAME[task].metrics] if task in BY_NAME else []
            if not isinstance(metrics, Mapping) or any(metric not in known for metric in metrics):
                raise ResultError(f"{where}: {name} of {task}: expected {', '.join(known) or 'a task of SUPERB'}")
    return found["fbank"], found["sota"], f"{found.get('source', where)} ({found.get('date', 'undated')})"


def constants_of(table: Table, zero: str, one: str) -> tuple[Constants, Constants, str]:
    """Return two rows of a table as the constants: `zero` scores 0 and `one` 1000.

    Raises:
        ResultError: there is no such row.
    """
    for label in (zero, one):
        if label not in table:
            raise ResultError(f"no row {label!r} has results; there are {', '.join(table)}")
    values = [{name: cell.scores for name, cell in table[label].items()} for label in (zero, one)]
    return values[0], values[1], f"rows {zero} and {one} of this table"


def superb_score(row: Mapping[str, Cell], fbank: Constants, sota: Constants) -> tuple[float, list[str]]:
    """Return a row's SUPERB score, and the tasks it is the mean of; NaN if there are none.

    1000 (s - s_fbank) / (s_sota - s_fbank) on every metric, the mean over a task's metrics, then over tasks. A metric
    counts where both constants are known and differ; a task where all such metrics were measured and any exists.
    """
    values = []
    names = []
    for task in TASKS:
        cell = row.get(task.name)
        anchored = [
            metric.name
            for metric in task.metrics
            if metric.name in fbank.get(task.name, {}) and metric.name in sota.get(task.name, {})
            and fbank[task.name][metric.name] != sota[task.name][metric.name]
        ]  # fmt: skip
        if cell is None or not anchored or any(name not in cell.scores for name in anchored):
            continue
        parts = []
        for name in anchored:
            low, high = fbank[task.name][name], sota[task.name][name]
            parts.append(1000 * (cell.scores[name] - low) / (high - low))
        values.append(_mean(parts))
        names.append(task.name)
    return (_mean(values) if values else math.nan), names


def _variant_words(task: str) -> str:
    return "target speakers" if task == "vc" else "folds"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
