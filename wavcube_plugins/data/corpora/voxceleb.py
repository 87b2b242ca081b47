"""VoxCeleb1: `id10001/1zcIwhmdeo4/00001.wav` below `dev/wav` and `test/wav`, below `wav`, or below the root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, expect_file, expect_folder, read_lines

IDENTIFICATION_LIST, TRIALS_LIST = "iden_split.txt", "veri_test.txt"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}


@dataclass(frozen=True)
class Trial:
    """A question of speaker verification: whether two recordings are of the same speaker, and the answer."""

    same: bool
    one: Record
    two: Record


def read(root: str | os.PathLike) -> Iterator[Record]:
    """Return every recording, sorted by speaker, video and number.

    Raises:
        CorpusError: there is no such folder.
    """
    folders = _audio_folders(root)
    places = sorted({path.relative_to(folder).as_posix() for folder in folders for path in folder.glob("id*/*/*.wav")})
    return (_utterance(folders, place) for place in places)


def read_identification(root: str | os.PathLike, listing: str | os.PathLike | None = None) -> Iterator[Record]:
    """Return the recordings of the published split for speaker identification: train, valid and test.

    Args:
        root: The folder of the corpus.
        listing: The published list `iden_split.txt`, by default the one in `root`.

    Raises:
        CorpusError: the folder or the list is missing, or a line of it is malformed.
    """
    folders = _audio_folders(root)
    path = expect_file(listing or Path(root, IDENTIFICATION_LIST), "the list of VoxCeleb1 for identification")
    return _walk_identification(folders, path)


def _walk_identification(folders: list[Path], path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[0] not in _SPLITS:
            raise CorpusError(f"{path}, line {number}: expected '1 id10001/1zcIwhmdeo4/00001.wav'")
        yield _utterance(folders, fields[1], _SPLITS[fields[0]])


def read_trials(root: str | os.PathLike, listing: str | os.PathLike | None = None) -> list[Trial]:
    """Return the trials of speaker verification.

    Args:
        root: The folder of the corpus.
        listing: A published list such as `veri_test.txt`, by default the one in `root`.

    Raises:
        CorpusError: the folder or the list is missing, or a line of it is malformed.
    """
    folders = _audio_folders(root)
    path = expect_file(listing or Path(root, TRIALS_LIST), "the list of VoxCeleb1 for verification")
    trials = []
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise CorpusError(f"{path}, line {number}: expected '1 id10270/x/00001.wav id10270/y/00002.wav'")
        one, two = (_utterance(folders, place, "test") for place in fields[1:])
        trials.append(Trial(fields[0] == "1", one, two))
    return trials


def _audio_folders(root: str | os.PathLike) -> list[Path]:
    root = expect_folder(root, "the folder of VoxCeleb1")
    parts = [path for path in (root / "dev/wav", root / "test/wav") if path.is_dir()]
    return parts or [root / "wav" if (root / "wav").is_dir() else root]


def _utterance(folders: list[Path], place: str, split: str = "") -> Record:
    candidates = [folder / place for folder in folders]
    path = candidates[0]
    if len(candidates) > 1:
        path = next((one for one in candidates if one.is_file()), path)
    name = place.removesuffix(".wav").replace("/", "--")
    return Record(id=name, path=path, split=split, speaker=place.split("/")[0])
