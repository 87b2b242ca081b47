"""Any-to-any voice conversion on the latent: the words of one utterance in the voice of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wavcube_plugins.heads.classification import Pooled
from wavcube_plugins.heads.restoration import check_heads
from wavcube_plugins.models.decoder import DecoderLayer, Rotary, Window
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask

_ROPE_BASE = 10000.0


class VoiceConverter(nn.Module):
    """Map the latent of an utterance and that of a target speaker to the latent of the converted utterance.

    The content is the source's latent normalised over time, channel by channel, which removes most of what identifies
    voice and recording, and squeezed into a few dimensions. The voice is one vector, pooled from the target's latent,
    that modulates every layer. The network is trained to restore an utterance from its own content and the voice in
    another utterance of the same speaker.

    Args:
        in_dim: Channels D of the latent.
        out_dim: Size of the voice vector.
        content_dim: Channels of the content; few enough that they cannot carry the voice.
        dim: Channels of the layers.
        layers: Number of layers.
        heads: Attention heads.
        context: Frames of 20 ms that a layer sees on each side.
        dilations: Dilations of the convolutions that pool the voice.

    Raises:
        ValueError: `dim` cannot be divided among the heads.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        content_dim: int = 32,
        dim: int = 512,
        layers: int = 6,
        heads: int = 8,
        context: int = 64,
        dilations: Sequence[int] = (1, 2, 4),
    ):
        super().__init__()
        check_heads(dim, heads)
        self.heads, self.context = heads, context
        self.content = nn.Sequential(nn.Linear(in_dim, dim), nn.GELU(), nn.Linear(dim, content_dim))
        self.voice = Pooled(in_dim, out_dim, dim=dim, dilations=dilations)
        self.first = nn.Linear(content_dim, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, 4 * dim) for _ in range(layers))
        modulations = [nn.Linear(out_dim, 2 * dim) for _ in range(layers)]
        self.modulations = nn.ModuleList(modulations)
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, in_dim)
        for modulation in modulations:  # start without any influence of the voice
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)

    def forward(self, source: Tensor, frames: Tensor, target: Tensor, target_frames: Tensor) -> Tensor:
        """Convert latents.

        Args:
            source: (B, L, D), the utterances to convert.
            frames: (B,) frame counts.
            target: (B, L', D), utterances in the wanted voices.
            target_frames: (B,) frame counts.

        Returns:
            The converted latent (B, L, D), zero beyond the frames.
        """
        x = self.first(self.content(normalise_over_time(source, frames)))
        voice = self.voice(target, target_frames)
        rotary = Rotary(x.shape[1], x.shape[-1] // self.heads, _ROPE_BASE, x)
        window = Window(x.shape[1], self.context, self.context, frames, x)
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(voice)[:, None].chunk(2, dim=-1)
            x = layer(x * (1 + scale) + shift, rotary, window)
        return mask_frames(self.last(self.norm(x)), frames)


def normalise_over_time(x: Tensor, frames: Tensor) -> Tensor:
    """Normalise each channel of each item of (B, L, C) to zero mean and unit variance over its frames (B,)."""
    valid = length_mask(frames, x.shape[1])[..., None]
    count = frames[:, None, None]
    mean = (x * valid).sum(1, keepdim=True) / count
    variance = ((x - mean).square() * valid).sum(1, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + 1e-5) * valid
