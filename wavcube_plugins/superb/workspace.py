"""A private copy of s3prl to run tasks in, and the environment for its processes.

s3prl's tasks keep caches of file lists and lengths inside the package. These would be used for the next corpus too, and
the installed folder may not be writable. The copy is unmodified, except for corpora that are missing in s3prl's wheel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Protocol

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.hook import SWITCH
from wavcube_plugins.s3prl.script import MISSING, RUN_DOWNSTREAM

# The corpora of s3prl's `ctc` task: their folder has no __init__.py, so that its wheel leaves it out.
CORPUS_MODULES = ("libriphone.py", "snips.py")
_CORPUS_SOURCES = Path(__file__).parent / "corpus_modules"


class Process(Protocol):
    """What `subprocess.Popen` and its like have in common."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end and return the exit status."""
        ...


class WorkspaceError(InputError):
    """s3prl is not installed, or not in the folder named."""


def s3prl_folder(path: str | os.PathLike | None = None) -> Path:
    """Return the folder of s3prl's package, the one with `run_downstream.py`.

    Args:
        path: A clone or the package in it; None means the installed one.

    Raises:
        WorkspaceError: it is not there.
    """
    if path is None:
        spec = importlib.util.find_spec("s3prl")
        if spec is None or spec.origin is None:
            raise WorkspaceError(MISSING)
        return Path(spec.origin).parent
    given = Path(path).expanduser()
    for folder in (given / "s3prl", given):
        if (folder / RUN_DOWNSTREAM).is_file():
            return folder.resolve()
    raise WorkspaceError(f"{path}: no s3prl here (no run_downstream.py); name a clone of github.com/s3prl/s3prl")


def copy_s3prl(source: Path, target: Path) -> None:
    """Copy s3prl's code, configurations and word lists without experiments and caches, and add missing corpora."""

    def skip(folder: str, names: list[str]) -> list[str]:
        # A clone may hold experiments and corpora of any size; what is needed is small.
        unwanted = {"__pycache__", ".cache", ".wav_lengths", "result", "data"}
        kept = (".py", ".yaml", ".txt", ".json", ".cfg", ".dict")
        return [name for name in names if name in unwanted or not (name.endswith(kept) or Path(folder, name).is_dir())]

    shutil.copytree(source, target, ignore=skip, dirs_exist_ok=True)
    folder = target / "downstream" / "ctc" / "corpus"
    for name in CORPUS_MODULES:
        if not (folder / name).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_CORPUS_SOURCES / name, folder / name)


def keep_espnet_out(folder: Path) -> None:
    """Put a module into a folder of PYTHONPATH that makes s3prl believe that ESPnet is not installed.

    s3prl imports ESPnet at every start. That takes longer than the rest of a short run and looks for a dictionary on
    the network; only the upstreams `espnet_*` need it.
    """
    with atomic_path(folder / "espnet2" / "__init__.py") as temporary:
        temporary.write_text("raise ModuleNotFoundError('ESPnet is kept out of these runs')\n", encoding="utf-8")


def environment(folder: Path, threads: int, *, offline: bool = True) -> dict[str, str]:
    """Return the environment variables of processes that import from a folder first.

    Args:
        folder: For PYTHONPATH.
        threads: The number of threads for computations on the CPU.
        offline: Keep them off the network: some of what s3prl imports looks for it, and may wait long for an answer.
    """
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    return {
        **{name: value for name, value in os.environ.items() if name != SWITCH},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": str(threads),
        **({"HF_HUB_OFFLINE": "1", **proxies} if offline else {}),
    }


def kill_group(process: Process) -> None:
    """End a process that leads a session, and its children, such as the workers of data loaders."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def last_words(output: str) -> str:
    """Return the line of a failed process's output that says most: its last error, or else its last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]", output) if line.strip()]
    # A progress bar may be printed once more after the error.
    printed = [line for line in lines if not re.search(r"\d+%\|", line)]
    errors = [line for line in printed[-5:] if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (errors or printed or lines or ["it printed nothing"])[-1]
