"""Losses of enhancement, separation and conversion, and the order of sources that minimises them."""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from wavcube_plugins.models.lengths import length_mask

# Error floor as a share of the source's energy: beyond an SNR of 30 dB the loss asks for nothing more.
_SOFT = 1e-3


def pairwise_latent_loss(estimates: Tensor, targets: Tensor, frames: Tensor) -> Tensor:
    """Return the mean absolute difference plus one minus the cosine, for every pair of estimate and source.

    Args:
        estimates: (B, S, L, D).
        targets: (B, S, L, D).
        frames: (B,) frame counts.

    Returns:
        (B, S, S): estimate by source.
    """
    estimates, targets = estimates.float()[:, :, None], targets.float()[:, None]
    distance = (estimates - targets).abs().mean(-1) + 1 - F.cosine_similarity(estimates, targets, dim=-1)
    valid = length_mask(frames, distance.shape[-1])[:, None, None]
    return (distance * valid).sum(-1) / frames[:, None, None]


def pairwise_snr_loss(estimates: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Return the negative signal-to-noise ratio in tens of dB, capped at 30 dB, for every pair of estimate and source.

    Args:
        estimates: (B, S, T).
        targets: (B, S, T).
        lengths: (B,) in samples.

    Returns:
        (B, S, S): estimate by source.
    """
    valid = length_mask(lengths, targets.shape[-1])[:, None]
    estimates, targets = estimates.float() * valid, targets.float() * valid
    energy = targets.square().sum(-1)[:, None]  # (B, 1, S)
    error = (estimates[:, :, None] - targets[:, None]).square().sum(-1)  # (B, S, S)
    return ((error + _SOFT * energy + 1e-7) / (energy + 1e-7)).log10()


def best_order(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Find the order of sources with the lowest loss for each item.

    Args:
        losses: (B, S, S): estimate by source.

    Returns:
        The mean loss (B,) in that order, and the index of the estimate of each source, (B, S).
    """
    sources = losses.shape[1]
    orders = torch.tensor(list(permutations(range(sources))), device=losses.device)  # (P, S)
    totals = losses[:, orders, torch.arange(sources, device=losses.device)].mean(-1)  # (B, P)
    best, index = totals.min(dim=1)
    return best, orders[index]


def in_order(estimates: Tensor, order: Tensor) -> Tensor:
    """Sort estimates (B, S, ...) into the order of their sources, given the indices (B, S) from `best_order`."""
    return estimates[torch.arange(len(order), device=order.device)[:, None], order]
