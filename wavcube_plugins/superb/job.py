"""A run in progress: processes of s3prl one after the other, resumed wherever they were stopped.

A run takes a few steps: training, evaluations, and scores that s3prl leaves to other tools. The result of each is saved
in the run's `state.json` when the step ends; within a training, s3prl's checkpoints are resumed. The processes of a run
hold its lock, so that a driver that was killed and started again waits for a process that the first one left behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wavcube_plugins.s3prl.shims import WHOLE, WORKERS
from wavcube_plugins.superb import workspace
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.changes import dependencies, has_begun, what_changed
from wavcube_plugins.superb.runs import WRAPPER, Run, shell
from wavcube_plugins.superb.server import Child, ForkServer

_STEP_BAR = re.compile(r"overall:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+)")


class TaskError(RuntimeError):
    """A run failed; one sentence with the reason and its log."""


@dataclass
class Slot:
    """A place where one process runs at a time.

    Args:
        name: For messages.
        variables: Environment variables, which choose the GPU.
        threads: The number of threads for computations on the CPU.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 1


class Job:
    """A run in progress.

    Args:
        run: The run.
        config: The configuration of its task.
        slot: Where its processes run.
        steps: The steps of the run; a generator that yields while a process is running.
        server: Starts its processes; None starts a new Python for each.

    Attributes:
        error: One sentence if it failed, else "".
        step: The training's current step and their number.
        doing: The name of the current step of the run.
    """

    def __init__(
        self,
        run: Run,
        config: Mapping[str, Any],
        slot: Slot,
        steps: Callable[[Job], Iterator[None]],
        server: ForkServer | None = None,
    ):
        self.run, self.slot, self._server = run, slot, server
        self.error = ""
        self.step = (0, 0)
        self.doing = ""
        self._config = config
        self._process: subprocess.Popen | Child | None = None
        self._lock: IO | None = None
        self._work = steps(self)

    def advance(self) -> bool:
        """Look at the current process, continue where it has ended, and return whether the run is over."""
        try:
            if changed := what_changed(self.run, self._config):
                raise TaskError(
                    f"was run with other {changed}; remove {self.run.folder}, or give the bench file another `out`"
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
        """End its process."""
        if self._process is not None:
            workspace.kill_group(self._process)
        self._unlock()

    # For the steps of a run -------------------------------------------------------------------------------------------

    def command(self, name: str, command: list[str], read: Callable[[str], Mapping[str, Any]]) -> Iterator[None]:
        """Run a command line, unless it has been run to its end, and save what is read from its output.

        Args:
            name: The name of the step and of its log.
            command: The command line, run in the bench's folder.
            read: Turns the output into what the state keeps.

        Raises:
            TaskError: it failed, or its output lacks what was to be read.
        """
        if name in self.results():
            return
        log = self.run.folder / f"{name.replace('/', '-')}.log"
        yield from self._acquire()
        if not has_begun(self.run):
            self.run.save_state({**self.run.state(), **dependencies(self.run, self._config)})
        self.doing = name
        started = time.monotonic()
        begin = self._start(command, log)
        while (status := self._poll()) is None:
            self._look(log, begin)
            yield
        self._process = None
        output = log.read_bytes()[begin:].decode("utf-8", "replace")
        if status:
            raise TaskError(f"{name} ended with exit status {status}: {workspace.last_words(output)}; the log is {log}")
        try:
            values = read(log.read_text(encoding="utf-8", errors="replace") if name == "train" else output)
        except ValueError as error:
            raise TaskError(f"{error}; the log is {log}") from error
        self._keep(name, {**values, "seconds": round(time.monotonic() - started, 1)})

    def compute(self, name: str, score: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Compute scores, unless they are known, and save them."""
        if name in self.results():
            return
        self.doing = name
        yield
        started = time.monotonic()
        values = score()
        self._keep(name, {**values, "seconds": round(time.monotonic() - started, 1)})

    def finish(self, scores: Mapping[str, float], dev: float, note: str = "") -> None:
        """Save the scores of the run."""
        state = self.run.state()
        self.run.save_state({**state, "scores": dict(scores), "dev": dev} | ({"note": note} if note else {}))

    def results(self) -> dict[str, Any]:
        """Return the results of the steps that are done, by name."""
        return self.run.state().get("steps", {})

    @property
    def exp(self) -> Path:
        """s3prl's experiment folder."""
        return self.run.bench.folder / self.run.expdir

    @property
    def runner(self) -> Mapping[str, Any]:
        """The part of the configuration that is about steps and checkpoints."""
        return self._config["runner"]

    def value(self, key: str) -> Any:
        """Return a value of the configuration by its dotted key."""
        found: Any = self._config
        for part in key.split("."):
            found = found[part]
        return found

    # Processes --------------------------------------------------------------------------------------------------------

    def _start(self, command: list[str], log: Path) -> int:
        """Start a command line and return where its output begins in the log."""
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
                    env=environment(self.run.bench, self.slot),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[self._lock.fileno()] if self._lock is not None else (),
                )
        return begin

    def _poll(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def _keep(self, name: str, values: Mapping[str, Any]) -> None:
        state = {**dependencies(self.run, self._config), **self.run.state()}
        state.setdefault("steps", {})[name] = dict(values)
        self.run.save_state(state)

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


def environment(bench: Bench, slot: Slot) -> dict[str, str]:
    """Return the environment variables of a bench's processes in a slot."""
    found = workspace.environment(bench.code, slot.threads, offline=bench.offline) | slot.variables | {WHOLE: "1"}
    return found if bench.workers is None else found | {WORKERS: str(bench.workers)}
