"""One label per utterance: pooling over time, and a classifier with an optional angular margin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask


class Pooled(nn.Module):
    """One vector per utterance: dilated convolutions, attentive statistics pooling (Okabe et al. 2018), a linear layer.

    Args:
        in_dim: Channels of the features.
        out_dim: Size of the vector.
        dim: Channels of the convolutions.
        dilations: Dilation of each convolution; kernels span three frames.
        dropout: Dropout before the last linear layer.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 512,
        dilations: Sequence[int] = (1, 2, 3),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.first = nn.Linear(in_dim, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, 3, dilation=step, padding=step) for step in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in dilations)
        self.attention = nn.Sequential(nn.Linear(dim, max(1, dim // 4)), nn.Tanh(), nn.Linear(max(1, dim // 4), dim))
        self.last = nn.Sequential(nn.LayerNorm(2 * dim), nn.Dropout(dropout), nn.Linear(2 * dim, out_dim))

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Pool features (B, L, C) with frame counts (B,) into vectors (B, out_dim)."""
        x = self.first(features)  # (B, L, dim)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.gelu(conv(mask_frames(norm(x), frames).transpose(1, 2)).transpose(1, 2))
        return self.last(attentive_statistics(x, self.attention(x), frames))


def attentive_statistics(x: Tensor, scores: Tensor, frames: Tensor) -> Tensor:
    """Return the weighted means and standard deviations over time.

    Args:
        x: (B, L, C).
        scores: Unnormalised weights (B, L, C).
        frames: (B,) frame counts.

    Returns:
        (B, 2 C).
    """
    padding = ~length_mask(frames, x.shape[1])[..., None]
    weights = scores.float().masked_fill(padding, float("-inf")).softmax(dim=1)
    x = x.float()
    mean = (weights * x).sum(1)
    variance = (weights * (x - mean[:, None]).square()).sum(1)
    return torch.cat([mean, (variance + 1e-5).sqrt()], dim=-1)


class Classifier(nn.Module):
    """Log probabilities of classes from a vector.

    Args:
        in_dim: Size of the vector.
        out_dim: Number of classes.
        angular: Score by the cosine between the vector and a learnt direction per class, as losses with an angular
            margin require; False is a linear layer.
        scale: Factor on the cosines before the softmax.
    """

    def __init__(self, in_dim: int, out_dim: int, *, angular: bool = False, scale: float = 30.0):
        super().__init__()
        self.angular, self.scale = angular, scale
        self.linear = nn.Linear(in_dim, out_dim, bias=not angular)

    def forward(self, x: Tensor, labels: Tensor | None = None, margin: float = 0.0) -> Tensor:
        """Classify vectors.

        Args:
            x: (B, in_dim).
            labels: (B,) true classes, whose angles are widened by the margin during training (ArcFace, Deng et al.
                2019).
            margin: Angular margin in radians.

        Returns:
            Log probabilities (B, out_dim).
        """
        if not self.angular:
            return self.linear(x).float().log_softmax(-1)
        cosines = F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.linear.weight.float(), dim=-1))
        if labels is not None and margin:
            true = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
            # Past half a turn the cosine would rise again; continue it downwards in a straight line instead.
            wide = torch.where(true > -math.cos(margin), (true.acos() + margin).cos(), true - margin * math.sin(margin))
            cosines = cosines.scatter(1, labels[:, None], wide)
        return (self.scale * cosines).log_softmax(-1)
