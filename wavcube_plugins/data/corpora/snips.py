"""Audio SNIPS as s3prl's preparation leaves it: recordings in `train`, `valid` and `test`, `all.iob.snips.txt`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from wavcube_plugins.data.corpora.layout import Record, expect_file, expect_folder, read_lines

SPLITS = ("train", "valid", "test")


def read(root: str | os.PathLike) -> Iterator[Record]:
    """Return every recording; the text of those that have none in the list is None; labels: marks, one per word.

    Args:
        root: The folder with `all.iob.snips.txt` in it.

    Raises:
        CorpusError: a folder or the list is missing.
    """
    root = expect_folder(root, "the folder of Audio SNIPS")
    for split in SPLITS:
        expect_folder(root / split, "a split of Audio SNIPS")
    listing = expect_file(root / "all.iob.snips.txt", "the texts of Audio SNIPS")
    # Ivy-train-0001 BOS PLAY A SONG EOS<tab>O O O B-music_item O
    texts = {}
    for _, line in read_lines(listing):
        name, _, text = line.strip().partition(" ")
        texts[name] = text
    return (utterance for split in SPLITS for utterance in _walk(root / split, texts))


def _walk(folder: Path, texts: Mapping[str, str]) -> Iterator[Record]:
    for path in sorted(folder.rglob("*.wav")):
        text, labels = None, {}
        if path.stem in texts:
            words, _, marks = texts[path.stem].partition("\t")
            # Both lists have an entry for the beginning and the end.
            text = " ".join(words.split()[1:-1])
            labels = {"marks": marks.split()[1:-1]}
        yield Record(
            id=path.stem, path=path, split=folder.name, speaker=path.stem.split("-")[0], text=text, labels=labels
        )
