"""Libri2Mix as its published scripts make it: `wav16k/min/train-100/{mix_clean,mix_both,s1,s2}/<id>.wav`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from wavcube_plugins.data.corpora.layout import Record, expect_folder


def read(
    root: str | os.PathLike,
    parts: Sequence[str],
    *,
    version: str = "wav16k/min",
    mixtures: str = "mix_clean",
) -> Iterator[Record]:
    """Return the mixtures of some parts, each with `source_1` and `source_2` in `parallel`.

    Args:
        root: The folder `Libri2Mix`, the one above it, or the folder of the version.
        parts: Of train-100, train-360, dev and test.
        version: Sample rate and length of the mixtures, as folders.
        mixtures: The folder of the mixtures: mix_clean, or mix_both with noise.

    Raises:
        CorpusError: a part, or a folder in it, is missing.
    """
    root = expect_folder(root, "the folder of Libri2Mix")
    base = root / "Libri2Mix" if (root / "Libri2Mix").is_dir() else root
    if (base / version).is_dir() or not any((base / part).is_dir() for part in parts):
        base = base / version
    for part in parts:
        expect_folder(base / part, "a part of Libri2Mix")
        expect_folder(base / part / mixtures, "the mixtures")
        for source in ("s1", "s2"):
            expect_folder(base / part / source, "the recordings of one talker of the mixtures")
    return (utterance for part in parts for utterance in _walk(base / part, mixtures))


def _walk(folder: Path, mixtures: str) -> Iterator[Record]:
    for path in sorted((folder / mixtures).glob("*.wav")):
        sources = {f"source_{number}": folder / f"s{number}" / path.name for number in (1, 2)}
        yield Record(id=path.stem, path=path, split=folder.name, parallel=sources)
