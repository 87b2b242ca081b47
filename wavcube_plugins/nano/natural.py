"""Natural speech for WavCube-nano, spoken by Kokoro: a corpus made from its voices and their blends, or one taken over.

Nothing is done to the audio: noise, rooms and other talkers come with `disturb`, in training.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
from pathlib import Path

import numpy as np

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.nano.texts import SAMPLE_RATE, draw_text, owner, stable_seed
from wavcube_plugins.synthetic.kokoro import ARPABET, KokoroSynthesiser
from wavcube_plugins.synthetic.speech import SILENCE, SynthesisError

SHORTEST, LONGEST = 1.5, 14.0
# New speakers: so many blends of two voices of one sex, from the voices of each group.
BLENDS = {"train": 110, "test": 10}
# How often an English voice, one of another language and a blend speak, in proportion.
_ENGLISH, _FOREIGN, _BLEND = 3.0, 1.5, 1.0


def make_natural_speakers(voices: tuple[str, ...], seed: int) -> dict[str, dict[str, float]]:
    """Return the speakers of training and test by name, with how often each speaks.

    One in five voices, and blends of these, are for the test alone. A name is what Kokoro takes as a voice.

    Raises:
        InputError: too few voices for two groups.
    """
    voices = tuple(sorted(voices))
    order = sorted(voices, key=lambda name: stable_seed(seed, "kokoro", name))
    test = set(order[::5])
    groups = {"test": [name for name in voices if name in test], "train": [name for name in voices if name not in test]}
    if not groups["train"]:
        raise InputError(f"a corpus needs at least two voices, got {len(voices)}")
    speakers: dict[str, dict[str, float]] = {}
    for group, names in groups.items():
        speakers[group] = {name: _ENGLISH if name[0] in "ab" else _FOREIGN for name in names}
        # The second letter of a voice's name is its sex.
        pairs = [pair for pair in itertools.combinations(names, 2) if pair[0][1:2] == pair[1][1:2]]
        generator = random.Random(stable_seed(seed, "blends", group))
        for first, second in generator.sample(pairs, min(BLENDS[group], len(pairs))):
            share = generator.randint(35, 65)
            speakers[group][f"{first}:{share / 100:.2f}+{second}:{1 - share / 100:.2f}"] = _BLEND
    return speakers


class NaturalStudio:
    """Makes utterances of a natural corpus, each a function of the seed, the voices and its name alone.

    Args:
        seed: Of the corpus.
        voices: Kokoro's weights: a folder or a hub name.
        sentences: A file with a sentence on each line; None draws them from nano's own grammar.
    """

    def __init__(self, seed: int, voices: str, sentences: str | None = None):
        self.seed = seed
        self.kokoro = KokoroSynthesiser(voices, sample_rate=SAMPLE_RATE)
        self.speakers = make_natural_speakers(self.kokoro.voices(), seed)
        self.sentences = None if sentences is None else read_sentences(sentences)

    def utterance(self, split: str, index: int) -> tuple[np.ndarray, dict]:
        """Return an utterance's samples (T,) in -1 … 1 and its line of the manifest."""
        name = f"natural-{split}-{index:06d}"
        generator = random.Random(stable_seed(self.seed, name))
        group = self.speakers["test" if split == "test" and index % 2 else "train"]
        speaker = generator.choices(list(group), list(group.values()))[0]
        speed = generator.randint(85, 120) / 100
        for _ in range(50):
            text = self._text(generator, split)
            try:
                speech = self.kokoro.speak(text, f"{speaker}@{speed}")
            except SynthesisError:
                continue
            if SHORTEST <= speech.seconds <= LONGEST:
                break
        else:
            raise SynthesisError(f"{speaker} said none of fifty texts within {LONGEST:g} seconds")
        record = {
            "id": name,
            "path": f"{split}/{split}-{index:06d}.flac",
            "duration": speech.seconds,
            "speaker": speaker,
            "text": text,
            "augmentation": [],
            "phones": [[phone.label, round(phone.start, 4), round(phone.end, 4)] for phone in speech.phones],
        }
        return speech.waveform.numpy(), record

    def _text(self, generator: random.Random, split: str) -> str:
        count = generator.choices((1, 2, 3), (5, 3, 2))[0]
        if self.sentences is None:
            return " ".join(draw_text(generator, split) for _ in range(count))
        return " ".join(generator.choice(self.sentences[split]) for _ in range(count))


def read_sentences(path: str | os.PathLike) -> dict[str, list[str]]:
    """Read a file of sentences and divide them among the splits, each always to the same one.

    Raises:
        InputError: no such file, or a split would have none.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text, {error}") from error
    sentences: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for line in filter(None, lines):
        sentences[owner(line)].append(line)
    if not all(sentences.values()):
        raise InputError(f"{path}: has too few sentences to divide among training, validation and test")
    return sentences


def take_corpus(source: Path, folder: Path, hours: float = math.inf) -> dict[str, float]:
    """Take a corpus over that Kokoro spoke: its manifest in the form of nano's, its audio where it lies.

    Args:
        source: A folder with `manifest.jsonl`: id, path, split, speaker, seconds, text and phones in Kokoro's letters.
        folder: Gets train.jsonl, valid.jsonl and test.jsonl.
        hours: Of the training speech, at most; the first of it.

    Returns:
        Seconds of each split.

    Raises:
        InputError: there is no such manifest, or it cannot be read.
    """
    path = Path(source) / "manifest.jsonl"
    splits: dict[str, list[dict]] = {"train": [], "valid": [], "test": []}
    number = 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):  # noqa: B007
            record = json.loads(line)
            splits[record["split"]].append(
                {
                    "id": f"natural-{record['id']}",
                    "path": os.path.relpath(Path(source).resolve() / record["path"], Path(folder).resolve()),
                    "duration": record["seconds"],
                    "speaker": record["speaker"],
                    "text": record["text"],
                    "augmentation": [],
                    "phones": [[_arpabet(label), start, end] for label, start, end in record["phones"]],
                }
            )
    except OSError as error:
        raise InputError(f"{path}: not readable; a corpus to take over has a manifest.jsonl") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}, line {number}: not an utterance of a corpus spoken by Kokoro, {error!r}") from error
    lengths = itertools.accumulate(record["duration"] for record in splits["train"])
    splits["train"] = [one for one, end in zip(splits["train"], lengths, strict=True) if end <= 3600 * hours]
    for split, records in splits.items():
        with atomic_path(Path(folder) / f"{split}.jsonl") as temporary:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")
    return {split: sum(record["duration"] for record in records) for split, records in splits.items()}


def _arpabet(letter: str) -> str:
    return SILENCE if letter in ("sil", SILENCE) else ARPABET[letter]
