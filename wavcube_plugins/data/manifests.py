"""Lists of speech: folders, path lists, Kaldi's scp files and JSON lines, read at once or line by line."""

from __future__ import annotations

import bisect
import gzip
import itertools
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from wavcube_plugins.audio import AUDIO_SUFFIXES, AudioError, AudioInfo, find_audio, read_audio, read_info
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

MANIFEST_FORMATS = ("list", "scp", "jsonl")
AUDIO_KEYS = ("audio_filepath", "audio", "audio_path", "path", "wav", "file")
ID_KEYS = ("id", "utt_id", "utt", "key")
START_KEYS = ("start", "offset")

# Bytes that a name in the file system may have (255 nearly everywhere), less what temporary names add.
_LONGEST_NAME = 220

# Bytes of a manifest that are looked through at once.
_BLOCK = 1 << 24

# Entries whose headers one thread reads before it asks for more, and such portions that wait for each thread.
_PORTION, _AHEAD = 64, 4


class ManifestError(InputError):
    """A manifest cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Utterance:
    """One piece of speech.

    Args:
        id: Its name, which can serve as a path below a folder.
        source: The audio file.
        start: Where it begins in the file, in seconds.
        duration: Its length in seconds; None goes to the file's end.
    """

    id: str
    source: str
    start: float = 0.0
    duration: float | None = None

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        if not self.start and self.duration is None:
            return self.source
        length = "to its end" if self.duration is None else f"for {self.duration:g} s"
        return f"{self.source} from {self.start:g} s {length}"

    def read(self, sample_rate: int) -> Tensor:
        """Read its waveform (T,).

        Raises:
            AudioError: as `audio.read_audio`.
        """
        if not self.start and self.duration is None:
            return read_audio(self.source, sample_rate)
        rate = read_info(self.source).sample_rate
        frames = None if self.duration is None else round(self.duration * rate)
        return read_audio(self.source, sample_rate, start=round(self.start * rate), num_frames=frames)


def read_manifest(
    source: str | os.PathLike, *, kind: str | None = None, root: str | os.PathLike | None = None
) -> list[Utterance]:
    """List the utterances of a folder, an audio file or a manifest.

    A folder gives every audio file below it; ids are paths below the folder, without suffix. Manifests, also gzipped:

    * `list`: one path per line; ids are the paths without suffix and without a leading slash.
    * `scp`: Kaldi's `id path` per line (commands that end in `|` are refused).
    * `jsonl`: one JSON object per line with the path under one of AUDIO_KEYS or as Lhotse's
      `recording.sources[0].source`; an id under one of ID_KEYS, by default made from the path; and for a part of the
      file its beginning in seconds under one of START_KEYS, with `duration` unless it goes to the end. A duration
      without a beginning describes the whole file.

    White space in ids becomes `_`. The same utterance listed twice is taken once.

    Args:
        source: The folder or file.
        kind: One of MANIFEST_FORMATS; None takes `scp` by that suffix, `jsonl` by a first `{`, and else `list`.
        root: Folder that relative paths are below; None looks in the current folder and then in the manifest's.

    Raises:
        ManifestError: no such file, nothing in it, a line that cannot be used, or one id for two utterances.
    """
    source = Path(source)
    if source.is_dir() or (source.suffix.lower() in AUDIO_SUFFIXES and kind is None):
        utterances = list(_Files(source))
    else:
        utterances = list(_parse_manifest(source, kind, None if root is None else Path(root)))
        if not utterances:
            raise ManifestError(f"{source}: this manifest lists nothing")

    unique: dict[str, Utterance] = {}
    for utterance in utterances:
        other = unique.setdefault(utterance.id, utterance)
        if other != utterance:
            raise ManifestError(
                f"{source}: the id {utterance.id!r} stands for both {other.place} and {utterance.place}; "
                "give them ids of their own in a manifest"
            )
    return list(unique.values())


class Manifest(Sequence[Utterance]):
    """The utterances of a folder or of manifests, read one by one when they are asked for.

    A manifest stays on disk: only the beginnings of its lines are held, eight bytes each, so that ten million
    LibriHeavy cuts cost 80 MB and not gigabytes. Ids are not compared, and a line or a file's name that cannot be used
    shows when it is asked for.

    Args:
        sources: Folders, audio files or manifests of the formats of `read_manifest`, one after the other.
        root: Folder that relative paths in manifests are below, as in `read_manifest`.

    Raises:
        ManifestError: a source that does not exist, is empty, or is compressed.
    """

    def __init__(self, *sources: str | os.PathLike, root: str | os.PathLike | None = None):
        if not sources:
            raise ManifestError("no manifest was given")
        root = None if root is None else Path(root)
        self._parts = [_part(Path(source).expanduser(), root) for source in sources]
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Utterance:
        """Return one utterance.

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

    def __init__(self, source: Path):
        self.folder = source if source.is_dir() else source.parent
        self._paths = find_audio(source) if source.is_dir() else [source]
        if not self._paths:
            raise ManifestError(f"{source}: no audio files in this folder (looked for {', '.join(AUDIO_SUFFIXES)})")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Utterance:
        path = self._paths[index]
        name = path.relative_to(self.folder).with_suffix("").as_posix()
        return Utterance(_clean_id(name, str(path)), os.path.abspath(path))


class _Lines(Sequence[Utterance]):
    """The lines of one manifest, by the bytes they begin at."""

    def __init__(self, path: Path, root: Path | None):
        self.path, self.root = path, root
        if path.suffix == ".gz":
            raise ManifestError(
                f"{path}: training reads manifests in any order, which a compressed file does not allow; "
                f"unpack it first: gunzip --keep {path}"
            )
        try:
            self._offsets = _line_offsets(path)
        except OSError as error:
            raise ManifestError(
                f"{path}: not readable as a manifest, {(error.strerror or str(error)).lower()}"
            ) from error
        if not len(self._offsets):
            raise ManifestError(f"{path}: this manifest lists nothing")
        self._kind = _kind(path, self._line(0))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Utterance:
        where = f"{self.path}, entry {index + 1}"
        return _parse_line(self._line(index), self._kind, where, self.path.parent, self.root)

    def _line(self, index: int) -> str:
        # Opened anew each time: a file handle must not be shared with worker processes.
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[index]))
            try:
                return file.readline().decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{self.path}: not readable as a manifest, not a text file") from error


@dataclass
class Summary:
    """What became of the entries of a source.

    Attributes:
        written: How many stand in the new manifest.
        seconds: How much audio that is.
        failed: Those that cannot be used, and why.
    """

    written: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)

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
    """Write the utterances of a folder or manifest as JSON lines that `Manifest` and `read_manifest` read.

    Each line has `id`, `path`, `duration` in seconds and `sample_rate` as the file's header gives them, and `start`
    for a part of a file. Entries are read one by one, so that a manifest of millions, gzipped or not, needs little
    memory. What cannot be used is left out, and an entry that comes twice is taken once.

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
    entries, total = _entries(source, kind, root)
    summary, places = Summary(), {}
    with atomic_path(destination) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for number, (entry, header) in enumerate(watch(_with_headers(entries, jobs), total), 1):
            try:
                if isinstance(entry, ManifestError):
                    raise entry
                line = _describe(entry, header, base)
                # Hashes, since there may be millions.
                name, place = hash(entry.id), hash((entry.source, entry.start, entry.duration))
                if name not in places:
                    places[name] = place
                    file.write(_to_json(line) + "\n")
                    summary.written += 1
                    summary.seconds += line["duration"]
                elif places[name] != place:
                    raise ManifestError(f"{entry.place}: the id {entry.id!r} stands for something else already")
            except (ManifestError, AudioError) as error:
                name = entry.id if isinstance(entry, Utterance) else f"entry {number}"
                name = f"{name} (entry {number})" if name in summary.failed else name
                summary.failed[name] = " ".join(str(error).split())
        if not summary.total:
            raise ManifestError(f"{source}: this manifest lists nothing")
        if not summary.written:
            first = next(iter(summary.failed.values()))
            raise ManifestError(f"{source}: none of {summary.total} entries can be used; the first because: {first}")
    return summary


def _entries(
    source: Path, kind: str | None, root: Path | None
) -> tuple[Iterable[Utterance | ManifestError], int | None]:
    """Return the utterances of a source, an error in the place of each line or file that is none, and their number."""
    if source.is_dir() or (source.suffix.lower() in AUDIO_SUFFIXES and kind is None and source.is_file()):
        files = _Files(source)
        return map(_or_error, (partial(files.__getitem__, index) for index in range(len(files)))), len(files)
    total = None
    if source.suffix != ".gz" and source.is_file():
        with open(source, "rb") as file:
            total = sum(1 for line in file if line.strip())

    parses = (
        partial(_parse_line, line, form, f"{source}, line {number}", source.parent, root)
        for number, line, form in _numbered_lines(source, kind)
    )
    return map(_or_error, parses), total


def _or_error(read: Callable[[], Utterance]) -> Utterance | ManifestError:
    try:
        return read()
    except ManifestError as error:
        return error


def _with_headers(
    entries: Iterable[Utterance | ManifestError], jobs: int
) -> Iterator[tuple[Utterance | ManifestError, AudioInfo | AudioError | None]]:
    """Yield each entry with its file's header, or with the reason why there is none, in their order."""

    def read(portion: list) -> list:
        # Cuts of one recording stand side by side.
        headers: dict[str, AudioInfo | AudioError] = {}
        for entry in portion:
            if isinstance(entry, Utterance) and entry.source not in headers:
                try:
                    headers[entry.source] = read_info(entry.source)
                except AudioError as error:
                    headers[entry.source] = error
        return [(entry, headers.get(entry.source) if isinstance(entry, Utterance) else None) for entry in portion]

    entries = iter(entries)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = deque()
        while True:
            while len(waiting) < _AHEAD * jobs and (portion := list(itertools.islice(entries, _PORTION))):
                waiting.append(pool.submit(read, portion))
            if not waiting:
                return
            yield from waiting.popleft().result()


def _describe(utterance: Utterance, header: AudioInfo | AudioError, base: str | None) -> dict:
    if isinstance(header, AudioError):
        raise header
    whole = not utterance.start and utterance.duration is None
    available = header.num_frames / header.sample_rate - utterance.start
    if available <= 0:
        problem = "has no samples" if whole else f"ends before {utterance.start:g} s, where this part begins"
        raise ManifestError(f"{utterance.source}: {problem}")
    duration = available if utterance.duration is None else min(available, utterance.duration)
    return {
        "id": utterance.id,
        "path": utterance.source if base is None else os.path.relpath(utterance.source, base),
        **({} if whole else {"start": utterance.start}),
        "duration": round(duration, 6),
        "sample_rate": header.sample_rate,
    }


def _to_json(line: dict) -> str:
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(line)
    return text


def _part(source: Path, root: Path | None) -> Sequence[Utterance]:
    if source.is_dir() or (source.suffix.lower() in AUDIO_SUFFIXES and source.is_file()):
        return _Files(source)
    return _Lines(source, root)


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


def _parse_manifest(path: Path, kind: str | None, root: Path | None) -> Iterator[Utterance]:
    for number, line, form in _numbered_lines(path, kind):
        yield _parse_line(line, form, f"{path}, line {number}", path.parent, root)


def _numbered_lines(path: Path, kind: str | None) -> Iterator[tuple[int, str, str]]:
    """Yield the lines that are not blank, with their numbers and the kind of manifest they make."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    kind = kind or _kind(path, line)
                    yield number, line, kind
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a text file"
        raise ManifestError(f"{path}: not readable as a manifest, {reason}") from error


def _kind(path: Path, first_line: str) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return "scp" if suffix == ".scp" else "jsonl" if first_line.startswith("{") else "list"


def _parse_line(line: str, kind: str, where: str, folder: Path, root: Path | None) -> Utterance:
    if "\0" in line:
        raise ManifestError(f"{where}: not text")
    if kind == "jsonl":
        return _parse_json(line, where, folder, root)
    if kind == "list":
        return Utterance(_clean_id(_path_id(line), where), _locate(line, folder, root))
    name, _, audio = line.partition(" ") if "\t" not in line else line.partition("\t")
    audio = audio.strip()
    if not audio:
        raise ManifestError(f"{where}: expected an id and a path, found {line!r}")
    if audio.endswith("|"):
        raise ManifestError(f"{where}: a command, which is not run; write its audio to files first")
    return Utterance(_clean_id(name, where), _locate(audio, folder, root))


def _parse_json(line: str, where: str, folder: Path, root: Path | None) -> Utterance:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON, {error}") from error
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: expected a JSON object, found {line[:40]}")
    entry = {key: value for key, value in entry.items() if value is not None}  # null is as good as nothing
    audio = next((entry[key] for key in AUDIO_KEYS if key in entry), None)
    if audio is None:
        try:
            audio = entry["recording"]["sources"][0]["source"]
        except (KeyError, IndexError, TypeError):
            keys = ", ".join(AUDIO_KEYS)
            raise ManifestError(f"{where}: names no audio; expected one of {keys} or recording.sources") from None
    if not isinstance(audio, str):
        raise ManifestError(f"{where}: the audio's path must be text, found {audio!r}")
    begin = next((entry[key] for key in START_KEYS if key in entry), None)
    duration = None if begin is None else entry.get("duration")
    for name, value in (("beginning", begin), ("duration", duration)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9
        ):
            raise ManifestError(f"{where}: the {name} must be a number of seconds, found {value!r}")
    if duration == 0:
        raise ManifestError(f"{where}: the duration is 0 seconds")
    name = next((str(entry[key]) for key in ID_KEYS if key in entry), None)
    if name is None:
        name = _path_id(audio)
        if begin is not None:
            name += f"-{round(begin * 1000):08d}"
    return Utterance(_clean_id(name, where), _locate(audio, folder, root), float(begin or 0), duration)


def _path_id(path: str) -> str:
    parts = [part for part in PurePosixPath(os.path.splitext(path)[0]).parts if part not in ("/", ".", "..")]
    return "/".join(parts)


def _clean_id(name: str, where: str) -> str:
    """Return an id that is one word and a path below a folder."""
    name = "_".join(name.split())
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise ManifestError(f"{where}: {name!r} cannot be an id; it must be a name or a path below a folder")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise ManifestError(f"{where}: the id {name[:40]}… is longer than a file name may be")
    return name


def _locate(path: str, folder: Path, root: Path | None) -> str:
    if root is None and not os.path.exists(path) and (folder / path).exists():
        root = folder
    return os.path.abspath(path if root is None else root / path)
