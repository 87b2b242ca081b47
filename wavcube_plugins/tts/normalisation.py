"""Per-channel normalisation of latents, which flow matching needs: it starts from noise of unit variance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wavcube_plugins.errors import InputError
from wavcube_plugins.models.layers import mask_frames


class LatentNorm(nn.Module):
    """Normalise each channel of the latent to zero mean and unit variance over a training set, and undo it.

    In ESPnet, `--normalize global_mvn` takes its place.

    Args:
        latent_dim: Channels of the latent, D.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))

    def fit(self, latents: Iterable[Tensor]) -> LatentNorm:
        """Compute the statistics of latents (L, D) and return the module.

        Raises:
            InputError: There are no latents.
        """
        count = 0
        total, squares = torch.zeros(2, len(self.mean), dtype=torch.float64, device=self.mean.device)
        for latent in latents:
            latent = latent.double().to(self.mean.device)
            count, total, squares = count + len(latent), total + latent.sum(0), squares + latent.square().sum(0)
        if not count:
            raise InputError("cannot fit LatentNorm: there are no latents")
        mean = total / count
        self.mean.copy_(mean)
        # A constant channel keeps its scale.
        self.std.copy_((squares / count - mean.square()).clamp_min(0).sqrt()).masked_fill_(self.std < 1e-6, 1.0)
        return self

    def forward(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise (B, L, D); the result is zero beyond the lengths (B,) in frames."""
        return mask_frames((latent - self.mean) / self.std, lengths)

    def inverse(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Undo `forward`."""
        return mask_frames(latent * self.std + self.mean, lengths)
