"""Lengths beside padded batches: masks, checks, and the batches themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wavcube_plugins.errors import InputError


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return (B, longest), True where a position lies within its item's length."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def check_lengths(lengths: Tensor | Sequence[int] | None, batch: Tensor, unit: str) -> Tensor:
    """Check the lengths of a padded batch.

    Args:
        lengths: (B,) whole numbers, as a tensor, an array or a list; None if all items are whole.
        batch: (B, T, ...).
        unit: What they count, for the message.

    Returns:
        Lengths (B,), int64, on the device of the batch.

    Raises:
        InputError: another number of lengths than items, not whole numbers, or outside 1 … T.
    """
    size, longest = batch.shape[:2]
    if lengths is None:
        return torch.full((size,), longest, device=batch.device)
    try:
        lengths = torch.as_tensor(lengths, device=batch.device)
    except (TypeError, ValueError, RuntimeError) as error:  # texts, None, or arrays in another byte order
        raise InputError(f"lengths must be whole numbers of {unit}, got {lengths!r}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise InputError(f"lengths must be whole numbers of {unit}, got {lengths.dtype}")
    if lengths.shape != (size,):
        raise InputError(f"lengths must have shape ({size},), one per item, got {tuple(lengths.shape)}")
    lengths = lengths.long()
    shortest, most = int(lengths.min()), int(lengths.max())
    if shortest < 1 or most > longest:
        raise InputError(f"lengths must lie in 1 … {longest} {unit}, got {shortest} … {most}")
    return lengths


def check_waveforms(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Check a batch of waveforms and return its lengths.

    Args:
        waveforms: (B, T), floating point and finite.
        lengths: (B,) valid samples, or None when every item is whole.

    Returns:
        Lengths (B,), int64, on the waveforms' device.

    Raises:
        InputError: wrong type, rank or dtype, empty, not finite, or lengths that do not fit.
    """
    if not isinstance(waveforms, Tensor):
        raise InputError(f"waveforms must be a torch.Tensor, got {type(waveforms).__name__}")
    if waveforms.ndim != 2:
        raise InputError(f"waveforms must have shape (batch, samples), got {tuple(waveforms.shape)}")
    if not waveforms.is_floating_point():
        raise InputError(f"waveforms must be floating point in -1 … 1, got {waveforms.dtype}; divide integers first")
    if 0 in waveforms.shape:
        raise InputError(f"waveforms must not be empty, got shape {tuple(waveforms.shape)}")
    lengths = check_lengths(lengths, waveforms, "samples")
    if not torch.isfinite(waveforms.sum()):
        valid = length_mask(lengths, waveforms.shape[1])
        broken = (~torch.isfinite(waveforms) & valid).any(dim=1)
        if broken.any():
            raise InputError(f"waveform {int(broken.int().argmax())} of the batch has NaN or infinite samples")
    return lengths


def pad_batch(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack waveforms of different lengths, padded with zeros at the end.

    Args:
        waveforms: Tensors (T_i,).

    Returns:
        The batch (B, T) and the lengths (B,) in samples.
    """
    lengths = torch.tensor([len(waveform) for waveform in waveforms], device=waveforms[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True), lengths
