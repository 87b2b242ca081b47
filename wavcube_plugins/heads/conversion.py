"""Any-to-any voice conversion on the latent: what is said from one utterance, who says it from another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.heads.classification import Pooled, check_heads
from wavcube_plugins.models.decoder import DecoderLayer, Rotary, Window
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask

_ROPE_BASE = 10000.0


class VoiceConverter(nn.Module):
    """Latents (B, L, D) of an utterance and of its new speaker to the latent of the conversion.

    The content is the source's latent without its mean and deviation over time, channel by channel (they tell the voice
    and the channel), brought to a few dimensions; the voice is one vector, pooled from the target's latents, that
    modulates every layer. Trained to restore an utterance from its own content and another utterance of its speaker.

    Args:
        in_dim: Channels D of the latent.
        out_dim: Size of the vector of a voice.
        content_dim: Channels of the content: few enough not to carry the voice.
        dim: Channels of the layers.
        layers: How many.
        heads: Attention heads.
        context: Frames of 20 ms that a layer sees on each side.
        dilations: Of the convolutions that pool the voice.

    Raises:
        ValueError: channels that the heads do not divide.
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
        self.modulations = nn.ModuleList(nn.Linear(out_dim, 2 * dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.last = nn.Linear(dim, in_dim)
        for modulation in self.modulations:  # the layers begin as if there were no voice
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)

    def forward(self, source: Tensor, frames: Tensor, target: Tensor, target_frames: Tensor) -> Tensor:
        """Convert latents.

        Args:
            source: Who is converted, (B, L, D).
            frames: (B,).
            target: Who it shall sound like, (B, L', D).
            target_frames: (B,).

        Returns:
            (B, L, D), zero beyond the frames.
        """
        x = self.first(self.content(normalise_over_time(source, frames)))
        voice = self.voice(target, target_frames)
        rotary = Rotary(x.shape[1], x.shape[-1] // self.heads, _ROPE_BASE, x)
        window = Window(x.shape[1], self.context, self.context, frames, x)
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(voice)[:, None].chunk(2, dim=-1)
            x = layer(x * (1 + scale) + shift, rotary, window)
        return mask_frames(self.last(self.norm(x)), frames)


class WaveformConverter(nn.Module):
    """Waveforms in, converted waveforms out: what inference uses.

    Args:
        wavcube: The lobe.
        converter: A `VoiceConverter`.
    """

    def __init__(self, wavcube, converter: VoiceConverter):
        super().__init__()
        self.wavcube, self.converter = wavcube, converter

    def forward(
        self, wav: Tensor, target: Tensor, wav_lens: Tensor | None = None, target_lens: Tensor | None = None
    ) -> Tensor:
        """Let waveforms (B, T) sound like the speakers of others, (B, T'); lengths are relative; returns (B, T)."""
        source, lens = self.wavcube.encode(wav, wav_lens)
        voice, voice_lens = self.wavcube.encode(target, target_lens)
        counts = [(some * latent.shape[1]).round().long() for some, latent in ((lens, source), (voice_lens, voice))]
        converted = self.converter(source, counts[0], voice, counts[1])
        out = self.wavcube.decode(converted, lens)
        return F.pad(out, (0, wav.shape[1] - out.shape[1]))


def normalise_over_time(x: Tensor, frames: Tensor) -> Tensor:
    """Bring each channel of each item of (B, L, C) to zero mean and unit variance over its frames (B,)."""
    valid = length_mask(frames, x.shape[1])[..., None]
    count = frames[:, None, None]
    mean = (x * valid).sum(1, keepdim=True) / count
    variance = ((x - mean).square() * valid).sum(1, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + 1e-5) * valid
