"""The WavCube decoder as ESPnet's vocoder: latents to waveforms."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.espnet.features import WavCubeFeatures
from wavcube_plugins.espnet.held import HoldsWavCube, load_held

# `--vocoder_file wavcube` is the decoder of the features' own model; `wavcube:SOURCE` that of another one.
NAME = "wavcube"
_PUBLISHED = ("wavcube_pro",)


class WavCubeVocoder(HoldsWavCube):
    """The decoder of a WavCube, as `Text2Speech` calls a vocoder.

    >>> vocoder = WavCubeVocoder("nano")
    >>> vocoder(torch.randn(50, 32)).shape, vocoder.fs
    (torch.Size([16000]), 16000)

    Args:
        model: What `load_model` takes: `nano`, `wavcube`, `wavcube_pro`, a hub name, a folder or a checkpoint.
        dtype: Type to compute in: float32, bfloat16 or float16.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ValueError: a model that cannot be loaded.
    """

    def __init__(self, model: str = "nano", dtype: str = "float32", revision: str | None = None):
        super().__init__()
        wavcube = load_held(model, dtype, revision)
        self.hold(wavcube, model, without=("wavlm", "restorer", "compressor.layers"))

    @property
    def fs(self) -> int:
        """Samples per second of the waveforms."""
        return self.model.sample_rate

    @property
    def latent_dim(self) -> int:
        """Channels of the latents."""
        return self.model.latent_dim

    @torch.no_grad()
    def forward(self, latent: Tensor) -> Tensor:
        """Decode one latent.

        Args:
            latent: (L, D), not normalised.

        Returns:
            The waveform (T,) in float32, T = hop_length * L.

        Raises:
            ValueError: a latent of another shape, or with values that are not finite.
        """
        if latent.ndim != 2:
            raise ValueError(f"expected one latent (frames, {self.latent_dim}), got {tuple(latent.shape)}")
        return self.model.decode(latent[None])[0][0]

    def extra_repr(self) -> str:
        return f"model={self.source!r}, fs={self.fs}, frozen"


def build_vocoder(vocoder_file: str | os.PathLike | None, model: Any, device: str) -> WavCubeVocoder | None:
    """Build the vocoder that `--vocoder_file` names, if it is ours.

    Args:
        vocoder_file: None or `wavcube` for the decoder of the features' own model, `wavcube:SOURCE` or `wavcube_pro`
            for that of another one.
        model: The model of ESPnet that is to be heard.
        device: Where to put it.

    Returns:
        The vocoder; None where ESPnet has to build its own: another name, or none and the features are not ours.

    Raises:
        ValueError: a model that cannot be loaded, or latents that its decoder does not take.
    """
    features = getattr(model, "feats_extract", None)
    ours = isinstance(features, WavCubeFeatures)
    name = None if vocoder_file is None else os.fspath(vocoder_file)
    if name is None and not ours:
        return None
    if name is None or name == NAME:
        source = features.source if ours else NAME
        revision = features.revision if ours else None
    elif name in _PUBLISHED or name.startswith(f"{NAME}:"):
        source, revision = name.removeprefix(f"{NAME}:"), None
    else:
        return None
    vocoder = WavCubeVocoder(source, revision=revision)
    if ours and vocoder.latent_dim != features.output_size():
        raise ValueError(
            f"--vocoder_file {name}: the decoder of {source} takes {vocoder.latent_dim} channels, but the features are "
            f"those of {features.source}, with {features.output_size()}; leave --vocoder_file out"
        )
    logging.info(f"vocoder: the WavCube decoder of {source}")
    return vocoder.to(device)
