"""What the commands share: arguments, loading a model, messages, and exit codes for errors."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from wavcube_plugins.errors import BAD_INPUT, DISK_FAULTS, FAILED, NAME_FAULTS, InputError

if TYPE_CHECKING:
    import torch

    from wavcube_plugins.models.wavcube import WavCube

DEFAULT_MODEL = "nano"
DEBUG_VARIABLE = "WAVCUBE_DEBUG"
DTYPES = ("float32", "bfloat16", "float16")

# Warnings and failures printed one by one; further ones are only counted.
SHOWN = 20


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


# Arguments ------------------------------------------------------------------------------------------------------------


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], int], *, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Add a command to the subparsers `commands` and return its parser."""
    command = commands.add_parser(
        name, help=summary, description=description, epilog="example:\n" + textwrap.indent(example, "  ")
    )
    command.set_defaults(run=run)
    return command


def add_files(command: argparse.ArgumentParser, inputs: str, output: str) -> None:
    """Add the arguments for input files and for where the results go."""
    command.add_argument("inputs", metavar="FILE", nargs="+", type=Path, help=inputs)
    command.add_argument("-o", "--output", type=Path, metavar="OUT", help=f"{output}. Existing files are replaced")


def add_model(command: argparse.ArgumentParser, *, window: bool = False) -> None:
    """Add the arguments that choose a model, its device and its precision."""
    group = command.add_argument_group("model")
    group.add_argument(
        "--model",
        help="nano (included in this package), wavcube or wavcube_pro (from the Hugging Face hub), a hub name, a "
        f"folder (./nano if it has such a name), or a .safetensors or .ckpt file (default: {DEFAULT_MODEL})",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision to compute in (default: %(default)s)"
    )
    if window:
        group.add_argument(
            "--window",
            type=positive,
            metavar="SECONDS",
            help="process in overlapping windows, for recordings of hours: beyond the waveform itself memory stays "
            "constant, and the result differs slightly from the exact one (60 is a good value)",
        )


def add_source(command: argparse.ArgumentParser) -> None:
    """Add the arguments that name a corpus: a folder or a manifest."""
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder, manifest or audio file")
    command.add_argument(
        "--format", choices=("list", "scp", "jsonl"), help="format of the manifest (default: guessed from the file)"
    )
    command.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="folder that relative paths in a manifest refer to (default: the current folder, then the manifest's)",
    )


def check_source(source: Path, root: Path | None) -> None:
    """Check that a corpus and its root exist, before anything heavy is imported.

    Raises:
        InputError: one of them does not.
    """
    if root is not None and not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")


def check_folder(output: Path) -> None:
    """Check that an output folder is not a file.

    Raises:
        InputError: it is.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder")


def check_writable(path: Path) -> None:
    """Check that a file can be written, so that this is known before the work and not after it.

    Raises:
        InputError: it cannot.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{path}: cannot be written, {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, permission denied")


def positive(text: str) -> float:
    """Parse a number above 0."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


positive.__name__, count.__name__ = "number", "whole number"  # what argparse calls them in its messages


# Models ---------------------------------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace, *, local_rank: int = 0) -> WavCube:
    """Load the model that the arguments name, or the default one, and say so in that case.

    Args:
        arguments: With `model`, `device`, `dtype` and perhaps `window`; a missing model is filled in.
        local_rank: Number of this process on its machine, which chooses its GPU.

    Raises:
        InputError: an unknown model or device, or a window that is too short for the model.
    """
    import torch

    from wavcube_plugins.checkpoints import load_model

    device = choose_device(arguments.device, local_rank)
    if arguments.model is None:
        arguments.model = DEFAULT_MODEL
        if local_rank == 0:
            note(f"no --model given; using {DEFAULT_MODEL}, the small demonstration model included in this package")
    model = load_model(arguments.model, device=device, dtype=getattr(torch, arguments.dtype))
    if getattr(arguments, "window", None) is not None:
        from wavcube_plugins.models.windowed import window_frames

        try:
            window_frames(model, arguments.window)  # too short a window would fail for every file
        except ValueError as error:
            raise InputError(str(error)) from error
    return model


def choose_device(name: str, local_rank: int) -> str:
    """Return the PyTorch device that `--device` asks for.

    Raises:
        InputError: it is unknown, or not available here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return f"cuda:{local_rank % gpus}" if gpus else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        if not gpus:
            raise InputError(f"--device {name}: PyTorch finds no CUDA device here")
        if index and int(index) >= gpus:
            raise InputError(f"--device {name}: there are {gpus} CUDA devices, numbered from 0")
        return name if index else f"cuda:{local_rank % gpus}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: not available here")
    return kind


def device_of(model: WavCube) -> torch.device:
    return next(model.parameters()).device


def model_argument(folder: Path) -> str:
    """Return what to type after --model for a folder: one named like a known model needs a path."""
    from wavcube_plugins.checkpoints import NAMES

    return os.path.join(".", folder) if str(folder) in NAMES else str(folder)


# Messages -------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a result."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def say_table(rows: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    say("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def note(text: str) -> None:
    """Print a remark on stderr."""
    text = f"wavcube: {text}"
    if "tqdm" in sys.modules:
        # Above a progress bar, not through it.
        sys.modules["tqdm"].tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def note_failures(word: str, failures: Mapping[str, str]) -> str:
    """Print the first failures, and return how many more there are in words."""
    for name, reason in list(failures.items())[:SHOWN]:
        note(f"{word}: {name}: {reason}")
    return f", {len(failures) - SHOWN} more than shown" if len(failures) > SHOWN else ""


def fail(command: str, message: str) -> int:
    """Print the error that a command ends with, and return its exit code."""
    print(f"wavcube {command}: error: {message}", file=sys.stderr)
    return FAILED


def note_overlooked(overlooked: Sequence[tuple[Path, str]]) -> None:
    """Print one line about the paths that could not be searched for audio."""
    from wavcube_plugins.audio import describe_overlooked

    if overlooked:
        note(describe_overlooked(overlooked))


def count_of(number: int, thing: str, things: str = "") -> str:
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show each warning meant for users as one line, the first `SHOWN` of them, and none meant for programmers."""
    shown = 0

    def show(message, category, *_, **__) -> None:
        nonlocal shown
        if not issubclass(category, UserWarning):
            return
        shown += 1
        if shown <= SHOWN:
            note(str(message).strip().split("\n")[0])

    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
    if shown > SHOWN:
        note(f"{count_of(shown - SHOWN, 'more note')} of this kind")


def open_closed_streams() -> None:
    """Open what the shell closed (`2>&-`, `>&-`) on the null device.

    Python has None in place of such a stream, and the next file opened would get its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is the closed one
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8"))


def drop_output() -> None:
    """Send what stdout still holds to the null device; else Python complains once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Errors ---------------------------------------------------------------------------------------------------------------


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the one line for an exception."""
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, OSError):
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        code = BAD_INPUT if error.errno in NAME_FAULTS and place else FAILED
        what = "cannot be written, " if place and error.errno in DISK_FAULTS else ""
        return code, f"{place}{what}{(error.strerror or str(error)).lower()}"
    if isinstance(error, ImportError):
        return FAILED, str(error)
    if "torch" in sys.modules:
        from wavcube_plugins.data.extraction import is_out_of_memory

        if is_out_of_memory(error):
            return FAILED, "out of memory; try --window 60, a smaller --batch-seconds, or --device cpu"
    return FAILED, f"{type(error).__name__}: {error} (set {DEBUG_VARIABLE}=1 for the traceback)"
