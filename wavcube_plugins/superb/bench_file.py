"""Reads a bench file: YAML that says what to run, on which corpora, and where the results go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.rows import BenchError, Row
from wavcube_plugins.superb.tasks import TASKS, find_tasks

DEVICES = ("cpu", "cuda")
_NAMES = ("out", *(field.name for field in dataclasses.fields(Bench) if field.name != "folder"))


def read_bench(path: str | Path) -> Bench:
    """Read a bench file.

    Raises:
        BenchError: it cannot be read, or something in it cannot be used.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchError(f"{path}: not a YAML file") from error
    if not isinstance(found, Mapping):
        raise BenchError(f"{path}: expected a mapping with `out`, `rows` and `corpora`")
    try:
        return bench_from_mapping(found, path.parent)
    except InputError as error:
        raise BenchError(f"{path}: {error}") from error


def bench_from_mapping(found: Mapping[str, Any], home: Path) -> Bench:
    """Make a bench of the contents of a bench file.

    Args:
        found: The contents.
        home: The folder that relative paths start from.

    Raises:
        BenchError: an unknown or missing name, or a value of the wrong kind.
    """
    unknown = [name for name in found if name not in _NAMES]
    if unknown:
        raise BenchError(f"unknown name {unknown[0]!r}; known are {', '.join(_NAMES)}")
    rows = [_row(str(label), values, home) for label, values in _mapping(found, "rows").items()]
    if not rows:
        raise BenchError("`rows` is empty: name a representation, for instance WavCube: {upstream: wavcube}")
    if not found.get("out"):
        raise BenchError("`out` is missing: name the folder for results")
    tasks = found.get("tasks")
    return Bench(
        folder=_place(home, found["out"]),
        rows=rows,
        corpora={str(name): _place(home, value) for name, value in _mapping(found, "corpora").items()},
        tasks=list(TASKS) if tasks is None else find_tasks([str(name).lower() for name in tasks]),
        s3prl=_place(home, found["s3prl"]) if found.get("s3prl") else None,
        device=_device(found),
        settings=_settings(found),
        learning_rates=_learning_rates(found),
        variants=_variants(found),
        workers=_workers(found),
        title=str(found.get("title", "SUPERB")),
        published=bool(found.get("published", True)),
        offline=bool(found.get("offline", False)),
    )


def _place(home: Path, value: Any) -> Path:
    return (home / Path(str(value)).expanduser()).absolute()


def _mapping(found: Mapping[str, Any], name: str) -> dict[Any, Any]:
    value = found.get(name) or {}
    if not isinstance(value, Mapping):
        raise BenchError(f"`{name}` must be a mapping, got {value!r}")
    return dict(value)


def _row(label: str, values: Any, home: Path) -> Row:
    from wavcube_plugins.checkpoints import NAMES

    values = {"upstream": values} if isinstance(values, str) else values
    if not isinstance(values, Mapping):
        raise BenchError(f"row {label}: expected a mapping with `upstream`, got {values!r}")
    fields = [item.name for item in dataclasses.fields(Row) if item.name != "label"]
    wrong = [name for name in values if name not in fields]
    if wrong:
        raise BenchError(f"row {label}: unknown name {wrong[0]!r}; known are {', '.join(fields)}")
    values = {"upstream": "", **values}
    for name in ("checkpoint", "options"):
        # Existing paths become absolute, because the runs have another current folder.
        if values.get(name) not in (None, *NAMES) and _place(home, values[name]).exists():
            values[name] = str(_place(home, values[name]))
    return Row(label=label, **values)


def _device(found: Mapping[str, Any]) -> str:
    device = str(found.get("device", "cuda"))
    if device not in DEVICES:
        raise BenchError(f"`device` must be cpu or cuda, got {device!r}")
    return device


def _settings(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    settings = _mapping(found, "settings")
    for name, values in settings.items():
        find_tasks([name])
        if not isinstance(values, Mapping):
            raise BenchError(f"settings of {name}: expected keys and values, got {values!r}")
    return {name: dict(values) for name, values in settings.items()}


def _learning_rates(found: Mapping[str, Any]) -> dict[str, list[float]]:
    rates = {}
    for name, values in _mapping(found, "learning_rates").items():
        find_tasks([name])
        try:
            rates[name] = [float(value) for value in (values if isinstance(values, list) else [values])]
        except (TypeError, ValueError) as error:
            raise BenchError(f"learning rates of {name}: expected numbers, got {values!r}") from error
    return rates


def _variants(found: Mapping[str, Any]) -> dict[str, list[str]]:
    variants = {}
    for name, values in _mapping(found, "variants").items():
        (task,) = find_tasks([name])
        wrong = [value for value in values if value not in task.variants]
        if wrong:
            raise BenchError(f"variants of {name}: no {wrong[0]!r}; there are {', '.join(task.variants)}")
        variants[name] = list(values)
    return variants


def _workers(found: Mapping[str, Any]) -> int | None:
    workers = found.get("workers")
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise BenchError(f"`workers` must be a whole number from 0 on, got {workers!r}")
    return workers
