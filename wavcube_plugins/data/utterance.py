"""A piece of speech in a file, and the ids that latents are stored under."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from wavcube_plugins.audio import AudioInfo, read_audio, read_info
from wavcube_plugins.errors import InputError

# Bytes that a name in the file system may have (255 nearly everywhere), less what temporary names add.
_LONGEST_NAME = 220


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
        channel: The channel of the file, counted from 0; None mixes all of them.
    """

    id: str
    source: str
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        channel = "" if self.channel is None else f", channel {self.channel}"
        if not self.start and self.duration is None:
            return f"{self.source}{channel}"
        length = "to its end" if self.duration is None else f"for {self.duration:g} s"
        return f"{self.source} from {self.start:g} s {length}{channel}"

    @property
    def origin(self) -> dict[str, Any]:
        """What tells it from other pieces of the same id, for JSON."""
        origin: dict[str, Any] = {"source": self.source}
        if self.start or self.duration is not None:
            origin |= {"start": self.start, "duration": self.duration}
        if self.channel is not None:
            origin["channel"] = self.channel
        return origin

    @property
    def files(self) -> tuple[str, ...]:
        """The files it is read from."""
        return (self.source,)

    def info(self) -> AudioInfo:
        """Return sample rate, length and channels of the file that `start` and `duration` refer to.

        Raises:
            AudioError: as `audio.read_info`.
        """
        return read_info(self.source)

    def read(self, sample_rate: int) -> Tensor:
        """Read its waveform (T,) at the given rate in Hz.

        Raises:
            AudioError: as `audio.read_audio`.
        """
        if not self.start and self.duration is None:
            return read_audio(self.source, sample_rate, channel=self.channel)
        rate = self.info().sample_rate
        frames = None if self.duration is None else round(self.duration * rate)
        return self.read_samples(sample_rate, round(self.start * rate), frames)

    def read_samples(self, sample_rate: int, start: int, num_frames: int | None) -> Tensor:
        """Read a part of its file: `num_frames` samples from sample `start`, both counted at the file's rate.

        Raises:
            AudioError: as `audio.read_audio`.
        """
        return read_audio(self.source, sample_rate, start=start, num_frames=num_frames, channel=self.channel)


def path_id(path: str) -> str:
    """Return the id of a file: its path without suffix, a leading slash, and dots."""
    parts = [part for part in PurePosixPath(os.path.splitext(path)[0]).parts if part not in ("/", ".", "..")]
    return "/".join(parts)


def clean_id(name: str, where: str) -> str:
    """Return an id that is one word and a path below a folder.

    Raises:
        ManifestError: it cannot be made one; the message begins with `where`.
    """
    check_text(name, where, "id")
    name = "_".join(name.split())
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts):
        raise ManifestError(f"{where}: {name!r} cannot be an id; it must be a name or a path below a folder")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise ManifestError(f"{where}: the id {name[:40]}… is longer than a file name may be")
    return name


def check_text(text: str, where: str, what: str) -> None:
    """Check that a text can be the name of a file.

    Raises:
        ManifestError: it has a NUL character, or characters that no file name can have.
    """
    try:
        unusable = "\0" in text or (not os.fsencode(text) and bool(text))
    except UnicodeEncodeError:
        unusable = True
    if unusable:
        raise ManifestError(f"{where}: the {what} {text[:60]!r} has characters that no file name can have")


@dataclass(frozen=True)
class Base:
    """What relative paths in a manifest refer to.

    Args:
        folder: The manifest's folder, where a path is looked for that is not in the current one.
        root: The only folder to look in; None looks in both.
    """

    folder: Path
    root: Path | None = None

    def locate(self, path: str, where: str) -> str:
        """Return an absolute path.

        Raises:
            ManifestError: it cannot be the name of a file; the message begins with `where`.
        """
        check_text(path, where, "path")
        root = self.root
        if root is None and not os.path.exists(path) and (self.folder / path).exists():
            root = self.folder
        return os.path.abspath(path if root is None else root / path)
