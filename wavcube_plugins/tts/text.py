"""The text encoder: token embedding, sinusoidal positions and ConvNeXt-V2 blocks.

Legend of dimension letters in this folder: B batch, N tokens, L frames, C channels, H heads, D channels of the latent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.models.layers import Linear, mask_frames


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, ConvNeXt V2) over each item's own tokens.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, N, C), which must be zero beyond the items' lengths."""
        response = x.float().norm(dim=1, keepdim=True)  # (B, 1, C)
        response = response / (response.mean(-1, keepdim=True) + 1e-6)
        return x + self.gamma * (x * response.to(x.dtype)) + self.beta


class ConvNeXtBlock(nn.Module):
    """A residual block of depthwise convolution, LayerNorm and a feed-forward layer with response normalisation.

    Args:
        dim: Channels.
        kernel: Kernel of the convolution, in tokens.
        factor: Hidden channels as a multiple of `dim`.
    """

    def __init__(self, dim: int, kernel: int, factor: int):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = Linear(dim, factor * dim)
        self.response_norm = ResponseNorm(factor * dim)
        self.down = Linear(factor * dim, dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Transform (B, N, C), zero beyond the lengths (B,), into the same shape."""
        y = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))  # (B, N, C)
        # The response is a norm over tokens: padding, where the bias is not zero, must not contribute.
        y = self.response_norm(mask_frames(F.gelu(self.up(y)), lengths))
        return mask_frames(x + self.down(y), lengths)


class TextEncoder(nn.Module):
    """Encode token ids as one vector per frame.

    There is no duration model; the transformer learns the alignment. As in F5-TTS, the n-th token is at the n-th frame
    and the rest is filler, which is zero at the input and the output of every block, so that the blocks work on the
    tokens alone. The layout `stretched` spreads their output evenly over the frames instead.

    Args:
        config: Sizes.
        vocab_size: Number of token ids.
    """

    def __init__(self, config: FlowConfig, vocab_size: int):
        super().__init__()
        self.layout = config.text_layout
        # Ids are shifted by one: 0 is the filler.
        self.embedding = nn.Embedding(vocab_size + 1, config.text_dim)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.text_dim, config.text_kernel, config.text_factor) for _ in range(config.text_layers)
        )

    def forward(self, tokens: Tensor, token_lengths: Tensor, frames: int, frame_lengths: Tensor) -> Tensor:
        """Encode a batch of texts.

        Args:
            tokens: Ids (B, N), starting at 0.
            token_lengths: (B,) valid tokens, 0 … N; the ids after them are ignored.
            frames: L.
            frame_lengths: (B,) frames of each item, over which the layout `stretched` spreads its text.

        Returns:
            (B, L, C), zero at filler or, if stretched, beyond the items' frames; tokens beyond the L-th are cut off.
        """
        count = min(tokens.shape[1], frames)
        lengths = token_lengths.clamp(max=count)
        filler = torch.arange(count, device=tokens.device) >= lengths[:, None]
        ids = (tokens[:, :count] + 1).masked_fill(filler, 0)  # (B, N)
        x = self.embedding(ids)  # (B, N, C)
        x = mask_frames(x + sinusoid(torch.arange(count, device=x.device), x.shape[2]).to(x.dtype), lengths)
        for block in self.blocks:
            x = block(x, lengths)
        if self.layout == "stretched":
            frame = torch.arange(frames, device=x.device)
            token = frame * lengths[:, None] // frame_lengths[:, None]  # (B, L)
            x = x.gather(1, token.clamp(max=count - 1)[..., None].expand(-1, -1, x.shape[2]))
            # A text without tokens is already zero.
            return mask_frames(x, frame_lengths)
        return F.pad(x, (0, 0, 0, frames - count))  # (B, L, C)


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Return cosines, then sines (..., dim) of positions (...), their wavelengths from 2 pi to 20,000 pi."""
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
