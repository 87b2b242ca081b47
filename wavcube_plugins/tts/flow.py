"""Flow matching: the infilling objective, the moving average of the weights, and sampling."""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import check_lengths, length_mask
from wavcube_plugins.tts.network import DiT
from wavcube_plugins.tts.text import TextEncoder

# Sampling as in F5-TTS: evaluations, strength of classifier-free guidance, coefficient of sway sampling.
STEPS, GUIDANCE, SWAY = 32, 2.0, -1.0


@dataclass(frozen=True)
class FlowDraws:
    """What chance decides in a training step.

    Args:
        time: Of the flow, (B,) in 0 … 1.
        noise: Where the flow starts, (B, L, D).
        hidden: True where the latent is hidden from the condition and to be filled in, (B, L).
        drop_audio: The batch sees no audio condition.
        drop_text: The batch sees no text.
    """

    time: Tensor
    noise: Tensor
    hidden: Tensor
    drop_audio: bool = False
    drop_text: bool = False


@dataclass(frozen=True)
class FlowLoss:
    """Mean squared error of the predicted flow where the latent was hidden.

    Attributes:
        loss: Mean over all hidden frames of the batch and their channels, a scalar.
        item_losses: The same of each item, (B,), without gradient.
        frames: Hidden frames of each item, (B,): the weights by which losses of batches are to be averaged.
    """

    loss: Tensor
    item_losses: Tensor
    frames: Tensor


class FlowNetwork(nn.Module):
    """Text encoder and transformer.

    Args:
        config: Sizes.
        vocab_size: Number of token ids.
        latent_dim: D, channels of the latent.
    """

    def __init__(self, config: FlowConfig, vocab_size: int, latent_dim: int):
        super().__init__()
        self.text_encoder = TextEncoder(config, vocab_size)
        self.transformer = DiT(config, latent_dim)


class LatentNorm(nn.Module):
    """Brings each channel of the latent to zero mean and unit variance over a training set, and back.

    Flow matching starts from unit noise, so the latent must have its scale. ESPnet does the same with `global_mvn`.

    Args:
        latent_dim: D.
    """

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))

    def fit(self, latents: Iterable[Tensor]) -> LatentNorm:
        """Take the statistics of latents (L, D), and return the module.

        Raises:
            ValueError: there are none.
        """
        count, total, squares = 0, 0.0, 0.0
        for latent in latents:
            latent = latent.double()
            count, total, squares = count + len(latent), total + latent.sum(0), squares + latent.square().sum(0)
        if not count:
            raise ValueError("there are no latents to take the statistics of")
        mean = total / count
        self.mean.copy_(mean)
        # A channel that never changes stays as it is.
        self.std.copy_((squares / count - mean.square()).clamp_min(0).sqrt()).masked_fill_(self.std < 1e-6, 1.0)
        return self

    def forward(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalise (B, L, D); the result is zero beyond the lengths (B,)."""
        return mask_frames((latent - self.mean) / self.std, lengths)

    def inverse(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Undo `forward`."""
        return mask_frames(latent * self.std + self.mean, lengths)


class FlowMatching(nn.Module):
    """The TTS model: text and the latent of a prompt in, the latent of the rest out.

    `network` is trained; `ema` is a moving average of it, kept as a frozen copy so that it is saved and moved with the
    model, needs no gradients and is not sent between processes at every step. The average is renewed when the weights
    have changed since it was last looked at: in every call, in training or evaluation, and before the state is saved.
    So the trainer need not know of it; with accumulated gradients it counts optimiser steps, and every process of a
    distributed run keeps the same average. Evaluation and sampling use `ema`, which stays in evaluation mode, so that
    nothing is dropped at random even in the middle of training.

    Latents are normalised ones everywhere, see `LatentNorm`.

    Args:
        config: Sizes and objective.
        vocab_size: Number of token ids.
        latent_dim: D, channels of the latent.

    Raises:
        ValueError: sizes that are not positive.
    """

    def __init__(self, config: FlowConfig, vocab_size: int, latent_dim: int):
        super().__init__()
        if vocab_size < 1 or latent_dim < 1:
            raise ValueError(f"vocab_size and latent_dim must be positive, got {vocab_size} and {latent_dim}")
        self.config, self.vocab_size, self.latent_dim = config, vocab_size, latent_dim
        self.network = FlowNetwork(config, vocab_size, latent_dim)
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        # Whole numbers: they survive half precision, and an average of checkpoints that adds them up.
        self.register_buffer("ema_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frames_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))
        self._version: int | None = None
        self.register_state_dict_pre_hook(_renew_average)
        self.register_load_state_dict_post_hook(_forget_version)

    def train(self, mode: bool = True) -> FlowMatching:
        """Set the mode as usual; the average stays in evaluation."""
        super().train(mode)
        self.ema.eval()
        return self

    def forward(
        self,
        latent: Tensor,
        lengths: Tensor | None,
        tokens: Tensor,
        token_lengths: Tensor | None,
        draws: FlowDraws | None = None,
    ) -> FlowLoss:
        """Return the loss of a batch.

        In training the draws are random. In evaluation they depend on each utterance's tokens and length alone, and
        nothing is dropped, so that the loss can be compared between epochs and does not depend on the batches.

        Args:
            latent: Normalised, (B, L, D).
            lengths: (B,) frames, or None if all items are whole.
            tokens: Ids (B, N).
            token_lengths: (B,) tokens, or None if all are valid.
            draws: What to take instead of own draws.

        Raises:
            ValueError: shapes or lengths that do not fit, or token ids outside the vocabulary.
        """
        self.update_average()
        lengths, token_lengths = self._check(latent, lengths, tokens, token_lengths)
        if self.training:
            self.frames_seen += lengths.sum()
            self.tokens_seen += token_lengths.sum()
        if draws is None:
            draw = self._draw if self.training else self._fixed_draws
            draws = draw(latent, lengths, tokens, token_lengths)
        network = self.network if self.training else self.ema
        masked = lengths if bool((lengths < latent.shape[1]).any()) else None

        time = draws.time[:, None, None].to(latent.dtype)  # (B, 1, 1)
        noisy = mask_frames((1 - time) * draws.noise + time * latent, masked)  # (B, L, D)
        condition = mask_frames(latent.masked_fill(draws.hidden[..., None], 0.0), masked)
        if draws.drop_audio:
            condition = torch.zeros_like(condition)
        text = network.text_encoder(tokens, token_lengths, latent.shape[1], lengths)  # (B, L, C)
        if draws.drop_text:
            # Worked out all the same: a distributed run wants a gradient of every weight at every step.
            text = text.masked_fill(torch.ones_like(text, dtype=torch.bool), 0.0)
        flow = network.transformer(noisy, condition, text, draws.time, masked).float()

        counted = draws.hidden & length_mask(lengths, latent.shape[1])  # (B, L)
        errors = (flow - (latent - draws.noise).float()).square().mean(-1).masked_fill(~counted, 0.0)  # (B, L)
        frames = counted.sum(1)
        loss = errors.sum() / frames.sum().clamp_min(1)
        return FlowLoss(loss, errors.detach().sum(1) / frames.clamp_min(1), frames)

    @torch.no_grad()
    def sample(
        self,
        tokens: Tensor,
        token_lengths: Tensor | None,
        frames: Tensor | Sequence[int],
        prompt: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        sway: float = SWAY,
        seeds: int | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw latents for texts, each going on from its prompt if there is one.

        With seeds, an item's result depends on its own text, prompt, length and seed, not on the rest of the batch.

        Args:
            tokens: Ids (B, N) of the prompt's text and the text together.
            token_lengths: (B,), or None if all are valid.
            frames: (B,) frames of prompt and new part together.
            prompt: Normalised latent of the prompts, (B, P, D), or None.
            prompt_lengths: (B,) frames, 0 for an item without a prompt; None if all are whole.
            steps: Evaluations of the network, by Euler's method.
            guidance: Strength of classifier-free guidance; 0 is none, and takes half the time.
            sway: Coefficient of sway sampling: below 0 more of the steps go to the beginning; 0 spaces them evenly.
            seeds: One for all items, or one for each; None draws from PyTorch's global generator.

        Returns:
            Normalised latents (B, L, D) with the prompts in their places, zero beyond their lengths; these, (B,).

        Raises:
            ValueError: shapes or lengths that do not fit, fewer frames than tokens, no frame behind a prompt, or
                options out of range.
        """
        self.update_average()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not -1 <= sway <= 2 / (math.pi - 2) or not guidance >= 0:
            raise ValueError(f"sway must lie in -1 … 1.75 and guidance must not be negative, got {sway} and {guidance}")
        parameter = self.ema.transformer.out_proj.weight
        frames = torch.as_tensor(frames, device=tokens.device)
        if prompt is None:
            prompt = parameter.new_zeros(len(tokens), 1, self.latent_dim)
            prompt_lengths = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        elif prompt_lengths is None:
            prompt_lengths = torch.full((len(tokens),), prompt.shape[1], device=tokens.device)
        if frames.shape != tokens.shape[:1] or prompt_lengths.shape != tokens.shape[:1] or len(prompt) != len(tokens):
            raise ValueError(
                f"got {len(tokens)} texts, {len(prompt)} prompts with {len(prompt_lengths)} lengths and "
                f"{frames.numel()} numbers of frames; there must be one of each per item"
            )
        if bool((frames <= prompt_lengths).any()):
            raise ValueError(
                f"there must be frames behind the prompts, got {frames.tolist()} in all, {prompt_lengths.tolist()} of "
                "prompts"
            )
        longest = int(frames.max())
        known = length_mask(prompt_lengths, longest)[..., None]  # (B, L, 1)
        prompt = F.pad(prompt[:, :longest], (0, 0, 0, longest - min(longest, prompt.shape[1]))).to(parameter.dtype)
        condition = prompt.masked_fill(~known, 0.0)  # (B, L, D)
        lengths, token_lengths = self._check(condition, frames, tokens, token_lengths)
        crowded = token_lengths > frames
        if bool(crowded.any()):
            item = int(crowded.int().argmax())
            raise ValueError(
                f"{int(token_lengths[item])} tokens do not fit into {int(frames[item])} frames; speak more slowly"
            )
        masked = lengths if bool((lengths < longest).any()) else None
        x = self._noise(lengths, longest, seeds).to(parameter)  # (B, L, D)
        text = self.ema.text_encoder(tokens, token_lengths, longest, lengths)  # (B, L, C)
        if guidance:
            text = torch.cat([text, torch.zeros_like(text)])
            both = torch.cat([condition, torch.zeros_like(condition)])
            both_masked = None if masked is None else masked.repeat(2)
        times = schedule(steps, sway)
        for start, end in itertools.pairwise(times):
            if guidance:
                time = torch.full((2 * len(x),), start, device=x.device)
                flow, free = self.ema.transformer(x.repeat(2, 1, 1), both, text, time, both_masked).chunk(2)
                flow = flow + guidance * (flow - free)
            else:
                time = torch.full((len(x),), start, device=x.device)
                flow = self.ema.transformer(x, condition, text, time, masked)
            x = x + (end - start) * flow
        return mask_frames(torch.where(known, condition, x), masked), lengths

    @torch.no_grad()
    def update_average(self) -> None:
        """Take the weights into the average if they have changed since the last look."""
        weights = list(self.network.parameters())
        # Every change in place counts a tensor's version up; looking at it costs no time on the device.
        version = sum(weight._version for weight in weights)
        if self._version is not None and version != self._version:
            # The decay grows with the steps: a short run must not be left with the average of its first ones.
            share = (9 / (10 + self.ema_steps)).clamp(min=1 - self.config.ema_decay)
            for average, weight in zip(self.ema.parameters(), weights, strict=True):
                average.lerp_(weight.to(average.dtype), share.to(average.dtype))
            self.ema_steps += 1
        elif self._version is None and not int(self.ema_steps):
            # Whoever built this may have initialised the weights after us, the two copies each their own way.
            for average, weight in zip(self.ema.parameters(), weights, strict=True):
                average.copy_(weight)
        self._version = version

    def __getstate__(self) -> dict:
        self.update_average()
        return self.__dict__.copy()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        # A copy's tensors count their changes anew.
        self._version = None

    def tokens_to_frames(self, tokens: int) -> float:
        """Return how many frames so many tokens took on average in training.

        Raises:
            ValueError: nothing has been trained yet.
        """
        if not int(self.tokens_seen):
            raise ValueError("the model has seen no speech, so it cannot tell how long a text takes; train it first")
        return tokens * int(self.frames_seen) / int(self.tokens_seen)

    def _check(self, latent: Tensor, lengths, tokens: Tensor, token_lengths) -> tuple[Tensor, Tensor]:
        if latent.ndim != 3 or latent.shape[2] != self.latent_dim or 0 in latent.shape:
            raise ValueError(
                f"the latent must have shape (batch, frames, {self.latent_dim}), got {tuple(latent.shape)}"
            )
        if tokens.ndim != 2 or len(tokens) != len(latent) or not tokens.shape[1]:
            raise ValueError(
                f"tokens must have shape ({len(latent)}, tokens), one row per item, got {tuple(tokens.shape)}"
            )
        lengths = check_lengths(lengths, latent, "frames")
        token_lengths = check_lengths(token_lengths, tokens, "tokens")
        valid = tokens.masked_fill(~length_mask(token_lengths, tokens.shape[1]), 0)
        if int(valid.min()) < 0 or int(valid.max()) >= self.vocab_size:
            raise ValueError(
                f"token ids must lie in 0 … {self.vocab_size - 1}, got {int(valid.min())} … {int(valid.max())}"
            )
        return lengths, token_lengths

    def _draw(self, latent: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> FlowDraws:
        time, part, place = torch.rand(3, len(latent), device=latent.device)
        drop_audio, drop_both = (torch.rand(2) < torch.tensor([self.config.audio_drop, self.config.both_drop])).tolist()
        hidden = self._hidden(lengths, latent.shape[1], part, place)
        return FlowDraws(time, torch.randn_like(latent), hidden, drop_audio or drop_both, drop_both)

    def _fixed_draws(self, latent: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> FlowDraws:
        noise = torch.zeros(latent.shape)
        numbers = torch.zeros(3, len(latent))
        for item, (frames, count) in enumerate(zip(lengths.tolist(), token_lengths.tolist(), strict=True)):
            said = f"{frames} {tokens[item, :count].tolist()}"
            generator = torch.Generator().manual_seed(zlib.crc32(said.encode()))
            numbers[:, item] = torch.rand(3, generator=generator)
            noise[item, :frames] = torch.randn(frames, latent.shape[2], generator=generator)
        time, part, place = numbers.to(latent.device)
        return FlowDraws(time, noise.to(latent), self._hidden(lengths, latent.shape[1], part, place))

    def _hidden(self, lengths: Tensor, longest: int, part: Tensor, place: Tensor) -> Tensor:
        """Return the span (B, L) that is hidden, from numbers (B,) in 0 … 1 for its length and its place."""
        least, most = self.config.span
        # At least one frame, else a very short utterance would teach nothing.
        count = ((least + (most - least) * part) * lengths).long().clamp_min(1)
        start = (place * (lengths - count + 1)).long()
        frame = torch.arange(longest, device=lengths.device)
        return (frame >= start[:, None]) & (frame < (start + count)[:, None])

    def _noise(self, lengths: Tensor, longest: int, seeds: int | Sequence[int] | None) -> Tensor:
        if seeds is None:
            return mask_frames(torch.randn(len(lengths), longest, self.latent_dim), lengths.cpu())
        seeds = [seeds] * len(lengths) if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(lengths):
            raise ValueError(f"got {len(seeds)} seeds for {len(lengths)} items")
        noise = torch.zeros(len(lengths), longest, self.latent_dim)
        # Drawn on the CPU, so that every device gives the same.
        for item, (frames, seed) in enumerate(zip(lengths.tolist(), seeds, strict=True)):
            noise[item, :frames] = torch.randn(
                frames, self.latent_dim, generator=torch.Generator().manual_seed(int(seed))
            )
        return noise


def schedule(steps: int, sway: float = SWAY) -> list[float]:
    """Return the times 0 … 1 between which Euler's method goes, `steps` + 1 of them.

    Sway sampling (Chen et al. 2024, F5-TTS): t + s (cos(πt/2) - 1 + t).
    """
    even = [step / steps for step in range(steps + 1)]
    return [time + sway * (math.cos(math.pi / 2 * time) - 1 + time) for time in even]


def _renew_average(module: FlowMatching, prefix: str, keep_vars: bool) -> None:
    module.update_average()


def _forget_version(module: FlowMatching, incompatible_keys) -> None:
    # Loading changes the weights in place, which is no step of the optimiser.
    module._version = None
