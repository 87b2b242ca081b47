"""SUPERB's learnt weighted sum over layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedSum(nn.Module):
    """Sum of layers with learnt weights that are positive and add up to one; equal in the beginning.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import WeightedSum
    >>> WeightedSum(7)(torch.randn(7, 2, 49, 192)).shape
    torch.Size([2, 49, 192])

    Args:
        num_layers: How many layers come in: `WavCube.num_layers`.
        layer_norm: Bring each frame of each layer to zero mean and unit variance first, so that no layer counts for
            more by its scale.
    """

    def __init__(self, num_layers: int, layer_norm: bool = False):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, hidden_states: Tensor | Sequence[Tensor]) -> Tensor:
        """Add up hidden states.

        Args:
            hidden_states: (layers, B, L, C), or one tensor (B, L, C) for each layer.

        Returns:
            (B, L, C), zero where all layers are.

        Raises:
            ValueError: another number of layers than `num_layers`.
        """
        if len(hidden_states) != len(self.weights):
            raise ValueError(
                f"expected {len(self.weights)} layers, got {len(hidden_states)}; the lobe needs output_all_hiddens"
            )
        total = 0
        # One layer at a time: all of them times their weights would be as large as the input again.
        for state, weight in zip(hidden_states, self.weights.softmax(dim=0), strict=True):
            total = total + weight * (F.layer_norm(state, state.shape[-1:]) if self.layer_norm else state)
        return total
