"""Encoding and decoding in overlapping windows, for audio of hours.

The exact result takes time that grows with the square of the length, since every frame attends to every other. Here
each window attends within itself; neighbouring windows overlap by a fifth of their length. Latent frames are taken from
the window in which they lie further from an edge; waveforms are cross-faded over the overlap.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wavcube_plugins.errors import InputError
from wavcube_plugins.models.interface import SpeechCodec, WindowCodec

# Fraction of a window that it shares with the next one, and the fewest frames that a cross-fade needs.
OVERLAP, _LEAST_OVERLAP = 0.2, 8


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """Return the first frame of each window: evenly spaced, the last one moved back to end with the audio."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, window - overlap), frames - window]


def window_frames(codec: SpeechCodec, window_seconds: float) -> tuple[int, int]:
    """Return the latent frames of a window, and of its overlap with the next one.

    Raises:
        InputError: the window is too short, or not a number.
    """
    window = int(window_seconds * codec.frame_rate) if math.isfinite(window_seconds) else 0
    overlap = int(window * OVERLAP)
    if overlap < _LEAST_OVERLAP:
        least = _LEAST_OVERLAP / OVERLAP / codec.frame_rate
        raise InputError(f"window_seconds must be at least {least:g}, got {window_seconds:g}")
    return window, overlap


def encode_windowed(
    codec: WindowCodec, waveforms: Tensor, lengths: Tensor, window_seconds: float
) -> tuple[Tensor, Tensor]:
    """Encode waveforms window by window.

    Args:
        codec: The model.
        waveforms: Normalised waveforms (B, T).
        lengths: (B,) samples.
        window_seconds: Length of a window.

    Returns:
        The latent and its lengths, as `SpeechCodec.encode`.

    Raises:
        InputError: the window is too short.
    """
    window, overlap = window_frames(codec, window_seconds)
    hop = codec.hop_length
    frame_lengths = codec.frame_lengths(lengths)
    latent = waveforms.new_zeros(len(waveforms), int(frame_lengths.max()), codec.latent_dim)
    for item, (samples, frames) in enumerate(zip(lengths.tolist(), frame_lengths.tolist(), strict=True)):
        starts = window_starts(frames, window, overlap)
        for index, start in enumerate(starts):
            end = min(start + window, frames)
            stop = min(codec.window_samples(end), samples) if end < frames else samples
            encoded = codec.encode_window(waveforms[item : item + 1, start * hop : stop])[0]
            # Frames up to the middle of the overlap come from the window before.
            first = (start + starts[index - 1] + window) // 2 if index else 0
            latent[item, first:end] = encoded[first - start :]
    return latent, frame_lengths


def decode_windowed(
    codec: WindowCodec, latent: Tensor, lengths: Tensor, window_seconds: float
) -> tuple[Tensor, Tensor]:
    """Decode a latent window by window.

    Args:
        codec: The model.
        latent: (B, L, latent_dim).
        lengths: (B,) frames.
        window_seconds: Length of a window.

    Returns:
        Waveforms and their lengths, as `SpeechCodec.decode`.

    Raises:
        InputError: the window is too short.
    """
    window, overlap = window_frames(codec, window_seconds)
    hop = codec.hop_length
    waveforms = torch.zeros(len(latent), latent.shape[1] * hop, device=latent.device, dtype=torch.float32)
    for item, frames in enumerate(lengths.tolist()):
        starts = window_starts(frames, window, overlap)
        for index, start in enumerate(starts):
            decoded = codec.decode_window(latent[item : item + 1, start : min(start + window, frames)])[0]
            position = start * hop
            if index:
                # The decoder looks far back and little ahead, so fade in the third quarter of the overlap, where the
                # new window has some past already and the old one still has some future.
                shared = (starts[index - 1] + window - start) * hop
                position, decoded = position + shared // 2, decoded[shared // 2 :]
                fade = torch.linspace(0, 1, shared // 4, device=latent.device, dtype=torch.float32)
                old = waveforms[item, position : position + len(fade)]
                decoded = torch.cat([torch.lerp(old, decoded[: len(fade)], fade), decoded[len(fade) :]])
            waveforms[item, position : position + len(decoded)] = decoded
    return waveforms, lengths * hop
