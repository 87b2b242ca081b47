"""Encoding and decoding in overlapping windows, for audio of hours.

The exact result needs time that grows with the square of the length, since every frame attends to every other. Here
each window attends within itself; neighbouring windows overlap by a fifth of their length. Latent frames are taken from
the window in which they lie further from an edge; waveforms are cross-faded over the overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

OVERLAP = 0.2  # of a window, shared with the next one


def window_starts(frames: int, window: int, overlap: int) -> list[int]:
    """Return the first frame of each window: evenly stepped, the last one moved back to end with the audio."""
    if frames <= window:
        return [0]
    return [*range(0, frames - window, window - overlap), frames - window]


def encode_windowed(model, waveforms: Tensor, lengths: Tensor, window_seconds: float) -> tuple[Tensor, Tensor]:
    """Encode normalised waveforms (B, T) with lengths (B,) window by window; returns as `WavCube.encode`."""
    window, overlap = window_frames(model, window_seconds)
    hop, stride = model.hop_length, model.config.bottleneck.frame_stride
    feature_hop, field = model.config.wavlm.hop_length, model.config.wavlm.receptive_field
    frame_lengths = model.frame_lengths(lengths)
    latent = waveforms.new_zeros(len(waveforms), int(frame_lengths.max()), model.latent_dim)
    for item, (samples, frames) in enumerate(zip(lengths.tolist(), frame_lengths.tolist(), strict=True)):
        starts = window_starts(frames, window, overlap)
        for index, start in enumerate(starts):
            end = min(start + window, frames)
            stop = min((end * stride - 1) * feature_hop + field, samples) if end < frames else samples
            encoded = model.compressor(model.encoder_features(waveforms[item : item + 1, start * hop : stop]))[0]
            # Hand over in the middle of the overlap with the window before.
            first = (start + starts[index - 1] + window) // 2 if index else 0
            latent[item, first:end] = encoded[first - start :]
    return latent, frame_lengths


def decode_windowed(model, latent: Tensor, lengths: Tensor, window_seconds: float) -> tuple[Tensor, Tensor]:
    """Decode the latent (B, L, D) with lengths (B,) window by window; returns as `WavCube.decode`."""
    window, overlap = window_frames(model, window_seconds)
    hop = model.hop_length
    waveforms = torch.zeros(len(latent), latent.shape[1] * hop, device=latent.device)
    for item, frames in enumerate(lengths.tolist()):
        starts = window_starts(frames, window, overlap)
        for index, start in enumerate(starts):
            decoded = model.decoder(latent[item : item + 1, start : min(start + window, frames)])[0]
            position = start * hop
            if index:
                # The decoder sees far back and little ahead: fade in the third quarter of the overlap, where the new
                # window has some past already and the old one still has some future.
                shared = (starts[index - 1] + window - start) * hop
                position, decoded = position + shared // 2, decoded[shared // 2 :]
                fade = torch.linspace(0, 1, shared // 4, device=latent.device)
                old = waveforms[item, position : position + len(fade)]
                decoded = torch.cat([torch.lerp(old, decoded[: len(fade)], fade), decoded[len(fade) :]])
            waveforms[item, position : position + len(decoded)] = decoded
    return waveforms, lengths * hop


def window_frames(model, window_seconds: float) -> tuple[int, int]:
    """Return the latent frames of a window, and of its overlap with the next one.

    Raises:
        ValueError: the window is too short.
    """
    window = int(window_seconds * model.frame_rate)
    overlap = int(window * OVERLAP)
    if overlap < 8:
        raise ValueError(f"window_seconds must be at least {8 / OVERLAP / model.frame_rate:g}, got {window_seconds:g}")
    return window, overlap
