"""Starts s3prl's scripts quickly: one process imports s3prl, which takes seconds, and forks for every command line.

    python -m wavcube_plugins.superb.server

reads requests, a JSON object per line, and answers with process ids and exit statuses. Each command runs exactly as
`python -m wavcube_plugins.s3prl.run …` would, in a process and a session of its own. For the CPU only: a process that
may have used a GPU must not be forked. When its input ends, because the process that started it is gone, it ends its
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TICK = 0.1


class ForkServer:
    """The client: starts one server for one set of environment variables.

    Args:
        folder: The current folder of the commands.
        environment: Their environment variables.
        log: The file for the server's own output.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path):
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._log = log
        self._statuses: dict[int, int] = {}

    def start(self, arguments: Sequence[str], log: Path) -> Child:
        """Start a command.

        Args:
            arguments: What follows `python -m wavcube_plugins.s3prl.run`.
            log: The file to append its output to.

        Raises:
            RuntimeError: the server could not start; with its last line of output.
        """
        request = json.dumps({"arguments": list(arguments), "log": str(log)}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(request.encode())
            self._requests.flush()
        while True:
            answer = self._read()
            if "started" in answer:
                return Child(self, answer["started"])

    def status(self, pid: int) -> int | None:
        """Return a command's exit status, or None while it runs."""
        while pid not in self._statuses and select.select([self._answers], [], [], 0)[0]:
            self._read()
        return self._statuses.get(pid)

    def close(self) -> None:
        """End the server and whatever it runs."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._answers.close()

    def _read(self) -> dict[str, Any]:
        # Byte by byte: a buffer would hold answers that `select` does not see.
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._answers.fileno(), 1)
            if not byte:
                words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise RuntimeError(f"s3prl cannot be imported: {words[-1] if words else 'no reason'}; see {self._log}")
            line += byte
        answer = json.loads(line)
        if "ended" in answer:
            self._statuses[answer["ended"]] = answer["status"]
        return answer


class Child:
    """A running command, with the methods of `subprocess.Popen` that are needed."""

    def __init__(self, server: ForkServer, pid: int):
        self._server = server
        self.pid = pid

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._server.status(self.pid)

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        while (status := self.poll()) is None:
            select.select([], [], [], _TICK)
        return status


def serve() -> None:
    """Answer requests until the input ends."""
    from wavcube_plugins.s3prl.run import apply_shims

    # Answers have a channel of their own; whatever is printed while importing goes to the log.
    answers = os.dup(1)
    os.dup2(2, 1)
    apply_shims()
    import s3prl.downstream.runner
    import s3prl.hub  # noqa: F401

    children: set[int] = set()

    def answer(**values: int) -> None:
        os.write(answers, json.dumps(values).encode() + b"\n")

    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], _TICK)
        if ready:
            text = os.read(0, 65536)
            if not text:
                break
            *lines, waiting = (waiting + text).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(answers)
                    _run(request)
                children.add(pid)
                answer(started=pid)
        for pid in list(children):
            if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                children.discard(pid)
                answer(ended=pid, status=os.waitstatus_to_exitcode(ended[1]))
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _run(request: Mapping[str, Any]) -> None:
    """Run a request in this forked process, and never return."""
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        from wavcube_plugins.s3prl import run

        run.main(request["arguments"])
        code = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without the exit handlers of the process it was forked from.
        os._exit(code)


if __name__ == "__main__":
    serve()
