"""SUPERB's learnt weighted sum of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedSum(nn.Module):
    """Sum of layers with learnt weights that are positive and add up to one, equal at the start.

    >>> import torch
    >>> from wavcube_plugins.heads.weighted_sum import WeightedSum
    >>> WeightedSum(7)(torch.randn(7, 2, 49, 192)).shape
    torch.Size([2, 49, 192])

    Args:
        num_layers: Number of layers.
        layer_norm: Normalise each frame of each layer to zero mean and unit variance first, so that no layer weighs
            more because of its scale.
    """

    def __init__(self, num_layers: int, layer_norm: bool = False):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden_states: Tensor | Sequence[Tensor]) -> Tensor:
        """Sum hidden states.

        Args:
            hidden_states: (layers, B, L, C), or one tensor (B, L, C) per layer.

        Returns:
            (B, L, C), zero where all layers are zero.

        Raises:
            ValueError: the number of layers is not `num_layers`.
        """
        if len(hidden_states) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} layers, got {len(hidden_states)}")
        total = torch.zeros_like(hidden_states[0])
        # Layer by layer: weighting all of them at once would double the memory.
        for state, weight in zip(hidden_states, self.weights.softmax(dim=0), strict=True):
            total = total + weight * (F.layer_norm(state, state.shape[-1:]) if self.layer_norm else state)
        return total
