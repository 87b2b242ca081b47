"""WavLM's self-attention, which takes lengths and needs little memory, and the plain one of HuBERT and wav2vec 2.0."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.models.layers import Linear, block_elements, cpu_attention, has_cpu_attention
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.products import linear

# Queries that attention handles together; PyTorch's CPU kernel is at its best from 768 on.
QUERY_ROWS = 768


class RelativePositions:
    """The relative position bias of a stack of layers for sequences of one length, ready to be cut into blocks.

    Args:
        embedding: Bias of each bucket for each head, (num_buckets, H).
        frames: Length L of the sequence.
        max_distance: Distance from which all positions share one bucket.

    The bias depends on key - query only, which makes 2L - 1 numbers per head. For keys in reversed order it is a view
    of the table's sliding windows, so no (L, L) matrix is ever stored.
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
            gate: The gate of the block's heads and queries, (B, H, Q, 1).
            heads: The heads of the block.
            block: The queries of the block.
            padding: (B, 1, 1, L), zero or minus infinity for each key in reversed order, or None.

        Returns:
            (B, H, Q, L); overwritten by the next call while gradients are disabled.
        """
        windows = self.windows(gate.dtype)[heads, block]  # (H, Q, L)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            mask = (gate * windows).contiguous()
            return mask if padding is None else mask + padding
        size, count, queries, _ = gate.shape
        # Rows start at multiples of 16 bytes, as the GPU kernels for masked attention require.
        shape = (size, count, queries, -(-self.frames // 8) * 8)
        needed = math.prod(shape)
        if self._scratch is None or self._scratch.numel() < needed or self._scratch.dtype != gate.dtype:
            self._scratch = gate.new_empty(needed)
        mask = self._scratch[:needed].view(shape)[..., : self.frames]
        torch.mul(gate, windows, out=mask)
        return mask if padding is None else mask.add_(padding)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must also serve calls that train
def _distance_buckets(num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Return the bucket of each distance 0 … max_distance; half of the buckets are exact, half logarithmic, as in T5.

    Computed on the CPU, so that every device puts the borders between buckets in the same places.
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
        dropout: Of the attention weights, during training.
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
        # The eight outputs are summed in fours, which is the same as summing the weights first.
        weight = self.gru_rel_pos_linear.weight.view(2, 4, -1).sum(1)  # (2, D)
        bias = self.gru_rel_pos_linear.bias.view(2, 4).sum(1)
        update, reset = torch.sigmoid(F.linear(x, weight, bias)).transpose(1, 2).chunk(2, dim=-1)  # (B, H, L, 1) each
        return update * (reset * self.gru_rel_pos_const - 1.0) + 2.0


class PlainAttention(nn.Module):
    """Self-attention of HuBERT and wav2vec 2.0, with the parameter names of torchaudio's `SelfAttention`.

    Args:
        dim: Channels.
        num_heads: Heads.
        dropout: Of the attention weights, during training.
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
        """Attend within each item; arguments as in `GatedRelativeAttention`, except that positions are always None."""
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
