"""WavCube for slots of SpeechBrain's stock recipes that its lobe does not fit: weighted layers, channels first."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from wavcube_plugins.heads.weighted_sum import WeightedSum
from wavcube_plugins.speechbrain.lobe import WavCube


class WeightedWavCube(WeightedSum):
    """Weighted sum of WavLM's layers, in place of SpeechBrain's `WeightedSSLModel`.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import WeightedWavCube
    >>> model = WeightedWavCube("nano", freeze=True)
    >>> model(torch.randn(2, 16000), torch.tensor([1.0, 0.5])).shape, model.weights.shape
    (torch.Size([2, 49, 192]), torch.Size([7]))

    Args:
        hub: What `WavCube` takes as `source`.
        save_path: Folder for downloads from the hub; empty is the hub's own cache.
        layernorm: Normalise each frame of each layer before the sum.
        freeze: Train the weights of the sum alone.
        **options: Further options of `WavCube`.

    Attributes:
        weights: The unnormalised weights (layers,), which stock recipes give an optimiser of their own.
    """

    def __init__(
        self,
        hub: str | os.PathLike = "wavcube",
        save_path: str | os.PathLike = "",
        layernorm: bool = False,
        freeze: bool = False,
        **options: Any,
    ):
        lobe = WavCube(hub, save_path or None, freeze=freeze, output_all_hiddens=True, **{"decoder": False, **options})
        super().__init__(lobe.num_layers, layer_norm=layernorm)
        self.model, self.freeze = lobe, freeze
        self.num_layers, self.output_dim = lobe.num_layers, lobe.output_dim

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Turn waveforms (B, T) with relative lengths (B,) into features (B, L, output_dim)."""
        return super().forward(self.model(wav, wav_lens))


class ChannelsFirstEncoder(nn.Module):
    """The latent with channels first, in place of the encoder of a separation or enhancement recipe.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import ChannelsFirstDecoder, ChannelsFirstEncoder, WavCube
    >>> lobe = WavCube("nano", freeze=True)
    >>> encoded = ChannelsFirstEncoder(lobe)(torch.randn(2, 16000))
    >>> encoded.shape, ChannelsFirstDecoder(lobe)(encoded).shape
    (torch.Size([2, 32, 49]), torch.Size([2, 15680]))

    Args:
        wavcube: The lobe.
    """

    def __init__(self, wavcube: WavCube):
        super().__init__()
        self.wavcube = wavcube

    def forward(self, wav: Tensor) -> Tensor:
        """Encode waveforms (B, T) as (B, latent_dim, L)."""
        return self.wavcube.encode(wav)[0].transpose(1, 2)


class ChannelsFirstDecoder(nn.Module):
    """The AcousticDecoder for latents with channels first.

    Args:
        wavcube: The lobe.
    """

    def __init__(self, wavcube: WavCube):
        super().__init__()
        self.wavcube = wavcube

    def forward(self, latent: Tensor) -> Tensor:
        """Decode (B, latent_dim, L) to waveforms (B, T)."""
        return self.wavcube.decode(latent.transpose(1, 2))
