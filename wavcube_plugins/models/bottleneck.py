"""Compressor and Restorer: from WavLM features to the latent and back (paper section 3.1 and its ablations)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import BottleneckConfig, WavLMConfig
from wavcube_plugins.models.layers import Linear, mask_frames
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.products import linear
from wavcube_plugins.models.wavlm import encoder_layers, relative_positions

# Bound on the absolute logarithm of the VAE's variance (paper, ablation of the bottleneck).
MAX_LOG_VARIANCE = 12.0


class _Projection(nn.Sequential):
    """MLP of one hidden layer with a GELU, followed by a LayerNorm."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, extra_dim: int = 0):
        super().__init__(
            Linear(in_dim, hidden_dim),
            nn.GELU(),
            Linear(hidden_dim, out_dim + extra_dim),
            nn.LayerNorm(out_dim, eps=1e-6),
        )

    @property
    def norm(self) -> nn.LayerNorm:
        return cast(nn.LayerNorm, self[3])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.norm.weight.dtype

    def mlp(self, x: Tensor) -> Tensor:
        """Return the input of the LayerNorm, followed by the extra channels, which it does not normalise."""
        first, second = cast(Linear, self[0]), cast(Linear, self[2])
        return second(linear(x, first.weight, first.bias, gelu=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mlp(x))


class FrameDownsampler(nn.Module):
    """Strided convolution from L frames to ceil(L / 2), each computed from the four frames around its centre.

    Args:
        dim: Channels in and out.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size=4, stride=2)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Turn (B, L, C) into (B, ceil(L / 2), C); lengths (B,) in frames of x, None if all items are whole."""
        x = F.pad(mask_frames(x, lengths), (0, 0, 1, 2))  # so that an odd last frame counts as well
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class FrameUpsampler(nn.Module):
    """The transpose of `FrameDownsampler`: from L frames to 2L.

    Args:
        dim: Channels in and out.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Turn (B, L, C) into (B, 2L, C); lengths (B,) in frames of x, None if all items are whole."""
        return self.conv(mask_frames(x, lengths).transpose(1, 2)).transpose(1, 2)


class _Adapter(nn.Module):
    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig, in_dim: int, out_dim: int, extra_dim: int = 0):
        super().__init__()
        self.config = bottleneck
        self.max_distance = wavlm.max_distance
        self.layers = encoder_layers(wavlm, bottleneck.num_layers, bottleneck.dropout)
        self.projection = _Projection(in_dim, (wavlm.hidden_dim + bottleneck.latent_dim) // 2, out_dim, extra_dim)

    def _run_layers(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        positions = relative_positions(self.layers, x.shape[1], self.max_distance)
        for layer in self.layers:
            x = layer(x, positions, lengths)
        return x


class Compressor(_Adapter):
    """WavLM layers, then an MLP down to the latent.

    The LayerNorm after the MLP always comes last, so that the latent has the same scale in every ablation: at 25 Hz the
    strided convolution comes between the two, and the MLP of a VAE predicts log-variances beside the means, of which
    the LayerNorm normalises only the means.

    Args:
        wavlm: Sizes of the WavLM whose features are compressed.
        bottleneck: Sizes of the bottleneck.
    """

    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig):
        extra_dim = bottleneck.latent_dim if bottleneck.kind == "vae" else 0
        super().__init__(wavlm, bottleneck, wavlm.hidden_dim, bottleneck.latent_dim, extra_dim)
        self.downsampler = FrameDownsampler(bottleneck.latent_dim + extra_dim) if bottleneck.frame_stride == 2 else None

    def latent_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many latent frames (B,) the given numbers of feature frames (B,) make."""
        stride = self.config.frame_stride
        return torch.div(lengths + stride - 1, stride, rounding_mode="floor")

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn features into the latent; for the VAEs that is the mean, without sampling.

        Args:
            features: (B, L, C).
            lengths: (B,) frames of the features, or None if all items are whole.

        Returns:
            The latent (B, ceil(L / frame_stride), latent_dim), zero beyond `latent_lengths(lengths)`.
        """
        mean, _ = self._distribution(features, lengths)
        return mean if lengths is None else mask_frames(mean, self.latent_lengths(lengths))

    def draw(
        self, features: Tensor, lengths: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a latent for training, sampled from its distribution, and the loss that goes with it.

        Args:
            features: (B, L, C).
            lengths: (B,) frames of the features, or None if all items are whole.
            generator: Source of the random numbers, on the device of the features; None means PyTorch's default.

        Returns:
            The latent as in `forward`, with noise for the VAEs; and the Kullback-Leibler divergence from a standard
            Gaussian, summed over channels and averaged over valid frames, a float32 scalar; zero except for `vae`.
        """
        mean, log_variance = self._distribution(features, lengths)
        latent_lengths = None if lengths is None else self.latent_lengths(lengths)
        divergence = torch.zeros((), device=mean.device, dtype=torch.float32)
        latent = mean
        if self.config.kind != "ae":
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            scale = self.config.sigma if log_variance is None else (0.5 * log_variance).exp()
            latent = mean + scale * noise
        if log_variance is not None:
            wide, log_variance = mean.float(), log_variance.float()
            per_frame = 0.5 * (wide.square() + log_variance.exp() - 1 - log_variance).sum(-1)  # (B, L)
            if latent_lengths is not None:
                per_frame = per_frame[length_mask(latent_lengths, per_frame.shape[1])]
            divergence = per_frame.mean()
        return mask_frames(latent, latent_lengths), divergence

    def _distribution(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return means (B, L, latent_dim), and log-variances of the same shape or None where there are none."""
        x = self.projection.mlp(self._run_layers(features, lengths))
        if self.downsampler is not None:
            x = self.downsampler(x, lengths)
        norm = self.projection.norm
        if self.config.kind != "vae":
            return norm(x), None
        mean, log_variance = x.chunk(2, dim=-1)
        return norm(mean), log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)


class Restorer(_Adapter):
    """An MLP up from the latent, then WavLM layers: rebuilds the features, which keeps their content in the latent.

    Args:
        wavlm: Sizes of the WavLM whose features are rebuilt.
        bottleneck: Sizes of the bottleneck.
    """

    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig):
        super().__init__(wavlm, bottleneck, bottleneck.latent_dim, wavlm.hidden_dim)
        self.upsampler = FrameUpsampler(bottleneck.latent_dim) if bottleneck.frame_stride == 2 else None

    def forward(self, latent: Tensor, lengths: Tensor | None = None, *, frames: int | None = None) -> Tensor:
        """Turn the latent into features.

        Args:
            latent: (B, L', latent_dim).
            lengths: (B,) frames of the features (at 50 Hz also those of the latent), or None if all items are whole.
            frames: How many frames L the features have; None means `frame_stride` times those of the latent. With a
                stride of two the features may have had one fewer.

        Returns:
            Features (B, L, C).
        """
        if self.upsampler is not None:
            latent_lengths = None if lengths is None else torch.div(lengths + 1, 2, rounding_mode="floor")
            latent = self.upsampler(latent, latent_lengths)[:, :frames]
        return self._run_layers(self.projection(latent), lengths)
