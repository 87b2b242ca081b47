"""The speech that comes with the package, and how it is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "speech"
TRANSCRIPTS = "transcripts.tsv"
COLUMNS = ("file", "speaker", "seconds", "text", "phones")
SAMPLE_RATE = 16000

# Of every speaker's sentences the last three are for testing and the two before them for choosing a checkpoint. All
# speakers say different sentences, so no test sentence was seen in training.
_DEV, _TEST = 2, 3


@dataclass(frozen=True)
class Utterance:
    """One recording: its file, who speaks, how long, what is said, and its exact phones without silence."""

    path: Path
    speaker: str
    seconds: float
    text: str
    phones: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.stem


def bundled_speech(folder: Path = FOLDER) -> list[Utterance]:
    """Read the list of the package's utterances.

    Raises:
        FileNotFoundError: the list is not there; the message says how to make it.
    """
    listing = folder / TRANSCRIPTS
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} is missing; make it with: python -m wavcube_plugins.synthetic.make_speech")
    rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines()[1:]]
    return [
        Utterance(folder / file, speaker, float(seconds), text, tuple(phones.split()))
        for file, speaker, seconds, text, phones in rows
    ]


def split(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Divide utterances into train, dev and test, each with every speaker."""
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for speaker in dict.fromkeys(utterance.speaker for utterance in utterances):
        own = [utterance for utterance in utterances if utterance.speaker == speaker]
        parts["train"] += own[: -_TEST - _DEV]
        parts["dev"] += own[-_TEST - _DEV : -_TEST]
        parts["test"] += own[-_TEST:]
    return parts
