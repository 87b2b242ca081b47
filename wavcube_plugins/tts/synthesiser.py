"""Text and a voice prompt in, speech out: the whole path of zero-shot TTS, without any toolkit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wavcube_plugins.errors import InputError
from wavcube_plugins.tts.flow import FlowMatching
from wavcube_plugins.tts.plan import (
    FADE_SECONDS,
    PIECE_SECONDS,
    cross_fade,
    first_words,
    new_frames,
    split_text,
    utf8_bytes,
)
from wavcube_plugins.tts.sampling import Sampling

# Seconds of a prompt: the range of training utterances, and what F5-TTS cuts prompts to.
SHORTEST_PROMPT, LONGEST_PROMPT, PROMPT_SECONDS = 0.3, 30.0, 12.0
# Pieces sampled together.
BATCH_SIZE = 8


class SynthesisCodec(Protocol):
    """The part of `models.interface.SpeechCodec` that synthesis needs, so that any vocoder can serve."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        ...

    @property
    def frame_rate(self) -> float:
        """Frames per second of the latents."""
        ...

    def encode(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode waveforms (B, T) with lengths (B,) in samples: latents (B, L, D) and their lengths in frames."""
        ...

    def decode(self, latent: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode latents (B, L, D) with lengths (B,) in frames: waveforms (B, T) and their lengths in samples."""
        ...


class Normaliser(Protocol):
    """Brings latents to zero mean and unit variance per channel, and back; a `LatentNorm` is one."""

    def __call__(self, latent: Tensor, /) -> Tensor:
        """Normalise (B, L, D)."""
        ...

    def inverse(self, latent: Tensor, /) -> Tensor:
        """Undo the normalisation of (B, L, D)."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A voice to continue.

    Args:
        latent: Normalised, (P, D); no frames at all for a random voice.
        text: Its transcript.
    """

    latent: Tensor
    text: str


@dataclass(frozen=True)
class Piece:
    """A part of a text that is sampled in one go.

    Args:
        tokens: Ids (N,) of the prompt's transcript and the text.
        frames: Frames of the prompt and the new part together.
        prompt: Normalised latent of the prompt, (P, D).
    """

    tokens: Tensor
    frames: int
    prompt: Tensor


@dataclass(frozen=True)
class SynthesisedSpeech:
    """The speech for one text, without the prompt.

    Args:
        normalised: The latent as the flow produced it, (L, D).
        latent: The latent as the codec's decoder takes it, (L, D).
        waveform: (T,), cross-faded where the text was split; None if the synthesiser has no decoder.
    """

    normalised: Tensor
    latent: Tensor
    waveform: Tensor | None


class Synthesiser:
    """Zero-shot text-to-speech with a trained `FlowMatching`.

    >>> def tokenise(text):
    ...     return [ALPHABET.index(character) for character in text]
    >>> synthesiser = Synthesiser(flow, load_model("nano"), tokenise, norm=norm)
    >>> synthesiser("a red boat", prompt_speech=waveform, prompt_text="her brother found a coat", seed=0).waveform

    A long text is split at punctuation, and the pieces are cross-faded. Without a prompt the voice is random.

    Args:
        flow: The TTS model; everything runs on its device.
        codec: Encodes prompts and decodes what was sampled; usually a `WavCube`.
        tokenise: Token ids of a text; raises `InputError` for what the model has no token for.
        norm: The normalisation that the flow was trained with; None if it was trained on raw latents.
        sampling: Defaults of every call.
        decode: Whether to decode waveforms; otherwise the result is the latent alone.
    """

    def __init__(
        self,
        flow: FlowMatching,
        codec: SynthesisCodec,
        tokenise: Callable[[str], Sequence[int]],
        *,
        norm: Normaliser | None = None,
        sampling: Sampling | None = None,
        decode: bool = True,
    ):
        self.flow, self.codec, self.tokenise, self.norm = flow, codec, tokenise, norm
        self.sampling = Sampling() if sampling is None else sampling
        self.decode = decode

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.flow.parameters()).device

    def __call__(
        self,
        text: str,
        prompt_speech: Tensor | np.ndarray | None = None,
        prompt_text: str | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
    ) -> SynthesisedSpeech:
        """Synthesise one text.

        Args:
            text: The text to speak.
            prompt_speech: The voice: a waveform (T,) at the codec's sample rate in -1 … 1, or latents (P, D).
            prompt_text: Its transcript.
            sampling: Used instead of the synthesiser's own.
            seed: Makes the result reproducible, whatever else is synthesised in the same process or batch.

        Raises:
            InputError: The text is empty or has unknown tokens, the prompt comes without its transcript or the other
                way round, or it is too short or too long.
        """
        return self.many([text], [prompt_speech], [prompt_text], sampling=sampling, seed=seed)[0]

    @torch.no_grad()
    def many(
        self,
        texts: Sequence[str],
        prompt_speech: Sequence[Tensor | np.ndarray | None] | None = None,
        prompt_text: Sequence[str | None] | None = None,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[SynthesisedSpeech]:
        """Synthesise several texts in batches; arguments, results and errors are those of a call, one per text."""
        sampling = self.sampling if sampling is None else sampling
        nothing = [None] * len(texts)
        speech, transcripts = prompt_speech or nothing, prompt_text or nothing
        if not len(texts) == len(speech) == len(transcripts):
            raise InputError(f"got {len(texts)} texts, {len(speech)} prompts and {len(transcripts)} prompt texts")
        plans = [
            self.plan(text, self.prompt(one, transcript), sampling.speed)
            for text, one, transcript in zip(texts, speech, transcripts, strict=True)
        ]
        latents = iter(self._sample([piece for plan in plans for piece in plan], sampling, seed, batch_size))
        return [self._join([next(latents) for _ in plan]) for plan in plans]

    def prompt(self, speech: Tensor | np.ndarray | None, text: str | None) -> Prompt | None:
        """Encode a prompt; one of more than 12 s is cut, and its transcript in proportion.

        Returns:
            The prompt, or None if neither speech nor text is given.

        Raises:
            InputError: One of the two is missing, or the speech cannot be used.
        """
        text = "" if text is None else text.strip()
        if speech is None:
            if text:
                raise InputError("prompt_text is given without prompt_speech; give both, or neither for a random voice")
            return None
        if not text:
            raise InputError("the prompt's transcript is missing: give it as prompt_text")
        speech = torch.as_tensor(speech)
        if speech.ndim not in (1, 2) or not len(speech):
            raise InputError(
                f"a prompt must be a waveform (samples,) or latents (frames, channels), got {tuple(speech.shape)}"
            )
        if not speech.is_floating_point():
            raise InputError(f"a prompt's waveform must be floating point in -1 … 1, got {speech.dtype}")
        seconds = len(speech) / (self.codec.sample_rate if speech.ndim == 1 else self.codec.frame_rate)
        if not SHORTEST_PROMPT <= seconds <= LONGEST_PROMPT:
            raise InputError(
                f"the prompt lasts {seconds:.2f} s; it must last {SHORTEST_PROMPT} to {LONGEST_PROMPT:.0f} s, ideally "
                "4 to 10 s"
            )
        latent = speech[None].to(self.device)
        if speech.ndim == 1:
            latent, _ = self.codec.encode(latent)
        latent = (latent if self.norm is None else self.norm(latent))[0]
        if seconds > PROMPT_SECONDS:
            latent = latent[: int(PROMPT_SECONDS * self.codec.frame_rate)]
            text = first_words(text, PROMPT_SECONDS / seconds)
            logging.getLogger(__name__).warning(
                f"the prompt lasts {seconds:.1f} s and was cut to {PROMPT_SECONDS:.0f} s, its transcript to {text!r}; "
                "cut both yourself for a better result"
            )
        return Prompt(latent, text)

    def plan(self, text: str, prompt: Prompt | None = None, speed: float = 1.0) -> list[Piece]:
        """Split a text into pieces and work out how many frames each takes.

        Raises:
            InputError: The text is empty, has unknown tokens, or has more tokens than fit into its frames.
        """
        if not isinstance(text, str) or not text.strip():
            raise InputError("the text is empty")
        text = text.strip()
        if prompt is None:
            prompt = Prompt(torch.zeros(0, self.flow.latent_dim, device=self.device), "")
            rate = self.flow.tokens_to_frames(len(self.tokenise(text))) / utf8_bytes(text)
        else:
            rate = len(prompt.latent) / utf8_bytes(prompt.text)
        # A space joins the prompt's transcript to the text, but not after a script without spaces, such as Chinese.
        before = prompt.text + (" " if prompt.text and utf8_bytes(prompt.text[-1]) == 1 else "")
        frame_rate = self.codec.frame_rate
        seconds = PIECE_SECONDS - len(prompt.latent) / frame_rate
        pieces = []
        for part in split_text(text, max(1, int(seconds * frame_rate * speed / rate))):
            frames, count = new_frames(rate, part, speed), len(self.tokenise(part))
            if count > frames:
                raise InputError(
                    f"{frames} frames are too few for the {count} tokens of {part!r}; lower the speed of {speed:g}, or "
                    "check that the prompt's text is its transcript"
                )
            tokens = torch.tensor(self.tokenise(before + part), device=self.device)
            pieces.append(Piece(tokens, len(prompt.latent) + frames, prompt.latent))
        return pieces

    def _sample(self, pieces: Sequence[Piece], sampling: Sampling, seed: int | None, batch_size: int) -> list[Tensor]:
        """Return the normalised latents (L, D) of the new parts."""
        # Similar lengths share a batch, which saves padding; the results do not depend on it.
        order = sorted(range(len(pieces)), key=lambda index: pieces[index].frames)
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            latents = self._sample_batch([pieces[index] for index in chosen], sampling, seed)
            found.update(zip(chosen, latents, strict=True))
        return [found[index] for index in range(len(pieces))]

    def _sample_batch(self, pieces: Sequence[Piece], sampling: Sampling, seed: int | None) -> list[Tensor]:
        prompts = torch.tensor([len(piece.prompt) for piece in pieces], device=self.device)
        latent, lengths = self.flow.sample(
            pad_sequence([piece.tokens for piece in pieces], batch_first=True),
            torch.tensor([len(piece.tokens) for piece in pieces], device=self.device),
            torch.tensor([piece.frames for piece in pieces], device=self.device),
            pad_sequence([piece.prompt for piece in pieces], batch_first=True),
            prompts,
            steps=sampling.steps,
            guidance=sampling.guidance,
            sway=sampling.sway,
            seeds=seed,
        )
        ends = zip(latent, prompts.tolist(), lengths.tolist(), strict=True)
        return [item[start:end] for item, start, end in ends]

    def _join(self, normalised: Sequence[Tensor]) -> SynthesisedSpeech:
        """Decode the pieces of one text and join them."""
        latents = [one if self.norm is None else self.norm.inverse(one[None])[0] for one in normalised]
        waveform = None
        if self.decode:
            waveforms = [self.codec.decode(latent[None])[0][0] for latent in latents]
            waveform = cross_fade(waveforms, round(FADE_SECONDS * self.codec.sample_rate))
        return SynthesisedSpeech(torch.cat(list(normalised)), torch.cat(latents), waveform)
