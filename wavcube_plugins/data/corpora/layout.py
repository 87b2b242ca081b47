"""What the readers of all corpora share: the record they yield, their error, and checks of folders and lists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavcube_plugins.errors import InputError


class CorpusError(InputError):
    """A corpus does not have the layout it is published with; the message names the place and what should be there."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One recording of a corpus.

    Args:
        id: Unique in the corpus.
        path: Its audio file, which may turn out to be missing or broken when it is opened.
        split: The corpus's own name for the part it belongs to, "" where the corpus has no parts.
        speaker: Who speaks, or None if the corpus does not say.
        text: The transcript as published, or None if there is none.
        parallel: Other recordings of the same length, by name: `clean` of a noisy one, `source_1` of a mixture.
        labels: Everything else the corpus says of it.
    """

    id: str
    path: Path
    split: str = ""
    speaker: str | None = None
    text: str | None = None
    parallel: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)


def find_root(root: str | os.PathLike, name: str, parts: Sequence[str]) -> Path:
    """Return the folder that has the wanted parts of a corpus in it: `root`, or the folder `name` in it.

    Raises:
        CorpusError: there is no such folder, or a part is missing.
    """
    root = expect_folder(root, f"the folder of {name}")
    if parts and not (root / parts[0]).is_dir() and (root / name).is_dir():
        root = root / name
    for part in parts:
        if not (root / part).is_dir():
            raise CorpusError(f"{root}: no folder {part} in it; unpack {name}'s {' '.join(parts)} there")
    return root


def expect_folder(path: str | os.PathLike, what: str) -> Path:
    """Return the path of a folder, or raise CorpusError if it is not there; `what` says what was expected."""
    path = Path(path)
    if not path.is_dir():
        raise CorpusError(f"{path}: no such folder; expected {what}")
    return path


def expect_file(path: str | os.PathLike, what: str) -> Path:
    """Return the path of a file, or raise CorpusError if it is not there; `what` says what was expected."""
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected {what}")
    return path


def read_text(path: Path) -> str:
    """Return a file's text with single spaces, without line breaks.

    Raises:
        CorpusError: it is not UTF-8.
    """
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line of a file that is not blank.

    Raises:
        CorpusError: it is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text") from error
