"""Training the AcousticDecoder alone, on latents of a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavcube_plugins.models.wavcube import fit_length
from wavcube_plugins.pretraining.step import GeneratorOutput
from wavcube_plugins.speechbrain.lobe import WavCube


class TrainableDecoder(nn.Module):
    """What `pretraining.step.PretrainingStep` trains: waveforms to reconstructions, by a decoder that learns.

    Args:
        lobe: Frozen, with its decoder, which is trained in place.
    """

    def __init__(self, lobe: WavCube):
        super().__init__()
        self.decoder = lobe.model.decoder.requires_grad_(True)
        self.__dict__["lobe"] = lobe  # not a part: its other weights stay what they are

    def forward(self, waveforms: Tensor) -> GeneratorOutput:
        """Reconstruct whole crops (B, T)."""
        with torch.no_grad():
            latent, _ = self.lobe.model.encode(waveforms)
        reconstruction = fit_length(self.decoder(latent), waveforms.shape[1])
        # The encoder does not move, so that nothing has to be anchored.
        return GeneratorOutput(reconstruction, {"semantic_frozen": reconstruction.new_zeros(())})
