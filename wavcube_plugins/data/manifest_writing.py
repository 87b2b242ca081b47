"""Writing manifests: a folder or another list as JSON lines, with lengths and rates from the headers."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavcube_plugins.audio import AudioError, AudioInfo
from wavcube_plugins.data.lhotse_cuts import LhotseCut
from wavcube_plugins.data.manifests import iterate_entries
from wavcube_plugins.data.utterance import ManifestError, Utterance
from wavcube_plugins.files import atomic_path

# Entries whose headers one thread reads before it asks for more, and such portions that wait for each thread.
_PORTION, _AHEAD = 64, 4

# An entry with its file's header, or with the reason why there is none.
_WithHeader = tuple[Utterance | ManifestError, AudioInfo | AudioError | None]


@dataclass
class Summary:
    """What became of the entries of a source.

    Attributes:
        written: How many stand in the new manifest.
        seconds: How much audio that is.
        failed: Those that cannot be used, and why.
        overlooked: Paths that may hold speech and could not be searched, and why.
    """

    written: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    overlooked: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.written + len(self.failed)


def write_manifest(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    kind: str | None = None,
    root: str | os.PathLike | None = None,
    relative: bool = False,
    jobs: int = 8,
    watch: Callable[[Iterable, int | None], Iterable] = lambda entries, total: entries,
) -> Summary:
    """Write the pieces of speech in a folder or manifest as JSON lines that `Manifest` and `read_manifest` read.

    Each line has `id`, `path`, `duration` in seconds and `sample_rate` as the file's header gives them, `start` for a
    part of a file, and `channel` for one of several; a cut that only Lhotse reads is written as Lhotse's. Entries are
    read one by one, so that a manifest of millions, gzipped or not, needs little memory. What cannot be used is left
    out, and an entry that comes twice is taken once.

    Args:
        source: As in `read_manifest`.
        destination: The file to write, `.jsonl`; it appears when all of it is written.
        kind: As in `read_manifest`.
        root: Folder that relative paths in the source are below, as in `read_manifest`.
        relative: Write paths relative to `root`, or to the new manifest's folder if there is no root, so that both can
            be moved together; otherwise they are absolute.
        jobs: Threads that read headers.
        watch: Called with the entries and their number, None if that is not known; returns them again, such as with a
            progress bar around.

    Raises:
        ManifestError: the source does not exist, lists nothing, or lists nothing that can be used.
    """
    source, destination = Path(source), Path(destination)
    root = None if root is None else Path(root)
    if destination.suffix != ".jsonl":
        raise ManifestError(f"{destination}: a manifest is written as .jsonl")
    if not source.exists():
        raise ManifestError(f"{source}: no such file or folder")
    if destination.exists() and destination.samefile(source):
        raise ManifestError(f"{destination}: is the source and would be overwritten; choose another name")
    base = None if not relative else os.path.abspath(destination.parent if root is None else root)
    summary = Summary()
    entries, total = iterate_entries(source, kind, root, summary.overlooked)
    with atomic_path(destination) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for line in _lines(watch(_with_headers(entries, jobs), total), base, summary):
            file.write(_to_json(line) + "\n")
        if not summary.total:
            raise ManifestError(f"{source}: this manifest lists nothing")
        if not summary.written:
            first = next(iter(summary.failed.values()))
            raise ManifestError(f"{source}: none of {summary.total} entries can be used; the first because: {first}")
    return summary


def _lines(
    entries: Iterable[tuple[Utterance | ManifestError, AudioInfo | AudioError | None]],
    base: str | None,
    summary: Summary,
) -> Iterator[dict[str, Any]]:
    """Yield the lines of a new manifest, and note in the summary what becomes of every entry."""
    places: dict[int, int] = {}  # hashes, since there may be millions
    for number, (entry, header) in enumerate(entries, 1):
        try:
            if isinstance(entry, ManifestError):
                raise entry
            line, seconds = _describe(entry, header, base)
            name, place = hash(entry.id), hash(entry)
            if name not in places:
                places[name] = place
                summary.written += 1
                summary.seconds += seconds
                yield line
            elif places[name] != place:
                raise ManifestError(f"{entry.place}: the id {entry.id!r} stands for something else already")
        except (ManifestError, AudioError) as error:
            name = entry.id if isinstance(entry, Utterance) else f"entry {number}"
            name = f"{name} (entry {number})" if name in summary.failed else name
            summary.failed[name] = " ".join(str(error).split())


def _with_headers(entries: Iterable[Utterance | ManifestError], jobs: int) -> Iterator[_WithHeader]:
    """Yield each entry with its file's header, or with the reason why there is none, in their order."""

    def read(portion: list) -> list:
        # Cuts of one recording stand side by side.
        headers: dict[tuple, AudioInfo | AudioError] = {}
        found = []
        for entry in portion:
            if not isinstance(entry, Utterance):
                found.append((entry, None))
                continue
            key = (entry.source, entry.id if isinstance(entry, LhotseCut) else None)
            if key not in headers:
                try:
                    headers[key] = entry.info()
                except AudioError as error:
                    headers[key] = error
            found.append((entry, headers[key]))
        return found

    entries = iter(entries)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = deque()
        while True:
            while len(waiting) < _AHEAD * jobs and (portion := list(itertools.islice(entries, _PORTION))):
                waiting.append(pool.submit(read, portion))
            if not waiting:
                return
            yield from waiting.popleft().result()


def _describe(cut: Utterance, header: AudioInfo | AudioError | None, base: str | None) -> tuple[dict[str, Any], float]:
    if isinstance(header, AudioError):
        raise header
    assert header is not None
    if isinstance(cut, LhotseCut):
        return {**json.loads(cut.entry), "id": cut.id}, header.seconds
    whole = not cut.start and cut.duration is None
    available = header.num_frames / header.sample_rate - cut.start
    if available <= 0:
        problem = "has no samples" if whole else f"ends before {cut.start:g} s, where this part begins"
        raise ManifestError(f"{cut.source}: {problem}")
    duration = available if cut.duration is None else min(available, cut.duration)
    line = {
        "id": cut.id,
        "path": cut.source if base is None else os.path.relpath(cut.source, base),
        **({} if whole else {"start": cut.start}),
        "duration": round(duration, 6),
        "sample_rate": header.sample_rate,
        **({} if cut.channel is None else {"channel": cut.channel}),
    }
    return line, duration


def _to_json(line: dict) -> str:
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(line)
    return text
