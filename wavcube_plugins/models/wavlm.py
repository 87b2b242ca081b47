"""WavLM from torchaudio's building blocks, with an attention that takes lengths and needs little memory.

Parameter names are torchaudio's (`wavlm_model` and `wav2vec2_model` in `torchaudio.models`), so its state dicts load
unchanged. What is ours: the conv stem runs as matrix products on (B, L, C) in stretches of bounded size, and attention
adds the gated relative position bias (Chen et al. 2022, WavLM, section III-B) block by block. HuBERT and wav2vec 2.0
are the same network with plain attention; the Base models differ in where they normalise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models.wav2vec2 import components

from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.models.layers import (
    FeedForward,
    Linear,
    block_elements,
    cpu_attention,
    has_cpu_attention,
    linear,
    mask_frames,
    windowed,
)
from wavcube_plugins.models.lengths import length_mask

# Queries that attention handles together; PyTorch's CPU kernel is at its best from 768 on.
QUERY_ROWS = 768


class ConvStem(components.FeatureExtractor):
    """The seven convolutions from samples to frames, with GELU, and LayerNorm over channels behind each of them.

    Without padding a frame depends on its own samples alone, so the audio is cut into stretches that overlap by the
    receptive field and nothing but speed and memory depends on where. The Base models have in place of the LayerNorms
    one GroupNorm behind the first layer, of each channel over the whole utterance; its statistics are worked out ahead.
    """

    def __init__(self, config: WavLMConfig):
        blocks, channels = [], 1
        for dim, kernel, stride in zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True):
            if config.extractor_mode == "layer_norm":
                norm = components.LayerNorm(dim)
            else:
                norm = None if blocks else nn.GroupNorm(dim, dim)
            blocks.append(
                components.ConvLayerBlock(channels, dim, kernel, stride, bias=config.conv_bias, layer_norm=norm)
            )
            channels = dim
        super().__init__(nn.ModuleList(blocks))
        self.config = config

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many frames (B,) the given numbers of samples (B,) make; at least one."""
        frames = torch.div(lengths - self.config.receptive_field, self.config.hop_length, rounding_mode="floor") + 1
        return frames.clamp_min(1)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn waveforms into frames.

        Args:
            waveforms: (B, T), T at least the receptive field, zero beyond their lengths.
            lengths: (B,) samples, or None if all items are whole; they matter to the GroupNorm alone.

        Returns:
            (B, L, C).
        """
        hop, field = self.config.hop_length, self.config.receptive_field
        size, samples = waveforms.shape
        frames = (samples - field) // hop + 1
        # Channels last makes a convolution one matrix product and LayerNorm contiguous. (C_out, kernel * C_in)
        weights = [block.conv.weight.permute(0, 2, 1).flatten(1) for block in self.conv_layers]
        group_norm = None
        if self.config.extractor_mode == "group_norm":
            group_norm = self._group_norm(waveforms, lengths, weights[0])
        # The first layer's output is the largest temporary: conv_dims[0] / conv_strides[0] values per sample.
        per_frame = size * hop * self.config.conv_dims[0] // self.config.conv_strides[0]
        stretch = max(1, block_elements(waveforms.device) // per_frame)
        if frames <= stretch:
            return self._stretch(waveforms[:, : (frames - 1) * hop + field], weights, group_norm)
        pieces = [
            self._stretch(
                waveforms[:, start * hop : (min(start + stretch, frames) - 1) * hop + field], weights, group_norm
            )
            for start in range(0, frames, stretch)
        ]
        return torch.cat(pieces, dim=1)  # (B, L, C)

    def _stretch(
        self, waveforms: Tensor, weights: list[Tensor], group_norm: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        x = waveforms[..., None]  # (B, T, 1)
        for index, (block, weight) in enumerate(zip(self.conv_layers, weights, strict=True)):
            windows = windowed(x, block.kernel_size, block.stride)  # (B, L, kernel * C)
            if group_norm is None:
                x = linear(windows, weight, block.conv.bias)  # (B, L, C)
                norm = block.layer_norm
                x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
            elif index == 0:
                weight, shift = group_norm
                x = F.gelu(torch.baddbmm(shift, windows, weight))
            else:
                x = linear(windows, weight, block.conv.bias, gelu=True)
        return x

    def _group_norm(self, waveforms: Tensor, lengths: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first layer with its GroupNorm, as each item's own weight (B, kernel, C) and shift (B, 1, C).

        A channel's mean and variance over the utterance follow from the mean and the covariance of the windows that
        the layer sees, `kernel` numbers and their square, so that the layer's output, by far the largest there is,
        need not be kept or made twice. (A bias would be taken off again with the mean.)
        """
        block = self.conv_layers[0]
        windows = waveforms.unfold(1, block.kernel_size, block.stride)  # (B, N, kernel)
        size, longest, kernel = windows.shape
        counts = torch.full((size,), longest, device=waveforms.device)
        if lengths is not None:
            samples = lengths.clamp_min(self.config.receptive_field)  # what is shorter has been padded
            counts = torch.div(samples - kernel, block.stride, rounding_mode="floor") + 1
        # Float64, since a channel may pass but a small part of the windows' variance. (Apple's GPUs have none.)
        wide = torch.float32 if waveforms.device.type == "mps" else torch.float64
        sums = torch.zeros(size, kernel, device=waveforms.device, dtype=wide)
        products = torch.zeros(size, kernel, kernel, device=waveforms.device, dtype=wide)
        rows = max(1, block_elements(waveforms.device) // (size * kernel))
        for start in range(0, longest, rows):
            part = mask_frames(windows[:, start : start + rows].to(wide), None if lengths is None else counts - start)
            sums = sums + part.sum(1)
            products = products + part.transpose(1, 2) @ part
        mean = sums / counts[:, None]  # (B, kernel)
        covariance = products / counts[:, None, None] - mean[:, :, None] * mean[:, None, :]
        weight = weight.to(wide)  # (C, kernel)
        variance = ((weight @ covariance) * weight).sum(-1)  # (B, C)
        norm = block.layer_norm
        scale = norm.weight * torch.rsqrt(variance.clamp_min(0) + norm.eps)
        shift = norm.bias - (mean @ weight.t()) * scale
        return (weight * scale[..., None]).transpose(1, 2).to(waveforms.dtype), shift[:, None].to(waveforms.dtype)


class RelativePositions:
    """The relative position bias of one stack of layers for one length, ready to be cut into blocks.

    Args:
        embedding: Bias of each bucket for each head, (num_buckets, H).
        frames: Length L of the sequence.
        max_distance: Distance from which all positions share one bucket.

    The bias depends on key - query alone: 2L - 1 numbers per head. Read against keys in reversed order it is the
    table's sliding windows, a view, so no (L, L) matrix is ever stored.
    """

    def __init__(self, embedding: Tensor, frames: int, max_distance: int):
        num_buckets = embedding.shape[0]
        distances = torch.arange(1 - frames, frames, device=embedding.device)  # query - key for the table's order
        buckets = _distance_buckets(num_buckets // 2, max_distance, embedding.device)[
            distances.abs().clamp_max(max_distance)
        ]
        # Keys to the right of the query use the second half of the buckets.
        buckets = buckets + (distances < 0) * (num_buckets // 2)
        self.table = embedding[buckets].t().contiguous()  # (H, 2L - 1)
        self.frames = frames
        self._scratch: Tensor | None = None

    def windows(self, dtype: torch.dtype) -> Tensor:
        """Return the bias of all queries for all keys in reversed order, (H, L, L), a view."""
        return self.table.to(dtype).unfold(-1, self.frames, 1)

    def gated(self, gate: Tensor, heads: slice, block: slice, padding: Tensor | None) -> Tensor:
        """Return what to add to the scores of a block of queries.

        Args:
            gate: Of the block's heads and queries, (B, H, Q, 1).
            heads: Which heads these are.
            block: Which queries these are.
            padding: (B, 1, 1, L) zero or minus infinity for each key in reversed order, or None.

        Returns:
            (B, H, Q, L); overwritten by the next call while gradients are disabled.
        """
        windows = self.windows(gate.dtype)[heads, block]  # (H, Q, L)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            mask = (gate * windows).contiguous()
            return mask if padding is None else mask + padding
        size, count, queries, _ = gate.shape
        # Rows start at multiples of 16 bytes, as the GPU kernels for masked attention want it.
        shape = (size, count, queries, -(-self.frames // 8) * 8)
        needed = math.prod(shape)
        if self._scratch is None or self._scratch.numel() < needed or self._scratch.dtype != gate.dtype:
            self._scratch = gate.new_empty(needed)
        mask = self._scratch[:needed].view(shape)[..., : self.frames]
        torch.mul(gate, windows, out=mask)
        return mask if padding is None else mask.add_(padding)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what the cache keeps must also serve calls that train
def _distance_buckets(num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Return the bucket of each distance 0 … max_distance: half of them exact, half logarithmic (as in T5).

    Worked out once on the CPU, so that every device puts the borders between buckets in the same places.
    """
    distances = torch.arange(max_distance + 1, device="cpu")
    exact = num_buckets // 2
    scale = math.log(max_distance / exact)
    logarithmic = exact + (torch.log(distances.clamp_min(1).float() / exact) / scale * (num_buckets - exact)).long()
    return torch.where(distances < exact, distances, logarithmic.clamp_max(num_buckets - 1)).to(device)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


class GatedRelativeAttention(nn.Module):
    """WavLM's self-attention: each query gates the bias of its relative positions.

    Parameter names are those of torchaudio's `WavLMSelfAttention`.

    Args:
        dim: Channels.
        num_heads: Heads.
        num_buckets: Buckets of relative positions if this layer owns their embedding, else None.
        dropout: Of the attention weights, while training.
    """

    def __init__(self, dim: int, num_heads: int, *, num_buckets: int | None, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.rel_attn_embed = nn.Embedding(num_buckets, num_heads) if num_buckets else None
        self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, x: Tensor, positions: RelativePositions, lengths: Tensor | None) -> Tensor:
        """Attend within each item.

        Args:
            x: (B, L, C).
            positions: The stack's relative position bias.
            lengths: (B,) valid frames, or None if all are.

        Returns:
            (B, L, C).
        """
        size, frames, dim = x.shape
        split = (size, frames, self.num_heads, self.head_dim)
        projected = linear(x, self.attention.in_proj_weight, self.attention.in_proj_bias)  # (B, L, 3C)
        query, key, value = (part.view(split).transpose(1, 2) for part in projected.chunk(3, dim=-1))  # (B, H, L, D)
        key, value = key.flip(2), value.flip(2)  # the order in which the bias is a view
        gate = self._gate(x.view(split)).to(query.dtype)  # (B, H, L, 1)
        if has_cpu_attention(query):
            attended = self._attend_on_cpu(query, key, value, gate, positions, lengths)
            return linear(attended, self.attention.out_proj.weight, self.attention.out_proj.bias)
        padding = None
        if lengths is not None:
            padding = torch.zeros((size, 1, 1, frames), dtype=query.dtype, device=x.device)
            padding.masked_fill_(~length_mask(lengths, frames).flip(1)[:, None, None], float("-inf"))

        dropout = self.attention.dropout if self.training else 0.0
        rows = min(frames, QUERY_ROWS)
        group = max(2, block_elements(x.device) // (size * rows * frames))
        groups = []
        for first in range(0, self.num_heads, group):
            heads = slice(first, first + group)
            blocks = []
            for start in range(0, frames, rows):
                block = slice(start, start + rows)
                mask = positions.gated(gate[:, heads, block], heads, block, padding)  # (B, H, Q, L)
                blocks.append(
                    F.scaled_dot_product_attention(
                        query[:, heads, block], key[:, heads], value[:, heads], mask, dropout_p=dropout
                    )
                )
            groups.append(_cat(blocks, 2))
        attended = _cat(groups, 1).transpose(1, 2).reshape(size, frames, dim)  # (B, L, C)
        return linear(attended, self.attention.out_proj.weight, self.attention.out_proj.bias)

    @staticmethod
    def _attend_on_cpu(query, key, value, gate, positions, lengths) -> Tensor:
        windows = positions.windows(query.dtype)  # (H, L, L)
        frames = query.shape[2]
        counts = None if lengths is None else lengths.tolist()

        def bias(item: int, head: int, block: slice) -> Tensor:
            first = 0 if counts is None else frames - counts[item]
            window = windows[head, block, first:]
            return torch.mul(gate[item, head, block], window, out=window.new_empty(window.shape))

        return cpu_attention(query, key, value, bias=bias, lengths=counts)

    def _gate(self, x: Tensor) -> Tensor:
        # Eight outputs are summed in fours, which is the same as summing the weights first.
        weight = self.gru_rel_pos_linear.weight.view(2, 4, -1).sum(1)  # (2, D)
        bias = self.gru_rel_pos_linear.bias.view(2, 4).sum(1)
        update, reset = torch.sigmoid(F.linear(x, weight, bias)).transpose(1, 2).chunk(2, dim=-1)  # (B, H, L, 1) each
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0


class PlainAttention(nn.Module):
    """Self-attention of HuBERT and wav2vec 2.0, with the parameter names of torchaudio's `SelfAttention`.

    Args:
        dim: Channels.
        num_heads: Heads.
        dropout: Of the attention weights, while training.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor, positions: None, lengths: Tensor | None) -> Tensor:
        """Attend within each item; arguments as in `GatedRelativeAttention`, positions are always None."""
        size, frames, dim = x.shape
        split = (size, frames, self.num_heads, dim // self.num_heads)
        query, key, value = (
            projection(x).view(split).transpose(1, 2)  # (B, H, L, D)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if has_cpu_attention(query):
            counts = None if lengths is None else lengths.tolist()
            return self.out_proj(cpu_attention(query, key, value, lengths=counts))
        mask = None if lengths is None else length_mask(lengths, frames)[:, None, None]  # (B, 1, 1, L)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).reshape(size, frames, dim))


class EncoderLayer(nn.Module):
    """One transformer layer of the encoder.

    Args:
        config: Sizes and form.
        owns_positions: Whether this layer owns the relative position embedding of its stack, if there is one.
        dropout: Of attention weights, attention output and feed-forward block, while training.
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
    """Build a stack of encoder layers; the first one owns the relative position embedding that all of them use."""
    return nn.ModuleList(
        EncoderLayer(config, owns_positions=index == 0, dropout=dropout) for index in range(num_layers)
    )


def relative_positions(layers: nn.ModuleList, frames: int, max_distance: int) -> RelativePositions | None:
    """Return the position bias that a stack of layers shares for a sequence of so many frames; None if it has none."""
    attention = layers[0].attention
    if isinstance(attention, PlainAttention):
        return None
    return RelativePositions(attention.rel_attn_embed.weight, frames, max_distance)


class _Transformer(nn.Module):
    """Holds the parameters under torchaudio's names; `WavLM` runs them."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.pos_conv_embed = components.ConvolutionalPositionalEmbedding(
            config.hidden_dim, config.pos_conv_kernel, config.pos_conv_groups
        )
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.layers = encoder_layers(config, config.num_layers)


class WavLM(nn.Module):
    """The speech encoder: waveform to frames of `hidden_dim` channels.

    Args:
        config: Its sizes.

    Attributes:
        metadata: What is known about the weights, as strings.
    """

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.config = config
        self.feature_extractor = ConvStem(config)
        self.encoder = nn.Module()
        self.encoder.feature_projection = components.FeatureProjection(config.conv_dims[-1], config.hidden_dim, 0.0)
        self.encoder.transformer = _Transformer(config)
        self.metadata: dict[str, str] = {}

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many frames (B,) waveforms of the given lengths (B,) in samples make; at least one."""
        return self.feature_extractor.frame_lengths(lengths)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None, *, layer: int = -1) -> Tensor:
        """Return one hidden state without keeping the others.

        Args:
            waveforms: Normalised waveforms (B, T), zero beyond their lengths.
            lengths: (B,) samples, or None if all items are whole.
            layer: 0 is the input of the first layer, `num_layers` or -1 the last one, after the final layer norm where
                there is one (Base models have it before the first layer, and normalise at the end of each).

        Returns:
            The hidden state (B, L, C).
        """
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
