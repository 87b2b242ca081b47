"""Lists of speech: folders, path lists, Kaldi's scp files and JSON lines, read at once or line by line."""

from __future__ import annotations

import bisect
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from wavcube_plugins.audio import AUDIO_SUFFIXES, describe_overlooked, find_audio
from wavcube_plugins.data.entries import parse_entry
from wavcube_plugins.data.utterance import Base, ManifestError, Utterance, check_text, clean_id, path_id

MANIFEST_FORMATS = ("list", "scp", "jsonl")

# Manifests of other tools, which would be taken for lists of paths.
_FOREIGN_SUFFIXES = (".csv", ".tsv", ".yaml", ".yml", ".parquet", ".arrow")

# Bytes of a manifest that are looked through at once.
_BLOCK = 1 << 24

# Parses a line of a manifest; takes the line, and where it stands for messages.
LineParser = Callable[[str, str], Utterance]


@dataclass
class Listing:
    """What a folder or manifest lists.

    Attributes:
        utterances: Pieces of speech, each id once.
        failed: Entries that cannot be used, and why, by id or as "entry 3".
        overlooked: Paths that may hold speech and could not be searched, and why.
    """

    utterances: list[Utterance] = field(default_factory=list)
    failed: dict[str, ManifestError] = field(default_factory=dict)
    overlooked: list[tuple[Path, str]] = field(default_factory=list)


def read_manifest(
    source: str | os.PathLike, *, kind: str | None = None, root: str | os.PathLike | None = None
) -> list[Utterance]:
    """List the pieces of speech in a folder, an audio file or a manifest.

    A folder gives every audio file below it; ids are paths below the folder, without suffix. Manifests, also gzipped:

    * `list`: one path per line; ids are the paths without suffix and without a leading slash.
    * `scp`: Kaldi's `id path` per line (commands that end in `|` are refused). Where `segments` lies beside a
      `wav.scp`, its segments are listed, as in Kaldi.
    * `jsonl`: one JSON object per line, or a JSON array of them, with the path under one of `entries.AUDIO_KEYS`, or a
      Lhotse cut or recording; an id under one of `entries.ID_KEYS`, by default made from the path; and for a part of
      the file its beginning in seconds under one of `entries.START_KEYS`, with `duration` or `end` unless it goes to
      the file's end; `channel` for one of several. A duration without a beginning describes the whole file.

    White space in ids becomes `_`. The same entry listed twice is taken once.

    Args:
        source: The folder or file.
        kind: One of MANIFEST_FORMATS; None takes `scp` by that suffix, `jsonl` by a first `{` or `[`, and else `list`.
        root: Folder that relative paths are below; None looks in the current folder and then in the manifest's.

    Raises:
        ManifestError: no such file, nothing in it, a line that cannot be used, or one id for two pieces.
    """
    listing = list_utterances(source, kind=kind, root=root)
    for error in listing.failed.values():
        raise error
    return listing.utterances


def list_utterances(
    source: str | os.PathLike, *, kind: str | None = None, root: str | os.PathLike | None = None
) -> Listing:
    """List as `read_manifest` does, but set entries that cannot be used aside.

    Raises:
        ManifestError: no such file, or nothing in it.
    """
    source, listing = Path(source), Listing()
    entries, _ = iterate_entries(source, kind, None if root is None else Path(root), listing.overlooked)
    unique: dict[str, Utterance] = {}
    doubles: dict[str, ManifestError] = {}
    number = 0
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, ManifestError):
            listing.failed[f"entry {number}"] = entry
            continue
        other = unique.setdefault(entry.id, entry)
        if other != entry:
            doubles[f"{entry.id} (entry {number})"] = ManifestError(
                f"{source}: the id {entry.id!r} stands for both {other.place} and {entry.place}; "
                "give them different ids in a manifest"
            )
    if not number:
        raise ManifestError(f"{source}: this manifest lists nothing")
    listing.utterances = list(unique.values())
    listing.failed |= doubles
    return listing


class Manifest(Sequence[Utterance]):
    """The pieces of speech in a folder or in manifests, read one by one when they are asked for.

    A manifest stays on disk: only the beginnings of its lines are held, eight bytes each, so that ten million
    LibriHeavy cuts cost 80 MB and not gigabytes. Ids are not compared, and a line or a file's name that cannot be used
    shows when it is asked for.

    Args:
        sources: Folders, audio files or manifests of the formats of `read_manifest`, one after the other.
        root: Folder that relative paths in manifests are below, as in `read_manifest`.

    Raises:
        ManifestError: a source that does not exist, is empty, is compressed, or is one JSON array.
    """

    def __init__(self, *sources: str | os.PathLike, root: str | os.PathLike | None = None):
        if not sources:
            raise ManifestError("no manifest was given")
        base = None if root is None else Path(root)
        self._parts = [_part(Path(source).expanduser(), base) for source in sources]
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Utterance:
        """Return one piece of speech.

        Raises:
            IndexError: there are not so many.
            ManifestError: its line or its file's name cannot be used; the message names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


class _Files(Sequence[Utterance]):
    """The audio files of a folder, or one audio file."""

    def __init__(self, source: Path, overlooked: list[tuple[Path, str]] | None = None):
        self.folder = source if source.is_dir() else source.parent
        overlook = None if overlooked is None else lambda path, reason: overlooked.append((path, reason))
        self._paths = find_audio(source, overlook) if source.is_dir() else [source]
        if not self._paths:
            unseen = f"; {describe_overlooked(overlooked)}" if overlooked else ""
            raise ManifestError(
                f"{source}: no audio files in this folder (looked for {', '.join(AUDIO_SUFFIXES)}){unseen}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Utterance:
        path = self._paths[index]
        name = path.relative_to(self.folder).with_suffix("").as_posix()
        return Utterance(clean_id(name, str(path)), os.path.abspath(path))


class _Lines(Sequence[Utterance]):
    """The lines of one manifest, by the bytes they begin at."""

    def __init__(self, path: Path, root: Path | None):
        if path.suffix == ".gz":
            raise ManifestError(
                f"{path}: training reads manifests in any order, which a compressed file does not allow; "
                f"unpack it first: gunzip --keep {path}"
            )
        if path.exists() and not path.is_file():
            raise ManifestError(f"{path}: a pipe or a device; training needs a file, which it reads in any order")
        self.path = path
        first = self._index()
        kind = _kind(path, first)
        if kind == "array":
            raise ManifestError(
                f"{path}: a JSON array, which would have to be read whole; write it line by line first: "
                f"wavcube manifest {path} {path.with_suffix('.jsonl').name}"
            )
        lines, self._parse = _line_parser(path, kind, root)
        if lines != path:
            self.path = lines
            self._index()

    def _index(self) -> str:
        """Find the lines, and return the first."""
        try:
            self._offsets = _line_offsets(self.path)
        except OSError as error:
            raise ManifestError(
                f"{self.path}: not readable as a manifest, {(error.strerror or str(error)).lower()}"
            ) from error
        if not len(self._offsets):
            raise ManifestError(f"{self.path}: this manifest lists nothing")
        return self._line(0)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Utterance:
        return self._parse(self._line(index), f"{self.path}, entry {index + 1}")

    def _line(self, index: int) -> str:
        # Opened anew each time: a file handle must not be shared with worker processes.
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[index]))
            try:
                return _strip(file.readline().decode())
            except UnicodeDecodeError as error:
                raise ManifestError(f"{self.path}: not readable as a manifest, not a text file in UTF-8") from error


def iterate_entries(
    source: Path, kind: str | None, root: Path | None, overlooked: list[tuple[Path, str]]
) -> tuple[Iterable[Utterance | ManifestError], int | None]:
    """Return what a source lists, an error in the place of each entry that cannot be used, and their number.

    Args:
        source: A folder, audio file or manifest.
        kind: As in `read_manifest`.
        root: As in `read_manifest`.
        overlooked: Gets the paths that could not be searched, and why.

    Returns:
        The entries, and how many there are, None if that is not known.

    Raises:
        ManifestError: the source as a whole cannot be used.
    """
    if source.is_dir() or (source.suffix.lower() in AUDIO_SUFFIXES and kind is None):
        files = _Files(source, overlooked)
        return map(_or_error, (partial(files.__getitem__, index) for index in range(len(files)))), len(files)
    numbered = _numbered_lines(source)
    first = next(numbered, None)
    if first is None:
        return (), 0
    numbered = itertools.chain([first], numbered)  # one pass: the source may be a pipe
    kind = kind if kind not in (None, "jsonl") else _kind(source, first[1], kind)
    if kind == "array":
        array = _parse_array(source, numbered)
        base = Base(source.parent, root)
        parses = (partial(parse_entry, item, f"{source}, entry {n}", base) for n, item in enumerate(array, 1))
        return map(_or_error, parses), len(array)
    lines, parse = _line_parser(source, kind, root)
    if lines != source:
        numbered = _numbered_lines(lines)
    total = None
    if lines.suffix != ".gz" and lines.is_file():
        with open(lines, "rb") as file:
            total = sum(1 for line in file if line.strip())
    parses = (partial(parse, line, f"{lines}, line {number}") for number, line in numbered)
    return map(_or_error, parses), total


def _or_error(read: Callable[[], Utterance]) -> Utterance | ManifestError:
    try:
        return read()
    except ManifestError as error:
        return error


def _part(source: Path, root: Path | None) -> Sequence[Utterance]:
    if source.is_dir() or (source.suffix.lower() in AUDIO_SUFFIXES and source.is_file()):
        return _Files(source)
    return _Lines(source, root)


# Lines ----------------------------------------------------------------------------------------------------------------


def _line_offsets(path: Path) -> np.ndarray:
    """Return the bytes at which the lines begin that are not blank."""
    position = 0
    starts = [np.zeros(1, dtype=np.int64)]
    ends = []
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            newlines = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10) + position
            starts.append(newlines + 1)
            ends.append(newlines)
            position += len(block)
    starts = np.concatenate(starts)
    ends = np.concatenate([*ends, np.array([position], dtype=np.int64)])
    offsets = starts[ends > starts]
    # Lines of white space alone are rare; only short ones are worth a look.
    short = np.flatnonzero((ends - starts)[ends > starts] < 4)
    if not len(short):
        return offsets
    with open(path, "rb") as file:
        blank = []
        for index in short:
            file.seek(int(offsets[index]))
            if not file.readline().strip():
                blank.append(index)
    return np.delete(offsets, blank)


def _open_text(path: Path) -> io.TextIOBase:
    # Lines end at \n alone, as in `_line_offsets`; a \r before it is stripped.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return open(path, encoding="utf-8", newline="\n")


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line := _strip(line):
                    yield number, line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        known = isinstance(error, OSError)
        reason = (error.strerror or str(error)).lower() if known else "not a text file in UTF-8"
        raise ManifestError(f"{path}: not readable as a manifest, {reason}") from error


def _strip(line: str) -> str:
    """Remove white space around a line, and the byte order mark that joined files have in the middle."""
    return line.strip("\ufeff \t\r\n\v\f").strip()


def _kind(path: Path, first_line: str, kind: str | None = None) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".scp":
        return "scp"
    if first_line.startswith(("{", "[")):
        return "jsonl" if first_line.startswith("{") else "array"
    if kind is None and suffix in _FOREIGN_SUFFIXES:
        raise ManifestError(
            f"{path}: {suffix} manifests are not read; make it a list of paths, a wav.scp or JSON lines, "
            "or name its format if it is one of these"
        )
    return kind or "list"


def _parse_array(path: Path, numbered: Iterable[tuple[int, str]]) -> list:
    try:
        return json.loads("\n".join(line for _, line in numbered))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: begins as a JSON array, but is not JSON, {error}") from error


def _line_parser(path: Path, kind: str, root: Path | None) -> tuple[Path, LineParser]:
    """Return the file whose lines are the entries, and what parses them."""
    base = Base(path.parent, root)
    if kind == "jsonl":
        return path, partial(_parse_json, base=base)
    if kind == "list":
        return path, partial(_parse_path, base=base)
    segments = path.parent / "segments"
    if path.name in ("wav.scp", "wav.scp.gz") and segments.is_file():
        return segments, _Segments(path, base)
    return path, partial(_parse_scp, base=base)


def _parse_json(line: str, where: str, *, base: Base) -> Utterance:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not JSON, {error}") from error
    return parse_entry(entry, where, base)


def _parse_path(line: str, where: str, *, base: Base) -> Utterance:
    if "\0" in line:
        raise ManifestError(f"{where}: not text")
    return Utterance(clean_id(path_id(line), where), base.locate(line, where))


def _parse_scp(line: str, where: str, *, base: Base) -> Utterance:
    check_text(line, where, "line")
    name, _, audio = line.partition(" ") if "\t" not in line else line.partition("\t")
    audio = audio.strip()
    if not audio:
        raise ManifestError(f"{where}: expected an id and a path, found {line!r}")
    if audio.endswith("|"):
        raise ManifestError(f"{where}: a command, which is not run; write its audio to files first")
    return Utterance(clean_id(name, where), base.locate(audio, where))


class _Segments:
    """Parses the lines of Kaldi's `segments`: id, recording, start, end and perhaps a channel.

    Args:
        scp: The `wav.scp` with the recordings.
        base: What its relative paths refer to.
    """

    def __init__(self, scp: Path, base: Base):
        self._scp = scp
        self._recordings: dict[str, Utterance | ManifestError] = {}
        for number, line in _numbered_lines(scp):
            name = line.split(maxsplit=1)[0]
            entry = _or_error(partial(_parse_scp, line, f"{scp}, line {number}", base=base))
            if self._recordings.setdefault(name, entry) != entry:
                raise ManifestError(f"{scp}: lists the recording {name!r} twice")

    def __call__(self, line: str, where: str) -> Utterance:
        fields = line.split()
        if len(fields) not in (4, 5):
            raise ManifestError(f"{where}: expected an id, a recording, start and end, found {line!r}")
        name, recording = fields[:2]
        found = self._recordings.get(recording)
        if found is None:
            raise ManifestError(f"{where}: the recording {recording!r} is not in {self._scp}")
        if isinstance(found, ManifestError):
            raise found
        try:
            start, end = float(fields[2]), float(fields[3])
            channel = int(fields[4]) if len(fields) == 5 else None
        except ValueError as error:
            raise ManifestError(f"{where}: start, end and channel must be numbers, found {line!r}") from error
        to_end = end == -1  # Kaldi's mark for the end of the recording
        if not 0 <= start < 1e9 or not (to_end or start < end < 1e9) or (channel is not None and channel < 0):
            raise ManifestError(f"{where}: no part of a recording lies from {fields[2]} s to {fields[3]} s")
        duration = None if to_end else round(end - start, 6)
        return Utterance(clean_id(name, where), found.source, start, duration, channel)
