"""Fluent Speech Commands: `data/{train,valid,test}_data.csv` and the recordings they name, in `wavs/speakers`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, expect_file, expect_folder

SPLITS = ("train", "valid", "test")
SLOTS = ("action", "object", "location")


def read(root: str | os.PathLike) -> Iterator[Record]:
    """Return the utterances of train, valid and test; labels: action, object, location.

    Args:
        root: The folder with `data` and `wavs` in it.

    Raises:
        CorpusError: a table or a column of it is missing.
    """
    root = expect_folder(root, "the folder of Fluent Speech Commands")
    tables = {
        split: expect_file(root / "data" / f"{split}_data.csv", "a table of Fluent Speech Commands") for split in SPLITS
    }
    return (utterance for split, path in tables.items() for utterance in _walk(root, split, path))


def _walk(root: Path, split: str, table: Path) -> Iterator[Record]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        for name in ("path", *SLOTS):
            if name not in (rows.fieldnames or ()):
                raise CorpusError(f"{table}: the column {name} is missing")
        for row in rows:
            if None in row.values():
                raise CorpusError(f"{table}, line {rows.line_num}: has fewer values than columns")
            yield Record(
                id=Path(row["path"]).stem,
                path=root / row["path"],
                split=split,
                speaker=row.get("speakerId"),
                text=row.get("transcription"),
                labels={slot: row[slot] for slot in SLOTS},
            )
