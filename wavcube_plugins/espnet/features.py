"""`feats_extract: wavcube`: the latent in the place of a mel spectrogram, for ESPnet's TTS."""

from __future__ import annotations

from typing import Any

import torch
from espnet2.tts.feats_extract.abs_feats_extract import AbsFeatsExtract
from torch import Tensor

from wavcube_plugins.espnet.held import HoldsWavCube, check_lengths_there, check_rate, load_held, pass_latents


class WavCubeFeatures(HoldsWavCube, AbsFeatsExtract):
    """The WavCube latent as the features that a TTS model learns to predict.

    >>> feats_extract = WavCubeFeatures("nano")
    >>> feats, lengths = feats_extract(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> feats.shape, lengths
    (torch.Size([2, 49, 32]), tensor([49, 24]))

    The model is frozen and outside the module tree: checkpoints hold nothing of it. Its decoder is the vocoder; see
    `WavCubeVocoder`. Latents from disk (`feats.scp,speech,npy`, written by `wavcube extract`) go through unchanged, so
    one configuration trains from either and takes waveforms at inference.

    Args:
        model: What `load_model` takes: `nano` (comes with the package), `wavcube`, `wavcube_pro`, a hub name, a folder
            or a checkpoint. A name stays valid in a packed model, a path need not.
        fs: The recipe's sample rate in Hz, to check it.
        hop_length: The recipe's hop in samples, to check it: `tts.sh --n_shift 320`.
        n_fft: Without effect; `tts.sh` passes it to every extractor.
        win_length: Without effect, likewise.
        dtype: Type to compute in: float32, bfloat16 or float16. Features have the input's type in any case.
        revision: Branch, tag or commit of a hub model.

    Raises:
        ValueError: a model that cannot be loaded, or options that do not fit it; one sentence.
    """

    def __init__(
        self,
        model: str = "nano",
        fs: int | str | None = None,
        n_fft: int | None = None,
        hop_length: int | None = None,
        win_length: int | str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
    ):
        super().__init__()
        wavcube = load_held(model, dtype, revision)
        check_rate(fs, wavcube, model)
        if hop_length is not None and hop_length != wavcube.hop_length:
            raise ValueError(
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
        """Return the channels of the latent."""
        return self.model.latent_dim

    def get_parameters(self) -> dict[str, Any]:
        """Return what describes the features to a vocoder; n_fft, n_shift and fs together would mean Griffin-Lim."""
        return {"model": self.source, "sample_rate": self.sample_rate, "hop_length": self.hop_length}

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return the frames (B,) that waveforms of these lengths (B,) in samples give."""
        return self.model.frame_lengths(lengths)

    def forward(self, input: Tensor, input_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extract features.

        Args:
            input: Waveforms (B, T) in -1 … 1, or latents (B, L, D), which are handed on.
            input_lengths: (B,) samples, or frames of latents; None if all items are whole.

        Returns:
            Latents (B, L, D) in the input's type, zero beyond the lengths, and their lengths (B,) in frames.

        Raises:
            ValueError: an input of another shape, or with values that are not finite.
        """
        if input.ndim == 3:
            return pass_latents(input, input_lengths, self.output_size())
        lengths = check_lengths_there(input, input_lengths)
        with torch.no_grad():
            latent, frames = self.model.encode(input, lengths)
        return latent[:, : int(frames.max())].to(input.dtype), frames

    def extra_repr(self) -> str:
        return f"model={self.source!r}, channels={self.output_size()}, frozen"
