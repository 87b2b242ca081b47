"""The lobe: WavCube under the names, shapes and relative lengths of SpeechBrain's own SSL and codec lobes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.heads.masking import FeatureMasking
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.usage import train_only, used_parameters
from wavcube_plugins.speechbrain.frozen import keep_frozen_out
from wavcube_plugins.speechbrain.lengths import absolute_lengths, relative_lengths

FEATURES = ("latent", "hidden_states", "restored", "reconstruction")

_STEM = "wavlm.feature_extractor."


class WavCube(nn.Module):
    """WavCube as a SpeechBrain lobe.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import WavCube
    >>> lobe = WavCube("nano", freeze=True)
    >>> wav, wav_lens = torch.randn(2, 16000), torch.tensor([1.0, 0.5])
    >>> lobe(wav, wav_lens).shape  # at 16 kHz: 49 frames of 20 ms
    torch.Size([2, 49, 32])
    >>> latent, latent_lens = lobe.encode(wav, wav_lens)
    >>> latent.shape, latent_lens
    (torch.Size([2, 49, 32]), tensor([1.0000, 0.4898]))
    >>> lobe.decode(latent, latent_lens).shape  # 320 samples per frame
    torch.Size([2, 15680])
    >>> lobe.reconstruct(wav, wav_lens).shape
    torch.Size([2, 16000])
    >>> WavCube("nano", output_all_hiddens=True)(wav, wav_lens).shape  # WavLM's layers
    torch.Size([7, 2, 49, 192])

    Features depend neither on the padding nor on the other items of the batch. The model itself stays in evaluation
    mode whatever `Brain.fit` does, so nothing is random unless `dropout` or `apply_spec_augment` is set. Only what
    `forward` uses is trainable, so DDP finds no unused parameters. The state dict, and so every checkpoint, holds the
    trainable weights alone; the others come from `source`.

    Under DDP call the lobe itself, not its methods: those bypass the exchange of gradients.

    Args:
        source: `wavcube` or `wavcube_pro` (published on the Hugging Face hub), `nano` (bundled), a hub name, a native
            folder, or a checkpoint file.
        save_path: Folder for downloads from the hub; None is the hub's own cache.
        output_norm: Normalise each frame to zero mean and unit variance over its channels.
        freeze: Train nothing of the model. Gradients still pass through to a waveform that requires them.
        freeze_feature_extractor: Train all but WavLM's convolutional stem.
        apply_spec_augment: Mask spans of frames and channels of the features during training.
        output_all_hiddens: Return every hidden state of WavLM instead of the last one.
        features: What `forward` returns: `latent`; `hidden_states` of WavLM; `restored`, the Restorer's output; or
            `reconstruction`, the decoded waveform, which also trains the decoder. The default is `latent`, or
            `hidden_states` with `output_all_hiddens`.
        sample_rate: Sample rate of the waveforms in Hz, checked once against the model's: `!ref <sample_rate>`.
        dropout: Enable the dropout of Compressor and Restorer during training, as in pretraining.
        decoder: Keep the AcousticDecoder, nearly half of the weights; False leaves only `encode` of the codec.
        freeze_decoder: Train all but the decoder, where `features` is `reconstruction`.
        config: Sizes of a checkpoint file that matches no preset: a preset's name, or a mapping as in `config.json`.
        revision: Branch, tag or commit of a hub model.
        local_files_only: Download nothing. `HF_HUB_OFFLINE` does the same.

    Attributes:
        model: The `wavcube_plugins.WavCube` inside; `checkpoints.save_model` writes it whole once it is fine-tuned.
        saved_weights: Names of the parameters that go into checkpoints even if they are frozen later.

    Raises:
        ValueError: a model that cannot be loaded, a sample rate other than the model's, or contradictory options.
    """

    def __init__(
        self,
        source: str | os.PathLike = "wavcube",
        save_path: str | os.PathLike | None = None,
        output_norm: bool = False,
        freeze: bool = False,
        freeze_feature_extractor: bool = False,
        apply_spec_augment: bool = False,
        output_all_hiddens: bool = False,
        features: str | None = None,
        *,
        sample_rate: int | None = None,
        dropout: bool = False,
        decoder: bool = True,
        freeze_decoder: bool = False,
        config: WavCubeConfig | str | dict[str, Any] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ):
        super().__init__()
        self.features = features or ("hidden_states" if output_all_hiddens else "latent")
        _check_options(self.features, output_all_hiddens, output_norm or apply_spec_augment or not decoder)
        self.source, self.revision = os.fspath(source), revision
        self.config = WavCubeConfig.from_dict(config) if isinstance(config, dict) else config
        self.output_norm, self.output_all_hiddens, self.dropout = output_norm, output_all_hiddens, dropout
        self.freeze, self.freeze_feature_extractor, self.freeze_decoder = freeze, False, freeze_decoder
        self.model = load_model(
            source,
            config=self.config,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=save_path or None,
        )
        self._check_rate(sample_rate)
        if not decoder:
            self.model.register_module("decoder", None)
        self.spec_augment = FeatureMasking(self.output_dim) if apply_spec_augment else None
        self.saved_weights: set[str] = set()
        self._choose_trainable()
        if freeze_feature_extractor:
            self._freeze_stem()
        # Stock recipes freeze the stem with `lobe.model.feature_extractor._freeze_parameters()`, as in transformers.
        stem = self.model.wavlm.feature_extractor
        stem.__dict__["_freeze_parameters"] = self._freeze_stem
        self.model.__dict__["feature_extractor"] = stem  # a second name, not a second registration
        keep_frozen_out(self)
        self.train()

    def __repr__(self) -> str:
        # SpeechBrain logs this when it saves checkpoints; the tree of modules would fill pages.
        return f"WavCube(source={self.source!r}, features={self.features!r}, freeze={self.freeze})"

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.model.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame of what `forward` returns; 1 for a reconstruction."""
        if self.features == "reconstruction":
            return 1
        return self.model.hop_length if self.features == "latent" else self.model.config.wavlm.hop_length

    @property
    def output_dim(self) -> int:
        """Channels of what `forward` returns; 1 for a reconstruction."""
        if self.features == "reconstruction":
            return 1
        return self.model.latent_dim if self.features == "latent" else self.model.config.wavlm.hidden_dim

    @property
    def num_layers(self) -> int:
        """Number of hidden states that `output_all_hiddens` returns: one more than WavLM has layers."""
        return self.model.config.wavlm.num_layers + 1

    def train(self, mode: bool = True) -> WavCube:
        """Set the mode as usual, but keep the model itself in evaluation mode unless its dropout is enabled."""
        super().train(mode)
        self.model.train(mode and self.dropout and not self.freeze)
        return self

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Turn waveforms into features.

        Args:
            wav: (B, T) at `sample_rate`, in -1 … 1.
            wav_lens: (B,) relative lengths in 0 … 1; None if all items are whole.

        Returns:
            Features (B, L, output_dim), zero beyond the lengths, L as in `frame_lens`; (layers, B, L, output_dim) with
            `output_all_hiddens`; or waveforms (B, T) where `features` is `reconstruction`. In training mode an item
            whose waveform is not finite gets NaN, so that SpeechBrain's handling of non-finite losses applies.

        Raises:
            ValueError: waveforms or lengths of a wrong type or shape, or, in evaluation mode, not finite.
        """
        lengths = absolute_lengths(wav_lens, wav)
        broken = _not_finite(wav, lengths) if self.training else None
        if broken is not None:
            wav = wav.masked_fill(broken[:, None], 0.0)
        with self._gradients(wav):
            features = self._compute(wav, lengths)
        if broken is not None:
            rows = broken[:, None] if features.ndim == 2 else broken[:, None, None]
            features = features.masked_fill(rows, float("nan"))
        return features

    def extract_features(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Do what `forward` does, under the name that SpeechBrain's quantisation recipes and `DiscreteSSL` call."""
        return self.forward(wav, wav_lens)

    def frame_counts(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Return the number of frames (B,) that `forward` returns for each item; arguments as there."""
        lengths = absolute_lengths(wav_lens, wav)
        if lengths is None:
            lengths = torch.full((len(wav),), wav.shape[1], device=wav.device)
        if self.features == "reconstruction":
            return lengths
        of_model = self.model if self.features == "latent" else self.model.wavlm
        return of_model.frame_lengths(lengths)

    def frame_lens(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Return the relative lengths (B,) of what `forward` returns; arguments as there.

        They differ a little from those of the waveforms, because T samples give 1 + (T - 400) // 320 frames: an item
        has exactly round(frame_lens * L) frames, while round(wav_lens * L) may be one off.
        """
        if wav_lens is None:
            return torch.ones(len(wav), device=wav.device)
        if self.features == "reconstruction":
            return wav_lens
        return relative_lengths(self.frame_counts(wav, wav_lens), int(self.frame_counts(wav[:1])))

    def encode(
        self, wav: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn waveforms into the latent that `decode` takes, whatever the options of `forward` are.

        Args:
            wav: (B, T) at `sample_rate`, in -1 … 1.
            wav_lens: (B,) relative lengths; None if all items are whole.
            window_seconds: Work in overlapping windows of this length, for hours of audio.

        Returns:
            The latent (B, L, latent_dim), zero beyond the lengths, and its relative lengths (B,).
        """
        with self._gradients(wav):
            latent, frames = self.model.encode(wav, absolute_lengths(wav_lens, wav), window_seconds=window_seconds)
        return latent, relative_lengths(frames, latent.shape[1])

    def decode(
        self, latent: Tensor, latent_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Turn the latent into waveforms.

        Args:
            latent: (B, L, latent_dim).
            latent_lens: (B,) relative lengths, from `encode`; None if all items are whole.
            window_seconds: Work in overlapping windows of this length, for hours of audio.

        Returns:
            Waveforms (B, T), T a multiple of L, zero beyond the lengths; their relative lengths are `latent_lens`.

        Raises:
            ValueError: a latent or lengths of wrong shape or content, or no decoder.
        """
        self._check_decoder()
        lengths = absolute_lengths(latent_lens, latent, "latent_lens")
        with self._gradients(latent):
            return self.model.decode(latent, lengths, window_seconds=window_seconds)[0]

    def reconstruct(
        self, wav: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Encode waveforms and decode them again; arguments as in `encode`.

        Returns:
            Waveforms (B, T) of the input's shape and lengths.

        Raises:
            ValueError: waveforms or lengths of wrong type, shape or content, or no decoder.
        """
        self._check_decoder()
        with self._gradients(wav):
            return self.model.reconstruct(wav, absolute_lengths(wav_lens, wav), window_seconds=window_seconds)[0]

    def _compute(self, wav: Tensor, lengths: Tensor | None) -> Tensor:
        if self.features == "reconstruction":
            return self.model.reconstruct(wav, lengths)[0]
        if self.features == "latent":
            features, frames = self.model.encode(wav, lengths)
        elif self.features == "restored":
            result = self.model.features(wav, lengths)
            features, frames = result.restored, result.lengths
        else:
            states, frames = self.model.hidden_states(wav, lengths)
            features = torch.stack(states) if self.output_all_hiddens else states[-1]
        if self.output_norm:
            features = F.layer_norm(features, features.shape[-1:])
        if self.spec_augment is not None and self.training:
            features = self.spec_augment(features, frames)
        return features

    def _choose_trainable(self) -> None:
        used = frozenset() if self.freeze else used_parameters(self.model, self.features)
        if self.freeze_decoder:
            used = {name for name in used if not name.startswith("decoder.")}
        train_only(self.model, used)
        # Remembered, because trained weights belong in checkpoints even if they are frozen later.
        self.saved_weights = {f"model.{name}" for name in used}

    def _freeze_stem(self) -> None:
        self.freeze_feature_extractor = True
        self.model.wavlm.feature_extractor.requires_grad_(False)
        self.saved_weights = {name for name in self.saved_weights if not name.startswith(f"model.{_STEM}")}

    def _gradients(self, x: Tensor):
        # A frozen lobe builds no graph unless its input asks for one, as SpeechBrain's lobes: it saves time and memory.
        wanted = torch.is_grad_enabled() and (not self.freeze or (isinstance(x, Tensor) and x.requires_grad))
        return torch.set_grad_enabled(wanted)

    def _check_decoder(self) -> None:
        if self.model.decoder is None:
            raise ValueError("this lobe was made with decoder=False, it cannot decode")

    def _check_rate(self, sample_rate: int | None) -> None:
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise ValueError(
                f"the waveforms have a sample rate of {sample_rate} Hz, but the model {self.source} takes "
                f"{self.sample_rate} Hz"
            )


def _check_options(features: str, output_all_hiddens: bool, unfit_for_waveforms: bool) -> None:
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
    if output_all_hiddens and features != "hidden_states":
        raise ValueError(f"output_all_hiddens gives hidden_states, but features is {features!r}; drop one of them")
    if features == "reconstruction" and unfit_for_waveforms:
        raise ValueError("features: reconstruction needs the decoder, and no output_norm or apply_spec_augment")


def _not_finite(wav: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which waveforms (B,) of a batch (B, T) have NaN or infinite samples within their lengths, None if none."""
    if not isinstance(wav, Tensor) or wav.ndim != 2 or torch.isfinite(wav.sum()):
        return None
    bad = ~torch.isfinite(wav)
    if lengths is not None:
        bad &= length_mask(lengths, wav.shape[1])
    broken = bad.any(dim=1)
    return broken if broken.any() else None
