"""The lobe: WavCube under the names, shapes and relative lengths of SpeechBrain's own SSL and codec lobes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.transforms import SpecAugment

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.config import WavCubeConfig

FEATURES = ("latent", "hidden_states", "restored", "reconstruction")

# Parts of the model that some lobes freeze, and so leave out of their checkpoints, as a whole.
_PARTS = ("wavlm.feature_extractor", "wavlm.encoder", "post_wavlm_layer_norm", "compressor", "restorer", "decoder")

# Masks of `apply_spec_augment`: so many spans of frames and of channels, each below so many frames (0.4 s at 50 Hz) and
# below this part of the item's frames, or of the channels.
_MASKS, _LONGEST_MASK, _WIDEST_MASK = 2, 20, 0.2


class WavCube(nn.Module):
    """WavCube as a lobe of SpeechBrain.

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

    Features do not depend on the padding, nor on the other items of the batch. Nothing is random, in training mode
    neither, unless `dropout` or `apply_spec_augment` asks for it: the model itself stays in evaluation mode whatever
    `Brain.fit` does. Trainable is what `forward` uses of the model, so that DDP finds no unused parameter; all else is
    frozen. The state dict, and so every checkpoint, holds the trainable weights alone; what it lacks comes from
    `source`, and loading works from and into lobes that freeze other parts.

    Under DDP call the lobe itself, not its methods: those bypass the exchange of gradients.

    Args:
        source: `nano` (comes with the package), `wavcube` or `wavcube_pro` (published on the Hugging Face hub), a hub
            name, a native folder, or a checkpoint file: whatever `load_model` takes.
        save_path: Folder for what is downloaded from the hub; None is the hub's own cache.
        output_norm: Bring each frame to zero mean and unit variance over its channels.
        freeze: Train nothing of the model. A waveform that requires a gradient still gets one.
        freeze_feature_extractor: Train all but WavLM's conv stem.
        apply_spec_augment: Mask spans of frames and channels of the features while training.
        output_all_hiddens: Give every hidden state of WavLM instead of one.
        features: What `forward` gives: `latent`; `hidden_states`, the last one of WavLM or all of them; `restored`,
            what the Restorer makes of the latent; `reconstruction`, the decoded waveform, to train the decoder, too.
            Left out it is `latent`, or `hidden_states` with `output_all_hiddens`.
        sample_rate: Sample rate of the waveforms that will come, in Hz, to check it once: `!ref <sample_rate>`.
        dropout: Let the dropout of Compressor and Restorer work while training, as pretraining has it.
        decoder: Keep the AcousticDecoder, nearly half of the weights; False leaves `encode` alone of the codec.
        freeze_decoder: Train all but the decoder, where `features` is `reconstruction`.
        config: Sizes of a checkpoint file that is of no preset: a preset's name, or a mapping as in `config.json`.
        revision: Branch, tag or commit of a hub model.
        local_files_only: Download nothing. `HF_HUB_OFFLINE` does the same.

    Attributes:
        model: The `wavcube_plugins.WavCube` that computes; `checkpoints.save_model` writes it whole, once fine-tuned.

    Raises:
        ValueError: a model that cannot be loaded, another sample rate than the model's, or options that do not fit
            together; one sentence.
    """

    def __init__(
        self,
        source: str | os.PathLike = "nano",
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
        if features is None:
            features = "hidden_states" if output_all_hiddens else "latent"
        if features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
        if output_all_hiddens and features != "hidden_states":
            raise ValueError(f"output_all_hiddens gives hidden_states, but features is {features!r}; drop one of them")
        if features == "reconstruction" and (output_norm or apply_spec_augment or not decoder):
            raise ValueError("features: reconstruction needs the decoder, and no output_norm or apply_spec_augment")
        self.source = os.fspath(source)
        self.features = features
        self.output_norm = output_norm
        self.output_all_hiddens = output_all_hiddens
        self.freeze = freeze
        self.freeze_feature_extractor = freeze_feature_extractor
        self.freeze_decoder = freeze_decoder
        self.dropout = dropout
        self.model = load_model(
            source,
            config=WavCubeConfig.from_dict(config) if isinstance(config, dict) else config,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=save_path or None,
        )
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise ValueError(
                f"the waveforms have a sample rate of {sample_rate} Hz, but the model {self.source} takes "
                f"{self.sample_rate} Hz"
            )
        if not decoder:
            self.model.decoder = None
        self.spec_augment = None
        if apply_spec_augment:
            widest = max(1, self.output_dim // 10)
            self.spec_augment = SpecAugment(
                _MASKS, _LONGEST_MASK, _MASKS, widest, iid_masks=False, p=_WIDEST_MASK, zero_masking=True
            )

        # Recipes freeze the conv stem by `lobe.model.feature_extractor._freeze_parameters()`, as transformers has it.
        stem = self.model.wavlm.feature_extractor
        stem._freeze_parameters = self._freeze_stem
        self.model.__dict__["feature_extractor"] = stem  # a second name, not a second registration

        self.model.requires_grad_(False)
        self._saved: set[str] = set()
        if not freeze:
            self._thaw()
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_pre_hook(_fill_in_frozen)
        self.train()

    def __repr__(self) -> str:
        # SpeechBrain's checkpointing logs the lobe by this; the tree of modules would fill pages.
        return f"WavCube(source={self.source!r}, features={self.features!r}, freeze={self.freeze})"

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.model.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame of what `forward` gives; of a reconstruction, 1."""
        if self.features == "reconstruction":
            return 1
        return self.model.hop_length if self.features == "latent" else self.model.config.wavlm.hop_length

    @property
    def output_dim(self) -> int:
        """Channels of what `forward` gives; of a reconstruction, 1."""
        if self.features == "reconstruction":
            return 1
        return self.model.latent_dim if self.features == "latent" else self.model.config.wavlm.hidden_dim

    @property
    def num_layers(self) -> int:
        """How many hidden states `output_all_hiddens` gives: one more than WavLM has layers."""
        return self.model.config.wavlm.num_layers + 1

    def train(self, mode: bool = True) -> WavCube:
        """Set the mode as usual, but keep the model itself in evaluation, unless its dropout was asked for."""
        super().train(mode)
        self.model.train(mode and self.dropout and not self.freeze)
        return self

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Turn waveforms into features.

        Args:
            wav: (B, T) at `sample_rate`, in -1 … 1.
            wav_lens: (B,) relative lengths, in 0 … 1; None if all items are whole.

        Returns:
            Features (B, L, output_dim), zero beyond the lengths, L as `frame_lens` says; (layers, B, L, output_dim)
            with `output_all_hiddens`; or waveforms (B, T) where `features` is `reconstruction`.

        Raises:
            ValueError: waveforms or lengths of wrong type, shape or content.
        """
        lengths = absolute_lengths(wav_lens, wav)
        with self._gradients(wav):
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
                features = self._mask(features, frames)
        return features

    def frame_lens(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Return the relative lengths (B,) of what `forward` gives; arguments as there.

        They differ a little from those of the waveforms, because T samples give 1 + (T - 400) // 320 frames: an item's
        frames are exactly round(frame_lens * L), while round(wav_lens * L) may be one off.
        """
        if self.features == "reconstruction":
            return torch.ones(len(wav), device=wav.device) if wav_lens is None else wav_lens
        lengths = absolute_lengths(wav_lens, wav)
        if lengths is None:
            return torch.ones(len(wav), device=wav.device)
        of_model = self.model if self.features == "latent" else self.model.wavlm
        longest = of_model.frame_lengths(torch.tensor(wav.shape[1]))
        return relative_lengths(of_model.frame_lengths(lengths), int(longest))

    def encode(
        self, wav: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn waveforms into the latent as `decode` takes it, whatever the options of `forward` are.

        Args:
            wav: (B, T) at `sample_rate`, in -1 … 1.
            wav_lens: (B,) relative lengths; None if all items are whole.
            window_seconds: Work in overlapping windows of this length, for audio of hours.

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
            window_seconds: Work in overlapping windows of this length, for audio of hours.

        Returns:
            Waveforms (B, T), T a multiple of L, zero beyond the lengths; their relative lengths are `latent_lens`.

        Raises:
            ValueError: a latent or lengths of wrong shape or content, or no decoder.
        """
        self._check_decoder()
        with self._gradients(latent):
            return self.model.decode(
                latent, absolute_lengths(latent_lens, latent, "latent_lens"), window_seconds=window_seconds
            )[0]

    def reconstruct(
        self, wav: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Send waveforms through the latent and back; arguments as in `encode`.

        Returns:
            Waveforms (B, T) of the input's shape and lengths.

        Raises:
            ValueError: waveforms or lengths of wrong type, shape or content, or no decoder.
        """
        self._check_decoder()
        with self._gradients(wav):
            return self.model.reconstruct(wav, absolute_lengths(wav_lens, wav), window_seconds=window_seconds)[0]

    def _check_decoder(self) -> None:
        if self.model.decoder is None:
            raise ValueError("this lobe was made with decoder=False, it cannot decode")

    def _gradients(self, x: Tensor):
        # Without gradients where none is wanted, as SpeechBrain's lobes do when frozen: it saves time and memory.
        wanted = torch.is_grad_enabled() and (not self.freeze or (isinstance(x, Tensor) and x.requires_grad))
        return torch.set_grad_enabled(wanted)

    def _thaw(self) -> None:
        """Let train what `forward` uses, less what is to stay frozen."""
        model, config = self.model, self.model.config
        model.wavlm.requires_grad_()
        if self.features != "hidden_states":
            model.post_wavlm_layer_norm.requires_grad_()
            model.compressor.requires_grad_()
            if 0 <= config.wavlm_layer < config.wavlm.num_layers:
                transformer = model.wavlm.encoder.transformer
                transformer.layers[config.wavlm_layer :].requires_grad_(False)
                if config.wavlm.layer_norm_first:  # then it is the last layer's
                    transformer.layer_norm.requires_grad_(False)
        if self.features == "restored":
            model.restorer.requires_grad_()
        if self.features == "reconstruction" and not self.freeze_decoder:
            model.decoder.requires_grad_()
        # Remembered, because weights that were trained belong into checkpoints also when they are frozen later.
        self._saved = {name for name, weight in self.named_parameters() if weight.requires_grad}
        if self.freeze_feature_extractor:
            self._freeze_stem()

    def _freeze_stem(self) -> None:
        self.freeze_feature_extractor = True
        self.model.wavlm.feature_extractor.requires_grad_(False)
        self._saved = {name for name in self._saved if not name.startswith("model.wavlm.feature_extractor.")}

    def _mask(self, features: Tensor, frames: Tensor) -> Tensor:
        keep = torch.ones(features.shape[-3:])  # (B, L, C), the same for every layer
        for item, count in enumerate(frames.tolist()):
            keep[item, :count] = self.spec_augment(keep[item, :count].t()).t()
        return features.masked_fill(keep.to(features.device) == 0, 0.0)


def absolute_lengths(lens: Tensor | Sequence[float] | None, batch: Tensor, name: str = "wav_lens") -> Tensor | None:
    """Turn SpeechBrain's relative lengths into whole numbers.

    A length that was divided by the longest one in float32, as SpeechBrain does it, comes back exactly up to a longest
    one of 2 ** 24 (17 minutes of samples); beyond that float32 itself cannot tell neighbours apart.

    Args:
        lens: (B,) in 0 … 1, or None if all items are whole.
        batch: What they belong to, (B, T, ...).
        name: Of the lengths, for messages.

    Returns:
        (B,) int64 on the device of the batch, or None.

    Raises:
        ValueError: not floating point, not one per item, outside 0 … 1, or an item without anything.
    """
    if lens is None or batch.ndim < 2:  # the model says what is wrong with the batch
        return None
    lens = torch.as_tensor(lens)
    if not lens.is_floating_point():
        raise ValueError(f"{name} must be relative lengths in 0 … 1, got {lens.dtype}; divide by the longest length")
    size, longest = batch.shape[:2]
    if lens.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), one per item, got {tuple(lens.shape)}")
    # Not in float32, whose product would be off by one from 2 ** 22 on; on the CPU, since not every device has float64.
    lens = lens.detach().to("cpu", torch.float64)
    lengths = torch.round(lens * longest)
    if not bool(((lengths >= 1) & (lengths <= longest)).all()):
        raise ValueError(
            f"{name} must lie in 0 … 1 and leave no item empty, got {lens.min():g} … {lens.max():g} of {longest}"
        )
    return lengths.long().to(batch.device)


def relative_lengths(lengths: Tensor, longest: int) -> Tensor:
    """Turn lengths (B,) in samples or frames into SpeechBrain's relative ones, float32; `longest` is the batch's."""
    return lengths.float() / longest


def _leave_out_frozen(lobe: WavCube, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """Take out of a state dict what `source` has and nothing has trained."""
    for name, weight in lobe.model.named_parameters(prefix="model"):
        if name not in lobe._saved and not weight.requires_grad:
            state.pop(prefix + name, None)


def _fill_in_frozen(lobe: WavCube, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict be loaded that holds less than the lobe, or more.

    What is frozen here may be missing; so may a whole part, which was frozen where the state comes from. A part that
    is there in pieces is an error as always. Weights of a decoder that is not there are passed over.
    """
    weights = dict(lobe.named_parameters(prefix=prefix[:-1]))
    for part in _PARTS:
        start = f"{prefix}model.{part}."
        own = {name: weight for name, weight in weights.items() if name.startswith(start)}
        present = any(name in state for name in own)
        for name, weight in own.items():
            needed = name.removeprefix(prefix) in lobe._saved or weight.requires_grad
            if name not in state and not (present and needed):
                state[name] = weight
        if part == "decoder" and lobe.model.decoder is None:
            for name in [name for name in state if name.startswith(start)]:
                del state[name]
