"""The upstream itself: a list of waveforms in, s3prl's dictionary of features out."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.checkpoints import CheckpointError, load_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.lengths import length_mask, pad_batch
from wavcube_plugins.s3prl.options import UpstreamOptions
from wavcube_plugins.s3prl.script import ignored_choices, runs_downstream
from wavcube_plugins.s3prl.sources import is_url, url_source

if TYPE_CHECKING:
    from s3prl.upstream.interfaces import UpstreamBase
else:
    try:
        from s3prl.upstream.interfaces import UpstreamBase
    except ImportError:  # torch.hub loads this upstream without s3prl
        UpstreamBase = nn.Module


class WaveformError(InputError):
    """The upstream was called with something other than a list of waveforms."""


class UpstreamExpert(UpstreamBase):
    """WavCube as an s3prl upstream.

    >>> upstream = UpstreamExpert("nano").eval()
    >>> upstream([torch.randn(16000), torch.randn(9000)])["hidden_states"][0].shape
    torch.Size([2, 50, 32])

    Its features are never random, not even in training mode: no dropout, no layer drop, no masking. Where s3prl is
    installed it has the hooks of s3prl's `UpstreamBase`; with hooks, their outputs are the `hidden_states`.

    Args:
        ckpt: The weights: anything `load_model` takes, or a URL.
        model_config: YAML or JSON file, or a mapping, of `UpstreamOptions`.
        refresh: Download a URL again. (Hub names are compared with the hub at every start anyway.)
        default: What to load when `ckpt` is None.
        layers: False: `hidden_states` is the latent alone, the paper's protocol. True: every hidden state of WavLM, for
            SUPERB's weighted sum.
        options: Fields of `UpstreamOptions` by name.

    Raises:
        InputError: the weights cannot be loaded, or an option is wrong.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike | None = None,
        model_config: str | os.PathLike | Mapping[str, Any] | None = None,
        refresh: bool = False,
        *,
        default: str = "wavcube",
        layers: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.layers = layers
        self.options = UpstreamOptions.read(model_config, **options)
        sizes = self.options.config
        if isinstance(ckpt, str) and is_url(ckpt):
            ckpt = url_source(ckpt, refresh=refresh)
        try:
            self.model = load_model(
                default if ckpt is None else ckpt,
                config=WavCubeConfig.from_dict(dict(sizes)) if isinstance(sizes, Mapping) else sizes,
                dtype=self.options.dtype,
                revision=self.options.revision,
            )
        except CheckpointError as error:
            if ckpt is None:
                raise CheckpointError(f"{error} (with run_downstream.py: -k nano)") from error
            raise
        # An upstream never decodes, and the decoder is nearly half of the weights.
        self.model.register_module("decoder", None)
        self.model.eval()
        if runs_downstream():
            only = self.options.only_hidden_states
            for sentence in ignored_choices(sys.argv[1:], layers=layers, only_hidden_states=only):
                warnings.warn(sentence, stacklevel=2)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the samples from one frame to the next; at a latent rate of 25 Hz the latent's differ from WavLM's."""
        latent = key == "latent" or (key in (None, "hidden_states", "last_hidden_state") and not self.layers)
        return self.model.hop_length if latent else self.model.config.wavlm.hop_length

    def train(self, mode: bool = True) -> UpstreamExpert:
        """Set the mode as usual, but keep the model in evaluation mode, so that features are never random."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Turn waveforms into features.

        s3prl keeps round(T / hop) or ceil(T / hop) frames of each item, and the model makes up to two fewer. The last
        frame of an item is therefore repeated up to the end of the batch, so that what s3prl keeps never depends on the
        other items.

        Args:
            wavs: Waveforms (T_i,) at the model's sample rate, floating point, at least one sample each.

        Returns:
            float32 features of ceil(T / hop) frames L, where T is the longest item and hop the key's
            `get_downsample_rates`. `hidden_states`, a list of the latent alone, or of WavLM's `num_layers` + 1 hidden
            states if `layers`; `last_hidden_state`, the last of them; `latent` (B, L, latent_dim); `wavlm`, all hidden
            states (B, L, C); `restored` (B, L, C).

        Raises:
            InputError: no waveforms, or one that is not a 1-D floating-point tensor, is empty or is not finite.
        """
        waveforms, lengths = _batch(wavs)
        features = self._features(waveforms, lengths)
        hidden_states = list(features["wavlm"]) if self.layers else [features["latent"]]
        if self.options.only_hidden_states:
            features = {}
        if not getattr(self, "hooks", None):  # UpstreamBase puts the outputs of its hooks there
            features |= {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}
        return features

    def _features(self, waveforms: Tensor, lengths: Tensor) -> dict[str, Any]:
        """Compute the keys that are wanted, each padded to its ceil(T / hop) frames."""
        frames = latent_frames = lengths
        features: dict[str, Any] = {}
        if not self.options.only_hidden_states:
            result = self.model.features(waveforms, lengths)
            frames, latent_frames = result.lengths, result.latent_lengths
            features = {"latent": result.latent, "wavlm": result.hidden_states, "restored": result.restored}
        elif self.layers:
            features["wavlm"], frames = self.model.hidden_states(waveforms, lengths)
        else:
            features["latent"], latent_frames = self.model.encode(waveforms, lengths)

        if "latent" in features:
            wanted = math.ceil(waveforms.shape[1] / self.model.hop_length)
            features["latent"] = _repeat_last(features["latent"], latent_frames, wanted)
        wanted = math.ceil(waveforms.shape[1] / self.model.config.wavlm.hop_length)
        if "restored" in features:
            features["restored"] = _repeat_last(features["restored"], frames, wanted)
        states = features.get("wavlm", [])
        for index, state in enumerate(states):  # in place: the layers of a large batch take gigabytes
            states[index] = _repeat_last(state, frames, wanted)
        return features


def _batch(wavs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Check a list of waveforms and pad it to (B, T), with lengths (B,)."""
    if len(wavs) == 0:
        raise WaveformError("expected a list of waveforms, got an empty one")
    for index, wav in enumerate(wavs):
        if not isinstance(wav, Tensor):
            raise WaveformError(f"waveform {index} must be a torch.Tensor, got {type(wav).__name__}; use torch.tensor")
        if wav.ndim != 1 or not wav.is_floating_point():
            shape = tuple(wav.shape)
            raise WaveformError(f"waveform {index} must be 1-D and floating point, got shape {shape} of {wav.dtype}")
    return pad_batch([wav.float() for wav in wavs])


def _repeat_last(x: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Pad x (B, L, C) to (B, frames, C) in float32 by repeating each item's last valid frame."""
    x = x.float()
    size, longest, _ = x.shape
    valid = length_mask(lengths, frames)[..., None]
    if frames == longest and bool(valid.all()):
        return x
    last = x[torch.arange(size, device=x.device), lengths - 1][:, None]  # (B, 1, C)
    return torch.where(valid, F.pad(x, (0, 0, 0, frames - longest)), last)
