"""The bench file, which says what to run, and the runs and command lines that follow from it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.install import upstream_folder
from wavcube_plugins.superb.tasks import LEARNING_RATES, TASKS, Task, find_tasks

CODE = "code"  # of s3prl, below the bench's folder
WRAPPER = ("python", "-m", "wavcube_plugins.s3prl.run")
SCRIPT = f"{CODE}/s3prl/run_downstream.py"

# Extra rows of WavCube: what each stage keeps and loses (name, upstream, -s).
FEATURES = {
    "latent": ("wavcube", None),
    "layers": ("wavcube_layers", None),
    "restored": ("wavcube", "restored"),
    "wavlm": ("wavcube", "wavlm"),
}

# The keys of WavCube's features; the first two are always there.
KEYS = ("hidden_states", "last_hidden_state", "latent", "wavlm", "restored")


class BenchError(InputError):
    """The bench file, or an option, is not usable; one sentence with the culprit."""


@dataclass(frozen=True)
class Row:
    """One representation, a row of the table.

    Args:
        label: Unique; names files, so letters, digits, `-`, `_` and `.` only.
        upstream: s3prl's name, for -u.
        checkpoint: For -k.
        options: A file, for -g.
        feature: A key of the features, for -s.
        layer: One layer, for -l.
        layers: How many layers it has; above 1, query by example tries each. 0 finds it out, for WavCube's presets and
            model folders; others count as 1.
    """

    label: str
    upstream: str
    checkpoint: str | None = None
    options: str | None = None
    feature: str | None = None
    layer: int | None = None
    layers: int = 0

    def __post_init__(self):
        if not self.label or not all(letter.isalnum() or letter in "-_." for letter in self.label):
            raise BenchError(f"row {self.label!r}: a label takes letters, digits, '-', '_' and '.'")
        if not isinstance(self.upstream, str) or not self.upstream:
            raise BenchError(f"row {self.label}: `upstream` must name an upstream of s3prl")
        if not isinstance(self.layers, int) or self.layers < 0:
            raise BenchError(f"row {self.label}: `layers` must be a number from 1 on, got {self.layers!r}")
        if self.upstream.startswith("wavcube") and self.feature is not None:
            # s3prl would fall back to hidden_states with a mere warning.
            if self.feature not in KEYS:
                raise BenchError(f"row {self.label}: no feature {self.feature!r}; there are {', '.join(KEYS)}")
            if self.feature not in KEYS[:2] and _only_hidden_states(self.options):
                raise BenchError(
                    f"row {self.label}: {self.options} says only_hidden_states, so that {self.feature!r} is left out; "
                    "take another options file"
                )
        if not self.layers:
            object.__setattr__(self, "layers", _layers(self))

    def arguments(self, layer: int | None = None) -> list[str]:
        """Return run_downstream.py's options for it."""
        chosen = self.layer if layer is None else layer
        options = (("-k", self.checkpoint), ("-g", self.options), ("-s", self.feature), ("-l", chosen))
        given = (part for name, value in options if value is not None for part in (name, str(value)))
        return ["-u", self.upstream, *given]


@dataclass
class Bench:
    """What a bench file says.

    Args:
        folder: Where everything goes; relative paths in the file are below the file's folder.
        rows: The representations.
        corpora: Folder or file of each corpus.
        tasks: Those to run.
        s3prl: A clone to take s3prl's code from; None takes the installed package.
        device: "cpu" or "cuda".
        settings: Per task, configuration keys (dotted) and the values that replace the protocol's.
        learning_rates: Per task, what to try; the stock one if a task is missing.
        variants: Per task, the folds or target speakers to run; all if missing.
        workers: At most so many worker processes per data loader; None leaves it to the configurations.
        title: Of the table.
        published: Whether its results may stand beside published ones.
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

    @classmethod
    def read(cls, path: str | Path) -> Bench:
        """Read a bench file.

        Raises:
            BenchError: it cannot be read, or says something unusable.
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
            return cls.from_mapping(found, path.parent)
        except BenchError as error:
            raise BenchError(f"{path}: {error}") from error

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any], home: Path) -> Bench:
        """Make a bench of a bench file's contents; `home` is what relative paths are below.

        Raises:
            BenchError: an unknown or missing name, or a value of the wrong kind.
        """
        known = ("out", "rows", "corpora", "tasks", "s3prl", "device", "settings", "learning_rates", "variants",
                 "workers", "title", "published", "offline")  # fmt: skip
        unknown = [name for name in found if name not in known]
        if unknown:
            raise BenchError(f"unknown name {unknown[0]!r}; known are {', '.join(known)}")

        from wavcube_plugins.checkpoints import NAMES

        def place(value: Any) -> Path:
            return (home / Path(str(value)).expanduser()).absolute()

        def mapping(name: str) -> dict:
            value = found.get(name) or {}
            if not isinstance(value, Mapping):
                raise BenchError(f"`{name}` must be a mapping, got {value!r}")
            return dict(value)

        rows = []
        for label, values in mapping("rows").items():
            values = {"upstream": values} if isinstance(values, str) else values
            if not isinstance(values, Mapping):
                raise BenchError(f"row {label}: expected `upstream` and more, got {values!r}")
            fields = [item.name for item in dataclasses.fields(Row) if item.name != "label"]
            wrong = [name for name in values if name not in fields]
            if wrong:
                raise BenchError(f"row {label}: unknown name {wrong[0]!r}; known are {', '.join(fields)}")
            values = dict(values)
            for name in ("checkpoint", "options"):
                # A path that exists is made absolute: the runs have another current folder.
                if values.get(name) not in (None, *NAMES) and place(values[name]).exists():
                    values[name] = str(place(values[name]))
            rows.append(Row(label=str(label), **{"upstream": "", **values}))
        if not rows:
            raise BenchError("`rows` is empty: name a representation, for instance WavCube: {upstream: wavcube}")
        if not found.get("out"):
            raise BenchError("`out` is missing: name the folder for results")
        tasks = found.get("tasks")
        settings = mapping("settings")
        for name, values in settings.items():
            find_tasks([name])
            if not isinstance(values, Mapping):
                raise BenchError(f"settings of {name}: expected keys and values, got {values!r}")
        rates = {}
        for name, values in mapping("learning_rates").items():
            find_tasks([name])
            try:
                rates[name] = [float(value) for value in (values if isinstance(values, list) else [values])]
            except (TypeError, ValueError) as error:
                raise BenchError(f"learning rates of {name}: expected numbers, got {values!r}") from error
        variants = {}
        for name, values in mapping("variants").items():
            (task,) = find_tasks([name])
            wrong = [value for value in values if value not in task.variants]
            if wrong:
                raise BenchError(f"variants of {name}: no {wrong[0]!r}; there are {', '.join(task.variants)}")
            variants[name] = list(values)
        device = str(found.get("device", "cuda"))
        if device not in ("cpu", "cuda"):
            raise BenchError(f"`device` must be cpu or cuda, got {device!r}")
        return cls(
            folder=place(found["out"]),
            rows=rows,
            corpora={str(name): place(value) for name, value in mapping("corpora").items()},
            tasks=list(TASKS) if tasks is None else find_tasks([str(name).lower() for name in tasks]),
            s3prl=place(found["s3prl"]) if found.get("s3prl") else None,
            device=device,
            settings={name: dict(values) for name, values in settings.items()},
            learning_rates=rates,
            variants=variants,
            workers=None if found.get("workers") is None else int(found["workers"]),
            title=str(found.get("title", "SUPERB")),
            published=bool(found.get("published", True)),
            offline=bool(found.get("offline", False)),
        )

    def add_features(self, names: Sequence[str]) -> None:
        """Add rows with other feature sets of every WavCube row: its layers, the restored features, the latent.

        Raises:
            BenchError: no such feature set, or no row to take them of.
        """
        unknown = [name for name in names if name not in FEATURES]
        if unknown:
            raise BenchError(f"no features {unknown[0]!r}; there are {', '.join(FEATURES)}")
        bases = [row for row in self.rows if row.upstream.startswith("wavcube") and row.feature is None]
        if not bases:
            raise BenchError("--features needs a row with a WavCube upstream to take them of")
        for row in bases:
            for name in names:
                upstream, feature = FEATURES[name]
                label = f"{row.label}-{name}"
                added = dataclasses.replace(row, label=label, upstream=upstream, feature=feature, layers=0)
                if all(other.label != added.label for other in self.rows):
                    self.rows.append(added)

    # Where things are ----------------------------------------------------------------------------------------------

    @property
    def code(self) -> Path:
        return self.folder / CODE

    def prepared(self, task: Task) -> Path:
        """The folder with the files s3prl needs for a task and the corpus does not bring."""
        return self.folder / "prepared" / task.name

    def config_path(self, task: Task) -> Path:
        return self.folder / "configs" / task.config_name

    def config(self, task: Task, paths: Mapping[str, Any]) -> dict[str, Any]:
        """Return a task's configuration: the protocol's, with this bench's settings and paths.

        Args:
            task: The task.
            paths: Configuration keys (dotted) and where its corpus is; see `corpora.paths_of`.

        Raises:
            BenchError: a setting goes through a value that is no mapping, or no checkpoint would be saved.
        """
        text = (upstream_folder() / "superb" / task.config_name).read_text(encoding="utf-8")
        config = copy.deepcopy(yaml.safe_load(text))
        for key, value in {**paths, **self.settings.get(task.name, {})}.items():
            *parents, last = key.split(".")
            target = config
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise BenchError(f"settings of {task.name}: {key!r} goes through {parent!r}, which is no mapping")
            target[last] = value
        runner = config["runner"]
        for name in ("save_step", "eval_step") if task.trained else ():
            if name == "eval_step" and not runner["eval_dataloaders"]:
                continue
            if not 0 < runner[name] <= runner["total_steps"]:
                steps = f"{runner[name]} of {runner['total_steps']} steps"
                raise BenchError(f"settings of {task.name}: runner.{name} never comes: {steps}")
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


@dataclass(frozen=True)
class Run:
    """One training and its evaluation: a task, a row, a learning rate or a layer, and a fold or target speaker.

    Args:
        bench: What it belongs to.
        task: Its task.
        row: Its representation.
        choice: The learning rate, or for query by example the layer (None: the row's own).
        variant: Fold or target speaker, or "".
    """

    bench: Bench
    task: Task
    row: Row
    choice: float | int | None
    variant: str = ""

    @property
    def name(self) -> str:
        """Unique, and its folder's name below `runs/`."""
        parts = [self.task.name, self.row.label, self.choice_name]
        return "/".join(parts + [self.variant] * bool(self.variant))

    @property
    def choice_name(self) -> str:
        if self.task.trained:
            return f"lr{self.choice:.0e}" if _one_digit(self.choice) else f"lr{self.choice!r}"
        return "all" if self.choice is None else f"layer{self.choice}"

    @property
    def folder(self) -> Path:
        return self.bench.folder / "runs" / self.name

    @property
    def expdir(self) -> str:
        """s3prl's folder, relative to the bench's."""
        return f"runs/{self.name}/exp"

    @property
    def state_path(self) -> Path:
        return self.folder / "state.json"

    def state(self) -> dict[str, Any]:
        """Return what is known of it: steps done, their scores, seconds; {} if nothing."""
        try:
            return json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}

    def save_state(self, state: Mapping[str, Any]) -> None:
        with atomic_path(self.state_path) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    # Command lines, to be run in the bench's folder -------------------------------------------------------------------

    def train_command(self) -> list[str]:
        """Return the command line that trains it, or goes on where it stopped."""
        overrides = [f"config.optimizer.lr={self.choice!r}"]
        if self.variant:
            overrides.append(f"config.{self.task.variant_key}='{self.variant}'")
        if self.task.name == "vc":
            # s3prl writes its statistics there without care for runs beside it.
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
            checkpoint: A file's name in its folder.
            expdir: Where predictions go, if not beside the checkpoint.
        """
        more = ["-o", f"args.expdir='{expdir}'"] if expdir else []
        return self._command("evaluate", "-t", self.task.split, "-e", f"{self.expdir}/{checkpoint}", *more)

    def match_command(self, split: str) -> list[str]:
        """Return query by example's command line for a split, "dev" or "test"."""
        return self._command(
            "evaluate",
            *("-t", split),
            *self.row.arguments(self.choice),
            *("-d", self.task.downstream),
            *("-c", f"configs/{self.task.config_name}"),
            *("-p", f"{self.expdir}/{split}"),
        )

    def _command(self, mode: str, *arguments: str) -> list[str]:
        return [*WRAPPER, SCRIPT, "-m", mode, *arguments, "--device", self.bench.device]

    def planned_commands(self, config: Mapping[str, Any]) -> list[list[str]]:
        """Return all its command lines in order; what is scored without s3prl is no command."""
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


def checkpoint_steps(runner: Mapping[str, Any]) -> list[int]:
    """Return the steps at which a training saves checkpoints that stay."""
    steps = list(range(runner["save_step"], runner["total_steps"] + 1, runner["save_step"]))
    return steps[-runner["max_keep"] :]


def make_runs(bench: Bench, *, sweep: bool = False, rates: Sequence[float] | None = None) -> list[Run]:
    """Return all runs of a bench, task by task.

    Args:
        bench: The bench.
        sweep: Try the protocol's learning rates, 1e-1 … 1e-7, instead of the stock one.
        rates: Try these.
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


def _only_hidden_states(options: str | None) -> bool:
    try:
        found = yaml.safe_load(Path(options).read_text(encoding="utf-8")) if options else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # the upstream itself says what is wrong
    return isinstance(found, Mapping) and found.get("only_hidden_states") is True


def _layers(row: Row) -> int:
    """Return how many hidden states a row has, where that is known."""
    if not (row.upstream.startswith("wavcube_layers") or row.feature == "wavlm"):
        return 1
    from wavcube_plugins.config import PRESETS

    name = row.checkpoint or "wavcube"
    if name in PRESETS:
        return PRESETS[name].wavlm.num_layers + 1
    try:
        found = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        return int(found["config"]["wavlm"]["num_layers"]) + 1
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def shell(command: Sequence[str]) -> str:
    """Return a command line as one would type it."""
    return " ".join(shlex.quote(part) for part in command)


def _one_digit(value: float) -> bool:
    return value > 0 and math.isclose(value, float(f"{value:.0e}"), rel_tol=1e-9)
