"""The SUPERB score: 0 is Fbank, 1000 the best known result, averaged over tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from wavcube_plugins.superb.results import Cell, ResultError, Table, mean, published
from wavcube_plugins.superb.tasks import BY_NAME, TASKS, Task

Constants = Mapping[str, Mapping[str, float]]  # by task, by metric


def read_constants(path: Path | None = None) -> tuple[Constants, Constants, str]:
    """Return the values of Fbank and of the state of the art, and their source.

    Args:
        path: A YAML file with `fbank`, `sota` and `source`; None means the packaged one.

    Raises:
        ResultError: it is not a file of this form.
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
    """Return two rows of a table as the constants: `zero` has the score 0 and `one` 1000.

    Raises:
        ResultError: there is no such row.
    """
    for label in (zero, one):
        if label not in table:
            raise ResultError(f"no row {label!r} has results; there are {', '.join(table)}")
    values = [{name: cell.scores for name, cell in table[label].items()} for label in (zero, one)]
    return values[0], values[1], f"rows {zero} and {one} of this table"


def superb_score(row: Mapping[str, Cell], fbank: Constants, sota: Constants) -> tuple[float, list[str]]:
    """Return the SUPERB score of a row and the tasks it is the mean of; NaN if there are none.

    1000 (s - s_fbank) / (s_sota - s_fbank) for every metric, averaged over a task's metrics and then over tasks. A
    metric counts if both constants are known and differ, and a task if it has such metrics and all were measured.
    """
    values = {}
    for task in TASKS:
        cell, anchored = row.get(task.name), _anchored(task, fbank, sota)
        if cell is None or not anchored or any(name not in cell.scores for name in anchored):
            continue
        parts = []
        for name in anchored:
            low, high = fbank[task.name][name], sota[task.name][name]
            parts.append(1000 * (cell.scores[name] - low) / (high - low))
        values[task.name] = mean(parts)
    return mean(list(values.values())), list(values)


def _anchored(task: Task, fbank: Constants, sota: Constants) -> list[str]:
    """Return the metrics of a task whose constants are both known and differ."""
    low, high = fbank.get(task.name, {}), sota.get(task.name, {})
    names = [metric.name for metric in task.metrics]
    return [name for name in names if name in low and name in high and low[name] != high[name]]
