"""QUESST 2014: lists of queries and documents with their languages in `scoring`, audio beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, expect_file, expect_folder, read_lines

# The documents, and the queries of each split.
LISTS = ("utterances", "dev", "eval")


def read(root: str | os.PathLike) -> Iterator[Record]:
    """Return the documents, whose split is utterances, and the queries of dev and eval; labels: language.

    Args:
        root: The folder with `scoring` in it.

    Raises:
        CorpusError: a list is missing, or a line of it is malformed.
    """
    root = expect_folder(root, "the folder of QUESST 2014")
    lists = {
        split: expect_file(root / "scoring" / f"language_key_{split}.lst", "a list of languages of QUESST 2014")
        for split in LISTS
    }
    return (utterance for split, path in lists.items() for utterance in _walk(root, split, path))


def _walk(root: Path, split: str, listing: Path) -> Iterator[Record]:
    for number, line in read_lines(listing):
        fields = line.split()
        # The lists name files from the folder above.
        _, slash, place = fields[0].partition("/")
        if len(fields) < 2 or not slash:
            raise CorpusError(f"{listing}, line {number}: expected 'quesst14/Audio/<name>.wav <language>'")
        yield Record(id=Path(place).stem, path=root / place, split=split, labels={"language": fields[-1]})


def find_truth(root: str | os.PathLike, split: str) -> Path:
    """Return the file with the ground truth of a split, dev or eval.

    Raises:
        CorpusError: there is none.
    """
    folder = Path(root, "scoring", f"groundtruth_quesst14_{split}")
    found = sorted(folder.glob("*.rttm"))
    if not found:
        raise CorpusError(f"{folder}: no .rttm file with the ground truth")
    return found[0]
