"""`frontend: wavcube`: WavCube in place of a filter bank, for ESPnet's ASR and every other task with frontends."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch import Tensor, nn

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.espnet.held import (
    HoldsWavCube,
    check_rate,
    ignore_filter_bank_options,
    pass_latents,
    remove_parts,
    whole_lengths,
)
from wavcube_plugins.models.usage import train_only, unused_parts, used_parameters

# Our features, and what they are called in `used_parameters`.
FEATURES = {"latent": "latent", "restored": "restored", "layers": "hidden_states"}


class WavCubeFrontend(HoldsWavCube, AbsFrontend):
    """WavCube as a frontend.

    >>> frontend = WavCubeFrontend(model="nano")
    >>> feats, lengths = frontend(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> feats.shape, lengths
    (torch.Size([2, 49, 32]), tensor([49, 24]))

    A frozen model stays out of the module tree, so checkpoints hold nothing of it but the weights of the sum over
    layers. Gradients still pass to the input where it needs them, as in joint training with speech enhancement. With
    `trainable` the model is an ordinary sub-module, saved with the rest, which stays in evaluation mode (without
    dropout) and gets its weights back after `init:` has overwritten them.

    Args:
        fs: The recipe's sample rate in Hz, to check it.
        model: What `load_model` takes: `wavcube`, `wavcube_pro`, `nano`, a hub name, a folder or a checkpoint.
        features: `latent`, which the paper evaluates; `restored`, the Restorer's output; `layers`, a learned weighted
            sum over all hidden states of WavLM, as in SUPERB.
        trainable: Fine-tune the model.
        dtype: Type to compute in, under AMP too, if frozen: float32, bfloat16 or float16. Features have the input's
            type. A trainable model follows ESPnet's `--use_amp`.
        revision: Branch, tag or commit of a hub model.
        filter_bank_options: Options of ESPnet's default frontend, which have no effect: ESPnet3 merges them into a
            configuration without `frontend_conf`.

    Raises:
        InputError: The model cannot be loaded, or options do not fit it or each other.
    """

    def __init__(
        self,
        fs: int | str | None = None,
        model: str = "wavcube",
        features: str = "latent",
        trainable: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
        **filter_bank_options: Any,
    ):
        super().__init__()
        if features not in FEATURES:
            raise InputError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
        if trainable and dtype != "float32":
            raise InputError(f"trainable needs dtype float32, got {dtype}; for mixed precision use ESPnet's --use_amp")
        if ignore_filter_bank_options(filter_bank_options, "frontend_conf"):
            fs = None
        wavcube = load_model(model, dtype=dtype, revision=revision)
        check_rate(fs, wavcube, model)
        self.features, self.trainable, self.revision = features, trainable, revision
        self.layer_weights = None
        if features == "layers":
            self.layer_weights = nn.Parameter(torch.zeros(wavcube.config.wavlm.num_layers + 1))
        if trainable:
            remove_parts(wavcube, self._removed())
            train_only(wavcube, used_parameters(wavcube, FEATURES[features]))
            self.source, self.model = model, wavcube
            # Last in the tree: `init: chainer` visits modules in order and overwrites embeddings on its way.
            self.after_init = _AfterInit(self)
        else:
            self.hold(wavcube, model, without=self._removed())

    def _removed(self) -> tuple[str, ...]:
        # The Compressor stays in any case: the model reads its own type from it.
        return tuple(part for part in unused_parts(FEATURES[self.features]) if part in ("restorer", "decoder"))

    @property
    def frontend_type(self) -> str:
        """The name in configuration files."""
        return "wavcube"

    @property
    def hop_length(self) -> int:
        """Samples per frame; the latent of a 25 Hz model has half as many frames as WavLM's layers."""
        return self.model.hop_length if self.features == "latent" else self.model.config.wavlm.hop_length

    def output_size(self) -> int:
        """Return the number of channels of the features."""
        return self.model.latent_dim if self.features == "latent" else self.model.config.wavlm.hidden_dim

    def forward(self, input: Tensor, input_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extract features.

        Args:
            input: Waveforms (B, T) in -1 … 1; with `features: latent` of a frozen model also latents (B, L, D) from
                disk, which pass through.
            input_lengths: (B,) samples, or frames of latents; None if all items are whole.

        Returns:
            Features (B, L, output_size()) in the input's type, zero beyond the lengths, and their lengths (B,).

        Raises:
            InputError: The input has another shape.
            ValueError: A waveform has values that are not finite.
        """
        if input.ndim == 3:
            if self.features != "latent" or self.trainable:
                why = "trainable" if self.trainable else f"features: {self.features}"
                raise InputError(
                    f"{why} needs waveforms (batch, samples) of one channel, got {tuple(input.shape)}; latents from "
                    "disk serve features: latent of a frozen model"
                )
            return pass_latents(input, input_lengths, self.output_size())
        lengths = whole_lengths(input, input_lengths)
        with contextlib.nullcontext() if self.trainable else self.frozen_precision(input):
            states, frames = self._states(input, lengths)
        if self.layer_weights is None:
            (features,) = states
        else:
            features = torch.zeros_like(states[0], dtype=input.dtype)
            for weight, state in zip(self.layer_weights.softmax(0), states, strict=True):
                features = features + weight * state.to(input.dtype)
        return features[:, : int(frames.max())].to(input.dtype), frames

    def _states(self, input: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features, or every layer's for the weighted sum, and their lengths."""
        if self.features == "latent":
            latent, frames = self.model.encode(input, lengths)
            return [latent], frames
        if self.features == "restored":
            result = self.model.features(input, lengths)
            return [result.restored], result.lengths
        return self.model.hidden_states(input, lengths)

    def reload_pretrained_parameters(self) -> None:
        """Load the model's weights again; ESPnet calls this after `init:` has overwritten everything in its reach."""
        if self.layer_weights is not None:
            nn.init.zeros_(self.layer_weights.data)
        if self.trainable:
            fresh = load_model(self.source, revision=self.revision)
            remove_parts(fresh, self._removed())
            self.model.load_state_dict(fresh.state_dict())
            logging.info(f"frontend: restored the weights of {self.source} after initialisation")

    def extra_repr(self) -> str:
        """Describe the frontend in `print(model)`."""
        state = "trainable" if self.trainable else "frozen"
        return f"model={self.source!r}, features={self.features!r}, channels={self.output_size()}, {state}"


class _AfterInit(nn.Module):
    """Restores the weights of its owner when `init: chainer` reaches it."""

    owner: WavCubeFrontend

    def __init__(self, owner: WavCubeFrontend):
        super().__init__()
        self.__dict__["owner"] = owner

    def espnet_initialization_fn(self) -> None:
        """Called by ESPnet's initialisation."""
        self.owner.reload_pretrained_parameters()
