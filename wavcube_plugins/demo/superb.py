"""Two SUPERB tasks on the bundled speech, through s3prl's own `run_downstream.py`.

They run in a private copy of the installed s3prl (see `wavcube_plugins.superb.workspace`), made anew each time. The
commands are the ones a user types in a clone of s3prl.
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
from wavcube_plugins.s3prl import hook
from wavcube_plugins.s3prl.folder import FOLDER_NAME
from wavcube_plugins.superb import workspace
from wavcube_plugins.superb.steps import OutputError
from wavcube_plugins.superb.tasks import numbers
from wavcube_plugins.synthetic.bundled import SAMPLE_RATE, Utterance
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

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


@dataclass(frozen=True)
class DemoTask:
    """A short form of a SUPERB task.

    Args:
        name: Short name, used for files.
        title: In words.
        downstream: s3prl's name, for `-d`.
        metric: The name s3prl prints before its score.
        metric_title: The score in words.
        higher_is_better: True for an accuracy, False for an error rate.
        baselines: s3prl upstreams to run it with besides WavCube.
        config: The configuration file, with placeholders for the number of steps.
        steps: Training steps.
        evaluations: The number of evaluations on dev during training.
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
        """The number of steps between two evaluations."""
        return max(1, self.steps // self.evaluations)


TASKS = (
    DemoTask(
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
    DemoTask("pr", "Phone recognition", "ctc", "per", "phone error rate", False, ("fbank",), _PR_CONFIG, 600, 10),
)


@dataclass
class DemoRun:
    """Training and evaluation of one task on one upstream.

    Attributes:
        curves: (step, value) points by name: "dev" and "train" are the metric, "train loss" and "dev loss" the loss.
        score: The metric on test, or NaN.
        error: One sentence if it failed, else "".
        seconds: The time it took.
        examples: (reference, hypothesis) on test, for tasks that write transcripts.
        step: The current training step.
    """

    task: DemoTask
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


def check() -> None:
    """Check that the tasks can run in this Python.

    Raises:
        WorkspaceError: s3prl is missing, or does not know the WavCube upstreams; the message says what to do.
    """
    folder = workspace.s3prl_folder()
    # Either the import hook, which is active in this process too, or a copy of the upstream folder.
    if not hook.active() and not (folder / "upstream" / FOLDER_NAME).is_dir():
        raise workspace.WorkspaceError(UNKNOWN)


def prepare(folder: Path, parts: Mapping[str, Sequence[Utterance]], tasks: Sequence[DemoTask]) -> None:
    """Fill a folder to run the tasks in: the copy of s3prl, the audio, and the lists of both corpora.

    Args:
        folder: Must not exist yet.
        parts: Utterances of train, dev and test.
        tasks: The tasks to write configurations for.
    """
    workspace.copy_s3prl(workspace.s3prl_folder(), folder / "s3prl")
    workspace.keep_espnet_out(folder)
    data = folder / "data"
    speakers = {name: f"id{10001 + index}" for index, name in enumerate(_speakers(parts))}
    listing, tables = [], {}
    for number, (part, utterances) in enumerate(parts.items(), 1):
        tables[part] = []
        for utterance in utterances:
            # VoxCeleb1's layout, which suits both tasks: speaker, video, file.
            place = f"{speakers[utterance.speaker]}/{utterance.speaker}/{utterance.path.name}"
            target = data / "speech" / "wav" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(utterance.path, target)
            listing.append(f"{number} {place}")
            tables[part].append(f"data/speech/wav/{place},{' '.join(utterance.phones)}")
    _write(data / "sid.txt", listing)
    # One epoch of s3prl's `ctc` must last the whole training: it starts twelve workers for each later epoch.
    longest = max(task.steps for task in tasks)
    tables["train"] *= math.ceil(8 * longest / len(tables["train"]))
    for part, rows in tables.items():
        _write(data / "pr" / f"{part}.csv", ["wav_path,transcription", *rows])
    # The transcriptions are exact because they are phones already; every phone is a word of its own.
    phones = [phone for phone in PHONES if phone != SILENCE]
    _write(data / "pr" / "phones.txt", phones)
    _write(data / "pr" / "lexicon.txt", [f"{phone} {phone}" for phone in phones])
    for task in tasks:
        settings = {"steps": task.steps, "interval": task.interval, "longest": 8 * SAMPLE_RATE}
        _write(folder / f"{task.name}.yaml", [task.config.format(**settings).rstrip()])


def plan(folder: Path, tasks: Sequence[DemoTask], checkpoint: str) -> list[DemoRun]:
    """Return the runs with their command lines: every task on WavCube and on its baselines.

    Args:
        folder: A folder made by `prepare`.
        tasks: The tasks.
        checkpoint: For `-k`: a preset, a folder or file by its absolute path, or a hub name.
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
            runs.append(DemoRun(task, upstream, commands, folder / f"{task.name}-{upstream}.log"))
    return runs


def execute(
    runs: Sequence[DemoRun], folder: Path, progress: Callable[[Sequence[DemoRun], Sequence[DemoRun]], None]
) -> None:
    """Run everything, two at a time where there are two cores; a run that fails does not stop the others.

    Whatever ends this function, Ctrl-C included, ends the processes too.

    Args:
        runs: From `plan`; their results are filled in.
        folder: The folder they run in.
        progress: Called twice a second with the runs in progress and those that have just ended.
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
    """A run in progress: the process of its current command."""

    def __init__(self, run: DemoRun, folder: Path, environment: dict[str, str]):
        self.run = run
        self._folder = folder
        self._environment = environment
        self._started = time.monotonic()
        self._waiting = list(run.commands)
        run.log.write_bytes(b"")
        self._start()

    def _start(self) -> None:
        self._command = self._waiting.pop(0)
        # s3prl writes a best checkpoint only once dev improves; the last one is always there.
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
        """Look at the process, start the next command when it has ended, and return whether the run is over."""
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
            run.error = f"exit status {status}: {workspace.last_words(output)}; the log is {run.log.name}"
            return True
        if self._waiting:
            run.step = run.task.steps
            run.curves = read_curves(output, run.task)
            self._start()
            return False
        try:
            run.score = read_score(output, run.task)
        except OutputError as error:
            run.error = f"{error}; the log is {run.log.name}"
        run.examples = read_examples(self._folder / "result" / run.name)
        return True

    def kill(self) -> None:
        workspace.kill_group(self._process)

    def _output(self) -> str:
        with open(self.run.log, "rb") as log:
            log.seek(self._from)
            return log.read().decode("utf-8", "replace")


def read_curves(output: str, task: DemoTask) -> dict[str, list[tuple[float, float]]]:
    """Read the scores and losses that s3prl printed during training, one every `interval` steps."""
    curves = {}
    for part in ("train", "dev"):
        for name, label in ((task.metric, part), ("loss", f"{part} loss")):
            values = _printed(output, part, name)
            curves[label] = [((index + 1) * task.interval, value) for index, value in enumerate(values)]
    return curves


def read_score(output: str, task: DemoTask) -> float:
    """Read the test score that s3prl printed.

    Raises:
        OutputError: it printed none.
    """
    values = _printed(output, "test", task.metric)
    if not values:
        raise OutputError(f"s3prl printed no test {task.metric}")
    return values[-1]


def read_examples(result: Path, most: int = 3) -> list[tuple[str, str]]:
    """Read some references and hypotheses of the test set, for tasks that write them."""
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
    return numbers(f"{part} {name}: ", output)


def _speakers(parts: Mapping[str, Sequence[Utterance]]) -> list[str]:
    return sorted({utterance.speaker for utterances in parts.values() for utterance in utterances})


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
