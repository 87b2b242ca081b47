"""Models of a lobe and a head in one module, as DDP and SpeechBrain's inference interfaces expect them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.heads.conversion import VoiceConverter
from wavcube_plugins.heads.restoration import LatentMapper, apply_masks
from wavcube_plugins.heads.weighted_sum import WeightedSum
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.speechbrain.lengths import absolute_lengths, frame_counts, relative_lengths
from wavcube_plugins.speechbrain.lobe import WavCube


class OnWavCube(nn.Module):
    """A lobe with a head on it.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import OnWavCube, WavCube
    >>> from wavcube_plugins.heads.recognition import Recurrent
    >>> wavcube = WavCube("nano", freeze=True)
    >>> model = OnWavCube(wavcube, Recurrent(wavcube.output_dim, 30, dim=64))
    >>> model(torch.randn(2, 16000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 49, 30])

    Args:
        wavcube: The lobe. With `output_all_hiddens` its layers are combined by a trained `WeightedSum`.
        head: Takes features (B, L, C) and frame counts (B,).
    """

    def __init__(self, wavcube: WavCube, head: nn.Module):
        super().__init__()
        self.wavcube = wavcube
        self.weighted_sum = WeightedSum(wavcube.num_layers, layer_norm=True) if wavcube.output_all_hiddens else None
        self.head = head

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None, *more: Tensor) -> Any:
        """Apply the lobe and the head, or the head alone.

        Args:
            wav: Waveforms (B, T), or features (B, L, C) that the lobe computed before.
            wav_lens: (B,) relative lengths of either; None if all items are whole.
            *more: Further arguments of the head.

        Returns:
            The output of the head.

        Raises:
            ValueError: waveforms or lengths of wrong type, shape or content.
        """
        frames = self.frame_counts(wav, wav_lens)
        features = self.wavcube(wav, wav_lens) if wav.ndim == 2 else wav
        if self.weighted_sum is not None:
            features = self.weighted_sum(features)
        return self.head(features, frames, *more)

    def frame_counts(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Return the number of frames (B,) of each item; arguments as in `forward`. Needs no parameters."""
        if wav.ndim == 2:
            return self.wavcube.frame_counts(wav, wav_lens)
        lengths = absolute_lengths(wav_lens, wav)
        return torch.full((len(wav),), wav.shape[1], device=wav.device) if lengths is None else lengths


class WaveformRestorer(nn.Module):
    """Enhancement or separation from waveform to waveform, for inference with a trained `LatentMapper`.

    Args:
        model: A lobe with a `LatentMapper` on it.
        output: `masks` filters the input, faithful to the sample. `latents` decodes the mapped latents, which are free
            of noise but have phases of the decoder's own.

    Raises:
        ValueError: an output that does not exist, or that the mapper does not predict.
    """

    def __init__(self, model: OnWavCube, output: str = "masks"):
        super().__init__()
        head = model.head
        if not isinstance(head, LatentMapper):
            raise ValueError(f"restoration needs a LatentMapper on the lobe, got {type(head).__name__}")
        known = sorted(head.outputs, reverse=True)
        if output not in known:
            raise ValueError(f"output must be one of {', '.join(known)}, got {output!r}")
        self.model, self.output = model, output

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Restore waveforms (B, T) with relative lengths (B,).

        Returns:
            Waveforms of the same lengths, (B, T) for one source, otherwise (B, S, T), and the relative lengths.
        """
        if wav_lens is None:
            wav_lens = torch.ones(len(wav), device=wav.device)
        frames = self.model.frame_counts(wav, wav_lens)
        lengths = absolute_lengths(wav_lens, wav)
        valid = torch.ones_like(wav, dtype=torch.bool) if lengths is None else length_mask(lengths, wav.shape[1])
        wav = wav * valid
        result = self.model(wav, wav_lens, wav)
        if self.output == "masks":
            clean = apply_masks(wav, result["masks"], frames)
        else:
            clean = decode_sources(self.model.wavcube, result["latents"], frames, wav.shape[1])
        clean = clean * valid[:, None]
        return (clean[:, 0] if clean.shape[1] == 1 else clean), wav_lens


class WaveformConverter(nn.Module):
    """Voice conversion from waveform to waveform, for inference.

    Args:
        wavcube: The lobe.
        converter: A trained converter.
    """

    def __init__(self, wavcube: WavCube, converter: VoiceConverter):
        super().__init__()
        self.wavcube, self.converter = wavcube, converter

    def forward(
        self, wav: Tensor, target: Tensor, wav_lens: Tensor | None = None, target_lens: Tensor | None = None
    ) -> Tensor:
        """Convert waveforms (B, T) to the voices in others (B, T'), both with relative lengths; returns (B, T)."""
        source, lens = self.wavcube.encode(wav, wav_lens)
        voice, voice_lens = self.wavcube.encode(target, target_lens)
        frames = frame_counts(lens, source.shape[1]), frame_counts(voice_lens, voice.shape[1])
        out = self.wavcube.decode(self.converter(source, frames[0], voice, frames[1]), lens)
        return F.pad(out, (0, wav.shape[1] - out.shape[1]))


class Unchanged(nn.Module):
    """Returns its first argument, in place of steps that SpeechBrain's interfaces require."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return `x`."""
        return x


def decode_sources(lobe: WavCube, latents: Tensor, frames: Tensor, samples: int) -> Tensor:
    """Decode the latents (B, S, L, D) of each source into waveforms (B, S, T), cut or padded to `samples`."""
    sources = latents.shape[1]
    lens = relative_lengths(frames, latents.shape[2]).repeat_interleave(sources)
    waveforms = lobe.decode(latents.flatten(0, 1), lens)
    return F.pad(waveforms, (0, samples - waveforms.shape[1])).view(-1, sources, samples)
