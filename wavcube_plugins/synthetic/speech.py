"""What every engine of synthesised speech returns: a waveform with its phones and words, in one phone set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SILENCE = "SIL"
PHONES = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH SIL".split()
)


class SynthesisError(RuntimeError):
    """The engine failed, or said a phone that the phone set has no name for."""


@dataclass(frozen=True)
class Segment:
    """A phone or a word, and where it lies, in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """What was said.

    Attributes:
        waveform: (T,) float32, in -1 … 1.
        sample_rate: In Hz.
        phones: From 0 to the end of the waveform without a gap; every label is one of `PHONES`.
        words: The words, without the pauses between them.
    """

    waveform: Tensor
    sample_rate: int
    phones: tuple[Segment, ...]
    words: tuple[Segment, ...]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sample_rate


class Engine(Protocol):
    """A synthesiser: text and the name of a voice in, speech out."""

    sample_rate: int

    def speak(self, text: str, voice: str) -> Speech:
        """Say a text with the voice of that name.

        Raises:
            ValueError: there is nothing to say, or no such voice.
            SynthesisError: the engine failed.
        """
        ...

    def voices(self) -> tuple[str, ...]:
        """List the names of its voices."""
        ...

    def close(self) -> None:
        """Remove what it keeps on disk."""
        ...


def open_engine(name: str, *, voices: str | None = None, sample_rate: int = 16000) -> Engine:
    """Open an engine by its name.

    Args:
        name: `espeak`, which needs no download, or `kokoro`.
        voices: Kokoro's weights: a folder, or a name on the Hugging Face hub.
        sample_rate: Of the waveforms, in Hz.

    Raises:
        InputError: no such engine, or Kokoro without its weights.
        ImportError: the engine's packages are missing; the message names the command that installs them.
    """
    from wavcube_plugins.errors import InputError

    if name == "espeak":
        from wavcube_plugins.synthetic.espeak import EspeakSynthesiser

        return EspeakSynthesiser(sample_rate=sample_rate)
    if name == "kokoro":
        from wavcube_plugins.synthetic.kokoro import KokoroSynthesiser

        return KokoroSynthesiser(voices, sample_rate=sample_rate)
    raise InputError(f"unknown engine {name!r}; choose espeak or kokoro")
