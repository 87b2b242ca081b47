"""ESPnet's feature extractor and vocoder, its normalisation and its text front end, as parts of a `Synthesiser`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.errors import InputError


class ESPnetCodec:
    """A feature extractor and a vocoder of ESPnet as the codec of a `Synthesiser`.

    Args:
        feats_extract: None if the model was trained on features from disk without an extractor.
        vocoder: From features (L, D) to a waveform (T,), or None.
        dtype: Type of the extractor's weights.

    Raises:
        InputError: Neither tells the sample rate or the frame rate.
    """

    def __init__(self, feats_extract: Any, vocoder: Any, dtype: torch.dtype):
        self.feats_extract, self.vocoder, self.dtype = feats_extract, vocoder, dtype
        self.normalised: Any = None
        about = {} if feats_extract is None else feats_extract.get_parameters()
        rate = about.get("sample_rate", about.get("fs", getattr(vocoder, "fs", None)))
        hop = about.get("hop_length", about.get("n_shift", getattr(vocoder, "hop_length", None)))
        if not rate or not hop:
            raise InputError(
                "the sample rate and frame rate of the model's features are unknown, since it was trained without "
                "--feats_extract; name the WavCube whose latents it speaks: vocoder_file wavcube:MODEL"
            )
        self.sample_rate, self.frame_rate = int(rate), rate / hop

    def encode(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extract features (B, L, D) of waveforms (B, T)."""
        if self.feats_extract is None:
            raise InputError("this model was trained on features from disk, so its prompts must be features as well")
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        return self.feats_extract(waveforms.to(self.dtype), lengths)

    def decode(self, latent: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn features (1, L, D) into a waveform (1, T)."""
        features = latent if self.normalised is None else self.normalised(latent)
        waveform = self.vocoder(features[0])[None]
        return waveform, torch.tensor([waveform.shape[1]], device=waveform.device)


class ESPnetNormaliser:
    """ESPnet's `GlobalMVN` as the normaliser of a `Synthesiser`; it works in place, so it gets copies."""

    def __init__(self, normalize: Any):
        self.normalize = normalize

    def __call__(self, latent: Tensor, /) -> Tensor:
        """Normalise (B, L, D)."""
        return self.normalize(latent.clone())[0]

    def inverse(self, latent: Tensor, /) -> Tensor:
        """Undo the normalisation of (B, L, D)."""
        return self.normalize.inverse(latent.clone())[0]


class Tokeniser:
    """ESPnet's text front end as the tokeniser of a `Synthesiser`, except that it refuses unknown tokens.

    Args:
        process: ESPnet's preprocessor, or None if the model was trained without.
    """

    def __init__(self, process: Any):
        self.process = process

    def __call__(self, text: str) -> list[int]:
        """Return the token ids of a text.

        Raises:
            InputError: The model cannot read texts, has no token for something in it, or nothing is left of it.
        """
        process = self.process
        if process is None:
            raise InputError("the model was trained with --use_preprocessor false, so it cannot read texts")
        known = process.token_id_converter.token2id
        tokens = process.tokenizer.text2tokens(process.text_cleaner(text))
        unknown = list(dict.fromkeys(token for token in tokens if token not in known))
        if unknown:
            listed = ", ".join(map(repr, unknown[:8]))
            raise InputError(f"the model has no token for {listed} in {text!r}; use the tokens of the training text")
        if not tokens:
            raise InputError(f"nothing is left of the text {text!r} after ESPnet's text cleaner")
        return list(process.token_id_converter.tokens2ids(tokens))
