"""One label per frame for CTC: a recurrent recogniser, and one that classifies intents as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wavcube_plugins.heads.classification import Classifier, attentive_statistics
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask


class Recurrent(nn.Module):
    """Bidirectional LSTM layers and a linear output layer, as in SUPERB's recognisers.

    Args:
        in_dim: Channels of the features.
        out_dim: Values per frame.
        dim: Hidden channels of each direction.
        layers: Number of LSTM layers.
        dropout: Dropout between the layers and before the output layer.
        log_softmax: Return log probabilities; frames beyond an item's length then predict class 0, the blank.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 512,
        layers: int = 2,
        dropout: float = 0.0,
        log_softmax: bool = False,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.lstm = nn.LSTM(
            in_dim, dim, layers, batch_first=True, bidirectional=True, dropout=dropout if layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * dim, out_dim)
        self.log_softmax = log_softmax

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Turn features (B, L, C) with frame counts (B,) into (B, L, out_dim)."""
        return self.label(self.dropout(self.states(features, frames)), frames)

    def label(self, states: Tensor, frames: Tensor) -> Tensor:
        """Apply the output layer to hidden states (B, L, 2 dim) and return (B, L, out_dim)."""
        out = self.linear(states)
        if not self.log_softmax:
            return mask_frames(out, frames)
        out = out.float().log_softmax(-1)
        # Rounded relative lengths may let a decoder look one frame too far; it finds a blank there.
        padding = ~length_mask(frames, out.shape[1])[..., None]
        blank = torch.full((out.shape[-1],), -100.0, device=out.device)
        blank[0] = 0.0
        return torch.where(padding, blank, out)

    def states(self, features: Tensor, frames: Tensor) -> Tensor:
        """Return the hidden states of the last LSTM layer, (B, L, 2 dim), zero beyond the frames."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.norm(features), frames.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=features.shape[1])[0]


class Understanding(nn.Module):
    """Spoken language understanding: text units for every frame, and a class for each part of the intent.

    Args:
        in_dim: Channels of the features.
        out_dim: Number of text units under "units"; under any other name, the number of classes of that part of the
            intent.
        **options: Options of `Recurrent`.
    """

    def __init__(self, in_dim: int, out_dim: Mapping[str, int], **options: Any):
        super().__init__()
        self.units = Recurrent(in_dim, out_dim["units"], log_softmax=True, **options)
        width = self.units.linear.in_features
        self.attention = nn.Linear(width, width)
        self.intents = nn.ModuleDict(
            {name: Classifier(2 * width, count) for name, count in out_dim.items() if name != "units"}
        )

    def forward(self, features: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """Turn features (B, L, C) with frame counts (B,) into log probabilities.

        Returns:
            Those of the text units under `units`, (B, L, units), and (B, classes) for each part of the intent.
        """
        states = self.units.dropout(self.units.states(features, frames))
        pooled = attentive_statistics(states, self.attention(states), frames)
        result = {name: intent(pooled) for name, intent in self.intents.items()}
        return {"units": self.units.label(states, frames), **result}
