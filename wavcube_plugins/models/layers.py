"""Layers shared by encoder and decoder.

Legend of dimension letters, used in every shape comment in this folder:
B batch, T samples, L frames, C channels, H heads, D channels of a head, Q queries of a block, K keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.products import has_fast_products, linear, linear_add

# Elements of the largest temporary that a block of attention or a stretch of the conv stem may hold. It should stay in
# the last-level cache of a CPU, and fill the card on a GPU.
BLOCK_ELEMENTS = {"cpu": 8 << 20, "cuda": 256 << 20}

# `cpu_attention` holds about this many scores at a time, few enough for the cache; takes at least this many queries at
# a time, since oneDNN reorders the keys for each block of them; and pays off from this many frames on.
CPU_SCORES, CPU_ROWS, CPU_FRAMES = 1 << 19, 256, 128


def block_elements(device: torch.device) -> int:
    """Return how many elements a temporary of one block may have on a device."""
    return BLOCK_ELEMENTS.get(device.type, BLOCK_ELEMENTS["cuda"])


def has_cpu_attention(x: Tensor) -> bool:
    """Return whether `cpu_attention` works for queries (B, H, L, D) like these and is faster than PyTorch's kernel."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if x.shape[2] < CPU_FRAMES:
        return False
    return has_fast_products(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """Attend with PyTorch's kernel; when training on a CPU with plain products, whose backward is several times faster.

    Args:
        query: (B, H, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, D).
        mask: What to add to the scores, broadcast to (B, H, Q, K).
        causal: Each query sees the keys up to its own position; excludes a mask.

    Returns:
        (B, H, Q, D).
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    if causal:
        mask = query.new_full((query.shape[2], key.shape[2]), float("-inf")).triu_(1)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(value.dtype) @ value


def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    bias: Callable[[int, int, slice], Tensor] | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Attend on a CPU without gradients, head by head in blocks of queries that stay in the cache.

    PyTorch's own kernel multiplies with MKL, which reaches half the rate of oneDNN on AMD processors. Padding costs no
    time.

    Args:
        query: (B, H, L, D).
        key: (B, H, L, D).
        value: (B, H, L, D).
        causal: Each query sees the keys up to its own position.
        bias: Called with item, head and a slice of queries; returns what to add to their scores with all keys of the
            item, (Q, K).
        lengths: Valid frames of each item, which come last in `key` and `value` if there is a bias, and first if not.

    Returns:
        (B, L, H D), zero beyond the lengths.
    """
    size, heads, frames, dim = query.shape
    # oneDNN is many times slower for rows and columns with gaps between them.
    query, key = (query * dim**-0.5).contiguous(), key.contiguous()
    value = value.transpose(2, 3).contiguous()  # (B, H, D, L)
    new = query.new_zeros if lengths is not None else query.new_empty
    attended = new(size, frames, heads, dim)
    for item in range(size):
        count = frames if lengths is None else lengths[item]
        rows = min(count, max(CPU_ROWS, CPU_SCORES // count))
        if causal:
            ahead = query.new_full((rows, rows), float("-inf")).triu_(1)
        valid = slice(frames - count, frames) if bias is not None else slice(0, count)
        for head in range(heads):
            keys = key[item, head, valid]  # (K, D)
            values = value[item, head, :, valid].contiguous()  # (D, K)
            for start in range(0, count, rows):
                block = slice(start, min(start + rows, count))
                seen = block.stop if causal else count
                extra = None if bias is None else bias(item, head, block)
                scores = _scores(query[item, head, block], keys[:seen], extra)  # (Q, K)
                if causal:
                    scores[:, start:] += ahead[: len(scores), : len(scores)]
                attended[item, block, head] = linear(scores.softmax(-1), values[:, :seen].contiguous())
    return attended.flatten(2)


def _scores(query: Tensor, key: Tensor, extra: Tensor | None) -> Tensor:
    """Return query @ key.T (Q, K), plus `extra` if there is one."""
    return linear(query, key) if extra is None else linear_add(query, key, extra)


class Linear(nn.Linear):
    """`nn.Linear` through the faster product."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU in between; the parameters are named as in torchaudio's `FeedForward`.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels in between.
        dropout: After each of the two, during training.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.intermediate_dense = Linear(dim, hidden_dim)
        self.output_dense = Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = linear(x, self.intermediate_dense.weight, self.intermediate_dense.bias, gelu=True)  # (B, L, 4C)
        return self.dropout(self.output_dense(self.dropout(hidden)))  # (B, L, C)


def mask_frames(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Set the frames of (B, L, C) that lie beyond their item's length to zero; lengths None means all are valid."""
    if lengths is None:
        return x
    return x.masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0.0)


def windowed(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Cut (B, L, C) into overlapping windows (B, L', kernel * C), without a copy if no gradient is needed."""
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Windowed.apply(x, kernel, stride))
    return x.unfold(1, kernel, stride).transpose(2, 3).flatten(2)


class _Windowed(torch.autograd.Function):
    """Windows whose backward is a few additions, several times faster on a CPU than that of `unfold`."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: int, stride: int) -> Tensor:
        ctx.shape, ctx.kernel, ctx.stride = x.shape, kernel, stride
        return x.unfold(1, kernel, stride).transpose(2, 3).flatten(2).contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.new_zeros(ctx.shape)
        parts = gradient.unflatten(2, (ctx.kernel, -1))  # (B, L', kernel, C)
        span = ctx.stride * (gradient.shape[1] - 1) + 1
        for offset in range(ctx.kernel):
            total[:, offset : offset + span : ctx.stride] += parts[:, :, offset]
        return total, None, None
