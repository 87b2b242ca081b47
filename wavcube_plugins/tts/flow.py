"""Flow matching for zero-shot TTS: the infilling objective, the moving average of the weights, and sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import check_lengths, length_mask
from wavcube_plugins.tts.draws import FlowDraws, fixed_draws, random_draws
from wavcube_plugins.tts.network import DiT
from wavcube_plugins.tts.sampling import GUIDANCE, STEPS, SWAY, Sampling, initial_noise, integrate, schedule
from wavcube_plugins.tts.text import TextEncoder

# Integers as wide as the floating point types, to read weights as bits.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class FlowLoss:
    """Mean squared error of the predicted flow over the hidden frames.

    Attributes:
        loss: Mean over all hidden frames of the batch and their channels, a scalar.
        item_losses: The same per item, (B,), detached.
        frames: Hidden frames per item, (B,): the weights with which losses of batches should be averaged.
    """

    loss: Tensor
    item_losses: Tensor
    frames: Tensor


class FlowNetwork(nn.Module):
    """Text encoder and transformer.

    Args:
        config: Sizes.
        vocab_size: Number of token ids.
        latent_dim: Channels of the latent, D.
    """

    def __init__(self, config: FlowConfig, vocab_size: int, latent_dim: int):
        super().__init__()
        self.text_encoder = TextEncoder(config, vocab_size)
        self.transformer = DiT(config, latent_dim)


class FlowMatching(nn.Module):
    """The TTS model: text and the latent of a prompt in, the latent of what follows out (F5-TTS's objective).

    `network` is trained. `ema` is an exponential moving average of its weights, which validation and sampling use; it
    is a frozen copy, saved with the model and always in evaluation mode. No trainer has to know about it: every call,
    and every look at the state dict, compares the weights bit by bit with those of the last one, by a checksum, and
    updates the average if they have changed. It therefore counts optimiser steps, whichever way the optimiser writes
    its results, and stays the same in all processes of a distributed run.

    Latents are normalised throughout; see `LatentNorm`.

    Args:
        config: Sizes and objective.
        vocab_size: Number of token ids.
        latent_dim: Channels of the latent, D.

    Raises:
        InputError: A size is not positive.
    """

    ema_steps: Tensor
    frames_seen: Tensor
    tokens_seen: Tensor

    def __init__(self, config: FlowConfig, vocab_size: int, latent_dim: int):
        super().__init__()
        if vocab_size < 1 or latent_dim < 1:
            raise InputError(f"vocab_size and latent_dim must be positive, got {vocab_size} and {latent_dim}")
        self.config, self.vocab_size, self.latent_dim = config, vocab_size, latent_dim
        self.network = FlowNetwork(config, vocab_size, latent_dim)
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        # Integers survive half precision, and tools that average checkpoints.
        self.register_buffer("ema_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frames_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))
        # Of the weights that the average has seen last; None when they may have changed without an optimiser step.
        self._checksum: list[int] | None = None
        self.register_state_dict_pre_hook(_update_before_saving)
        self.register_load_state_dict_post_hook(_forget_after_loading)

    def train(self, mode: bool = True) -> FlowMatching:
        """Set the mode as usual; the average stays in evaluation mode."""
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

        In training the draws are random. In evaluation they depend on each utterance's tokens and length alone.

        Args:
            latent: Normalised, (B, L, D).
            lengths: (B,) frames, or None if all items are whole.
            tokens: Ids (B, N).
            token_lengths: (B,) tokens, or None if all are valid.
            draws: Used instead of drawing.

        Raises:
            InputError: Shapes or lengths do not fit, or token ids are outside the vocabulary.
        """
        self.update_average()
        lengths, token_lengths = self._check(latent, lengths, tokens, token_lengths)
        if self.training:
            self.frames_seen += lengths.sum()
            self.tokens_seen += token_lengths.sum()
        if draws is None and self.training:
            draws = random_draws(self.config, latent, lengths)
        elif draws is None:
            draws = fixed_draws(self.config, latent, lengths, tokens, token_lengths)
        flow = self._predict(latent, lengths, tokens, token_lengths, draws)
        counted = draws.hidden & length_mask(lengths, latent.shape[1])  # (B, L)
        errors = (flow - (latent - draws.noise).float()).square().mean(-1).masked_fill(~counted, 0.0)  # (B, L)
        frames = counted.sum(1)
        loss = errors.sum() / frames.sum().clamp_min(1)
        return FlowLoss(loss, errors.detach().sum(1) / frames.clamp_min(1), frames)

    def _predict(
        self, latent: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, draws: FlowDraws
    ) -> Tensor:
        """Return the predicted flow (B, L, D) in float32, of the network in training and else of the average."""
        network = self.network if self.training else self.ema
        masked = lengths if bool((lengths < latent.shape[1]).any()) else None
        time = draws.time[:, None, None].to(latent.dtype)  # (B, 1, 1)
        noisy = mask_frames((1 - time) * draws.noise + time * latent, masked)  # (B, L, D)
        condition = mask_frames(latent.masked_fill(draws.hidden[..., None], 0.0), masked)
        if draws.drop_audio:
            condition = torch.zeros_like(condition)
        text = network.text_encoder(tokens, token_lengths, latent.shape[1], lengths)  # (B, L, C)
        if draws.drop_text:
            # Masked rather than left out: distributed training wants a gradient for every weight at every step.
            text = text.masked_fill(torch.ones_like(text, dtype=torch.bool), 0.0)
        return network.transformer(noisy, condition, text, draws.time, masked).float()

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
        """Sample latents for texts, each continuing its prompt if there is one.

        With seeds, an item's result depends on its own text, prompt, length and seed, not on the rest of the batch.

        Args:
            tokens: Ids (B, N) of the prompt's text followed by the text.
            token_lengths: (B,), or None if all are valid.
            frames: (B,) frames of the prompt and the new part together.
            prompt: Normalised latents of the prompts, (B, P, D), or None.
            prompt_lengths: (B,) frames, 0 for an item without a prompt; None if all are whole.
            steps: Network evaluations; for this and the next two see `Sampling`.
            guidance: Strength of classifier-free guidance.
            sway: Sway sampling coefficient.
            seeds: One for all items or one per item; None draws from PyTorch's global generator.

        Returns:
            Normalised latents (B, L, D) that begin with the prompts and are zero beyond their lengths, and the
            lengths (B,).

        Raises:
            InputError: Shapes or lengths do not fit, there are fewer frames than tokens or none behind a prompt, or a
                setting is out of range.
        """
        self.update_average()
        Sampling(steps, guidance, sway)  # checks the settings
        frames = torch.as_tensor(frames, device=tokens.device)
        condition, known = self._condition(tokens, frames, prompt, prompt_lengths)
        longest = condition.shape[1]
        lengths, token_lengths = self._check(condition, frames, tokens, token_lengths)
        _check_room(token_lengths, lengths)
        masked = lengths if bool((lengths < longest).any()) else None
        text = self.ema.text_encoder(tokens, token_lengths, longest, lengths)  # (B, L, C)
        noise = initial_noise(lengths, longest, self.latent_dim, seeds).to(condition)
        sampled = integrate(self._flow(condition, text, masked, guidance), noise, schedule(steps, sway))
        return mask_frames(torch.where(known, condition, sampled), masked), lengths

    def _condition(
        self, tokens: Tensor, frames: Tensor, prompt: Tensor | None, prompt_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the prompts, zero in the new part, (B, L, D), and where they are, (B, L, 1)."""
        weight = self.ema.transformer.out_proj.weight
        if prompt is None:
            prompt = weight.new_zeros(len(tokens), 1, self.latent_dim)
            prompt_lengths = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        elif prompt_lengths is None:
            prompt_lengths = torch.full((len(tokens),), prompt.shape[1], device=tokens.device)
        if frames.shape != tokens.shape[:1] or prompt_lengths.shape != tokens.shape[:1] or len(prompt) != len(tokens):
            raise InputError(
                f"got {len(tokens)} texts, {len(prompt)} prompts with {len(prompt_lengths)} lengths and "
                f"{frames.numel()} frame counts; there must be one of each per item"
            )
        if bool((frames <= prompt_lengths).any()):
            raise InputError(
                f"there must be frames behind the prompts, got {frames.tolist()} in all, {prompt_lengths.tolist()} of "
                "prompts"
            )
        longest = int(frames.max())
        known = length_mask(prompt_lengths, longest)[..., None]  # (B, L, 1)
        prompt = F.pad(prompt[:, :longest], (0, 0, 0, longest - min(longest, prompt.shape[1]))).to(weight.dtype)
        return prompt.masked_fill(~known, 0.0), known

    def _flow(
        self, condition: Tensor, text: Tensor, masked: Tensor | None, guidance: float
    ) -> Callable[[Tensor, float], Tensor]:
        """Return the velocity field of the average, with classifier-free guidance unless that is zero."""

        def plain(state: Tensor, time: float) -> Tensor:
            times = torch.full((len(state),), time, device=state.device)
            return self.ema.transformer(state, condition, text, times, masked)

        if not guidance:
            return plain
        # One pass over a batch twice the size: with the conditions, and without.
        conditions = torch.cat([condition, torch.zeros_like(condition)])
        texts = torch.cat([text, torch.zeros_like(text)])
        both_masked = None if masked is None else masked.repeat(2)

        def guided(state: Tensor, time: float) -> Tensor:
            times = torch.full((2 * len(state),), time, device=state.device)
            flow = self.ema.transformer(state.repeat(2, 1, 1), conditions, texts, times, both_masked)
            conditioned, free = flow.chunk(2)
            return conditioned + guidance * (conditioned - free)

        return guided

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the moving average if the weights have changed since the last call; trainers need not call it."""
        weights = list(self.network.parameters())
        if weights[0].is_meta:
            return
        checksum = _checksum(weights)
        if self._checksum is not None and checksum != self._checksum:
            # The decay grows with the steps, or a short run would keep the average of its first ones.
            share = (9 / (10 + self.ema_steps)).clamp(min=1 - self.config.ema_decay)
            for average, weight in zip(self.ema.parameters(), weights, strict=True):
                average.lerp_(weight.to(average.dtype), share.to(average.dtype))
            self.ema_steps += 1
        elif self._checksum is None and not int(self.ema_steps):
            # ESPnet's `init:` may have initialised the two copies after construction, each its own way.
            for average, weight in zip(self.ema.parameters(), weights, strict=True):
                average.copy_(weight)
        self._checksum = checksum

    def _apply(self, fn, recurse=True):
        # A cast changes every weight, but is no step; a step before it still counts.
        self.update_average()
        super()._apply(fn, recurse)
        self._checksum = None
        return self

    def __getstate__(self) -> dict:
        self.update_average()
        return self.__dict__.copy()

    def tokens_to_frames(self, tokens: int) -> float:
        """Return how many frames this many tokens took on average in training.

        Raises:
            InputError: The model is untrained.
        """
        if not int(self.tokens_seen):
            raise InputError("the model has seen no speech, so it cannot tell how long a text takes; train it first")
        return tokens * int(self.frames_seen) / int(self.tokens_seen)

    def _check(
        self, latent: Tensor, lengths: Tensor | None, tokens: Tensor, token_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if latent.ndim != 3 or latent.shape[2] != self.latent_dim or 0 in latent.shape:
            raise InputError(
                f"the latent must have shape (batch, frames, {self.latent_dim}), got {tuple(latent.shape)}"
            )
        if tokens.ndim != 2 or len(tokens) != len(latent) or not tokens.shape[1]:
            raise InputError(
                f"tokens must have shape ({len(latent)}, tokens), one row per item, got {tuple(tokens.shape)}"
            )
        lengths = check_lengths(lengths, latent, "frames")
        token_lengths = check_lengths(token_lengths, tokens, "tokens")
        valid = tokens.masked_fill(~length_mask(token_lengths, tokens.shape[1]), 0)
        if int(valid.min()) < 0 or int(valid.max()) >= self.vocab_size:
            raise InputError(
                f"token ids must lie in 0 … {self.vocab_size - 1}, got {int(valid.min())} … {int(valid.max())}"
            )
        return lengths, token_lengths


def _check_room(token_lengths: Tensor, frames: Tensor) -> None:
    crowded = token_lengths > frames
    if bool(crowded.any()):
        item = int(crowded.int().argmax())
        raise InputError(
            f"{int(token_lengths[item])} tokens do not fit into {int(frames[item])} frames; lower the speaking rate"
        )


def _checksum(weights: Iterable[Tensor]) -> list[int]:
    """Return a number per tensor that changes with any of its bits."""
    sums = [weight.detach().view(_BITS[weight.element_size()]).sum(dtype=torch.int32) for weight in weights]
    return torch.stack(sums).tolist()


def _update_before_saving(module: FlowMatching, prefix: str, keep_vars: bool) -> None:
    module.update_average()


def _forget_after_loading(module: FlowMatching, incompatible_keys) -> None:
    # Loading changes the weights without a step.
    module._checksum = None
