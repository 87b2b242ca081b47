"""Two SUPERB tasks on the package's speech, through s3prl's own `run_downstream.py` in processes of its own.

They run in a private copy of the installed s3prl, made afresh each time and otherwise unmodified. The tasks keep
caches of file lists inside the package, which would answer for the next corpus too, and the installed folder may not
be writable. The commands are those a user types in a clone of s3prl.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb import workspace
from wavcube_plugins.synthetic.bundled import SAMPLE_RATE, Utterance
from wavcube_plugins.synthetic.espeak import PHONES, SILENCE

MISSING = "the demo's tasks need s3prl; from a clone: pip install '.[s3prl]'"
UNKNOWN = "s3prl does not know -u wavcube here; run: wavcube install-s3prl"

_POLL_SECONDS = 0.5
_SID_CONFIG = """\
# Speaker identification as in SUPERB (s3prl/downstream/voxceleb1): mean pooling and linear layers on frozen features.
# Small batches, few steps and a learning rate to match; everything else as s3prl has it.
runner:
  total_steps: {steps}
  gradient_clipping: 1
  gradient_accumulate_steps: 1
  log_step: {interval}
  eval_step: {interval}
  save_step: {steps}
  max_keep: 1
  eval_dataloaders: [dev]
optimizer:
  name: TorchOptim
  torch_optim_name: Adam
  lr: 3.0e-3
downstream_expert:
  datarc:
    file_path: data
    meta_data: data/sid.txt
    max_timestep: {longest}
    train_batch_size: 8
    eval_batch_size: 1
    num_workers: 0
  modelrc:
    projector_dim: 256
    select: UtteranceLevel
    UtteranceLevel:
      pooling: MeanPooling
"""
_PR_CONFIG = """\
# Phone recognition as in SUPERB (s3prl/downstream/ctc/libriphone.yaml): a linear layer and CTC on frozen features.
# Small batches and few steps; the learning rate and everything else as s3prl has it.
runner:
  total_steps: {steps}
  gradient_clipping: 1
  gradient_accumulate_steps: 1
  log_step: {interval}
  eval_step: {interval}
  save_step: {steps}
  max_keep: 1
  eval_dataloaders: [dev]
optimizer:
  name: TorchOptim
  torch_optim_name: Adam
  lr: 1.0e-2
downstream_expert:
  corpus:
    name: libriphone
    csv_dir: data/pr
    lexicon: [data/pr/lexicon.txt]
    train: train.csv
    dev: dev.csv
    test: test.csv
    bucketing: False
    batch_size: 8
    num_workers: 0
  text:
    mode: word
    vocab_file: data/pr/phones.txt
  model:
    project_dim: 256
    zero_infinity: True
    select: FrameLevel
  save_best_on: [dev]
  metric_higher_better: False
  metric: [per]
"""


class TaskError(RuntimeError):
    """s3prl is missing, or a run of it failed; the message says which and where its log is."""


@dataclass(frozen=True)
class Task:
    """One SUPERB task.

    Args:
        name: Short name, used for files.
        title: What it is, in words.
        downstream: s3prl's name, for `-d`.
        metric: Its score, as s3prl prints it.
        metric_title: The score in words.
        higher_is_better: Whether it is an accuracy or an error rate.
        baselines: s3prl upstreams it is run with besides WavCube.
        config: The configuration file, with places for the number of steps.
        steps: Training steps.
        evaluations: How often it is measured on dev while training.
    """

    name: str
    title: str
    downstream: str
    metric: str
    metric_title: str
    higher_is_better: bool
    baselines: tuple[str, ...]
    config: str
    steps: int
    evaluations: int

    @property
    def interval(self) -> int:
        """Steps between two evaluations; it divides what is trained."""
        return max(1, self.steps // self.evaluations)


TASKS = (
    Task(
        "sid",
        "Speaker identification",
        "voxceleb1",
        "acc",
        "accuracy",
        True,
        # s3prl's fbank is normalised over each utterance, which leaves mean pooling nothing but zeros.
        ("fbank", "fbank_no_cmvn"),
        _SID_CONFIG,
        300,
        10,
    ),
    Task("pr", "Phone recognition", "ctc", "per", "phone error rate", False, ("fbank",), _PR_CONFIG, 600, 10),
)


@dataclass
class Run:
    """Training and evaluation of one task on one upstream.

    Attributes:
        curves: (step, value) points by name: "dev" and "train" are the metric, "train loss" and "dev loss" the loss.
        score: The metric on test, or NaN.
        error: One sentence if it failed, else "".
        seconds: What it took.
        examples: (said, recognised) on test, for tasks that write a transcript.
    """

    task: Task
    upstream: str
    commands: list[list[str]]
    log: Path
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    score: float = math.nan
    error: str = ""
    seconds: float = 0.0
    examples: list[tuple[str, str]] = field(default_factory=list)
    step: int = 0

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.upstream}"


def s3prl_folder() -> Path:
    """Return the folder of the installed s3prl package.

    Raises:
        TaskError: it is not installed.
    """
    try:
        return workspace.s3prl_folder()
    except workspace.WorkspaceError as error:
        raise TaskError(MISSING) from error


def check() -> None:
    """See whether the tasks can run in this Python.

    Raises:
        TaskError: s3prl is missing, or does not know the WavCube upstreams; the message names the remedy.
    """
    folder = s3prl_folder()
    # Either the import hook, which is active in this process too, or a copy of the upstream folder.
    hooked = any(getattr(finder, "__name__", "") == "WavCubeHook" for finder in sys.meta_path)
    if not hooked and not (folder / "upstream" / "wavcube").is_dir():
        raise TaskError(UNKNOWN)


def prepare(folder: Path, parts: Mapping[str, Sequence[Utterance]], tasks: Sequence[Task]) -> None:
    """Lay out a folder to run the tasks in: s3prl's copy, the audio, and what the two corpora are described by.

    Args:
        folder: Must not exist yet.
        parts: Utterances of train, dev and test.
        tasks: Those whose configuration to write.
    """
    workspace.copy_s3prl(s3prl_folder(), folder / "s3prl")
    workspace.keep_espnet_out(folder)
    data = folder / "data"
    speakers = {name: f"id{10001 + index}" for index, name in enumerate(_speakers(parts))}
    listing, tables = [], {}
    for number, (part, utterances) in enumerate(parts.items(), 1):
        tables[part] = []
        for utterance in utterances:
            # VoxCeleb1's layout, which both tasks are happy with: speaker, video, file.
            place = f"{speakers[utterance.speaker]}/{utterance.speaker}/{utterance.path.name}"
            target = data / "speech" / "wav" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(utterance.path, target)
            listing.append(f"{number} {place}")
            tables[part].append(f"data/speech/wav/{place},{' '.join(utterance.phones)}")
    _write(data / "sid.txt", listing)
    # One epoch of s3prl's `ctc` must last the whole training: after the first it starts twelve workers per epoch.
    longest = max(task.steps for task in tasks)
    tables["train"] *= math.ceil(8 * longest / len(tables["train"]))
    for part, rows in tables.items():
        _write(data / "pr" / f"{part}.csv", ["wav_path,transcription", *rows])
    # The transcriptions are phones already, so that they are exact; every phone is a word of its own.
    phones = [phone for phone in PHONES if phone != SILENCE]
    _write(data / "pr" / "phones.txt", phones)
    _write(data / "pr" / "lexicon.txt", [f"{phone} {phone}" for phone in phones])
    for task in tasks:
        settings = {"steps": task.steps, "interval": task.interval, "longest": 8 * SAMPLE_RATE}
        _write(folder / f"{task.name}.yaml", [task.config.format(**settings).rstrip()])


def plan(folder: Path, tasks: Sequence[Task], checkpoint: str) -> list[Run]:
    """List the runs, with their command lines: every task on WavCube and on its baselines.

    Args:
        folder: A folder made by `prepare`.
        tasks: The tasks.
        checkpoint: What `-k` names: a preset, a folder or file by its absolute path, or a hub name.
    """
    runs = []
    for task in tasks:
        for upstream in ("wavcube", *task.baselines):
            script = ["python", "s3prl/run_downstream.py"]
            result = f"result/{task.name}-{upstream}"
            choice = ["-u", upstream, *(("-k", checkpoint) if upstream == "wavcube" else ())]
            train = ["-m", "train", *choice, "-d", task.downstream, "-c", f"{task.name}.yaml", "-p", result]
            evaluate = ["-m", "evaluate", "-e", f"{result}/dev-best.ckpt"]
            commands = [[*script, *arguments, "--device", "cpu"] for arguments in (train, evaluate)]
            runs.append(Run(task, upstream, commands, folder / f"{task.name}-{upstream}.log"))
    return runs


def execute(runs: Sequence[Run], folder: Path, progress: Callable[[Sequence[Run], Sequence[Run]], None]) -> None:
    """Run everything, two at a time where there are two cores; a run that fails does not stop the others.

    Whatever ends this function, Ctrl-C among it, ends the processes too.

    Args:
        runs: From `plan`; their results are filled in.
        folder: The folder they run in.
        progress: Called twice a second with the runs going on and those that have just ended.
    """
    cores = os.cpu_count() or 1
    places = min(2, cores)
    environment = workspace.environment(folder, threads=max(1, cores // places))
    waiting, running = list(runs), []
    try:
        while waiting or running:
            while waiting and len(running) < places:
                running.append(_Process(waiting.pop(0), folder, environment))
            ended = [process for process in running if process.advance()]
            running = [process for process in running if process not in ended]
            progress([process.run for process in running], [process.run for process in ended])
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for process in running:
            process.kill()


class _Process:
    """A run on its way: the process of its current command."""

    def __init__(self, run: Run, folder: Path, environment: dict[str, str]):
        self.run = run
        self._folder = folder
        self._environment = environment
        self._started = time.monotonic()
        self._waiting = list(run.commands)
        run.log.write_bytes(b"")
        self._start()

    def _start(self) -> None:
        self._command = self._waiting.pop(0)
        # The best checkpoint is missing if no evaluation was better than nothing; the last one is always there.
        if "evaluate" in self._command:
            best = self._command.index("-e") + 1
            if not (self._folder / self._command[best]).is_file():
                self._command[best] = str(Path(self._command[best]).parent.as_posix())
        with open(self.run.log, "ab") as log:
            log.write(f"$ {' '.join(self._command)}\n".encode())
            log.flush()
            self._from = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, *self._command[1:]],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def advance(self) -> bool:
        """Look at the process, start the next command where one has ended, and return whether the run is over."""
        status = self._process.poll()
        output = self._output()
        run = self.run
        steps = re.findall(r"overall:\s+\d+%\|[^|]*\|\s*(\d+)/\d+", output)
        if "train" in self._command and steps:
            run.step = int(steps[-1])
        if status is None:
            return False
        run.seconds = time.monotonic() - self._started
        if status:
            run.error = f"exit status {status}: {_last_words(output)}; the log is {run.log.name}"
            return True
        if self._waiting:
            run.step = run.task.steps
            run.curves = read_curves(output, run.task)
            self._start()
            return False
        try:
            run.score = read_score(output, run.task)
        except ValueError as error:
            run.error = f"{error}; the log is {run.log.name}"
        run.examples = read_examples(self._folder / "result" / run.name)
        return True

    def kill(self) -> None:
        workspace.kill_group(self._process)

    def _output(self) -> str:
        with open(self.run.log, "rb") as log:
            log.seek(self._from)
            return log.read().decode("utf-8", "replace")


def read_curves(output: str, task: Task) -> dict[str, list[tuple[float, float]]]:
    """Find the scores and losses in what s3prl printed while training; it prints one every `interval` steps."""
    curves = {}
    for part in ("train", "dev"):
        for name, label in ((task.metric, part), ("loss", f"{part} loss")):
            values = _printed(output, part, name)
            curves[label] = [((index + 1) * task.interval, value) for index, value in enumerate(values)]
    return curves


def read_score(output: str, task: Task) -> float:
    """Find the test score in what s3prl printed while evaluating.

    Raises:
        ValueError: it is not there.
    """
    values = _printed(output, "test", task.metric)
    if not values:
        raise ValueError(f"s3prl printed no test {task.metric}")
    return values[-1]


def read_examples(result: Path, most: int = 3) -> list[tuple[str, str]]:
    """Read what was said and what was recognised on test, of the tasks that write it."""
    texts = []
    for kind in ("ref", "hyp"):
        path = result / f"test-{kind}.ark"
        if not path.is_file():
            return []
        lines = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
        texts.append({name: text for name, _, text in lines})
    references, hypotheses = texts
    names = sorted(references)
    chosen = names[:: max(1, len(names) // most)][:most]
    return [(references[name], hypotheses.get(name, "")) for name in chosen]


def _printed(output: str, part: str, name: str) -> list[float]:
    # Anywhere in a line: s3prl prints over its own progress bars.
    return [float(value) for value in re.findall(rf"{part} {name}: (nan|inf|[0-9.]+(?:e[+-]?\d+)?)", output)]


def _last_words(output: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", output) if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _speakers(parts: Mapping[str, Sequence[Utterance]]) -> list[str]:
    return sorted({utterance.speaker for utterances in parts.values() for utterance in utterances})


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
