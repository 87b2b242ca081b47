"""Training the AcousticDecoder alone, on latents of a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavcube_plugins.models.wavcube import fit_length
from wavcube_plugins.pretraining.step import GeneratorOutput
from wavcube_plugins.speechbrain.lobe import WavCube


class TrainableDecoder(nn.Module):
    """A generator for `pretraining.step.PretrainingStep` of which only the decoder learns.

    Args:
        lobe: A frozen lobe with its decoder, which is trained in place.
    """

    lobe: WavCube

    def __init__(self, lobe: WavCube):
        super().__init__()
        self.decoder = lobe.model.decoder.requires_grad_(True)
        self.__dict__["lobe"] = lobe  # not a sub-module: its other weights stay as they are

    def forward(self, waveforms: Tensor) -> GeneratorOutput:
        """Reconstruct crops (B, T) of full length."""
        with torch.no_grad():
            latent, _ = self.lobe.model.encode(waveforms)
        reconstruction = fit_length(self.decoder(latent), waveforms.shape[1])
        # The encoder does not change, so there is nothing to anchor.
        return GeneratorOutput(reconstruction, {"semantic_frozen": reconstruction.new_zeros(())})
