"""Reads the results of runs, applies each task's rule, and writes them as tables."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.folder import upstream_folder
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.runs import Run
from wavcube_plugins.superb.tasks import BY_NAME, TASKS, Metric, Task

NONE = "–"


class ResultError(InputError):
    """There is nothing to collect, or constants cannot be used."""


@dataclass
class Cell:
    """The result of a task for one row.

    Args:
        scores: By the name of the metric.
        choice: What was chosen on dev: a learning rate or a layer.
        dev: The score it was chosen by.
        tried: The number of complete choices.
        variants: The number of folds or target speakers in the mean, and the number of all.
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
        """Whether all folds or target speakers are in the mean."""
        return self.variants[0] == self.variants[1]


Table = dict[str, dict[str, Cell]]  # by row, by task


def collect(runs: Sequence[Run]) -> Table:
    """Return the results of runs: the mean over folds or speakers, of the learning rate or layer that is best on dev.

    A choice with all its folds is preferred to one with some of them. A row without results of a task has no cell.
    """
    groups: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.row.label, run.task.name), {}).setdefault(run.choice_name, []).append(run)
    table: Table = {}
    for (label, task_name), choices in groups.items():
        task = BY_NAME[task_name]
        cells = [cell for choice, runs in choices.items() if (cell := _cell(task, choice, runs)) is not None]
        if cells:
            best = functools.reduce(functools.partial(_better, task), cells)
            best.tried = sum(cell.complete for cell in cells)
            table.setdefault(label, {})[task_name] = best
    return table


def _cell(task: Task, choice: str, members: Sequence[Run]) -> Cell | None:
    """Average the runs of one choice, or return None if none of them is done."""
    states = [state for state in (run.state() for run in members) if state.get("done") and state.get("scores")]
    if not states:
        return None
    names = [metric.name for metric in task.metrics if metric.name in states[0]["scores"]]
    return Cell(
        {name: mean([state["scores"].get(name, math.nan) for state in states]) for name in names},
        choice,
        mean([_number(state.get("dev")) for state in states]),
        variants=(len(states), len(members)),
        notes=sorted({state["note"] for state in states if state.get("note")}),
    )


def _better(task: Task, one: Cell, other: Cell) -> Cell:
    """Return the cell of the better choice: one with all its folds, then the better one on dev."""
    if one.complete != other.complete:
        return one if one.complete else other
    return other if task.decides.better(other.dev, one.dev) else one


def published() -> dict[str, Any]:
    """Return the published rows and the constants of the score, with their source and date."""
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
    """Return a cell as a table shows it; * marks a mean over some of the folds."""
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
    from wavcube_plugins.superb.picture import draw

    written.append(bench.folder / "results.png")
    draw(written[-1], table, others, bench.title)
    return written


def _variant_words(task: str) -> str:
    return "target speakers" if task == "vc" else "folds"


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
