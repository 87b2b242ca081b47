"""The runs of a bench, and their command lines of s3prl's `run_downstream.py`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb.bench import CODE, Bench
from wavcube_plugins.superb.rows import Row
from wavcube_plugins.superb.tasks import LEARNING_RATES, Task

WRAPPER = ("python", "-m", "wavcube_plugins.s3prl.run")
SCRIPT = f"{CODE}/s3prl/run_downstream.py"


@dataclass(frozen=True)
class Run:
    """One training and its evaluation: a task, a row, a learning rate or a layer, and a fold or target speaker.

    Args:
        bench: The bench it belongs to.
        task: The task.
        row: The representation.
        choice: The learning rate, or the layer in query by example (None: the row's own).
        variant: Fold or target speaker, or "".
    """

    bench: Bench
    task: Task
    row: Row
    choice: float | int | None
    variant: str = ""

    @property
    def name(self) -> str:
        """A unique name, and the folder below `runs/`."""
        parts = [self.task.name, self.row.label, self.choice_name]
        return "/".join(parts + [self.variant] * bool(self.variant))

    @property
    def choice_name(self) -> str:
        """The learning rate or layer as a folder's name."""
        if self.task.trained:
            rate = float(self.choice or 0)
            return f"lr{rate:.0e}" if _one_digit(rate) else f"lr{rate!r}"
        return "all" if self.choice is None else f"layer{self.choice}"

    @property
    def folder(self) -> Path:
        """Where its logs, state and s3prl's experiment folder are."""
        return self.bench.folder / "runs" / self.name

    @property
    def expdir(self) -> str:
        """s3prl's experiment folder, relative to the bench's."""
        return f"runs/{self.name}/exp"

    @property
    def state_path(self) -> Path:
        """The file with what is known of it."""
        return self.folder / "state.json"

    def state(self) -> dict[str, Any]:
        """Return what is known of it: steps done, their scores and seconds; {} if nothing."""
        try:
            return json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace what is known of it."""
        with atomic_path(self.state_path) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    # Command lines, run in the bench's folder -------------------------------------------------------------------------

    def train_command(self) -> list[str]:
        """Return the command line that trains it, or resumes its training."""
        overrides = [f"config.optimizer.lr={self.choice!r}"]
        if self.variant:
            overrides.append(f"config.{self.task.variant_key}='{self.variant}'")
        if self.task.name == "vc":
            # s3prl would write the statistics of runs side by side to the same place.
            overrides.append(f"config.downstream_expert.datarc.stats_root='{self.expdir}/stats'")
        return self._command(
            "train",
            "-a",
            *self.row.arguments(),
            *("-d", self.task.downstream),
            *("-c", f"configs/{self.task.config_name}"),
            *("-p", self.expdir),
            *("-o", ",,".join(overrides)),
        )

    def evaluate_command(self, checkpoint: str, expdir: str | None = None) -> list[str]:
        """Return the command line that evaluates one of its checkpoints.

        Args:
            checkpoint: The name of a file in its experiment folder.
            expdir: Where predictions go, if not beside the checkpoint.
        """
        more = ["-o", f"args.expdir='{expdir}'"] if expdir else []
        return self._command("evaluate", "-t", self.task.split, "-e", f"{self.expdir}/{checkpoint}", *more)

    def match_command(self, split: str) -> list[str]:
        """Return the command line of query by example for a split, "dev" or "test"."""
        return self._command(
            "evaluate",
            *("-t", split),
            *self.row.arguments(None if self.choice is None else int(self.choice)),
            *("-d", self.task.downstream),
            *("-c", f"configs/{self.task.config_name}"),
            *("-p", f"{self.expdir}/{split}"),
        )

    def _command(self, mode: str, *arguments: str) -> list[str]:
        return [*WRAPPER, SCRIPT, "-m", mode, *arguments, "--device", self.bench.device]

    def planned_commands(self, config: Mapping[str, Any]) -> list[list[str]]:
        """Return all its command lines in order; scores that are computed without s3prl have none."""
        runner = config["runner"]
        if self.task.name == "qbe":
            return [self.match_command("dev"), self.match_command("test")]
        if self.task.name == "vc":
            return [self.train_command()]  # it converts and vocodes the test set at every evaluation
        if self.task.name == "asv":
            steps = checkpoint_steps(runner)
            return [
                self.train_command(),
                *(self.evaluate_command(f"states-{step}.ckpt", f"{self.expdir}/states-{step}") for step in steps),
            ]
        return [self.train_command(), self.evaluate_command(self.task.best)]

    def planned_note(self, config: Mapping[str, Any]) -> str:
        """Return a sentence on what may differ from the planned commands, or ""."""
        if not self.task.best:
            return ""
        last = checkpoint_steps(config["runner"])[-1]
        return (
            f"s3prl writes {self.task.best} only once dev improves on its initial value; if it never does, "
            f"states-{last}.ckpt is evaluated"
        )


def checkpoint_steps(runner: Mapping[str, Any]) -> list[int]:
    """Return the steps whose checkpoints are left at the end of a training."""
    steps = list(range(runner["save_step"], runner["total_steps"] + 1, runner["save_step"]))
    return steps[-runner["max_keep"] :]


def make_runs(bench: Bench, *, sweep: bool = False, rates: Sequence[float] | None = None) -> list[Run]:
    """Return all runs of a bench, task by task.

    Args:
        bench: The bench.
        sweep: Try the protocol's learning rates, 1e-1 … 1e-7, instead of the stock one.
        rates: Try these instead.
    """
    runs = []
    for task in bench.tasks:
        for row in bench.rows:
            if task.trained:
                stock = bench.learning_rates.get(task.name, [task.learning_rate])
                choices: Sequence[float | int | None] = rates or (LEARNING_RATES if sweep else stock)
            else:
                choices = range(row.layers) if row.layers > 1 and row.layer is None else (row.layer,)
            for choice in choices:
                for variant in bench.variants.get(task.name, task.variants):
                    runs.append(Run(bench, task, row, choice, variant))
    return runs


def shell(command: Sequence[str]) -> str:
    """Return a command line as it would be typed."""
    return " ".join(shlex.quote(part) for part in command)


def _one_digit(value: float) -> bool:
    return value > 0 and math.isclose(value, float(f"{value:.0e}"), rel_tol=1e-9)
