"""The WavCube decoder as ESPnet's vocoder: latents to waveforms."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.espnet.features import WavCubeFeatsExtract
from wavcube_plugins.espnet.held import HoldsWavCube

# `--vocoder_file wavcube` is the decoder of the feature extractor's own model, `wavcube:SOURCE` that of another one.
NAME = "wavcube"
_PUBLISHED = ("wavcube_pro",)


class WavCubeVocoder(HoldsWavCube):
    """The decoder of a WavCube, as `Text2Speech` calls a vocoder.

    >>> vocoder = WavCubeVocoder("nano")
    >>> vocoder(torch.randn(50, 32)).shape, vocoder.fs
    (torch.Size([16000]), 16000)

    Args:
        model: What `load_model` takes: `wavcube`, `wavcube_pro`, `nano`, a hub name, a folder or a checkpoint.
        dtype: Type to compute in, under AMP too: float32, bfloat16 or float16.
        revision: Branch, tag or commit of a hub model.

    Raises:
        InputError: The model cannot be loaded.
    """

    def __init__(self, model: str = "wavcube", dtype: str = "float32", revision: str | None = None):
        super().__init__()
        wavcube = load_model(model, dtype=dtype, revision=revision)
        self.hold(wavcube, model, without=("wavlm", "restorer", "compressor.layers"))

    @property
    def fs(self) -> int:
        """Samples per second of the waveforms."""
        return self.model.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.model.hop_length

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
            InputError: The latent has another shape, or values that are not finite.
        """
        if latent.ndim != 2:
            raise InputError(f"expected one latent (frames, {self.latent_dim}), got {tuple(latent.shape)}")
        with self.frozen_precision(latent):
            return self.model.decode(latent[None])[0][0]

    def extra_repr(self) -> str:
        """Describe the vocoder in `print(model)`."""
        return f"model={self.source!r}, fs={self.fs}, frozen"


def build_vocoder(vocoder_file: str | os.PathLike | None, model: Any, device: str) -> WavCubeVocoder | None:
    """Build the vocoder that `--vocoder_file` names, if it is ours.

    Args:
        vocoder_file: None or `wavcube` for the decoder of the feature extractor's own model, `wavcube:SOURCE` or
            `wavcube_pro` for that of another one.
        model: ESPnet's TTS or speech-to-speech translation model.
        device: Where to put the vocoder.

    Returns:
        The vocoder, or None where ESPnet has to build its own: for any other name, or without a name if the feature
        extractor is not ours.

    Raises:
        InputError: The model cannot be loaded, or its decoder does not fit the features.
    """
    # The second is that of speech-to-speech translation.
    features = getattr(model, "feats_extract", None) or getattr(model, "tgt_feats_extract", None)
    ours = features if isinstance(features, WavCubeFeatsExtract) else None
    name = None if vocoder_file is None else os.fspath(vocoder_file)
    if name is None and ours is None:
        return None
    revision = None
    if name is None or name == NAME:
        source = NAME if ours is None else ours.source
        revision = None if ours is None else ours.revision
    elif name in _PUBLISHED or name.startswith(f"{NAME}:"):
        source = name.removeprefix(f"{NAME}:")
    else:
        return None
    vocoder = WavCubeVocoder(source, revision=revision)
    if ours is not None and vocoder.latent_dim != ours.output_size():
        raise InputError(
            f"--vocoder_file {name}: the decoder of {source} takes {vocoder.latent_dim} channels, but the features of "
            f"{ours.source} have {ours.output_size()}; leave --vocoder_file out"
        )
    logging.info(f"vocoder: the WavCube decoder of {source}")
    return vocoder.to(device)
