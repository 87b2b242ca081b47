"""LibriTTS (openslr.org/60): `train-clean-100/103/1240/103_1240_000000_000001.wav` with its texts beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, find_root, read_text

TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")


def read(root: str | os.PathLike, parts: Sequence[str]) -> Iterator[Record]:
    """Return the utterances of some parts with their normalised texts, leaving out those whose text is empty.

    Args:
        root: The folder with `train-clean-100` and so on in it, or the one above.
        parts: Which of these to read.

    Raises:
        CorpusError: a part is missing, has no utterances, or a recording has no text beside it.
    """
    root = find_root(root, "LibriTTS", parts)
    return (utterance for part in parts for utterance in _walk(root / part))


def _walk(folder: Path) -> Iterator[Record]:
    paths = sorted(folder.glob("*/*/*.wav"))
    if not paths:
        raise CorpusError(f"{folder}: found no utterances such as 103/1240/103_1240_000000_000001.wav")
    for path in paths:
        text = path.with_suffix(".normalized.txt")
        if not text.is_file():
            raise CorpusError(f"{text}: missing beside {path.name}; unpack LibriTTS {folder.name} again")
        # The name has speaker, chapter, paragraph and sentence.
        if words := read_text(text):
            yield Record(id=path.stem, path=path, split=folder.name, speaker=path.stem.split("_")[0], text=words)
