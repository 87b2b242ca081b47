"""The random part of a flow-matching training step, and its reproducible counterpart for validation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from wavcube_plugins.config import FlowConfig


@dataclass(frozen=True)
class FlowDraws:
    """The random variables of a training step.

    Args:
        time: Flow times (B,) in 0 … 1.
        noise: Start of the flow, (B, L, D).
        hidden: True where the latent is masked out of the condition and has to be predicted, (B, L).
        drop_audio: Whether the batch sees no audio condition.
        drop_text: Whether the batch sees no text.
    """

    time: Tensor
    noise: Tensor
    hidden: Tensor
    drop_audio: bool = False
    drop_text: bool = False


def random_draws(config: FlowConfig, latent: Tensor, lengths: Tensor) -> FlowDraws:
    """Draw for a batch of latents (B, L, D) with lengths (B,); conditions are dropped for the whole batch at once."""
    time, part, place = torch.rand(3, len(latent), device=latent.device)
    drop_audio, drop_both = (torch.rand(2) < torch.tensor([config.audio_drop, config.both_drop])).tolist()
    hidden = hidden_spans(config, lengths, latent.shape[1], part, place)
    return FlowDraws(time, torch.randn_like(latent), hidden, drop_audio or drop_both, drop_both)


def fixed_draws(
    config: FlowConfig, latent: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor
) -> FlowDraws:
    """Draw from seeds that depend on each item's tokens and length alone; nothing is dropped.

    The loss is then comparable between epochs and independent of the batching.
    """
    noise = torch.zeros(latent.shape)
    numbers = torch.zeros(3, len(latent))
    for item, (frames, count) in enumerate(zip(lengths.tolist(), token_lengths.tolist(), strict=True)):
        key = f"{frames} {tokens[item, :count].tolist()}"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        numbers[:, item] = torch.rand(3, generator=generator)
        noise[item, :frames] = torch.randn(frames, latent.shape[2], generator=generator)
    time, part, place = numbers.to(latent.device)
    hidden = hidden_spans(config, lengths, latent.shape[1], part, place)
    return FlowDraws(time, noise.to(latent), hidden)


def hidden_spans(config: FlowConfig, lengths: Tensor, longest: int, part: Tensor, place: Tensor) -> Tensor:
    """Return one hidden span per item, (B, L), from numbers (B,) in 0 … 1 that set its length and its place."""
    least, most = config.span
    # At least one frame, or a very short utterance would have no loss.
    count = ((least + (most - least) * part) * lengths).long().clamp_min(1)
    start = (place * (lengths - count + 1)).long()
    frame = torch.arange(longest, device=lengths.device)
    return (frame >= start[:, None]) & (frame < (start + count)[:, None])
