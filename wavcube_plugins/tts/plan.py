"""How long a text takes, where a long one is split, and how the pieces are joined (F5-TTS's rules)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from wavcube_plugins.errors import InputError

# The length rule leaves a very short text too little time, so it is spoken at a fixed slow rate.
SHORT_BYTES, SHORT_SPEED = 10, 0.3
PIECE_SECONDS = 22.0
FADE_SECONDS = 0.15

# Empty matches, so that the parts keep their spaces, or the lack of them.
_BREAKS = re.compile(r"(?<=[.!?;:,…])(?=\s)|(?<=[。！？；：，、])")
_WORDS = re.compile(r"\s*\S+")


def utf8_bytes(text: str) -> int:
    """Return the length of a text in bytes of UTF-8, a cheap estimate of its duration in any script."""
    return len(text.encode("utf-8"))


def new_frames(rate: float, text: str, speed: float = 1.0) -> int:
    """Return the number of frames for a text, at least 1.

    Args:
        rate: Frames per byte of text; with a prompt, its frames divided by the bytes of its transcript.
        text: The text to speak.
        speed: Speaking rate; 2 is twice as fast. Texts under ten bytes ignore it.

    Raises:
        InputError: The speed or the rate is not positive.
    """
    if not speed > 0 or not rate > 0:
        raise InputError(f"speed and rate must be positive, got {speed} and {rate}")
    size = utf8_bytes(text)
    return max(1, int(rate * size / (SHORT_SPEED if size < SHORT_BYTES else speed)))


def split_text(text: str, longest: int) -> list[str]:
    """Split a text into pieces of at most `longest` bytes.

    It is split after punctuation, and between words where that is not enough. Every piece takes as much as fits; a word
    that is too long becomes a piece of its own.
    """
    pieces: list[str] = []
    for sentence in _BREAKS.split(text.strip()):
        parts = [sentence] if utf8_bytes(sentence.strip()) <= longest else _WORDS.findall(sentence)
        # The words of a split sentence do not fill up the piece before it, which ends with punctuation.
        fresh = len(parts) > 1
        for part in parts:
            if pieces and not fresh and utf8_bytes(pieces[-1] + part) <= longest:
                pieces[-1] += part
            elif part.strip():
                pieces.append(part.strip())
            fresh = False
    return pieces


def first_words(text: str, share: float) -> str:
    """Return about this share of a text, in bytes: whole words, at least one."""
    words = text.split()
    kept = words[:1]
    for word in words[1:]:
        if utf8_bytes(" ".join([*kept, word])) > share * utf8_bytes(text):
            break
        kept.append(word)
    return " ".join(kept)


def cross_fade(waveforms: Sequence[Tensor], overlap: int) -> Tensor:
    """Join waveforms (T_i,) with linear cross-fades of `overlap` samples, or fewer where a waveform is shorter."""
    joined = waveforms[0]
    for waveform in waveforms[1:]:
        shared = min(overlap, len(joined), len(waveform))
        rise = torch.linspace(0, 1, shared, device=joined.device, dtype=joined.dtype)
        middle = joined[len(joined) - shared :] * (1 - rise) + waveform[:shared] * rise
        joined = torch.cat([joined[: len(joined) - shared], middle, waveform[shared:]])
    return joined
