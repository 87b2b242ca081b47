"""Masks for features during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import SpecAugment

# Number of masks along time and along channels, and the longest in frames (0.4 s at 50 Hz).
_MASKS, _LONGEST = 2, 20
# The largest share of an item's frames, or of the channels, that a mask may cover.
_WIDEST_OF_FRAMES, _WIDEST_OF_CHANNELS = 0.2, 0.1


class FeatureMasking(nn.Module):
    """Set spans of frames and of channels to zero (SpecAugment, Park et al. 2019), within each item's length.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int):
        super().__init__()
        widest = max(1, int(channels * _WIDEST_OF_CHANNELS))
        self.masks = SpecAugment(
            _MASKS, _LONGEST, _MASKS, widest, iid_masks=False, p=_WIDEST_OF_FRAMES, zero_masking=True
        )

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Mask features (B, L, C), or (layers, B, L, C) with the same masks for every layer, with frame counts (B,)."""
        keep = torch.ones(features.shape[-3:])
        for item, count in enumerate(frames.tolist()):
            keep[item, :count] = self.masks(keep[item, :count].t()).t()
        return features.masked_fill(keep.to(features.device) == 0, 0.0)
