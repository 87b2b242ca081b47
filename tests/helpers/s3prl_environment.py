"""A throw-away Python environment with s3prl and a freshly built wheel of this package, for tests in subprocesses.

Nothing is downloaded: s3prl is a copy of the installed one, and everything else is reached through a path to the
environment that runs the tests. Its own .pth files are not read from there, so neither its editable install of this
package nor its hook is active: only what the wheel brings.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Environment:
    """A virtual environment; `site` is its site-packages folder. Without `parent` it has the standard library alone."""

    def __init__(self, folder: Path, *, parent: bool = True):
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        if parent:
            (self.site / "zz_parent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def add_s3prl(self) -> Path:
        """Copy the installed s3prl here, so that it may be edited and may keep its caches to itself."""
        package = self.site / "s3prl"
        installed = Path(find_spec("s3prl").origin).parent
        shutil.copytree(installed, package, ignore=shutil.ignore_patterns("__pycache__", ".cache"))
        # s3prl imports ESPnet when it is there, which takes longer than all the rest of a test.
        (self.site / "espnet2").mkdir()
        (self.site / "espnet2" / "__init__.py").write_text("raise ModuleNotFoundError('kept out of this test')\n")
        return package

    def pip(self, *arguments: object) -> None:
        """Run pip on this environment, offline."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, env=clean_environment())

    def run(self, *arguments: object, cwd: Path | None = None, fails: bool = False, **variables: str) -> str:
        """Run Python with these arguments and return its output, stderr included; fail the test if it failed."""
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=cwd or self.site.parent,
            env=clean_environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout


def clean_environment() -> dict[str, str]:
    """Return the environment variables without what would change which packages Python sees, offline, one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WAVCUBE", "PIP_"))}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "PIP_NO_INDEX": "1"}


@functools.cache
def scratch() -> Path:
    """Return a folder that lives as long as the test session."""
    holder = tempfile.TemporaryDirectory(prefix="wavcube_s3prl_")
    scratch.holder = holder  # kept alive: it is removed when Python ends
    return Path(holder.name)


@functools.cache
def source_tree() -> Path:
    """Copy what a build reads, since a build writes into its source tree."""
    tree = scratch() / "source"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("wavcube_plugins", "s3prl_upstream"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@functools.cache
def wheel() -> Path:
    """Build the package's wheel with the setuptools at hand."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        scratch(),
        source_tree(),
    ]
    done = subprocess.run([str(part) for part in command], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(scratch().glob("*.whl"))


@functools.cache
def installed() -> Environment:
    """Return the environment with s3prl and the wheel; tests leave both as they are."""
    environment = Environment(scratch() / "installed")
    environment.add_s3prl()
    environment.pip("install", "--no-deps", wheel())
    return environment
