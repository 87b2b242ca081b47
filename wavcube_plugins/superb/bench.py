"""A bench: which representations run on which tasks and corpora, where everything is, and each task's configuration."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.folder import upstream_folder
from wavcube_plugins.s3prl.names import is_wavcube
from wavcube_plugins.superb.rows import FEATURES, BenchError, Row
from wavcube_plugins.superb.tasks import TASKS, Task

CODE = "code"  # of s3prl, below the bench's folder


@dataclass
class Bench:
    """The contents of a bench file (see `bench_file`).

    Args:
        folder: Where everything goes.
        rows: The representations.
        corpora: The folder or file of each corpus.
        tasks: The tasks to run.
        s3prl: A clone to take s3prl's code from; None means the installed package.
        device: "cpu" or "cuda".
        settings: Per task, configuration keys (dotted) and the values that replace the protocol's.
        learning_rates: Per task, the learning rates to try; the stock one for a task that is missing.
        variants: Per task, the folds or target speakers to run; all if missing.
        workers: The most worker processes per data loader; None leaves it to the configurations.
        title: Of the results.
        published: Whether the results are comparable with published ones.
        offline: Keep the processes off the network; upstreams that are not on this machine then cannot be loaded.
    """

    folder: Path
    rows: list[Row]
    corpora: dict[str, Path] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=lambda: list(TASKS))
    s3prl: Path | None = None
    device: str = "cuda"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    variants: dict[str, list[str]] = field(default_factory=dict)
    workers: int | None = None
    title: str = "SUPERB"
    published: bool = True
    offline: bool = False

    def add_features(self, names: Sequence[str]) -> None:
        """Add rows with other features of every WavCube row: its layers, the restored features, the latent.

        Raises:
            BenchError: no such features, or no row with a WavCube upstream.
        """
        unknown = [name for name in names if name not in FEATURES]
        if unknown:
            raise BenchError(f"no features {unknown[0]!r}; there are {', '.join(FEATURES)}")
        bases = [row for row in self.rows if is_wavcube(row.upstream) and row.feature is None]
        if not bases:
            raise BenchError("--features needs a row with a WavCube upstream")
        for row in bases:
            for name in names:
                upstream, feature = FEATURES[name]
                label = f"{row.label}-{name}"
                added = dataclasses.replace(row, label=label, upstream=upstream, feature=feature, layers=0)
                if all(other.label != added.label for other in self.rows):
                    self.rows.append(added)

    @property
    def code(self) -> Path:
        """The private copy of s3prl's code."""
        return self.folder / CODE

    def prepared(self, task: Task) -> Path:
        """Return the folder with the files that s3prl needs for a task and that the corpus does not bring."""
        return self.folder / "prepared" / task.name

    def config_path(self, task: Task) -> Path:
        """Return where a task's configuration is written."""
        return self.folder / "configs" / task.config_name

    def config(self, task: Task, paths: Mapping[str, Any]) -> dict[str, Any]:
        """Return a task's configuration: the protocol's, with this bench's settings and paths.

        Args:
            task: The task.
            paths: Configuration keys (dotted) and where its corpus is; see `Site.paths`.

        Raises:
            BenchError: a setting goes through a value that is not a mapping, or no checkpoint would be saved.
        """
        text = (upstream_folder() / "superb" / task.config_name).read_text(encoding="utf-8")
        config = copy.deepcopy(yaml.safe_load(text))
        for key, value in {**paths, **self.settings.get(task.name, {})}.items():
            *parents, last = key.split(".")
            target = config
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise BenchError(
                        f"settings of {task.name}: {key!r} goes through {parent!r}, which is not a mapping"
                    )
            target[last] = value
        if task.trained:
            _check_intervals(task, config["runner"])
        return config

    def write_config(self, task: Task, paths: Mapping[str, Any]) -> dict[str, Any]:
        """Write a task's configuration where the command lines expect it, and return it."""
        config = self.config(task, paths)
        text = yaml.safe_dump(config, sort_keys=False)
        path = self.config_path(task)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return config


def _check_intervals(task: Task, runner: Mapping[str, Any]) -> None:
    """Refuse a training that ends before its first evaluation or checkpoint."""
    for name in ("save_step", "eval_step") if runner["eval_dataloaders"] else ("save_step",):
        if not 0 < runner[name] <= runner["total_steps"]:
            steps = f"{runner[name]} of {runner['total_steps']} steps"
            raise BenchError(f"settings of {task.name}: runner.{name} is never reached: {steps}")
