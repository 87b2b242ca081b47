"""VCTK 0.92, `wav48_silence_trimmed/p225/p225_001_mic1.flac`, or 0.80, `wav48/p225/p225_001.wav`; texts in `txt`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wavcube_plugins.data.corpora.layout import Record, expect_folder, read_text


def read(root: str | os.PathLike, microphone: str = "mic1") -> Iterator[Record]:
    """Return the recordings that have a transcript; labels: number, the same for the same position in the reading list.

    Args:
        root: The folder with `txt` in it.
        microphone: mic1 or mic2, of version 0.92.

    Raises:
        CorpusError: the audio is missing.
    """
    root = expect_folder(root, "the folder of VCTK")
    trimmed = root / "wav48_silence_trimmed"
    if trimmed.is_dir():
        return _walk(root, trimmed, f"p*/*_{microphone}.flac")
    return _walk(root, expect_folder(root / "wav48", "VCTK's audio (or wav48_silence_trimmed)"), "p*/*.wav")


def _walk(root: Path, audio: Path, pattern: str) -> Iterator[Record]:
    for path in sorted(audio.glob(pattern)):
        speaker, number = path.stem.split("_")[:2]
        name = f"{speaker}_{number}"
        text = root / "txt" / speaker / f"{name}.txt"
        if text.is_file():
            yield Record(id=name, path=path, speaker=speaker, text=read_text(text), labels={"number": number})
