"""Clean speech from noisy or mixed latents: a network that maps latents and predicts masks.

The mapper turns the latent of a recording into the latent of each clean source, which the AcousticDecoder makes
audible. The decoder invents most phases, so its output never matches the source sample by sample. For output that does,
the same network predicts a mask in 0 … 1 per source for the spectrogram of the input, whose phases are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.models.decoder import DecoderLayer, Rotary, Window
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask

# Spectrogram that the masks apply to, in samples: two spectral frames per latent frame of 320 samples.
N_FFT, HOP = 640, 160
_PER_FRAME = 2
_ROPE_BASE = 10000.0


class LatentMapper(nn.Module):
    """Transformer layers with rotary positions that map a latent (B, L, D) to the latent and mask of each source.

    Args:
        in_dim: Channels D of the latent.
        out_dim: Number of sources S.
        dim: Channels of the layers.
        layers: Number of layers.
        heads: Attention heads.
        context: Frames of 20 ms that a layer sees on each side.
        latents: Predict latents.
        masks: Predict masks.
        spectrum: Also read the spectrogram of the input, whose harmonics the latent does not resolve; it helps masks.

    Raises:
        ValueError: `dim` cannot be divided among the heads, or neither latents nor masks are wanted.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 512,
        layers: int = 8,
        heads: int = 8,
        context: int = 64,
        latents: bool = True,
        masks: bool = True,
        spectrum: bool = False,
    ):
        super().__init__()
        if not latents and not masks:
            raise ValueError("a mapper needs latents, masks or both")
        check_heads(dim, heads)
        self.sources, self.latent_dim, self.heads, self.context = out_dim, in_dim, heads, context
        self.first = nn.Linear(in_dim, dim)
        self.from_spectrum = nn.Linear(_PER_FRAME * (N_FFT // 2 + 1), dim) if spectrum else None
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, 4 * dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.to_latents = nn.Linear(dim, out_dim * in_dim) if latents else None
        self.to_masks = nn.Linear(dim, out_dim * _PER_FRAME * (N_FFT // 2 + 1)) if masks else None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `forward` returns: `latents`, `masks`, or both."""
        heads = {"latents": self.to_latents, "masks": self.to_masks}
        return tuple(name for name, head in heads.items() if head is not None)

    def forward(self, latent: Tensor, frames: Tensor, waveforms: Tensor) -> dict[str, Tensor]:
        """Map latents.

        Args:
            latent: (B, L, D).
            frames: (B,) frame counts.
            waveforms: (B, T), what the latents were made of, zero beyond the lengths.

        Returns:
            `latents` (B, S, L, D), zero beyond the frames, and `masks` (B, S, 2 L, bins), whichever are predicted.
        """
        size, length, _ = latent.shape
        x = self.first(latent)  # (B, L, dim)
        if self.from_spectrum is not None:
            x = x + self.from_spectrum(log_spectrum(waveforms, frames, length).to(x.dtype))
        rotary = Rotary(length, x.shape[-1] // self.heads, _ROPE_BASE, x)
        window = Window(length, self.context, self.context, frames, x)
        for layer in self.layers:
            x = layer(x, rotary, window)
        x = mask_frames(self.norm(x), frames)
        result = {}
        if self.to_latents is not None:
            # The network predicts a change, so that undisturbed speech needs nothing to be learnt.
            change = self.to_latents(x).view(size, length, self.sources, self.latent_dim).transpose(1, 2)
            valid = length_mask(frames, length)[:, None, :, None]
            result["latents"] = (latent[:, None] + change).masked_fill(~valid, 0.0)
        if self.to_masks is not None:
            masks = self.to_masks(x).float().sigmoid()
            masks = masks.view(size, length, self.sources, _PER_FRAME, -1).transpose(1, 2)  # (B, S, L, 2, bins)
            result["masks"] = masks.flatten(2, 3)
        return result


def check_heads(dim: int, heads: int) -> None:
    """Check that channels can be divided among attention heads with rotary positions.

    Raises:
        ValueError: `dim` is not a multiple of twice the number of heads.
    """
    if dim < 1 or dim % (2 * heads):
        raise ValueError(f"dim must be a multiple of {2 * heads}, twice the {heads} attention heads, got {dim}")


def log_spectrum(waveforms: Tensor, frames: Tensor, length: int) -> Tensor:
    """Return log magnitudes, relative to each item's mean, arranged by latent frames.

    Args:
        waveforms: (B, T), zero beyond their lengths.
        frames: (B,) counts of latent frames.
        length: The largest of these counts, L.

    Returns:
        (B, L, 2 bins), zero beyond the frames.
    """
    window = torch.hann_window(N_FFT, device=waveforms.device)
    with torch.autocast(waveforms.device.type, enabled=False):
        padded = F.pad(waveforms.float(), (0, max(N_FFT, HOP * _PER_FRAME * length - waveforms.shape[1])))
        spectrum = torch.stft(padded, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
        magnitudes = spectrum.abs().transpose(1, 2)[:, : _PER_FRAME * length]
        magnitudes = magnitudes.reshape(len(waveforms), length, -1)  # (B, L, 2 bins)
        magnitudes = mask_frames(magnitudes, frames)
        mean = magnitudes.sum((1, 2), keepdim=True) / (frames[:, None, None] * magnitudes.shape[2])
        return mask_frames((magnitudes / (mean + 1e-8) + 1e-2).log(), frames)


def apply_masks(waveforms: Tensor, masks: Tensor, frames: Tensor) -> Tensor:
    """Filter waveforms with masks for their spectrograms.

    Args:
        waveforms: (B, T), zero beyond their lengths.
        masks: (B, S, 2 L, bins).
        frames: (B,) counts of latent frames. The latent ends before the waveform does; each item's last mask is
            repeated there.

    Returns:
        (B, S, T).
    """
    window = torch.hann_window(N_FFT, device=waveforms.device)
    with torch.autocast(waveforms.device.type, enabled=False):
        # Silence at the end, so that an item's last samples lie under as many windows with padding as without.
        padded = F.pad(waveforms.float(), (0, N_FFT))
        spectrum = torch.stft(padded, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
        spectrum = spectrum.transpose(1, 2)  # (B, N, bins)
        position = torch.arange(spectrum.shape[1], device=masks.device)
        position = torch.minimum(position, _PER_FRAME * frames[:, None] - 1)  # (B, N)
        index = position[:, None, :, None].expand(-1, masks.shape[1], -1, masks.shape[-1])
        filtered = (spectrum[:, None] * masks.float().gather(2, index)).flatten(0, 1).transpose(1, 2)
        filtered = torch.istft(filtered, N_FFT, HOP, window=window, length=padded.shape[1])
    return filtered[:, : waveforms.shape[1]].reshape(*masks.shape[:2], -1)
