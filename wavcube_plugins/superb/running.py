"""Runs what is not done yet, several runs side by side, and ends their processes with itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb import workspace
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.changes import what_changed
from wavcube_plugins.superb.job import Job, Slot, environment
from wavcube_plugins.superb.runs import Run
from wavcube_plugins.superb.server import ForkServer
from wavcube_plugins.superb.steps import steps_of
from wavcube_plugins.superb.tasks import Task

_POLL_SECONDS = 0.5


def make_slots(device: str, jobs: int | None = None, gpus: Sequence[str] = ()) -> list[Slot]:
    """Return the slots for processes.

    Args:
        device: "cpu" or "cuda".
        jobs: The number of runs side by side on a CPU; one by default.
        gpus: Numbers or names of GPUs, one slot each; by default the one that is visible.

    Raises:
        InputError: fewer than one job, or options that would have no effect together.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}")
    if gpus and device == "cpu":
        raise InputError("--gpus does nothing on the device cpu; take --device cuda, or --jobs")
    if gpus and jobs:
        raise InputError("--jobs does nothing beside --gpus, which gives every GPU one run at a time; leave one out")
    cores = os.cpu_count() or 1
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():  # what the user allows each
        cores = min(cores, int(os.environ["OMP_NUM_THREADS"]) * (jobs or 1))
    if device == "cpu":
        jobs = jobs or 1
        # s3prl uses a GPU in a few places whatever --device says, so hide them all.
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

    Whatever ends this function, Ctrl-C included, ends the processes too.

    Args:
        runs: The runs of one bench.
        configs: The configuration of every task, by its name.
        slots: From `make_slots`.
        report: Called twice a second with the jobs in progress and those that have just ended.

    Returns:
        The jobs that failed, with their errors.
    """
    waiting = [run for run in runs if not run.state().get("done") or what_changed(run, configs[run.task.name])]
    running: list[Job] = []
    free, failed = list(slots), []
    server: ForkServer | None = None
    try:
        while waiting or running:
            while waiting and free:
                run = waiting.pop(0)
                config = configs[run.task.name]
                if server is None and not what_changed(run, config):
                    server = _start_server(run.bench, slots[0])
                running.append(Job(run, config, free.pop(0), steps_of(run.task.name), server))
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


def _start_server(bench: Bench, slot: Slot) -> ForkServer | None:
    if bench.device != "cpu" or not hasattr(os, "fork"):
        return None
    return ForkServer(bench.folder, environment(bench, slot), bench.folder / "server.log")


def missing_packages(tasks: Sequence[Task]) -> list[str]:
    """Return a sentence on each package that tasks need, that is missing, and that has no stand-in."""
    lost: dict[str, list[str]] = {}
    for task in tasks:
        for module, package in task.packages.items():
            with contextlib.suppress(ValueError):
                if module not in task.stand_ins and find_spec(module) is None:
                    lost.setdefault(package, []).append(task.name)
    return [f"{', '.join(names)} need {package}: pip install {package}" for package, names in sorted(lost.items())]
