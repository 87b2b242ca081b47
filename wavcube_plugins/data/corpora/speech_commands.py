"""Speech Commands 0.01: `yes/0a7c2a8d_nohash_0.wav` in a folder per word, and a second archive with the test set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from wavcube_plugins.data.corpora.layout import Record, expect_folder

# The ten words of the task; other words are unknown ones.
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE = "_background_noise_"
TEST_CLASSES = (*WORDS, "_unknown_", "_silence_")


def read(root: str | os.PathLike, expected: Sequence[str] = (*WORDS, NOISE)) -> Iterator[Record]:
    """Return every recording, sorted by folder; labels: word, the name of the folder.

    Args:
        root: The folder of one of the two archives.
        expected: Folders that must be there: those of the training archive, or `TEST_CLASSES`.

    Raises:
        CorpusError: a folder is missing.
    """
    root = expect_folder(root, "the folder of Speech Commands")
    for name in expected:
        expect_folder(root / name, "a class of Speech Commands")
    return (
        Record(
            id=f"{path.parent.name}/{path.stem}",
            path=path,
            speaker=path.stem.split("_nohash_")[0] if "_nohash_" in path.stem else None,
            labels={"word": path.parent.name},
        )
        for path in sorted(root.glob("*/*.wav"))
    )
