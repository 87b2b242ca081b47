"""The output folder of an extraction, as several processes write it at once.

It holds

    npy/<id>.npy      the latent, float16, (L, D)
    index.jsonl       one line per utterance: id, path below the folder, source, samples, frames, seconds
    feats.scp         id and absolute path, and
    feats_shape       id and L,D: what ESPnet and Kaldi-style tools read
    failed.tsv        id, source and reason of what could not be extracted, if anything; in ids and sources, tabs and
                      line breaks are written as \\t, \\n and \\r, and a backslash as \\\\
    settings.json     which weights and options made the latents
    parts/            what each process has noted; the index is made from it

Each process appends to files of its own in `parts/`. An utterance is noted before its latent moves, complete, into its
place: noted and present with the noted size means done, whenever the process was killed. Every process that ends writes
the index from all parts, so the last one writes all of it, and none waits for another.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from wavcube_plugins.data.utterance import Utterance
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import array_bytes, atomic_path

# What a line must have to be one of ours.
_RECORD, _FAILURE = {"id", "path", "source", "frames", "dim", "bytes"}, {"id", "source", "reason"}

# Size in bytes and time of the last change in nanoseconds, of all files of an utterance.
Stamp = tuple[int, int]


class ExtractionError(InputError):
    """An output folder cannot be used for this run; the message says what it holds."""


class LatentFolder:
    """The output folder of an extraction, as one of its processes sees it.

    Args:
        folder: Made if missing.
        rank: This process's number.
        world_size: Processes that write into the folder.
    """

    def __init__(self, folder: str | os.PathLike, *, rank: int = 0, world_size: int = 1):
        self.folder = Path(folder)
        if any(character in os.fspath(self.folder.absolute()) for character in "\r\n"):
            raise ExtractionError(f"{os.fspath(folder)!r}: has a line break in its name, which feats.scp cannot hold")
        self.parts = self.folder / "parts"
        name = f"{rank}-of-{world_size}"
        self._done_path = self.parts / f"done.{name}.jsonl"
        self._failed_path = self.parts / f"failed.{name}.jsonl"
        self._ended_path = self.parts / f"ended.{name}.txt"
        self._rank, self._world_size = rank, world_size
        self._done_file: TextIO
        self._failed_file: TextIO
        self._settings: dict[str, Any] = {}
        self._model_name, self._noted = "", False

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
        """Return the newest note of every utterance that any process has noted, by id."""
        paths = [self.folder / "index.jsonl", *sorted(self.parts.glob("done.*.jsonl"))]
        records: dict[str, dict] = {}
        for record in (record for path in paths for record in _read_lines(path, _RECORD)):
            known = records.setdefault(record["id"], record)
            if record.get("time", 0) >= known.get("time", 0):
                records[record["id"]] = record
        return records

    def is_done(self, record: dict | None) -> bool:
        """Whether an utterance with this record (None: not noted) has its latent in place, complete."""
        if record is None:
            return False
        try:
            found = os.stat(self.folder / record["path"])
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == record["bytes"]

    def is_outdated(self, record: dict, utterance: Utterance) -> bool:
        """Whether the files of an utterance have changed since its latent was made. Files that are gone have not."""
        stamp = stamp_of(utterance)
        if stamp is None:
            return False
        if "stamp" in record:
            return list(stamp) != record["stamp"]
        # Noted by a version that did not note the sources: the latent must be newer than they are.
        return stamp[1] > os.stat(self.folder / record["path"]).st_mtime_ns

    def discard(self, record: dict) -> None:
        """Remove an outdated latent, so that it cannot be taken for the new one, which may have the same size."""
        (self.folder / record["path"]).unlink(missing_ok=True)

    def note(
        self,
        utterance: Utterance,
        latent: np.ndarray,
        samples: int,
        seconds: float,
        *,
        stamp: Stamp | None,
        spread: bool,
    ) -> tuple[str, bytes]:
        """Note an utterance whose latent (L, D) is about to be written; return that file's path and content."""
        content = array_bytes(latent)
        name = utterance.id
        if spread:
            name = f"{hashlib.blake2b(os.fsencode(name), digest_size=1).hexdigest()}/{name}"
        record = {
            "id": utterance.id,
            "path": f"npy/{name}.npy",
            **utterance.origin,
            "samples": samples,
            "frames": latent.shape[0],
            "dim": latent.shape[1],
            "seconds": round(seconds, 4),
            "bytes": len(content),
            "time": time.time_ns(),
        }
        if stamp is not None:
            record["stamp"] = list(stamp)
        _write_line(self._done_file, record)
        if not self._noted:
            # From here on no other run replaces the settings; one with others may have done it a moment ago.
            self._check_settings()
            self._noted = True
        return record["path"], content

    def write(self, path: str, content: bytes) -> None:
        """Put a noted latent in its place, complete or not at all."""
        with atomic_path(self.folder / path) as temporary:
            temporary.write_bytes(content)

    def fail(self, name: str, source: str, reason: str) -> None:
        """Note an utterance that cannot be extracted."""
        reason = " ".join(reason.removeprefix(f"{source}: ").split())
        _write_line(self._failed_file, {"id": name, "source": source, "reason": reason})

    def merge(self, names: Iterable[str]) -> tuple[dict[str, str], int]:
        """Write the index and the lists from what all processes have noted so far.

        Args:
            names: Ids of the run's utterances.

        Returns:
            The reason of each failure among them by id, and how many nobody has settled yet.
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
        wanted = set(names)
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
            lines = ("\t".join(map(_field, (line["id"], line["source"], line["reason"]))) for line in failures.values())
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


def stamp_of(utterance: Utterance) -> Stamp | None:
    """Return what tells later that the files of an utterance have changed; None if one cannot be looked at."""
    try:
        found = [os.stat(path) for path in utterance.files]
    except OSError:
        return None
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def _field(text: str) -> str:
    """Return a text as a field of a table: without tabs, line breaks, and characters that cannot be written."""
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


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
