"""WavLM, built on torchaudio's modules, with an attention that takes lengths and needs little memory.

Parameter names are those of torchaudio (`wavlm_model` and `wav2vec2_model` in `torchaudio.models`), so its state dicts
load unchanged. Our own parts: the conv stem runs as matrix products on (B, L, C) in stretches of bounded size, and
attention adds the gated relative position bias (Chen et al. 2022, WavLM, section III-B) block by block. HuBERT and
wav2vec 2.0 are the same network with plain attention; the Base models differ in where they normalise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models.wav2vec2 import components

from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.conv_stem import ConvStem, PositionalConvolution
from wavcube_plugins.models.layers import FeedForward, mask_frames
from wavcube_plugins.models.products import linear
from wavcube_plugins.models.relative_attention import GatedRelativeAttention, PlainAttention, RelativePositions


class EncoderLayer(nn.Module):
    """One transformer layer of the encoder.

    Args:
        config: Sizes and form.
        owns_positions: Whether this layer owns the relative position embedding of its stack, if there is one.
        dropout: Of attention weights, attention output and feed-forward block, during training.
    """

    def __init__(self, config: WavLMConfig, *, owns_positions: bool, dropout: float = 0.0):
        super().__init__()
        dim, num_heads = config.hidden_dim, config.num_heads
        self.layer_norm_first = config.layer_norm_first
        if config.relative_positions:
            num_buckets = config.num_buckets if owns_positions else None
            self.attention = GatedRelativeAttention(dim, num_heads, num_buckets=num_buckets, dropout=dropout)
        else:
            self.attention = PlainAttention(dim, num_heads, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, config.ffn_dim, dropout)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: RelativePositions | None, lengths: Tensor | None) -> Tensor:
        if self.layer_norm_first:
            x = x + self.dropout(self.attention(self.layer_norm(x), positions, lengths))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.dropout(self.attention(x, positions, lengths)))
        return self.final_layer_norm(x + self.feed_forward(x))


def encoder_layers(config: WavLMConfig, num_layers: int, dropout: float = 0.0) -> nn.ModuleList:
    """Build a stack of encoder layers; the first one owns the relative position embedding that all of them share."""
    return nn.ModuleList(
        EncoderLayer(config, owns_positions=index == 0, dropout=dropout) for index in range(num_layers)
    )


def relative_positions(layers: nn.ModuleList, frames: int, max_distance: int) -> RelativePositions | None:
    """Return the position bias that a stack of layers shares for sequences of a given length, None if it has none."""
    attention = cast(EncoderLayer, layers[0]).attention
    embedding = None if isinstance(attention, PlainAttention) else attention.rel_attn_embed
    return None if embedding is None else RelativePositions(embedding.weight, frames, max_distance)


class _Transformer(nn.Module):
    """Holds parameters under torchaudio's names; `WavLM` runs them."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config.hidden_dim, config.pos_conv_kernel, config.pos_conv_groups)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.layers = encoder_layers(config, config.num_layers)


class _Encoder(nn.Module):
    """Holds the projection of the conv stem's frames and the transformer, likewise."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.feature_projection = components.FeatureProjection(config.conv_dims[-1], config.hidden_dim, 0.0)
        self.transformer = _Transformer(config)


class WavLM(nn.Module):
    """The speech encoder: waveform to frames of `hidden_dim` channels.

    Args:
        config: Its sizes.

    Attributes:
        metadata: Notes on the weights, as strings.
    """

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.config = config
        self.feature_extractor = ConvStem(config)
        self.encoder = _Encoder(config)
        self.metadata: dict[str, str] = {}

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many frames (B,) waveforms of the given lengths (B,) in samples make; at least one."""
        return self.feature_extractor.frame_lengths(lengths)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None, *, layer: int = -1) -> Tensor:
        """Return one hidden state without keeping the others.

        Args:
            waveforms: Normalised waveforms (B, T), zero beyond their lengths.
            lengths: (B,) samples, or None if all items are whole.
            layer: 0 is the input of the first layer; `num_layers` or -1 is the last hidden state, after the final
                LayerNorm (Base models have that one before the first layer instead, and normalise after each layer).

        Returns:
            The hidden state (B, L, C).

        Raises:
            InputError: there is no such layer.
        """
        if not -1 <= layer <= self.config.num_layers:
            raise InputError(f"layer must lie in -1 … {self.config.num_layers}, got {layer}")
        wanted = self.config.num_layers if layer == -1 else layer
        return next(state for index, state in enumerate(self._states(waveforms, lengths)) if index == wanted)

    def hidden_states(self, waveforms: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Return all hidden states as `num_layers` + 1 tensors (B, L, C); arguments as in `forward`."""
        return list(self._states(waveforms, lengths))

    def _states(self, waveforms: Tensor, lengths: Tensor | None) -> Iterator[Tensor]:
        if waveforms.shape[1] < self.config.receptive_field:
            waveforms = F.pad(waveforms, (0, self.config.receptive_field - waveforms.shape[1]))
        transformer, projection = self.encoder.transformer, self.encoder.feature_projection
        x = self.feature_extractor(waveforms, lengths)  # (B, L, C_conv)
        if lengths is not None:
            lengths = self.frame_lengths(lengths)
        x = linear(projection.layer_norm(x), projection.projection.weight, projection.projection.bias)  # (B, L, C)
        x = mask_frames(x, lengths)  # the positional convolution looks beyond an item's end
        x = x + transformer.pos_conv_embed(x)
        if not self.config.layer_norm_first:
            x = transformer.layer_norm(x)
        positions = relative_positions(transformer.layers, x.shape[1], self.config.max_distance)
        for layer in transformer.layers:
            yield x
            x = layer(x, positions, lengths)
        yield transformer.layer_norm(x) if self.config.layer_norm_first else x
