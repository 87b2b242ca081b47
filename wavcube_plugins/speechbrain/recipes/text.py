"""Text units for CTC: characters or sentencepiece, with the blank as number 0."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from speechbrain.dataio.encoder import CategoricalEncoder, CTCTextEncoder
from speechbrain.utils.distributed import ddp_barrier, if_main_process

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

TOKEN_TYPES = ("character", "unigram", "bpe")


class CharacterEncoder(CTCTextEncoder):
    """SpeechBrain's encoder for CTC that is told its size, about which it would otherwise warn.

    Args:
        size: Number of units.
    """

    def __init__(self, size: int):
        super().__init__()
        self.expect_len(size)


class ClassEncoder(CategoricalEncoder):
    """SpeechBrain's encoder of classes that is told its size, about which it would otherwise warn.

    Args:
        size: Number of classes.
    """

    def __init__(self, size: int):
        super().__init__()
        self.expect_len(size)


class Characters:
    """One unit per character of the training texts; other characters are skipped when text is encoded."""

    def __init__(self, texts: Sequence[str], more: Sequence[str] = ()):
        found = {character for text in texts for character in text}
        self.encoder = CTCTextEncoder()
        self.encoder.insert_blank(index=0)
        self.encoder.update_from_iterable(sorted(found | set(more)), False)
        self.encoder.expect_len(len(self.encoder))

    @property
    def yaml(self) -> str:
        """YAML text of an object that loads what `save` writes."""
        return f"!new:wavcube_plugins.speechbrain.recipes.text.CharacterEncoder\n    size: {len(self)}"

    def __len__(self) -> int:
        return len(self.encoder)

    def encode(self, text: Sequence[str]) -> list[int]:
        """Return the numbers of a text's characters."""
        return [self.encoder.lab2ind[character] for character in text if character in self.encoder.lab2ind]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text of numbers."""
        return "".join(self.labels(numbers))

    def labels(self, numbers: Sequence[int]) -> list[str]:
        """Return the units of numbers."""
        return [self.encoder.ind2lab[int(number)] for number in numbers]

    def save(self, path: Path) -> None:
        """Write the file that the object of `yaml` loads."""
        with atomic_path(path) as temporary:
            self.encoder.save(str(temporary))


class Pieces:
    """Units of sentencepiece, trained on the training texts; number 0 serves as blank instead of "unknown"."""

    yaml = "!new:sentencepiece.SentencePieceProcessor"

    def __init__(self, kind: str, texts: Sequence[str], vocab_size: int, folder: Path):
        sentencepiece: Any = import_module("sentencepiece")
        self.path = folder / f"{kind}_{vocab_size}.model"
        if if_main_process() and not self.path.is_file():
            with atomic_path(self.path) as temporary, temporary.open("wb") as file:
                try:
                    sentencepiece.SentencePieceTrainer.train(
                        sentence_iterator=iter(texts),
                        model_writer=file,
                        model_type=kind,
                        vocab_size=vocab_size,
                        unk_id=0,
                        bos_id=-1,
                        eos_id=-1,
                        pad_id=-1,
                        character_coverage=1.0,
                        hard_vocab_limit=False,
                        minloglevel=2,
                    )
                except (RuntimeError, OSError) as error:
                    reason = str(error).splitlines()[-1].rpartition(") ")[2]
                    raise InputError(f"sentencepiece: no {vocab_size} pieces of these texts, {reason}") from error
        ddp_barrier()
        self.processor = sentencepiece.SentencePieceProcessor(model_file=os.fspath(self.path))

    def __len__(self) -> int:
        return len(self.processor)

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a text's pieces."""
        return [number for number in self.processor.encode(text) if number]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text of numbers."""
        return self.processor.decode([int(number) for number in numbers])

    def save(self, path: Path) -> None:
        """Write the file that the object of `yaml` loads."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.path.read_bytes())


def make_tokens(kind: str, texts: Sequence[str], vocab_size: int, folder: Path) -> Characters | Pieces:
    """Make the text units of a recogniser.

    Args:
        kind: One of `TOKEN_TYPES`.
        texts: The training texts.
        vocab_size: Number of sentencepiece units; characters are as many as there are.
        folder: Where sentencepiece's model is kept.

    Raises:
        InputError: no such kind, or texts that so many pieces cannot be made of.
    """
    if kind not in TOKEN_TYPES:
        raise InputError(f"token_type must be one of {', '.join(TOKEN_TYPES)}, got {kind!r}")
    return Characters(texts) if kind == "character" else Pieces(kind, texts, vocab_size, folder)
