"""Runs tasks: processes of s3prl one after another or side by side, stopped and gone on with at any time.

A run is a few steps: training, evaluations, and scores that s3prl leaves to other tools. What each step gave is in the
run's `state.json`, written when the step ends; within training s3prl's checkpoints carry on. A run's processes hold its
lock, so that a driver that was killed and started again waits for a process the first one left behind.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wavcube_plugins.data.corpora import quesst14
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.shims import WHOLE, WORKERS
from wavcube_plugins.superb import corpora, scoring, workspace
from wavcube_plugins.superb.bench import WRAPPER, Bench, Run, checkpoint_steps, shell
from wavcube_plugins.superb.server import Child, Server
from wavcube_plugins.superb.tasks import Task, numbers

_POLL_SECONDS = 0.5
_STEP_BAR = re.compile(r"overall:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+)")
_SID_PARTS = {"1": "train", "2": "dev", "3": "test"}


class TaskError(RuntimeError):
    """A run failed; one sentence with the reason and its log."""


@dataclass
class Slot:
    """A place where one process runs at a time.

    Args:
        name: For messages.
        variables: Environment variables, which choose the GPU.
        threads: For its computations on the CPU.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 1


def make_slots(device: str, jobs: int | None = None, gpus: Sequence[str] = ()) -> list[Slot]:
    """Return the places for processes.

    Args:
        device: "cpu" or "cuda".
        jobs: How many side by side on a CPU; one by default.
        gpus: Numbers or names of GPUs, one place each; by default the one that is visible.

    Raises:
        InputError: no number of jobs, or options that would do nothing together.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if gpus and device == "cpu":
        raise InputError("--gpus does nothing on the device cpu; take --device cuda, or --jobs")
    if gpus and jobs:
        raise InputError("--jobs does nothing beside --gpus, which gives every GPU one run at a time; leave one out")
    cores = os.cpu_count() or 1
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():  # what the user allows to each
        cores = min(cores, int(os.environ["OMP_NUM_THREADS"]) * (jobs or 1))
    if device == "cpu":
        jobs = jobs or 1
        # s3prl asks for a GPU in a few places whatever --device says, so none is to be seen.
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        return [Slot(f"cpu {number + 1}", hidden, max(1, cores // jobs)) for number in range(jobs)]
    if gpus:
        return [Slot(f"gpu {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}, max(1, cores // len(gpus))) for gpu in gpus]
    return [Slot(f"gpu job {number + 1}", {}, max(1, cores // (jobs or 1))) for number in range(jobs or 1)]


def set_up(bench: Bench) -> None:
    """Copy s3prl into the bench's folder, unless it is there and of the same source.

    Raises:
        WorkspaceError: there is no s3prl.
    """
    code, source = bench.code, workspace.s3prl_folder(bench.s3prl)
    stamp = code / ".source"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != str(source):
        shutil.rmtree(code, ignore_errors=True)
        workspace.copy_s3prl(source, code / "s3prl")
        if not any(row.upstream.startswith("espnet") for row in bench.rows):
            workspace.keep_espnet_out(code)
        with atomic_path(stamp) as temporary:
            temporary.write_text(str(source), encoding="utf-8")


def execute(
    runs: Sequence[Run],
    configs: Mapping[str, Mapping[str, Any]],
    slots: Sequence[Slot],
    report: Callable[[Sequence[Job], Sequence[Job]], None] = lambda running, ended: None,
) -> list[Job]:
    """Run everything that is not done, one run per slot; a run that fails does not stop the others.

    Whatever ends this function, Ctrl-C among it, ends the processes too.

    Args:
        runs: Of one bench.
        configs: Of every task, by its name.
        slots: From `make_slots`.
        report: Called twice a second with the jobs going on and those that have just ended.

    Returns:
        The jobs that failed, with their errors.
    """
    waiting = [run for run in runs if not run.state().get("done") or _changed(run, configs)]
    running: list[Job] = []
    free, failed = list(slots), []
    server: Server | None = None
    try:
        while waiting or running:
            while waiting and free:
                run = waiting.pop(0)
                if server is None and not _changed(run, configs):
                    server = _start_server(run.bench, slots[0])
                running.append(Job(run, configs, free.pop(0), server))
            ended = [job for job in running if job.advance()]
            running = [job for job in running if job not in ended]
            free += [job.slot for job in ended]
            failed += [job for job in ended if job.error]
            report(running, ended)
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for job in running:
            job.kill()
        if server is not None:
            server.close()
    return failed


@functools.cache
def _packaged(name: str | None) -> str | None:
    """Return what tells one release's weights of a packaged model from another's, or None if it is none."""
    from wavcube_plugins.checkpoints import ASSETS, NAMES

    path = ASSETS / str(name) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if name in NAMES and path.is_file() else None


def _depends(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's result depends on, for short: its settings, and the files or packaged weights of its row."""
    text = json.dumps([config, run.row.arguments()], sort_keys=True, default=str)
    found: dict[str, Any] = {"settings": hashlib.sha256(text.encode()).hexdigest()[:16]}
    files: dict[str, Any] = {}
    for place in map(Path, filter(None, (run.row.checkpoint, run.row.options))):
        for path in (place, place / "config.json", *sorted(place.glob("*.safetensors"))):
            if place.is_absolute() and path.is_file():  # those that are there have been made absolute
                files[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
    if weights := _packaged(run.row.checkpoint):
        files[run.row.checkpoint] = weights
    return found | ({"files": files} if files else {})


def _begun(run: Run) -> bool:
    """Whether there is something that a run would go on from."""
    return bool(run.state().get("steps")) or any((run.folder / "exp").glob("*.ckpt"))


def _changed(run: Run, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is not as it was when a run began, or ""; what was not noted then is taken for the same."""
    if run.task.name not in configs or not _begun(run):
        return ""
    state = run.state()
    found = [key for key, value in _depends(run, configs[run.task.name]).items() if state.get(key, value) != value]
    return {"settings": "settings", "files": "contents of its row's files"}[found[0]] if found else ""


def _start_server(bench: Bench, slot: Slot) -> Server | None:
    if bench.device != "cpu" or not hasattr(os, "fork"):
        return None
    return Server(bench.folder, _environment(bench, slot), bench.folder / "server.log")


def _environment(bench: Bench, slot: Slot) -> dict[str, str]:
    found = workspace.environment(bench.code, slot.threads, offline=bench.offline) | slot.variables | {WHOLE: "1"}
    return found if bench.workers is None else found | {WORKERS: str(bench.workers)}


class Job:
    """A run on its way.

    Args:
        run: The run.
        configs: Configurations by the task's name.
        slot: Where its processes run.
        server: Starts them, if there is one; else each is a new Python.

    Attributes:
        error: One sentence if it failed, else "".
        step: (step, of how many) of the training.
        doing: The step of the run that is going on.
    """

    def __init__(self, run: Run, configs: Mapping[str, Mapping[str, Any]], slot: Slot, server: Server | None = None):
        self.run, self.slot, self._server = run, slot, server
        self.error = ""
        self.step = (0, 0)
        self.doing = ""
        self._config = configs[run.task.name]
        self._process: subprocess.Popen | Child | None = None
        self._lock: IO | None = None
        self._work = _STEPS.get(run.task.name, _ordinary)(self)

    def advance(self) -> bool:
        """Look at it, go on where something has ended, and return whether it is over."""
        try:
            if changed := _changed(self.run, {self.run.task.name: self._config}):
                raise TaskError(
                    f"was run with other {changed}; remove {self.run.folder}, or take another `out` in the bench file"
                )
            next(self._work)
            return False
        except StopIteration:
            state = self.run.state()
            self.run.save_state({**state, "done": True})
        except Exception as error:
            known = isinstance(error, (RuntimeError, ValueError, OSError, ImportError))
            self.error = f"{self.run.name}: {error if known else repr(error)}"
        self._unlock()
        return True

    def kill(self) -> None:
        if self._process is not None:
            workspace.kill_group(self._process)
        self._unlock()

    # What the steps of a task are made of -----------------------------------------------------------------------------

    def command(self, name: str, command: list[str], read: Callable[[str], dict[str, Any]]) -> Iterator[None]:
        """Run a command line unless it has been run to its end, and keep what is read from its output.

        Args:
            name: Of the step, and of its log.
            command: To be run in the bench's folder.
            read: Makes of the output what the state keeps.

        Raises:
            TaskError: it failed, or its output has not what was to be read.
        """
        if name in self.run.state().get("steps", {}):
            return
        log = self.run.folder / f"{name.replace('/', '-')}.log"
        yield from self._acquire()
        if not _begun(self.run):
            self.run.save_state({**self.run.state(), **_depends(self.run, self._config)})
        self.doing = name
        started = time.monotonic()
        with open(log, "ab") as output:
            output.write(f"$ {shell(command)}\n".encode())
            output.flush()
            begin = output.tell()
            if self._server is not None:
                self._process = self._server.start(command[len(WRAPPER) :], log)
            else:
                self._process = subprocess.Popen(
                    [sys.executable, *command[1:]],
                    cwd=self.run.bench.folder,
                    env=_environment(self.run.bench, self.slot),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[self._lock.fileno()] if self._lock is not None else (),
                )
        while (status := self._process.poll()) is None:
            self._look(log, begin)
            yield
        self._process = None
        output = log.read_bytes()[begin:].decode("utf-8", "replace")
        if status:
            raise TaskError(f"{name} ended with exit status {status}: {_last_words(output)}; the log is {log}")
        try:
            values = read(log.read_text(encoding="utf-8", errors="replace") if name == "train" else output)
        except ValueError as error:
            raise TaskError(f"{error}; the log is {log}") from error
        self.keep(name, {**values, "seconds": round(time.monotonic() - started, 1)})

    def compute(self, name: str, score: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Compute scores unless they are known, and keep them."""
        if name in self.run.state().get("steps", {}):
            return
        self.doing = name
        yield
        started = time.monotonic()
        values = score()
        self.keep(name, {**values, "seconds": round(time.monotonic() - started, 1)})

    def keep(self, name: str, values: Mapping[str, Any]) -> None:
        state = {**_depends(self.run, self._config), **self.run.state()}
        state.setdefault("steps", {})[name] = dict(values)
        self.run.save_state(state)

    def finish(self, scores: Mapping[str, float], dev: float, note: str = "") -> None:
        """Keep the run's scores."""
        state = self.run.state()
        self.run.save_state({**state, "scores": dict(scores), "dev": dev} | ({"note": note} if note else {}))

    def steps(self) -> dict[str, Any]:
        return self.run.state().get("steps", {})

    @property
    def exp(self) -> Path:
        return self.run.bench.folder / self.run.expdir

    @property
    def runner(self) -> Mapping[str, Any]:
        return self._config["runner"]

    def value(self, key: str) -> Any:
        """Return a value of the configuration by its dotted key."""
        found: Any = self._config
        for part in key.split("."):
            found = found[part]
        return found

    def _look(self, log: Path, begin: int) -> None:
        with open(log, "rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - 4096))
            bars = _STEP_BAR.findall(file.read().decode("utf-8", "replace"))
        if bars:
            self.step = (int(bars[-1][0]), int(bars[-1][1]))

    def _acquire(self) -> Iterator[None]:
        self.run.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is not None or os.name != "posix":
            return
        import fcntl

        self._lock = open(self.run.folder / ".lock", "w")  # noqa: SIM115  (held as long as the run)
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self.doing = "waiting for a process of an earlier call"
                yield

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


# The steps of each task ---------------------------------------------------------------------------------------------


def _train(job: Job) -> Iterator[None]:
    task = job.run.task
    if "train" not in job.steps():
        if task.name in _CACHES:
            _CACHES[task.name](job)
        for half in job.exp.glob(".*.tmp*") if job.exp.is_dir() else ():
            half.unlink(missing_ok=True)

    def read(output: str) -> dict[str, Any]:
        values = numbers(task.decides.printed, output) if task.decides.printed else []
        best = math.nan
        for value in values:
            best = value if task.decides.better(value, best) else best
        return {"dev": best * task.decides.scale}

    yield from job.command("train", job.run.train_command(), read)


def _ordinary(job: Job) -> Iterator[None]:
    task = job.run.task
    yield from _train(job)
    checkpoint, note = _best_checkpoint(job)

    def read(output: str) -> dict[str, Any]:
        scores = {metric.name: metric.read(output) for metric in task.metrics}
        missing = [name for name, value in scores.items() if value is None]
        if missing:
            raise ValueError(f"s3prl printed no {missing[0]} of {task.split}")
        return scores

    yield from job.command("evaluate", job.run.evaluate_command(checkpoint), read)
    steps = job.steps()
    job.finish({metric.name: steps["evaluate"][metric.name] for metric in task.metrics}, steps["train"]["dev"], note)


def _best_checkpoint(job: Job) -> tuple[str, str]:
    """Return the best checkpoint's name, or the last one's and a note: s3prl writes none while dev stays at zero."""
    best = job.run.task.best
    if (job.exp / best).is_file():
        return best, ""
    last = f"states-{checkpoint_steps(job.runner)[-1]}.ckpt"
    if not (job.exp / last).is_file():
        raise TaskError(f"{job.exp}: neither {best} nor {last} is there; remove the run's folder and run it again")
    return last, "dev never rose above its initial value, so the last checkpoint was tested"


def _verification(job: Job) -> Iterator[None]:
    (metric,) = job.run.task.metrics
    yield from _train(job)
    best = math.inf
    for step in checkpoint_steps(job.runner):

        def read(output: str) -> dict[str, Any]:
            value = metric.read(output)
            if value is None:
                raise ValueError("s3prl printed no test EER")
            return {"eer": value}

        name = f"states-{step}"
        command = job.run.evaluate_command(f"{name}.ckpt", f"{job.run.expdir}/{name}")
        yield from job.command(name, command, read)
        best = min(best, job.steps()[name]["eer"])
    job.finish({"eer": best}, best)


def _diarization(job: Job) -> Iterator[None]:
    yield from _train(job)
    checkpoint, note = _best_checkpoint(job)
    yield from job.command("evaluate", job.run.evaluate_command(checkpoint), lambda output: {})

    def score() -> dict[str, Any]:
        predictions = scoring.read_predictions(job.exp / "scoring/predictions")
        reference = scoring.read_rttm(job.run.bench.prepared(job.run.task) / "test/rttm")
        samples = int((job.exp / "frame_shift").read_text())
        der, threshold, median = scoring.least_diarization_error(predictions, reference, samples / 16000)
        return {"der": 100 * der, "threshold": threshold, "median": median}

    yield from job.compute("der", score)
    steps = job.steps()
    job.finish({"der": steps["der"]["der"]}, steps["train"]["dev"], note)


def _query(job: Job) -> Iterator[None]:
    root = Path(job.value("downstream_expert.datarc.dataset_root"))
    for split, name in (("dev", "dev"), ("test", "eval")):
        (job.exp / split).mkdir(parents=True, exist_ok=True)
        yield from job.command(split, job.run.match_command(split), lambda output: {})

        def score(split: str = split, name: str = name) -> dict[str, Any]:
            scores = scoring.read_detections(job.exp / split / "benchmark.stdlist.xml")
            documents = {document for found in scores.values() for document in found}
            truth = scoring.read_truth(quesst14.find_truth(root, name), scores, documents)
            return {"mtwv": 100 * scoring.maximum_term_weighted_value(scores, truth)}

        yield from job.compute(f"{split} mtwv", score)
    steps = job.steps()
    job.finish({"mtwv": steps["test mtwv"]["mtwv"]}, steps["dev mtwv"]["mtwv"])


def _conversion(job: Job) -> Iterator[None]:
    from wavcube_plugins.superb import conversion

    yield from _train(job)
    target = Path(job.value("downstream_expert.datarc.data_root")) / job.run.variant
    steps = range(job.runner["eval_step"], job.runner["total_steps"] + 1, job.runner["eval_step"])
    for step in steps:
        converted = job.exp / str(step) / "test" / "wav"
        yield from job.compute(f"mcd {step}", lambda converted=converted: conversion.distortion(converted, target))
    known = job.steps()
    step = min(steps, key=lambda number: known[f"mcd {number}"]["mcd"])
    scores = {"mcd": known[f"mcd {step}"]["mcd"]}
    judges = conversion.find_judges(target.parent)
    if judges is not None:
        folder = job.exp / str(step) / "test" / "wav"
        yield from job.compute("judges", lambda: judges.measure(folder, target))
        scores |= {name: job.steps()["judges"][name] for name in ("wer", "asv") if name in job.steps()["judges"]}
    job.finish(scores, scores["mcd"])


_STEPS: Mapping[str, Callable[[Job], Iterator[None]]] = {
    "asv": _verification, "sd": _diarization, "qbe": _query, "vc": _conversion,
}  # fmt: skip


# Caches of s3prl, made here so that they belong to the corpus at hand -------------------------------------------------


def _identification_cache(job: Job) -> None:
    """Write the file lists s3prl's identification keeps; it would glob three times over the corpus, and never again."""
    root = Path(job.value("downstream_expert.datarc.file_path"))
    listing = Path(job.value("downstream_expert.datarc.meta_data"))
    folder = job.run.bench.code / "s3prl/downstream/voxceleb1/.cache"
    parts = [path for path in sorted(root.iterdir()) if path.is_dir()]
    files: dict[str, list[str]] = {part: [] for part in _SID_PARTS.values()}
    for line in listing.read_text(encoding="utf-8").splitlines():
        if line.strip():
            number, place = line.split()
            found = [part / "wav" / place for part in parts if (part / "wav" / place).is_file()]
            if not found:
                raise TaskError(f"{root}: {place} of {listing.name} is missing; run `wavcube superb prepare`")
            files[_SID_PARTS[number]].append(str(found[0]))
    for part, names in files.items():
        with atomic_path(folder / f"{part}.pkl") as temporary:
            temporary.write_bytes(pickle.dumps(names))


def _verification_cache(job: Job) -> None:
    """Write the lengths without silence that s3prl's verification keeps, unless they are those of this corpus."""
    import torch
    from tqdm import tqdm

    root = Path(job.value("downstream_expert.datarc.file_path")) / "dev" / "wav"
    path = corpora.asv_lengths(job.run.bench)
    stamp = path.with_suffix(".root")
    if path.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == str(root):
        return
    files = sorted(root.rglob("*.wav"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lengths = list(tqdm(pool.map(_sounding_length, files), total=len(files), desc="silence removed", unit="file"))
    with atomic_path(path) as temporary:
        torch.save([[file.parts[-3:] for file in files], lengths], temporary)
    with atomic_path(stamp) as temporary:
        temporary.write_text(str(root), encoding="utf-8")


_CACHES: Mapping[str, Callable[[Job], None]] = {"sid": _identification_cache, "asv": _verification_cache}


def _sounding_length(path: Path) -> int:
    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.s3prl.shims import remove_silence

    return len(remove_silence(read_audio(path, 16000) * 10 ** (-3 / 20), 16000, seconds=0.1, level=0.001))


def _last_words(output: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", output) if line.strip()]
    # A progress bar may print itself once more behind the error.
    said = [line for line in lines if not re.search(r"\d+%\|", line)]
    errors = [line for line in said[-5:] if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (errors or said or lines or ["it said nothing"])[-1]


def missing_packages(tasks: Sequence[Task]) -> list[str]:
    """Return sentences on packages that tasks need and nothing stands in for."""
    from importlib.util import find_spec

    lost: dict[str, list[str]] = {}
    for task in tasks:
        for module, package in task.packages.items():
            with contextlib.suppress(ValueError):
                if module not in task.stand_ins and find_spec(module) is None:
                    lost.setdefault(package, []).append(task.name)
    return [f"{', '.join(names)} need {package}: pip install {package}" for package, names in sorted(lost.items())]
