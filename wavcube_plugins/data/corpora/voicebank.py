"""Voicebank-DEMAND: the folders `noisy_trainset_28spk_wav`, `clean_testset_wav` and so on, at 48 or 16 kHz."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, expect_folder

PARTS = ("trainset_28spk", "testset")
# The speakers of the training set that are usually held out for validation.
VALID_SPEAKERS = ("p226", "p287")


def read(root: str | os.PathLike, parts: Sequence[str] = PARTS) -> Iterator[Record]:
    """Return the noisy recordings of some parts, each with its `clean` one in `parallel`.

    Args:
        root: The folder with `noisy_trainset_28spk_wav` and so on in it. Folders converted to 16 kHz, named
            `noisy_trainset_28spk_wav_16k` by custom, come first.
        parts: Of trainset_28spk, trainset_56spk and testset.

    Raises:
        CorpusError: a folder is missing.
    """
    root = expect_folder(root, "the folder of Voicebank-DEMAND")
    folders = {part: [_find(root, f"{kind}_{part}_wav") for kind in ("noisy", "clean")] for part in parts}
    return (utterance for part, (noisy, clean) in folders.items() for utterance in _walk(part, noisy, clean))


def _find(root: Path, name: str) -> Path:
    for folder in (root / f"{name}_16k", root / name):
        if folder.is_dir():
            return folder
    raise CorpusError(f"{root}: the folder {name}_16k (or {name}) is missing; expected Voicebank-DEMAND, unpacked")


def _walk(part: str, noisy: Path, clean: Path) -> Iterator[Record]:
    for path in sorted(noisy.glob("*.wav")):
        yield Record(
            id=path.stem,
            path=path,
            split=part,
            speaker=path.stem.split("_")[0],
            parallel={"clean": clean / path.name},
        )
