"""Compressor and Restorer: from WavLM features to the latent and back (paper section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from wavcube_plugins.config import BottleneckConfig, WavLMConfig
from wavcube_plugins.models.layers import Linear, linear
from wavcube_plugins.models.wavlm import encoder_layers, relative_positions


class _Projection(nn.Sequential):
    """MLP of one hidden layer, GELU, and a LayerNorm behind it."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(
            Linear(in_dim, hidden_dim), nn.GELU(), Linear(hidden_dim, out_dim), nn.LayerNorm(out_dim, eps=1e-6)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, _, second, norm = self
        return norm(second(linear(x, first.weight, first.bias, gelu=True)))


class _Adapter(nn.Module):
    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig, in_dim: int, out_dim: int):
        super().__init__()
        self.max_distance = wavlm.max_distance
        self.layers = encoder_layers(wavlm, bottleneck.num_layers, bottleneck.dropout)
        self.projection = _Projection(in_dim, (wavlm.hidden_dim + bottleneck.latent_dim) // 2, out_dim)

    def _run_layers(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        positions = relative_positions(self.layers, x.shape[1], self.max_distance)
        for layer in self.layers:
            x = layer(x, positions, lengths)
        return x


class Compressor(_Adapter):
    """WavLM layers, then an MLP down to the latent.

    Args:
        wavlm: Sizes of the WavLM whose features come in.
        bottleneck: Sizes of the bottleneck.
    """

    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig):
        super().__init__(wavlm, bottleneck, wavlm.hidden_dim, bottleneck.latent_dim)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn features (B, L, C) into the latent (B, L, latent_dim); lengths (B,) in frames, None if all are whole."""
        return self.projection(self._run_layers(features, lengths))


class Restorer(_Adapter):
    """An MLP up from the latent, then WavLM layers: rebuilds the features, to keep their meaning in the latent.

    Args:
        wavlm: Sizes of the WavLM whose features are rebuilt.
        bottleneck: Sizes of the bottleneck.
    """

    def __init__(self, wavlm: WavLMConfig, bottleneck: BottleneckConfig):
        super().__init__(wavlm, bottleneck, bottleneck.latent_dim, wavlm.hidden_dim)

    def forward(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn the latent (B, L, latent_dim) into features (B, L, C); lengths (B,) in frames, None if all are whole."""
        return self._run_layers(self.projection(latent), lengths)
