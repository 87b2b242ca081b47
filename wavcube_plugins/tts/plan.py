"""How long a text takes, where to cut a long one, and how to join the pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

# F5-TTS's rules. The length rule gives a very short text too little time, so it is spoken at a fixed slow speed.
SHORT_BYTES, SHORT_SPEED = 10, 0.3
PIECE_SECONDS = 22.0
FADE_SECONDS = 0.15

# Empty matches: what is cut keeps its spaces, or the lack of them.
_BREAKS = re.compile(r"(?<=[.!?;:,…])(?=\s)|(?<=[。！？；：，、])")
_WORDS = re.compile(r"\s*\S+")


def utf8_bytes(text: str) -> int:
    """Return the length of a text in bytes of UTF-8: a cheap guess at how much there is to say in any script."""
    return len(text.encode("utf-8"))


def new_frames(rate: float, text: str, speed: float = 1.0) -> int:
    """Return how many frames a text is given.

    Args:
        rate: Frames per byte of text; with a prompt its frames over the bytes of its text.
        text: What is to be said.
        speed: Above 1 is faster. Texts under ten bytes ignore it.

    Returns:
        At least 1.

    Raises:
        ValueError: a speed or a rate that is not positive.
    """
    if not speed > 0 or not rate > 0:
        raise ValueError(f"speed and rate must be positive, got {speed} and {rate}")
    size = utf8_bytes(text)
    return max(1, int(rate * size / (SHORT_SPEED if size < SHORT_BYTES else speed)))


def split_text(text: str, longest: int) -> list[str]:
    """Cut a text into pieces of at most `longest` bytes, behind punctuation, where that is too far apart between words.

    As much as fits stands in one piece. A word longer than that stands alone.
    """
    pieces: list[str] = []
    for sentence in _BREAKS.split(text.strip()):
        parts = [sentence] if utf8_bytes(sentence.strip()) <= longest else _WORDS.findall(sentence)
        # The words of a sentence that is cut do not fill up the piece before, which ended with punctuation.
        fresh = len(parts) > 1
        for part in parts:
            if pieces and not fresh and utf8_bytes(pieces[-1] + part) <= longest:
                pieces[-1] += part
            elif part.strip():
                pieces.append(part.strip())
            fresh = False
    return pieces


def cross_fade(waveforms: Sequence[Tensor], overlap: int) -> Tensor:
    """Join waveforms (T_i,), each fading linearly into the next over `overlap` samples, or fewer where one is short."""
    joined = waveforms[0]
    for waveform in waveforms[1:]:
        shared = min(overlap, len(joined), len(waveform))
        rise = torch.linspace(0, 1, shared, device=joined.device, dtype=joined.dtype)
        middle = joined[len(joined) - shared :] * (1 - rise) + waveform[:shared] * rise
        joined = torch.cat([joined[: len(joined) - shared], middle, waveform[shared:]])
    return joined
