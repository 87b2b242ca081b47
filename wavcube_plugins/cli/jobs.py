"""Work on files one by one: which output each input gets, progress, and failures that do not stop the rest."""

from __future__ import annotations

import argparse
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.cli.common import check_writable, explain, fail, note, note_overlooked, say
from wavcube_plugins.errors import FAILED, NAME_FAULTS, OK, InputError

if TYPE_CHECKING:
    from wavcube_plugins.models.wavcube import WavCube

# Shows the progress of the given parts of the model over that many seconds of audio.
Watch = Callable[..., AbstractContextManager]

# A recording shows its own progress from this many seconds on.
LONG = 60.0


# Planning -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a command is to do.

    Attributes:
        pairs: Every input file with its output.
        overlooked: Paths in the input folders that could not be searched, and why.
    """

    pairs: list[tuple[Path, Path]]
    overlooked: list[tuple[Path, str]]


def plan(arguments: argparse.Namespace, suffix: str, *, from_audio: bool) -> Plan:
    """Pair every input file with its output, and check both before anything heavy is loaded.

    Raises:
        InputError: a missing input, an output that cannot be written, or two results in one file.
    """
    output = arguments.output
    _check_inputs(arguments.inputs, output)
    to_file = _is_file_name(output, arguments.inputs, suffix)
    # A decoded file must not take the name of the recording that it may come from.
    ending = suffix if suffix == ".npy" or output is not None else f".wavcube{suffix}"
    pairs: list[tuple[Path, Path]] = []
    overlooked: list[tuple[Path, str]] = []
    for path in arguments.inputs:
        for file in _find(path, from_audio, overlooked) if path.is_dir() else [path]:
            if output is None:
                destination = file.with_name(file.stem + ending)
            elif to_file:
                destination = output
            else:
                below = file.relative_to(path) if path.is_dir() else Path(file.name)
                destination = output / below.with_name(below.stem + ending)
            pairs.append((file, destination))
    _check_outputs(pairs)
    return Plan(pairs, overlooked)


def _check_inputs(inputs: list[Path], output: Path | None) -> None:
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if output is None and path.is_dir():
            raise InputError(f"{path}: is a folder; name the folder for the results with --output")
        if output is None and path.is_fifo():
            raise InputError(f"{path}: is a pipe; name the file for the result with --output")
    if output is not None and output.exists() and not output.is_dir() and (len(inputs) > 1 or inputs[0].is_dir()):
        raise InputError(f"{output}: is a file; results of several files need a folder")


def _is_file_name(output: Path | None, inputs: list[Path], suffix: str) -> bool:
    """Whether --output names the file for the result of a single input, and not a folder."""
    if len(inputs) > 1 or inputs[0].is_dir() or output is None or not output.suffix or output.is_dir():
        return False
    if suffix == ".npy" and output.suffix != suffix:
        raise InputError(f"{output}: latents are written as .npy")
    if suffix != ".npy":
        from wavcube_plugins.audio import check_suffix

        check_suffix(output)
    return True


def _check_outputs(pairs: list[tuple[Path, Path]]) -> None:
    sources = {file.resolve() for file, _ in pairs}
    taken: dict[Path, Path] = {}
    for file, destination in pairs:
        try:
            _check_output(file, destination, sources, taken)
        except OSError as error:
            # One of several files: it fails when its turn comes.
            if error.errno != errno.ENAMETOOLONG or len(pairs) == 1:
                raise


def _check_output(file: Path, destination: Path, sources: set[Path], taken: dict[Path, Path]) -> None:
    if destination.resolve() in sources:
        raise InputError(f"{destination}: is an input and would be overwritten; choose another --output")
    if destination.is_dir():
        raise InputError(f"{destination}: is a folder, where the result of {file} should be written")
    if other := taken.get(destination.resolve()):
        raise InputError(f"{other} and {file}: both would be written to {destination}; run them one by one")
    taken[destination.resolve()] = file
    check_writable(destination)


def _find(folder: Path, from_audio: bool, overlooked: list[tuple[Path, str]]) -> list[Path]:
    if not from_audio:
        files = sorted(path for path in folder.rglob("*.npy") if path.is_file() and not path.name.startswith("."))
        if not files:
            raise InputError(f"{folder}: no .npy files in this folder")
        return files
    from wavcube_plugins.audio import describe_overlooked, find_audio

    files = find_audio(folder, lambda path, reason: overlooked.append((path, reason)))
    if not files:
        unseen = f"; {describe_overlooked(overlooked)}" if overlooked else ""
        raise InputError(f"{folder}: no audio files in this folder{unseen}")
    return files


@contextmanager
def readable(source: Path) -> Iterator[Path]:
    """Yield a path whose content can be read in any order: a pipe (`<(cat a.wav)`) is copied to a temporary file."""
    if not source.is_fifo():
        yield source
        return
    with tempfile.NamedTemporaryFile(suffix=source.suffix) as copy:
        with source.open("rb") as pipe:
            shutil.copyfileobj(pipe, copy)
        copy.flush()
        try:
            yield Path(copy.name)
        except InputError as error:
            raise InputError(str(error).replace(copy.name, str(source))) from error


# Running --------------------------------------------------------------------------------------------------------------


def run_jobs(command: str, planned: Plan, model: WavCube, work: Callable[[Path, Path, Watch], str]) -> int:
    """Do the work on every file; one that cannot be used does not stop the others.

    Args:
        command: Its name, for the error at the end.
        planned: What to do.
        model: What the work uses.
        work: Takes a source, a destination and a `Watch`; returns a summary.

    Returns:
        The exit code.
    """
    jobs = planned.pairs
    note_overlooked(planned.overlooked)
    done = FAILED if planned.overlooked else OK
    if len(jobs) == 1:
        source, destination = jobs[0]
        summary = work(source, destination, lambda *task: _watch_layers(model, *task))
        say(f"{source} -> {destination}  ({summary})")
        return done

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import progress_interval

    failures = 0
    with tqdm(jobs, unit="file", mininterval=progress_interval()) as bar:
        for source, destination in bar:
            try:
                work(source, destination, lambda *_: nullcontext())
            except Exception as error:
                reason = _own_fault(error, source)
                if reason is None:
                    raise
                failures += 1
                note(f"failed: {reason}")
    say(f"{len(jobs) - failures} of {len(jobs)} files done")
    return fail(command, f"{failures} of {len(jobs)} files failed") if failures else done


def _own_fault(error: Exception, source: Path) -> str | None:
    """Return the reason of a failure that concerns one file alone, None if the next ones would fail as well."""
    from wavcube_plugins.data.extraction import is_out_of_memory

    if is_out_of_memory(error):
        return f"{source}: out of memory; try --window 60"
    if isinstance(error, InputError) or (isinstance(error, OSError) and error.errno in NAME_FAULTS):
        reason = explain(error)[1]
        return reason if str(source) in reason else f"{source}: {reason}"
    return None


@contextmanager
def _watch_layers(model: WavCube, seconds: float, *parts) -> Iterator[None]:
    """Show progress through one long recording: the transformer layers count the frames that pass through them."""
    from wavcube_plugins.models.decoder import DecoderLayer
    from wavcube_plugins.models.wavlm import EncoderLayer

    layers = [module for part in parts for module in part.modules() if isinstance(module, (EncoderLayer, DecoderLayer))]
    if seconds < LONG:
        yield
        return

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import progress_interval

    vocoder = set(model.decoder.vocoder.layers)
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=seconds, bar_format=form, mininterval=progress_interval()) as bar:

        def count(layer, _, output) -> None:
            rate = model.sample_rate / model.config.wavlm.hop_length * (2 if layer in vocoder else 1)
            passed = output.shape[0] * output.shape[1] / rate / len(layers)
            bar.update(min(passed, bar.total - bar.n))  # overlapping windows pass twice

        hooks = [layer.register_forward_hook(count) for layer in layers]
        try:
            yield
            bar.update(bar.total - bar.n)
        finally:
            for hook in hooks:
                hook.remove()
