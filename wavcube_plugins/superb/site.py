"""What is known of one task's files: found, missing, made, and the configuration values that follow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wavcube_plugins.data.corpora import CorpusError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.tasks import Task
from wavcube_plugins.superb.workspace import s3prl_folder

# How many missing files a sentence names.
_SHOWN = 3

Result = TypeVar("Result")


@dataclass
class Site:
    """What is known of one task's files.

    Args:
        bench: The bench.
        task: The task.
        write: Make what is missing; otherwise only say what would be made.
        found: Sentences on what is there.
        missing: Sentences on what is missing, each with what to do.
        made: Sentences on what was made, or would be.
        paths: Configuration keys (dotted) and their values.
    """

    bench: Bench
    task: Task
    write: bool = False
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    paths: dict[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return not self.missing

    @property
    def folder(self) -> Path:
        return self.bench.prepared(self.task)

    def corpus(self, name: str, what: str) -> Path | None:
        """Return a corpus, or None and a note that it is missing."""
        path = self.bench.corpora.get(name)
        if path is None:
            self.missing.append(f"`corpora` of the bench file has no {name!r}: {what}")
        elif not path.exists():
            self.missing.append(f"{name}: {path} does not exist: {what}")
            return None
        return path

    def attempt(self, read: Callable[[], Result]) -> Result | None:
        """Return the result of a call that reads a corpus, or None and a note of what is missing."""
        try:
            return read()
        except CorpusError as error:
            self.missing.append(str(error))
            return None

    def folders(self, root: Path, names: Iterable[str]) -> bool:
        """Note which folders of a corpus are missing, and return whether all are there."""
        lost = [name for name in names if not (root / name).is_dir()]
        if lost:
            self.missing.append(f"{root}: the folder {', '.join(lost[:_SHOWN])} is missing" + _more(lost))
        return not lost

    def files(self, root: Path, names: Sequence[str | os.PathLike], what: str) -> bool:
        """Note which of many files are missing, and return whether all are there."""
        lost = [str(name) for name in names if not (root / name).is_file()]
        if lost:
            named = ", ".join(lost[:_SHOWN])
            self.missing.append(f"{root}: {len(lost)} of {len(names)} {what} are missing: {named}" + _more(lost))
        else:
            self.found.append(f"{root}: {len(names)} {what}")
        return not lost

    def make(self, path: Path, what: str, content: Callable[[], str | Iterable[str]]) -> Path:
        """Write a text file unless it is there, and note it.

        Args:
            path: The file.
            what: In words.
            content: Called if it must be made: the text, or its lines.
        """
        if path.is_file():
            self.found.append(f"{path}: {what}")
            return path
        if self.write and self.ready:
            try:
                text = content()
                text = text if isinstance(text, str) else "".join(f"{line}\n" for line in text)
            except (ValueError, OSError) as error:
                self.missing.append(f"{path} cannot be made: {error}")
                return path
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.ready:
            self.made.append(f"{path}: {what}")
        return path

    def of_s3prl(self, name: str, own: str, what: str, remedy: str) -> Path | None:
        """Return a list that s3prl's clone brings and its wheel does not, or the user's own of the bench file.

        Args:
            name: Its place in s3prl.
            own: Its name in the bench file's `corpora`.
            what: In words.
            remedy: What to do if it is nowhere.
        """
        given = self.bench.corpora.get(own)
        if given is not None:
            if given.is_file():
                self.found.append(f"{given}: {what}")
                return given
            self.missing.append(f"{own}: {given} does not exist: {what}")
            return None
        path = s3prl_folder(self.bench.s3prl) / name
        if path.is_file():
            self.found.append(f"{path}: {what}")
            return path
        self.missing.append(f"{what} is missing, s3prl's wheel has none: {remedy}")
        return None


def _more(lost: Sequence[object]) -> str:
    """Return what follows the names of missing files: an ellipsis if there are others."""
    return " …" if len(lost) > _SHOWN else ""
