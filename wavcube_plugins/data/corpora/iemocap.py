"""IEMOCAP: `Session1/sentences/wav/<dialogue>/<utterance>.wav` and `Session1/dialog/EmoEvaluation/<dialogue>.txt`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from wavcube_plugins.data.corpora.layout import Record, expect_folder

SESSIONS = (1, 2, 3, 4, 5)
# The four classes that most papers use: excitement counts as happiness, and what is labelled otherwise is left out.
FOUR_CLASSES = {"neu": "neu", "ang": "ang", "sad": "sad", "hap": "hap", "exc": "hap"}

# [6.29 - 8.23]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")


def read(
    root: str | os.PathLike, sessions: Iterable[int] = SESSIONS, classes: Mapping[str, str] = FOUR_CLASSES
) -> Iterator[Record]:
    """Return the utterances with one of the wanted emotions; labels: emotion, session.

    Args:
        root: The folder with `Session1` and so on in it.
        sessions: Which of these to read.
        classes: The class of each emotion of the corpus; utterances with others are left out.

    Raises:
        CorpusError: a session's labels or recordings are missing.
    """
    root = expect_folder(root, "the folder of IEMOCAP")
    folders = {}
    for session in sessions:
        folder = root / f"Session{session}"
        expect_folder(folder / "sentences/wav", "the recordings of IEMOCAP")
        folders[session] = expect_folder(folder / "dialog/EmoEvaluation", "the emotion labels of IEMOCAP")
    return (utterance for session, folder in folders.items() for utterance in _walk(root, session, folder, classes))


def _walk(root: Path, session: int, labels: Path, classes: Mapping[str, str]) -> Iterator[Record]:
    name = f"Session{session}"
    for listing in sorted(path for path in labels.glob("*.txt") if not path.name.startswith(".")):
        # Comments of the annotators may be in any encoding; what is read here is ASCII.
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            found = _LINE.match(line)
            if not found or found[2] not in classes:
                continue
            utterance = found[1]
            yield Record(
                id=utterance,
                path=root / name / "sentences/wav" / listing.stem / f"{utterance}.wav",
                split=name,
                # Ses01F_impro01_M003: the last part begins with who speaks, the first with who wore the markers.
                speaker=f"Ses{session:02d}{utterance.rpartition('_')[2][0]}",
                labels={"emotion": classes[found[2]], "session": session},
            )
