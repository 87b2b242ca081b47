"""Clean speech from noisy or mixed latents: a mapper, masks for the input's spectrum, losses without a fixed order.

The mapper turns the latent of what was recorded into the latent of each clean source, which the AcousticDecoder makes
audible. The decoder invents phases, so its output is never close to the source sample by sample. For that, the same
network gives each source a mask between 0 and 1 for the input's spectrogram, whose phases are kept.
"""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.heads.classification import OnWavCube, check_heads
from wavcube_plugins.models.decoder import DecoderLayer, Rotary, Window
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.speechbrain.lobe import absolute_lengths, relative_lengths

# Spectrogram of the masks, in samples: two frames per latent frame of 320 samples.
N_FFT, HOP = 640, 160
_PER_FRAME = 2
_ROPE_BASE = 10000.0
# SNR that the loss stops to ask for, as a share of the source's energy: 30 dB.
_SOFT = 1e-3


class LatentMapper(nn.Module):
    """Latents (B, L, D) to latents and masks of each source: transformer layers with rotary positions, both directions.

    Args:
        in_dim: Channels D of the latent.
        out_dim: Sources S.
        dim: Channels of the layers.
        layers: How many.
        heads: Attention heads.
        context: Frames of 20 ms that a layer sees on each side.
        latents: Give latents.
        masks: Give masks.
        spectrum: See the spectrogram of what comes in, too: harmonics that the latent does not resolve help masks.

    Raises:
        ValueError: channels that the heads do not divide, or nothing to give.
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

    def forward(self, latent: Tensor, frames: Tensor, waveforms: Tensor) -> dict[str, Tensor]:
        """Map latents (B, L, D) with frames (B,), of waveforms (B, T) that are zero beyond their lengths.

        Returns:
            `latents` (B, S, L, D) and `masks` (B, S, 2 L, bins), as far as wanted; latents are zero beyond the frames.
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
            # What is predicted is the change: where nothing disturbs, nothing has to be learnt.
            change = self.to_latents(x).view(size, length, self.sources, self.latent_dim).transpose(1, 2)
            valid = length_mask(frames, length)[:, None, :, None]
            result["latents"] = (latent[:, None] + change).masked_fill(~valid, 0.0)
        if self.to_masks is not None:
            masks = self.to_masks(x).float().sigmoid()
            masks = masks.view(size, length, self.sources, _PER_FRAME, -1).transpose(1, 2)  # (B, S, L, 2, bins)
            result["masks"] = masks.flatten(2, 3)
        return result


def log_spectrum(waveforms: Tensor, frames: Tensor, length: int) -> Tensor:
    """Return the logarithms of magnitudes, relative to an item's mean, of the spectra that belong to latent frames.

    Args:
        waveforms: (B, T), zero beyond their lengths.
        frames: (B,) latent frames.
        length: The longest number of them, L.

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
    """Filter waveforms by masks of their spectrograms.

    Args:
        waveforms: (B, T), zero beyond their lengths.
        masks: (B, S, 2 L, bins).
        frames: (B,) latent frames; beyond them an item's last mask goes on, since the latent ends before the waveform.

    Returns:
        (B, S, T).
    """
    window = torch.hann_window(N_FFT, device=waveforms.device)
    with torch.autocast(waveforms.device.type, enabled=False):
        # With silence behind it, so that the last samples lie under as many windows as those of a padded item.
        padded = F.pad(waveforms.float(), (0, N_FFT))
        spectrum = torch.stft(padded, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True)
        spectrum = spectrum.transpose(1, 2)  # (B, N, bins)
        position = torch.arange(spectrum.shape[1], device=masks.device)
        position = torch.minimum(position, _PER_FRAME * frames[:, None] - 1)  # (B, N)
        index = position[:, None, :, None].expand(-1, masks.shape[1], -1, masks.shape[-1])
        filtered = (spectrum[:, None] * masks.float().gather(2, index)).flatten(0, 1).transpose(1, 2)
        filtered = torch.istft(filtered, N_FFT, HOP, window=window, length=padded.shape[1])
    return filtered[:, : waveforms.shape[1]].reshape(*masks.shape[:2], -1)


class WaveformRestorer(nn.Module):
    """Waveforms in, clean waveforms out: what inference uses of a trained mapper.

    Args:
        model: A lobe with a `LatentMapper` on it.
        output: `masks`: filter what comes in, faithful to the sample. `latents`: decode the mapped latents, free of
            noise but with phases of the decoder's own.

    Raises:
        ValueError: another output, or one that the mapper does not give.
    """

    def __init__(self, model: OnWavCube, output: str = "masks"):
        super().__init__()
        known = [name for name in ("masks", "latents") if getattr(model.head, f"to_{name}") is not None]
        if output not in known:
            raise ValueError(f"output must be one of {', '.join(known)}, got {output!r}")
        self.model, self.output = model, output

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Restore (B, T) with relative lengths (B,).

        Returns:
            Waveforms of the same length, (B, T) for one source, else (B, S, T), and the relative lengths.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wav), device=wav.device)
        frames = self.model.frame_counts(wav, wav_lens)
        valid = length_mask(absolute_lengths(wav_lens, wav), wav.shape[1])
        wav = wav * valid
        result = self.model(wav, wav_lens, wav)
        if self.output == "masks":
            clean = apply_masks(wav, result["masks"], frames)
        else:
            clean = decode_sources(self.model.wavcube, result["latents"], frames, wav.shape[1])
        clean = clean * valid[:, None]
        return (clean[:, 0] if clean.shape[1] == 1 else clean), wav_lens


def decode_sources(lobe, latents: Tensor, frames: Tensor, samples: int) -> Tensor:
    """Decode the latents (B, S, L, D) of each source into waveforms (B, S, T), cut or padded to `samples`."""
    sources = latents.shape[1]
    lens = relative_lengths(frames, latents.shape[2]).repeat_interleave(sources)
    waveforms = lobe.decode(latents.flatten(0, 1), lens)
    return F.pad(waveforms, (0, samples - waveforms.shape[1])).view(-1, sources, samples)


def pairwise_latent_loss(estimates: Tensor, targets: Tensor, frames: Tensor) -> Tensor:
    """Mean absolute difference plus one minus the cosine, of every estimate to every source.

    Args:
        estimates: (B, S, L, D).
        targets: (B, S, L, D).
        frames: (B,).

    Returns:
        (B, S, S): estimate by source.
    """
    estimates, targets = estimates.float()[:, :, None], targets.float()[:, None]
    distance = (estimates - targets).abs().mean(-1) + 1 - F.cosine_similarity(estimates, targets, dim=-1)
    valid = length_mask(frames, distance.shape[-1])[:, None, None]
    return (distance * valid).sum(-1) / frames[:, None, None]


def pairwise_snr_loss(estimates: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Negative signal-to-noise ratio in tens of dB, of every estimate to every source, at most 30 dB.

    Args:
        estimates: (B, S, T).
        targets: (B, S, T).
        lengths: (B,) in samples.

    Returns:
        (B, S, S): estimate by source.
    """
    valid = length_mask(lengths, targets.shape[-1])[:, None]
    estimates, targets = estimates.float() * valid, targets.float() * valid
    energy = targets.square().sum(-1)[:, None]  # (B, 1, S)
    error = (estimates[:, :, None] - targets[:, None]).square().sum(-1)  # (B, S, S)
    return ((error + _SOFT * energy + 1e-7) / (energy + 1e-7)).log10()


def best_order(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each item the order of sources with the least loss.

    Args:
        losses: (B, S, S): estimate by source.

    Returns:
        The mean loss (B,) in that order, and for each source the number of its estimate, (B, S).
    """
    sources = losses.shape[1]
    orders = torch.tensor(list(permutations(range(sources))), device=losses.device)  # (P, S)
    totals = losses[:, orders, torch.arange(sources, device=losses.device)].mean(-1)  # (B, P)
    best, index = totals.min(dim=1)
    return best, orders[index]
