"""LibriSpeech (openslr.org/12): `train-clean-100/19/198/19-198-0000.flac` with `19-198.trans.txt` per chapter."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, find_root, read_lines

TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")


def read(root: str | os.PathLike, parts: Sequence[str]) -> Iterator[Record]:
    """Return the utterances of some parts, chapter by chapter; texts are in capitals, as published.

    Args:
        root: The folder with `train-clean-100` and so on in it, or the one above.
        parts: Which of these to read.

    Raises:
        CorpusError: a part is missing, or has no transcripts, or a line of them has no text.
    """
    root = find_root(root, "LibriSpeech", parts)
    return (utterance for part in parts for utterance in _walk(root / part))


def _walk(folder: Path) -> Iterator[Record]:
    transcripts = sorted(folder.glob("*/*/*.trans.txt"))
    if not transcripts:
        raise CorpusError(f"{folder}: found no transcripts such as 19/198/19-198.trans.txt")
    for path in transcripts:
        files = set(os.listdir(path.parent))
        for number, line in read_lines(path):
            name, *text = line.split(maxsplit=1)
            if not text:
                raise CorpusError(f"{path}, line {number}: {name} has no text")
            # Copies in which the audio was converted to WAV are common.
            suffix = ".wav" if f"{name}.wav" in files and f"{name}.flac" not in files else ".flac"
            yield Record(
                id=name,
                path=path.with_name(name + suffix),
                split=folder.name,
                speaker=name.split("-")[0],
                text=text[0].strip(),
            )
