"""Latents of a whole corpus on disk: manifests, batching, sharding over processes, and resuming.

An output folder holds::

    npy/<id>.npy      the latent, float16, (L, D)
    index.jsonl       one line per utterance: id, path below the folder, source, samples, frames, seconds
    feats.scp         id and absolute path, and
    feats_shape       id and L,D: what ESPnet and Kaldi-style tools read
    failed.tsv        id, source and reason of what could not be extracted, if anything
    settings.json     which weights and options made the latents
    parts/            what each process has noted; the index is made from it

Each process appends to files of its own in `parts/`. An utterance is noted before its latent moves, complete, into its
place: noted and present with the noted size means done, whenever the process was killed. Every process that ends writes
the index from all parts, so the last one writes all of it, and none waits for another.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wavcube_plugins.audio import AudioError
from wavcube_plugins.data.manifests import Utterance
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.lengths import pad_batch
from wavcube_plugins.models.windowed import window_frames

# From this many ids without folders of their own on, the latents are spread over 256 folders.
MANY = 10_000

# Audio held in memory, read and not yet encoded, in batches: from how much on a batch is formed, and the most.
_ENOUGH, _MOST = 3, 8

# Latents that may wait for a slow disk.
_MOST_WRITES = 1000

# What a line must have to be one of ours.
_RECORD, _FAILURE = {"id", "path", "source", "frames", "dim", "bytes"}, {"id", "source", "reason"}


class ExtractionError(InputError):
    """An output folder cannot be used for this run; the message says what it holds."""


@dataclass(frozen=True)
class ExtractionResult:
    """What one process did, and how the whole folder stands.

    Args:
        extracted: Utterances this process extracted now.
        resumed: Utterances of its share that were there already.
        failed: The reason of each failure among the run's utterances, by id, of all processes as far as they are.
        missing: Utterances of the run that are with other processes still (or were with one that was killed).
        seconds: Audio extracted now.
        elapsed: Wall-clock seconds it took.
    """

    extracted: int
    resumed: int
    failed: dict[str, str]
    missing: int
    seconds: float
    elapsed: float


def extract(
    model,
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
) -> ExtractionResult:
    """Write the latents of many utterances into a folder, going on where an earlier run stopped.

    An utterance that fails is noted with its reason and does not stop the others; the next run tries it again. What is
    written is what encoding each utterance alone gives, rounded to float16.

    Args:
        model: A `WavCube`, on its device.
        utterances: All of the run's, the same list in every process.
        folder: Where to write; see the module's description.
        model_name: What to call the model in messages.
        window_seconds: Encode in overlapping windows of this length; None gives the exact result.
        batch_seconds: Audio per batch, its padding included; one longer utterance makes a batch alone.
        workers: Threads that read and write files.
        rank: This process's number; it takes every `world_size`-th utterance.
        world_size: Processes that share the work.
        progress: Show a progress bar on stderr.

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
    records = store.records()
    _check_sources(store, utterances, records)
    todo = [utterance for utterance in share if not store.is_done(records.get(utterance.id))]
    spread = len(utterances) > MANY and not any("/" in utterance.id for utterance in utterances)

    bar = tqdm(
        total=len(share),
        initial=len(share) - len(todo),
        desc="extracting",
        unit="file",
        disable=not (progress and todo),
        smoothing=0.05,
        mininterval=progress_interval(),
    )

    def fail(utterance: Utterance, reason: str) -> None:
        store.fail(utterance, reason)
        bar.update(1)

    seconds, extracted = 0.0, 0
    # Writes have a thread of their own: in one queue with the reads they would stand behind all that are ahead.
    readers, writer = ThreadPoolExecutor(workers), ThreadPoolExecutor(1)
    writes: deque[Future] = deque()
    try:
        with bar, store:
            for batch in _batches(readers, todo, model.sample_rate, batch_seconds, fail):
                for utterance, outcome, samples in _encode(model, batch, window_seconds):
                    if isinstance(outcome, str):
                        fail(utterance, outcome)
                        continue
                    path, content = store.note(utterance, outcome, samples, samples / model.sample_rate, spread)
                    writes.append(writer.submit(store.write, path, content))
                    seconds, extracted = seconds + samples / model.sample_rate, extracted + 1
                    bar.update(1)
                rate = seconds / (time.monotonic() - begin)
                bar.set_postfix_str(
                    f"{seconds / 3600:.2f} h, {rate:.0f}x real time, {rate / 3600:.3f} h/s", refresh=False
                )
                while writes and (writes[0].done() or len(writes) > _MOST_WRITES):
                    writes.popleft().result()
            for write in writes:
                write.result()
    finally:
        for pool in (readers, writer):
            pool.shutdown(wait=True, cancel_futures=True)
    failed, missing = store.merge(utterances)
    return ExtractionResult(extracted, len(share) - len(todo), failed, missing, seconds, time.monotonic() - begin)


class LatentFolder:
    """The output folder of an extraction, as one of its processes sees it.

    Args:
        folder: Made if missing.
        rank: This process's number.
        world_size: Processes that write into the folder.
    """

    def __init__(self, folder: str | os.PathLike, *, rank: int = 0, world_size: int = 1):
        self.folder = Path(folder)
        self.parts = self.folder / "parts"
        name = f"{rank}-of-{world_size}"
        self._done_path = self.parts / f"done.{name}.jsonl"
        self._failed_path = self.parts / f"failed.{name}.jsonl"
        self._ended_path = self.parts / f"ended.{name}.txt"
        self._rank, self._world_size = rank, world_size
        self._done_file = self._failed_file = None
        self._settings, self._model_name, self._noted = {}, "", False

    def claim(self, settings: dict, model_name: str) -> None:
        """Prepare the folder for a run with these settings; those of a run that noted no latent are replaced.

        Raises:
            ExtractionError: it holds latents made with others.
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        self._settings, self._model_name = settings, model_name
        path = self.folder / "settings.json"
        if not path.exists() and (self.folder / "index.jsonl").exists():
            raise ExtractionError(
                f"{self.folder}: holds an index.jsonl and no settings.json, so what made it is unknown; "
                "choose another output folder"
            )
        if not path.exists() or (self._difference() and not self.records()):
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({**settings, "model": model_name}, indent=2) + "\n")
        self._check_settings()
        # Failures are tried again, so those of earlier runs no longer count. Every process clears its own.
        self._failed_path.unlink(missing_ok=True)
        if self._rank == 0:
            for other in self.parts.glob("failed.*.jsonl"):
                if not other.name.endswith(f"-of-{self._world_size}.jsonl"):
                    other.unlink(missing_ok=True)

    def _difference(self) -> str:
        """Return in words how the folder's settings differ from this run's, nothing if they do not."""
        path = self.folder / "settings.json"
        try:
            found = json.loads(path.read_text())
            there = {name: found[name] for name in self._settings}
        except (ValueError, KeyError, TypeError) as error:
            raise ExtractionError(f"{path}: broken; choose another output folder") from error
        for name, value in self._settings.items():
            if there[name] != value:
                ours, theirs = (
                    (f"{self._model_name!r} ({value})", f"{found.get('model')!r} ({there[name]})")
                    if name == "weights"
                    else (value, there[name])
                )
                return f"{name.replace('_', ' ')} {theirs}, this run has {ours}"
        return ""

    def _check_settings(self) -> None:
        if difference := self._difference():
            raise ExtractionError(f"{self.folder}: holds latents made with {difference}; choose another output folder")

    def __enter__(self) -> LatentFolder:
        self._done_file, self._failed_file = _open_for_lines(self._done_path), _open_for_lines(self._failed_path)
        return self

    def __exit__(self, *_) -> None:
        self._done_file.close()
        self._failed_file.close()

    def records(self) -> dict[str, dict]:
        """Return what all processes have noted, by id."""
        paths = [self.folder / "index.jsonl", *sorted(self.parts.glob("done.*.jsonl"))]
        return {record["id"]: record for path in paths for record in _read_lines(path, _RECORD)}

    def is_done(self, record: dict | None) -> bool:
        """Whether an utterance with this record (None: not noted) has its latent in place, complete."""
        if record is None:
            return False
        try:
            size = os.stat(self.folder / record["path"]).st_size
        except OSError:
            return False
        return size == record["bytes"]

    def note(
        self, utterance: Utterance, latent: np.ndarray, samples: int, seconds: float, spread: bool
    ) -> tuple[str, bytes]:
        """Note an utterance whose latent (L, D) is about to be written; return that file's path and content."""
        buffer = io.BytesIO()
        np.save(buffer, latent)
        name = utterance.id
        if spread:
            name = f"{hashlib.blake2b(os.fsencode(name), digest_size=1).hexdigest()}/{name}"
        record = {
            "id": utterance.id,
            "path": f"npy/{name}.npy",
            "source": utterance.source,
            "samples": samples,
            "frames": latent.shape[0],
            "dim": latent.shape[1],
            "seconds": round(seconds, 4),
            "bytes": len(buffer.getvalue()),
        }
        if utterance.start or utterance.duration is not None:
            record |= {"start": utterance.start, "duration": utterance.duration}
        _write_line(self._done_file, record)
        if not self._noted:
            # From here on no other run replaces the settings; one with others may have done it a moment ago.
            self._check_settings()
            self._noted = True
        return record["path"], buffer.getvalue()

    def write(self, path: str, content: bytes) -> None:
        """Put a noted latent in its place, complete or not at all."""
        with atomic_path(self.folder / path) as temporary:
            temporary.write_bytes(content)

    def fail(self, utterance: Utterance, reason: str) -> None:
        """Note an utterance that cannot be extracted."""
        reason = " ".join(reason.removeprefix(f"{utterance.source}: ").split())
        _write_line(self._failed_file, {"id": utterance.id, "source": utterance.source, "reason": reason})

    def merge(self, utterances: Sequence[Utterance]) -> tuple[dict[str, str], int]:
        """Write the index and the lists from what all processes have noted so far.

        Returns:
            The reason of each failure among the utterances by id, and how many utterances nobody has settled yet.
        """
        with atomic_path(self._ended_path) as temporary:
            temporary.write_text(f"{os.getpid()} {time.time_ns()}\n")
        while True:
            ended = self._ended()
            records = {name: record for name, record in self.records().items() if self.is_done(record)}
            failures = {
                line["id"]: line
                for path in sorted(self.parts.glob("failed.*.jsonl"))
                for line in _read_lines(path, _FAILURE)
                if line["id"] not in records
            }
            self._write_lists(records, failures)
            # A process that ended meanwhile may have written its lists, fuller than ours, before ours replaced them.
            if self._ended() == ended:
                break
        settled = records.keys() | failures.keys()
        wanted = {utterance.id for utterance in utterances}
        missing = len(wanted - settled)
        if not missing:
            for leftover in (self.folder / "npy").rglob(".*.tmp.npy"):
                leftover.unlink(missing_ok=True)
        return {name: line["reason"] for name, line in failures.items() if name in wanted}, missing

    def _ended(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.parts.glob("ended.*.txt"))}

    def _write_lists(self, records: dict[str, dict], failures: dict[str, dict]) -> None:
        # Kaldi's tools want the order of bytes.
        ordered = sorted(records.values(), key=lambda record: os.fsencode(record["id"]))
        folder = self.folder.absolute()
        self._write_lines("index.jsonl", (json.dumps(record) for record in ordered))
        self._write_lines("feats.scp", (f"{record['id']} {folder / record['path']}" for record in ordered))
        self._write_lines("feats_shape", (f"{record['id']} {record['frames']},{record['dim']}" for record in ordered))
        if failures:
            lines = ("\t".join((line["id"], line["source"], line["reason"])) for line in failures.values())
            self._write_lines("failed.tsv", ["id\tsource\treason", *lines])
        else:
            (self.folder / "failed.tsv").unlink(missing_ok=True)

    def _write_lines(self, name: str, lines: Iterable[str]) -> None:
        # Names of files need not be UTF-8; they are written as they came.
        with (
            atomic_path(self.folder / name) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
        ):
            file.writelines(f"{line}\n" for line in lines)


def _settings(model, window_seconds: float | None) -> dict:
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


def _check_sources(store: LatentFolder, utterances: Sequence[Utterance], records: dict[str, dict]) -> None:
    for utterance in utterances:
        record = records.get(utterance.id)
        if record is None:
            continue
        other = Utterance(utterance.id, record["source"], record.get("start", 0.0), record.get("duration"))
        if other != utterance:
            raise ExtractionError(
                f"{store.folder}: holds the id {utterance.id!r} from {other.place}, this run has it from "
                f"{utterance.place}; choose another output folder"
            )


def _batches(
    readers: ThreadPoolExecutor,
    utterances: Sequence[Utterance],
    sample_rate: int,
    batch_seconds: float,
    fail: Callable[[Utterance, str], None],
) -> Iterator[list[tuple[Utterance, Tensor]]]:
    """Read utterances ahead of the model and yield them in batches of similar lengths, the longest first."""
    budget = batch_seconds * sample_rate
    waiting, reading = deque(utterances), {}
    ready: list[tuple[Utterance, Tensor]] = []
    held, read, count = 0, 10 * sample_rate, 1  # samples that are ready; samples and files read, with a first guess
    while waiting or reading or ready:
        while waiting and (not reading or held + len(reading) * read / count < _MOST * budget):
            utterance = waiting.popleft()
            reading[readers.submit(utterance.read, sample_rate)] = utterance
        enough = held >= _ENOUGH * budget
        for future in wait(reading, timeout=0 if enough or not reading else None, return_when=FIRST_COMPLETED).done:
            utterance = reading.pop(future)
            try:
                waveform = future.result()
            except Exception as error:  # whatever is wrong with one file must not stop the others
                reason = str(error) if isinstance(error, AudioError) else f"{type(error).__name__}: {error}"
                fail(utterance, reason)
                continue
            ready.append((utterance, waveform))
            held, read, count = held + len(waveform), read + len(waveform), count + 1
        if ready and (held >= _ENOUGH * budget or not (waiting or reading)):
            ready.sort(key=lambda item: len(item[1]))
            batch = [ready.pop()]
            while ready and (len(batch) + 1) * len(batch[0][1]) <= budget:
                batch.append(ready.pop())
            held -= sum(len(waveform) for _, waveform in batch)
            yield batch


def _encode(
    model, batch: list[tuple[Utterance, Tensor]], window_seconds: float | None
) -> Iterator[tuple[Utterance, np.ndarray | str, int]]:
    """Yield each utterance of a batch with its latent (L, D) in float16, or why there is none, and its samples."""
    device = next(model.parameters()).device
    waveforms, lengths = pad_batch([waveform for _, waveform in batch])
    try:
        with torch.inference_mode():
            latent, frames = model.encode(waveforms.to(device), lengths.to(device), window_seconds=window_seconds)
            latent, frames = latent.to("cpu", torch.float16), frames.tolist()
    except (ValueError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        # Half a batch needs half the memory, and a single utterance shows which one is refused.
        if len(batch) > 1:
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                yield from _encode(model, half, window_seconds)
            return
        utterance, waveform = batch[0]
        if isinstance(error, ValueError):
            reason = str(error)
        else:
            reason = f"{len(waveform) / model.sample_rate:.0f} s need more memory than there is"
        yield utterance, reason, len(waveform)
        return
    for (utterance, waveform), item, length in zip(batch, latent, frames, strict=True):
        values = item[:length].numpy()
        if np.isfinite(values).all():
            yield utterance, values, len(waveform)
        else:
            yield utterance, "the latent has NaN or infinite values", len(waveform)


def progress_interval() -> float:
    """Seconds between two states of a progress bar: a terminal is redrawn often, a log gets a line now and then."""
    return 0.2 if sys.stderr.isatty() else 30.0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the device or of the machine, ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _open_for_lines(path: Path) -> TextIO:
    file = path.open("a+", encoding="utf-8")
    # A process killed while writing left half a line: the next one must not continue it.
    if file.tell():
        with path.open("rb") as last:
            last.seek(-1, os.SEEK_END)
            if last.read() != b"\n":
                file.write("\n")
    return file


def _write_line(file: TextIO, entry: dict) -> None:
    file.write(json.dumps(entry) + "\n")
    file.flush()


def _read_lines(path: Path, entries: set[str]) -> Iterator[dict]:
    """Yield the entries of a file of JSON lines, without what is cut short or not ours; nothing if there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entries <= entry.keys():
            yield entry
