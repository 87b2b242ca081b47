"""`feats_extract: wavcube`: the latent in place of a mel spectrogram, for ESPnet's TTS."""

from __future__ import annotations

from typing import Any

from espnet2.tts.feats_extract.abs_feats_extract import AbsFeatsExtract
from torch import Tensor

from wavcube_plugins.checkpoints import load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.espnet.held import (
    HoldsWavCube,
    check_rate,
    ignore_filter_bank_options,
    pass_latents,
    whole_lengths,
)


class WavCubeFeatsExtract(HoldsWavCube, AbsFeatsExtract):
    """The WavCube latent as the features that a TTS model learns to predict.

    >>> feats_extract = WavCubeFeatsExtract("nano")
    >>> feats, lengths = feats_extract(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> feats.shape, lengths
    (torch.Size([2, 49, 32]), tensor([49, 24]))

    The model is frozen, and checkpoints hold nothing of it. Its decoder is the vocoder; see `WavCubeVocoder`. Latents
    from disk (`feats.scp,speech,npy`, written by `wavcube extract`) pass through unchanged, so a configuration trains
    from either and takes waveforms at inference.

    Args:
        model: What `load_model` takes: `wavcube`, `wavcube_pro`, `nano`, a hub name, a folder or a checkpoint. A name
            stays valid in a packed model; a path may not.
        fs: The recipe's sample rate in Hz, to check it.
        hop_length: The recipe's hop in samples, to check it: `tts.sh --n_shift 320`.
        dtype: Type to compute in, under AMP too: float32, bfloat16 or float16. Features have the input's type.
        revision: Branch, tag or commit of a hub model.
        filter_bank_options: Options of ESPnet's filter banks, which have no effect: `tts.sh` passes some to every
            extractor, and ESPnet3 merges all of them into a configuration without `feats_extract_conf`.

    Raises:
        InputError: The model cannot be loaded, or an option does not fit it.
    """

    def __init__(
        self,
        model: str = "wavcube",
        fs: int | str | None = None,
        hop_length: int | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        **filter_bank_options: Any,
    ):
        super().__init__()
        if ignore_filter_bank_options(filter_bank_options, "feats_extract_conf"):
            fs = hop_length = None
        wavcube = load_model(model, dtype=dtype, revision=revision)
        check_rate(fs, wavcube, model)
        if hop_length is not None and hop_length != wavcube.hop_length:
            raise InputError(
                f"hop_length is {hop_length}, but the WavCube model {model} has one frame per {wavcube.hop_length} "
                f"samples; with tts.sh: --n_shift {wavcube.hop_length}"
            )
        self.hold(wavcube, model, without=("decoder", "restorer"))
        self.revision = revision

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.model.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.model.hop_length

    def output_size(self) -> int:
        """Return the number of channels of the latent."""
        return self.model.latent_dim

    def get_parameters(self) -> dict[str, Any]:
        """Describe the features to a vocoder; n_fft, n_shift and fs together would ask ESPnet for Griffin-Lim."""
        return {"model": self.source, "sample_rate": self.sample_rate, "hop_length": self.hop_length}

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return the number of frames (B,) of waveforms with the given lengths (B,) in samples."""
        return self.model.frame_lengths(lengths)

    def forward(self, input: Tensor, input_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extract features.

        Args:
            input: Waveforms (B, T) in -1 … 1, or latents (B, L, D), which pass through.
            input_lengths: (B,) samples, or frames of latents; None if all items are whole.

        Returns:
            Latents (B, L, D) in the input's type, zero beyond the lengths, and their lengths (B,) in frames.

        Raises:
            InputError: The input has another shape.
            ValueError: A waveform has values that are not finite.
        """
        if input.ndim == 3:
            return pass_latents(input, input_lengths, self.output_size())
        lengths = whole_lengths(input, input_lengths)
        with self.frozen_precision(input):
            latent, frames = self.model.encode(input, lengths)
        return latent[:, : int(frames.max())].to(input.dtype), frames

    def extra_repr(self) -> str:
        """Describe the extractor in `print(model)`."""
        return f"model={self.source!r}, channels={self.output_size()}, frozen"
