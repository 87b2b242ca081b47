"""A private copy of s3prl to run tasks in, and the environment for its processes.

Tasks keep caches of file lists and lengths inside the package, which would answer for the next corpus too, and the
installed folder may not be writable. The copy is otherwise unmodified, but for corpora that s3prl's wheel forgets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

MISSING = "s3prl is not installed in this Python; from a clone: pip install '.[s3prl]'"

# The corpora of s3prl's `ctc` task: their folder has no __init__.py, so that its wheel leaves it out.
CORPUS_MODULES = ("libriphone.py", "snips.py")
_CORPUS_SOURCES = Path(__file__).parent / "corpus_modules"


class WorkspaceError(InputError):
    """s3prl is missing, or what was named is none; one sentence with the remedy."""


def s3prl_folder(path: str | os.PathLike | None = None) -> Path:
    """Return the folder of s3prl's package, the one with `run_downstream.py`.

    Args:
        path: A clone or the package in it; None takes the installed one.

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
        if (folder / "run_downstream.py").is_file():
            return folder.resolve()
    raise WorkspaceError(f"{path}: no s3prl here (no run_downstream.py); name a clone of github.com/s3prl/s3prl")


def copy_s3prl(source: Path, target: Path) -> None:
    """Copy s3prl's code, configurations and word lists, and add the corpora it lacks; experiments and caches stay."""

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
    """Put a module into a folder of PYTHONPATH that makes s3prl think ESPnet is not installed.

    s3prl imports it at every start where it is, which takes longer than the rest of a short run and asks the network
    for a dictionary; only its own upstreams `espnet_*` need it.
    """
    with atomic_path(folder / "espnet2" / "__init__.py") as temporary:
        temporary.write_text("raise ModuleNotFoundError('ESPnet is kept out of these runs')\n", encoding="utf-8")


def environment(folder: Path, threads: int, *, offline: bool = True) -> dict[str, str]:
    """Return environment variables for processes that import from a folder first, with so many threads.

    Args:
        folder: For PYTHONPATH.
        threads: For computations on the CPU.
        offline: Importing s3prl imports much else, some of which looks for a network, and may wait long for one: let
            there be none.
    """
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    return {
        **{name: value for name, value in os.environ.items() if name != "WAVCUBE_S3PRL_HOOK"},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": str(threads),
        **({"HF_HUB_OFFLINE": "1", **proxies} if offline else {}),
    }


def kill_group(process: subprocess.Popen) -> None:
    """End a process that leads a session of its own, and its children: data loaders' workers among them."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
