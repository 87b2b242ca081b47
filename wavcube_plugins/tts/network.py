"""The diffusion transformer (DiT) that predicts the flow: AdaLN-zero blocks with rotary self-attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.models.decoder import Rotary
from wavcube_plugins.models.layers import Linear, attend, mask_frames
from wavcube_plugins.models.lengths import length_mask

# Flow times, 0 … 1, are scaled to the range of a diffusion model's steps.
_TIME_SCALE = 1000.0


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the flow's time, followed by a small network.

    Args:
        width: Channels of the sinusoid.
        dim: Channels of the output.
    """

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(width, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        """Embed times (B,) in 0 … 1 as (B, C)."""
        half = self.width // 2
        steps = torch.arange(half, device=time.device, dtype=torch.float32)
        frequencies = torch.exp(steps * (-math.log(10000.0) / max(1, half - 1)))
        angles = _TIME_SCALE * time.float()[:, None] * frequencies  # (B, width / 2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(waves)))


class PositionConvolution(nn.Module):
    """Convolutional position embedding: two grouped convolutions with Mish, residual.

    Args:
        dim: Channels.
        kernel: Kernel in frames; odd.
        groups: Groups of channels.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Transform (B, L, C) into the same shape; lengths (B,) in frames, None if all items are whole."""
        y = x
        for conv in self.convs:
            y = F.mish(conv(mask_frames(y, lengths).transpose(1, 2))).transpose(1, 2)  # (B, L, C)
        return x + y


class DiTBlock(nn.Module):
    """Self-attention and feed-forward layer, both scaled, shifted and gated by the time; initialised to the identity.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        dim, hidden = config.dim, config.ffn_factor * config.dim
        self.num_heads = config.num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        """Transform (B, L, C) into the same shape.

        Args:
            x: (B, L, C).
            time: Embedding of the time after SiLU, (B, C).
            rotary: Tables of the rotary embedding.
            mask: Zero or minus infinity for every key, (B, 1, 1, L), or None if no key is masked.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(time)[:, None].chunk(6, dim=-1)
        x = x + gate * self._attend(_modulate(x, shift, scale), rotary, mask)
        hidden = F.gelu(self.fc1(_modulate(x, ffn_shift, ffn_scale)), approximate="tanh")  # (B, L, factor C)
        return x + ffn_gate * self.fc2(self.dropout(hidden))

    def _attend(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        size, frames, dim = x.shape
        heads = (size, frames, self.num_heads, dim // self.num_heads)
        query = rotary(self.q_proj(x).view(heads)).transpose(1, 2)  # (B, H, L, C / H)
        key = rotary(self.k_proj(x).view(heads)).transpose(1, 2)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        if mask is not None:
            mask = mask.to(query.dtype)
        attended = attend(query, key, value.to(query.dtype), mask).transpose(1, 2).reshape(size, frames, dim)
        return self.dropout(self.out_proj(attended))


class DiT(nn.Module):
    """Predict the flow from the noisy latent, the condition and the text.

    The output projection is initialised to zero. Results do not depend on padding or on other items of the batch.

    Args:
        config: Sizes.
        latent_dim: Channels of the latent, D.
    """

    def __init__(self, config: FlowConfig, latent_dim: int):
        super().__init__()
        self.config = config
        self.time_embedding = TimeEmbedding(config.time_dim, config.dim)
        self.in_proj = Linear(2 * latent_dim + config.text_dim, config.dim)
        self.position = PositionConvolution(config.dim, config.pos_conv_kernel, config.pos_conv_groups)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.modulation = nn.Linear(config.dim, 2 * config.dim)
        self.out_proj = nn.Linear(config.dim, latent_dim)
        for layer in (self.modulation, self.out_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor, time: Tensor, lengths: Tensor | None) -> Tensor:
        """Predict the flow.

        Args:
            x: The noisy latent, (B, L, D).
            condition: The latent where it is known, zero elsewhere, (B, L, D).
            text: Output of the text encoder, (B, L, text_dim).
            time: (B,), 0 is noise, 1 is the latent.
            lengths: (B,) frames, or None if all items are whole.

        Returns:
            (B, L, D), zero beyond the lengths.
        """
        embedded = F.silu(self.time_embedding(time))  # (B, C)
        x = self.position(self.in_proj(torch.cat([x, condition, text], dim=-1)), lengths)  # (B, L, C)
        rotary = Rotary(x.shape[1], self.config.dim // self.config.num_heads, self.config.rope_base, x)
        mask = None
        if lengths is not None:
            valid = length_mask(lengths, x.shape[1])[:, None, None]
            mask = torch.zeros(valid.shape, device=x.device, dtype=x.dtype).masked_fill_(~valid, float("-inf"))
        for block in self.blocks:
            x = block(x, embedded, rotary, mask)
        scale, shift = self.modulation(embedded)[:, None].chunk(2, dim=-1)
        return mask_frames(self.out_proj(_modulate(x, shift, scale)), lengths)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
