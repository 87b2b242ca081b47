"""The database of the Voice Conversion Challenge 2020: `SEF1/E10001.wav` in a folder per speaker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from wavcube_plugins.data.corpora.layout import Record, expect_folder

SOURCE_SPEAKERS = ("SEF1", "SEF2", "SEM1", "SEM2")
TARGET_SPEAKERS = ("TEF1", "TEF2", "TEM1", "TEM2")
# The English sentences: to train on, and to convert.
TRAINING_SENTENCES = tuple(f"E{number}" for number in range(10001, 10071))
EVALUATION_SENTENCES = tuple(f"E{number}" for number in range(30001, 30026))


def read(root: str | os.PathLike, speakers: Sequence[str] = SOURCE_SPEAKERS + TARGET_SPEAKERS) -> Iterator[Record]:
    """Return the recordings of some speakers; labels: sentence, its number in the challenge.

    Raises:
        CorpusError: the folder of a speaker is missing.
    """
    root = expect_folder(root, "the folder of the Voice Conversion Challenge 2020")
    folders = [expect_folder(root / speaker, "the recordings of a speaker") for speaker in speakers]
    return (
        Record(id=f"{folder.name}/{path.stem}", path=path, speaker=folder.name, labels={"sentence": path.stem})
        for folder in folders
        for path in sorted(folder.glob("*.wav"))
    )
