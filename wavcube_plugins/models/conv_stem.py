"""The convolutions of WavLM: from samples to frames, and the one that tells the transformer where a frame stands."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models.wav2vec2 import components

from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.models.layers import block_elements, mask_frames, windowed
from wavcube_plugins.models.products import linear


class ConvStem(components.FeatureExtractor):
    """The convolutions from samples to frames, each followed by a LayerNorm over channels and a GELU.

    Without padding a frame depends on its own samples only, so the audio is cut into stretches that overlap by the
    receptive field; where they are cut affects speed and memory, not the result. The Base models replace the LayerNorms
    by one GroupNorm after the first layer, of each channel over the whole utterance, whose statistics are computed
    ahead.

    Args:
        config: Sizes and form.
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
            lengths: (B,) samples, or None if all items are whole; only the GroupNorm needs them.

        Returns:
            (B, L, C).
        """
        hop, field = self.config.hop_length, self.config.receptive_field
        size, samples = waveforms.shape
        frames = (samples - field) // hop + 1
        # Channels last makes a convolution one matrix product and LayerNorm contiguous. (C_out, kernel * C_in)
        weights = [block.conv.weight.permute(0, 2, 1).flatten(1) for block in self._blocks()]
        group_norm = None
        if self.config.extractor_mode == "group_norm":
            group_norm = self._group_norm(waveforms, lengths, weights[0])
        # The first layer's output is the largest temporary: conv_dims[0] / conv_strides[0] values per sample.
        per_frame = max(1, size * hop * self.config.conv_dims[0] // self.config.conv_strides[0])
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

    def _blocks(self) -> list[components.ConvLayerBlock]:
        return cast("list[components.ConvLayerBlock]", list(self.conv_layers))

    def _stretch(
        self, waveforms: Tensor, weights: list[Tensor], group_norm: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        x = waveforms[..., None]  # (B, T, 1)
        for index, (block, weight) in enumerate(zip(self._blocks(), weights, strict=True)):
            windows = windowed(x, block.kernel_size, block.stride)  # (B, L, kernel * C)
            if group_norm is None:
                x = linear(windows, weight, block.conv.bias)  # (B, L, C)
                norm = cast(nn.LayerNorm, block.layer_norm)
                x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
            elif index == 0:
                weight, shift = group_norm
                x = F.gelu(torch.baddbmm(shift, windows, weight))
            else:
                x = linear(windows, weight, block.conv.bias, gelu=True)
        return x

    def _group_norm(self, waveforms: Tensor, lengths: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first layer with its GroupNorm, as each item's own weight (B, kernel, C) and shift (B, 1, C).

        A channel's mean and variance over the utterance follow from the mean and covariance of the windows that the
        layer sees: `kernel` numbers and their square. So the layer's output, by far the largest tensor, is neither
        stored nor computed twice. (A bias would be subtracted again with the mean.)
        """
        block = self._blocks()[0]
        windows = waveforms.unfold(1, block.kernel_size, block.stride)  # (B, N, kernel)
        size, longest, kernel = windows.shape
        counts = torch.full((size,), longest, device=waveforms.device)
        if lengths is not None:
            samples = lengths.clamp_min(self.config.receptive_field)  # shorter items have been padded to it
            counts = torch.div(samples - kernel, block.stride, rounding_mode="floor") + 1
        # Float64, since a channel may pass only a small part of the windows' variance. (Apple's GPUs have none.)
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
        norm = cast(nn.GroupNorm, block.layer_norm)
        scale = norm.weight * torch.rsqrt(variance.clamp_min(0) + norm.eps)
        shift = norm.bias - (mean @ weight.t()) * scale
        return (weight * scale[..., None]).transpose(1, 2).to(waveforms.dtype), shift[:, None].to(waveforms.dtype)


class PositionalConvolution(nn.Module):
    """The convolution whose output is added to the frames as their position, with the parameter names of torchaudio's.

    Args:
        dim: Channels.
        kernel: In frames.
        groups: Groups of channels.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.conv = _WeightNormConv(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        """Turn frames (B, L, C) into positions of the same shape."""
        positions = self.conv(x.transpose(1, 2))[..., : x.shape[1]]  # an even kernel gives one frame more
        return F.gelu(positions).transpose(1, 2)


class _WeightNormConv(nn.Module):
    """A convolution with weight norm over the kernel (Salimans and Kingma 2016), as an ordinary module.

    `torch.nn.utils.parametrizations.weight_norm` gives the same numbers and the same names in a state dict, but makes a
    class at run time, which Python cannot pickle.
    """

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.padding, self.groups = conv.padding, conv.groups
        self.bias = conv.bias
        self.parametrizations = nn.Module()
        self.parametrizations.weight = _Factors(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = cast(_Factors, self.parametrizations.weight)()
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)


class _Factors(nn.Module):
    """A weight (C_out, C_in, kernel) as its norm at each place of the kernel and its direction."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.original0 = nn.Parameter(_norm(weight.detach()))
        self.original1 = nn.Parameter(weight.detach().clone())

    def forward(self) -> Tensor:
        return self.original1 * (self.original0 / _norm(self.original1))


def _norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)  # (1, 1, kernel)
