"""A folder of speech of any kind: every audio file below it, without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator

from wavcube_plugins.audio import find_audio
from wavcube_plugins.data.corpora.layout import Record, expect_folder


def read(root: str | os.PathLike) -> Iterator[Record]:
    """Return every audio file below a folder, sorted; its id is its path with `--` for `/`, without the suffix.

    Raises:
        CorpusError: there is no such folder.
    """
    root = expect_folder(root, "the folder of your speech")
    return (
        Record(id=path.relative_to(root).with_suffix("").as_posix().replace("/", "--"), path=path)
        for path in find_audio(root)
    )
