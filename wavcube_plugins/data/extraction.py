"""Latents of a whole corpus on disk: batching, sharding over processes, and resuming.

What an output folder holds is described in `wavcube_plugins.data.latent_folder`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wavcube_plugins.audio import AudioError
from wavcube_plugins.data.latent_folder import ExtractionError, LatentFolder, Stamp, stamp_of
from wavcube_plugins.data.utterance import Utterance
from wavcube_plugins.models.lengths import pad_batch
from wavcube_plugins.models.windowed import window_frames

if TYPE_CHECKING:
    from wavcube_plugins.models.wavcube import WavCube

# From this many ids without folders of their own on, the latents are spread over 256 folders.
MANY = 10_000

# Audio held in memory, read and not yet encoded, in batches: from how much on a batch is formed, and the most.
_ENOUGH, _MOST = 3, 8

# Latents that may wait for a slow disk.
_MOST_WRITES = 1000

# Errors of writing that come from an utterance's own name, such as `a.npy/b` beside `a`.
_OWN_FAULTS = {
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EILSEQ,
}  # fmt: skip


@dataclass(frozen=True)
class ExtractionResult:
    """What one process did, and how the whole folder stands.

    Attributes:
        extracted: Utterances this process extracted now.
        resumed: Utterances of its share that were there already.
        failed: The reason of each failure among the run's utterances, by id, of all processes as far as they are.
        missing: Utterances of the run that are with other processes still (or were with one that was killed).
        seconds: Audio extracted now.
        elapsed: Wall-clock seconds it took.
        changed: Utterances of its share that were there, but whose files have changed since; they were made anew.
    """

    extracted: int
    resumed: int
    failed: dict[str, str]
    missing: int
    seconds: float
    elapsed: float
    changed: int = 0


class _Speech(NamedTuple):
    """An utterance that has been read."""

    utterance: Utterance
    waveform: Tensor  # (T,)
    stamp: Stamp | None


def extract(
    model: WavCube,
    utterances: Sequence[Utterance],
    folder: str | os.PathLike,
    *,
    model_name: str = "",
    window_seconds: float | None = None,
    batch_seconds: float = 120.0,
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
    refused: Mapping[str, str] | None = None,
) -> ExtractionResult:
    """Write the latents of many utterances into a folder, going on where an earlier run stopped.

    An utterance that fails is noted with its reason and does not stop the others; the next run tries it again. So is
    one whose files have another size or time than when its latent was made. What is written is what encoding each
    utterance alone gives, rounded to float16.

    Args:
        model: The model, on its device.
        utterances: All of the run's, the same list in every process.
        folder: Where to write; see `wavcube_plugins.data.latent_folder`.
        model_name: What to call the model in messages.
        window_seconds: Encode in overlapping windows of this length; None gives the exact result.
        batch_seconds: Audio per batch, its padding included; one longer utterance makes a batch alone.
        workers: Threads that read files.
        rank: This process's number; it takes every `world_size`-th utterance.
        world_size: Processes that share the work.
        progress: Show a progress bar on stderr.
        refused: Entries of the manifest that cannot be used, and why, to be listed among the failures.

    Raises:
        ExtractionError: the folder holds latents of another model, of other options, or of other audio by the same ids.
        ValueError: `window_seconds` is too short.
        OSError: the folder cannot be written.
    """
    begin = time.monotonic()
    if window_seconds is not None:
        window_frames(model, window_seconds)  # refuses what would fail for every utterance
    store = LatentFolder(folder, rank=rank, world_size=world_size)
    store.claim(_settings(model, window_seconds), model_name)
    share = list(utterances)[rank::world_size]
    todo, changed = _todo(store, utterances, share)
    resumed = len(share) - len(todo)
    bar = tqdm(
        total=len(share),
        initial=resumed,
        desc="extracting",
        unit="file",
        disable=not (progress and todo),
        smoothing=0.05,
        mininterval=progress_interval(),
    )
    spread = len(utterances) > MANY and not any("/" in utterance.id for utterance in utterances)
    with bar, store:
        if rank == 0:
            for name, reason in (refused or {}).items():
                store.fail(name, "-", reason)
        work = _Pass(model, store, bar, window_seconds=window_seconds, spread=spread)
        work.run(todo, batch_seconds=batch_seconds, workers=workers)
    failed, missing = store.merge([*(utterance.id for utterance in utterances), *(refused or {})])
    return ExtractionResult(work.extracted, resumed, failed, missing, work.seconds, time.monotonic() - begin, changed)


def _todo(
    store: LatentFolder, utterances: Sequence[Utterance], share: Sequence[Utterance]
) -> tuple[list[Utterance], int]:
    """Return the utterances of a share that are to be extracted, and how many of them are outdated.

    Raises:
        ExtractionError: the folder holds other audio by the same id.
    """
    records = store.records()
    for utterance in utterances:
        record = records.get(utterance.id)
        if record is None:
            continue
        origin = utterance.origin
        if {name: record.get(name) for name in _ORIGIN} != {name: origin.get(name) for name in _ORIGIN}:
            known = Utterance(
                utterance.id, record["source"], record.get("start", 0.0), record.get("duration"), record.get("channel")
            )
            raise ExtractionError(
                f"{store.folder}: holds the id {utterance.id!r} from {known.place}, this run has it from "
                f"{utterance.place}; choose another output folder"
            )
    todo, changed = [], 0
    for utterance in share:
        record = records.get(utterance.id)
        if not store.is_done(record):
            todo.append(utterance)
        elif record is not None and store.is_outdated(record, utterance):
            store.discard(record)
            todo.append(utterance)
            changed += 1
    return todo, changed


# Keys of `Utterance.origin`.
_ORIGIN = ("source", "start", "duration", "channel", "cut")


def _settings(model: WavCube, window_seconds: float | None) -> dict[str, Any]:
    """What the numbers in the folder depend on, besides the audio."""
    digest = hashlib.blake2b(digest_size=8)
    config = {name: part for name, part in model.config.to_dict().items() if name != "decoder"}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(("decoder.", "restorer.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "window_seconds": window_seconds,
        "weights": digest.hexdigest(),
    }


class _Pass:
    """One pass over utterances: files are read ahead of the model, and latents written behind it.

    Args:
        model: As in `extract`.
        store: Where the latents go.
        bar: Is moved on by every utterance.
        window_seconds: As in `extract`.
        spread: Whether latents are spread over folders.

    Attributes:
        extracted: Utterances done.
        seconds: Audio in them.
    """

    def __init__(self, model: WavCube, store: LatentFolder, bar: tqdm, *, window_seconds: float | None, spread: bool):
        self._model, self._store, self._bar = model, store, bar
        self._window_seconds, self._spread = window_seconds, spread
        self.extracted, self.seconds = 0, 0.0
        self._begin = time.monotonic()
        self._writes: deque[tuple[Utterance, Future]] = deque()

    def run(self, todo: Sequence[Utterance], *, batch_seconds: float, workers: int) -> None:
        """Extract utterances; ends when all of them are on disk or have failed.

        Raises:
            OSError: the folder cannot be written, such as when the disk is full.
            ExtractionError: another run has claimed the folder meanwhile.
        """
        # Writes have a thread of their own: in one queue with the reads they would stand behind all that are ahead.
        readers, writer = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
        try:
            for batch in _batches(readers, todo, self._model.sample_rate, batch_seconds, self._fail):
                for speech, outcome in _encode(self._model, batch, self._window_seconds):
                    if isinstance(outcome, str):
                        self._fail(speech.utterance, outcome)
                    else:
                        self._write(writer, speech, outcome)
                self._show_rate()
                while self._writes and (self._writes[0][1].done() or len(self._writes) > _MOST_WRITES):
                    self._settle()
            while self._writes:
                self._settle()
        finally:
            for pool in (readers, writer):
                pool.shutdown(wait=True, cancel_futures=True)

    def _fail(self, utterance: Utterance, reason: str) -> None:
        self._store.fail(utterance.id, utterance.source, reason)
        self._bar.update(1)

    def _write(self, writer: ThreadPoolExecutor, speech: _Speech, latent: np.ndarray) -> None:
        samples = len(speech.waveform)
        seconds = samples / self._model.sample_rate
        path, content = self._store.note(
            speech.utterance, latent, samples, seconds, stamp=speech.stamp, spread=self._spread
        )
        self._writes.append((speech.utterance, writer.submit(self._store.write, path, content)))
        self.seconds += seconds

    def _settle(self) -> None:
        """Take the outcome of the oldest write."""
        utterance, write = self._writes.popleft()
        try:
            write.result()
        except OSError as error:
            if error.errno not in _OWN_FAULTS:
                raise
            self._fail(utterance, f"{error.filename}: cannot be written, {(error.strerror or '').lower()}")
            return
        self.extracted += 1
        self._bar.update(1)

    def _show_rate(self) -> None:
        rate = self.seconds / (time.monotonic() - self._begin)
        text = f"{self.seconds / 3600:.2f} h, {rate:.0f}x real time, {rate / 3600:.3f} h/s"
        self._bar.set_postfix_str(text, refresh=False)


def _batches(
    readers: ThreadPoolExecutor,
    utterances: Sequence[Utterance],
    sample_rate: int,
    batch_seconds: float,
    fail: Callable[[Utterance, str], None],
) -> Iterator[list[_Speech]]:
    """Read utterances ahead of the model and yield them in batches of similar lengths, the longest first."""
    budget = batch_seconds * sample_rate
    waiting: deque[Utterance] = deque(utterances)
    reading: dict[Future, Utterance] = {}
    ready: list[_Speech] = []
    held, read, count = 0, 10 * sample_rate, 1  # samples that are ready; samples and files read, with a first guess
    while waiting or reading or ready:
        while waiting and (not reading or held + len(reading) * read / count < _MOST * budget):
            utterance = waiting.popleft()
            reading[readers.submit(_read, utterance, sample_rate)] = utterance
        enough = held >= _ENOUGH * budget
        for future in wait(reading, timeout=0 if enough or not reading else None, return_when=FIRST_COMPLETED).done:
            utterance = reading.pop(future)
            try:
                speech = future.result()
            except Exception as error:  # whatever is wrong with one file must not stop the others
                fail(utterance, str(error) if isinstance(error, AudioError) else f"{type(error).__name__}: {error}")
                continue
            ready.append(speech)
            held, read, count = held + len(speech.waveform), read + len(speech.waveform), count + 1
        if ready and (held >= _ENOUGH * budget or not (waiting or reading)):
            ready.sort(key=lambda speech: len(speech.waveform))
            batch = [ready.pop()]
            while ready and (len(batch) + 1) * len(batch[0].waveform) <= budget:
                batch.append(ready.pop())
            held -= sum(len(speech.waveform) for speech in batch)
            yield batch


def _read(utterance: Utterance, sample_rate: int) -> _Speech:
    """Read an utterance, and note how its files were meanwhile.

    Raises:
        AudioError: it cannot be read, or its file is being written.
    """
    before = stamp_of(utterance)
    waveform = utterance.read(sample_rate)
    if stamp_of(utterance) != before:
        raise AudioError(f"{utterance.source}: changed while it was read")
    return _Speech(utterance, waveform, before)


def _encode(
    model: WavCube, batch: Sequence[_Speech], window_seconds: float | None
) -> Iterator[tuple[_Speech, np.ndarray | str]]:
    """Yield each utterance of a batch with its latent (L, D) in float16, or with why there is none."""
    outcome = _try_to_encode(model, [speech.waveform for speech in batch], window_seconds)
    if not isinstance(outcome, str):
        yield from zip(batch, map(_checked, outcome), strict=True)
    elif len(batch) == 1:
        yield batch[0], outcome
    else:
        # Half a batch needs half the memory, and a single utterance shows which one is refused.
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from _encode(model, half, window_seconds)


def _try_to_encode(model: WavCube, waveforms: Sequence[Tensor], window_seconds: float | None) -> list[np.ndarray] | str:
    """Return the latents of waveforms, or why the batch cannot be encoded.

    The failure is returned as text because an exception, while it is handled, keeps the tensors alive that did not fit.
    """
    try:
        padded, lengths = pad_batch(list(waveforms))
        device = next(model.parameters()).device
        with torch.inference_mode():
            latent, frames = model.encode(padded.to(device), lengths.to(device), window_seconds=window_seconds)
            latent = latent.to("cpu", torch.float16)
        return [item[:length].numpy() for item, length in zip(latent, frames.tolist(), strict=True)]
    except ValueError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return f"{max(map(len, waveforms)) / model.sample_rate:.0f} s need more memory than there is"


def _checked(latent: np.ndarray) -> np.ndarray | str:
    return latent if np.isfinite(latent).all() else "the latent has NaN or infinite values"


def progress_interval() -> float:
    """Seconds between two states of a progress bar: a terminal is redrawn often, a log gets a line now and then."""
    return 0.2 if sys.stderr.isatty() else 30.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the device or of the machine, ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
