"""SpeechBrain's relative lengths, converted to counts of samples or frames and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def absolute_lengths(lens: Tensor | Sequence[float] | None, batch: Tensor, name: str = "wav_lens") -> Tensor | None:
    """Convert relative lengths to whole numbers.

    Lengths that were divided by the longest one in float32, as SpeechBrain does, are recovered exactly up to a longest
    length of 2 ** 24 (17 minutes of samples); beyond that float32 cannot tell neighbours apart.

    Args:
        lens: (B,) in 0 … 1, or None if all items are whole.
        batch: The padded batch they belong to, (B, T, ...).
        name: What to call them in messages.

    Returns:
        (B,) int64 on the device of the batch, or None.

    Raises:
        ValueError: lengths that are not floating point, not one per item, outside 0 … 1, or that leave an item empty.
    """
    if lens is None or batch.ndim < 2:  # the model reports what is wrong with such a batch
        return None
    lens = torch.as_tensor(lens)
    if not lens.is_floating_point():
        raise ValueError(f"{name} must be relative lengths in 0 … 1, got {lens.dtype}; divide by the longest length")
    size, longest = batch.shape[:2]
    if lens.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), one per item, got {tuple(lens.shape)}")
    # In float32 the product would be off by one from 2 ** 22 on. On the CPU, since not every device has float64.
    lens = lens.detach().to("cpu", torch.float64)
    lengths = torch.round(lens * longest)
    if not bool(((lengths >= 1) & (lengths <= longest)).all()):
        raise ValueError(
            f"{name} must lie in 0 … 1 and leave no item empty, got {lens.min():g} … {lens.max():g} of {longest}"
        )
    return lengths.long().to(batch.device)


def relative_lengths(lengths: Tensor, longest: int) -> Tensor:
    """Convert lengths (B,) in samples or frames to relative ones, float32, given the longest of the batch."""
    return lengths.float() / longest


def frame_counts(lens: Tensor, longest: int) -> Tensor:
    """Convert relative lengths (B,) to counts of frames, given the longest of the batch; nothing is checked."""
    return (lens * longest).round().long()
