"""`frontend: wavcube`: WavCube in the place of a filter bank, for ESPnet's ASR and every other task with frontends."""

from __future__ import annotations

import logging

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor, nn

from wavcube_plugins.espnet.held import (
    HoldsWavCube,
    check_lengths_there,
    check_rate,
    load_held,
    pass_latents,
    remove_parts,
)
from wavcube_plugins.models.wavcube import WavCube

FEATURES = ("latent", "restored", "layers")


class WavCubeFrontend(HoldsWavCube, AbsFrontend):
    """WavCube as a frontend.

    >>> frontend = WavCubeFrontend(model="nano")
    >>> feats, lengths = frontend(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> feats.shape, lengths
    (torch.Size([2, 49, 32]), tensor([49, 24]))

    Frozen it is outside the module tree, and checkpoints hold nothing of it but the weights of the sum over layers.
    With `trainable` it is an ordinary sub-module, saved with the rest, that stays in evaluation mode (nothing is
    dropped at random) and gets its weights back after `init:` has overwritten them.

    Args:
        model: What `load_model` takes: `nano` (comes with the package), `wavcube`, `wavcube_pro`, a hub name, a folder
            or a checkpoint.
        fs: The recipe's sample rate in Hz, to check it.
        features: `latent`, what the paper evaluates; `restored`, what the Restorer makes of it; `layers`, a learnt
            weighted sum over all hidden states of WavLM, SUPERB's way.
        trainable: Fine-tune the model.
        dtype: Type to compute in, if frozen: float32, bfloat16 or float16. Features have the input's type.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ValueError: a model that cannot be loaded, or options that do not fit together; one sentence.
    """

    def __init__(
        self,
        fs: int | str | None = None,
        model: str = "nano",
        features: str = "latent",
        trainable: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
    ):
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
        if trainable and dtype != "float32":
            raise ValueError(f"trainable needs dtype float32, got {dtype}; for mixed precision use ESPnet's --use_amp")
        wavcube = load_held(model, dtype, revision)
        check_rate(fs, wavcube, model)
        self.features = features
        self.trainable = trainable
        self.revision = revision
        self.layer_weights = None
        if features == "layers":
            self.layer_weights = nn.Parameter(torch.zeros(wavcube.config.wavlm.num_layers + 1))
        unused = _unused_parts(features)
        if trainable:
            remove_parts(wavcube, unused)
            self.source = model
            self.model = wavcube
            _train_used(wavcube, features)
            # Last in the tree: `init: chainer` visits modules in their order and overwrites embeddings on its way.
            self.after_init = _AfterInit(self)
        else:
            self.hold(wavcube, model, without=unused)

    @property
    def frontend_type(self) -> str:
        """The name in configuration files."""
        return "wavcube"

    @property
    def hop_length(self) -> int:
        """Samples per frame; the latent of a 25 Hz model has half as many frames as WavLM's layers."""
        return self.model.hop_length if self.features == "latent" else self.model.config.wavlm.hop_length

    def output_size(self) -> int:
        """Return the channels of the features."""
        return self.model.latent_dim if self.features == "latent" else self.model.config.wavlm.hidden_dim

    def forward(self, input: Tensor, input_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extract features.

        Args:
            input: Waveforms (B, T) in -1 … 1; with `features: latent` and not trainable also latents (B, L, D) from
                disk, which are handed on.
            input_lengths: (B,) samples, or frames of latents; None if all items are whole.

        Returns:
            Features (B, L, output_size()) in the input's type, zero beyond the lengths, and their lengths (B,).

        Raises:
            ValueError: an input of another shape, or with values that are not finite.
        """
        if input.ndim == 3:
            if self.features != "latent" or self.trainable:
                why = "trainable" if self.trainable else f"features: {self.features}"
                raise ValueError(
                    f"{why} needs waveforms (batch, samples) of one channel, got {tuple(input.shape)}; latents from "
                    "disk serve features: latent of a frozen model"
                )
            return pass_latents(input, input_lengths, self.output_size())
        lengths = check_lengths_there(input, input_lengths)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            if self.features == "latent":
                features, frames = self.model.encode(input, lengths)
            elif self.features == "restored":
                result = self.model.features(input, lengths)
                features, frames = result.restored, result.lengths
            else:
                states, frames = self.model.hidden_states(input, lengths)
        if self.features == "layers":
            features = 0.0
            for weight, state in zip(self.layer_weights.softmax(0), states, strict=True):
                features = features + weight * state.to(input.dtype)
        return features[:, : int(frames.max())].to(input.dtype), frames

    def reload_pretrained_parameters(self) -> None:
        """Load the model's weights again; ESPnet calls this after `init:` has overwritten all that it found."""
        if self.layer_weights is not None:
            nn.init.zeros_(self.layer_weights.data)
        if self.trainable:
            fresh = load_held(self.source, "float32", self.revision)
            remove_parts(fresh, _unused_parts(self.features))
            self.model.load_state_dict(fresh.state_dict())
            logging.info(f"frontend: the weights of {self.source} are restored after initialisation")

    def extra_repr(self) -> str:
        state = "trainable" if self.trainable else "frozen"
        return f"model={self.source!r}, features={self.features!r}, channels={self.output_size()}, {state}"


class _AfterInit(nn.Module):
    """Restores the weights of its owner where `init: chainer` comes past."""

    def __init__(self, owner: WavCubeFrontend):
        super().__init__()
        self.__dict__["owner"] = owner

    def espnet_initialization_fn(self) -> None:
        self.owner.reload_pretrained_parameters()


def _unused_parts(features: str) -> tuple[str, ...]:
    return ("decoder",) if features == "restored" else ("decoder", "restorer")


def _train_used(model: WavCube, features: str) -> None:
    """Let train what the features come from, and nothing else: under DDP an unused parameter is an error."""
    model.requires_grad_(False)
    model.wavlm.requires_grad_()
    if features == "layers":
        return
    for part in (model.post_wavlm_layer_norm, model.compressor, model.restorer):
        if part is not None:
            part.requires_grad_()
    layer, transformer = model.config.wavlm_layer, model.wavlm.encoder.transformer
    if 0 <= layer < model.config.wavlm.num_layers:
        transformer.layers[layer:].requires_grad_(False)
        if model.config.wavlm.layer_norm_first:  # then that norm is the last layer's
            transformer.layer_norm.requires_grad_(False)
