"""How latents are sampled: the settings, the schedule of the ODE solver, and the noise it starts from."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavcube_plugins.errors import InputError
from wavcube_plugins.models.layers import mask_frames

# F5-TTS's defaults: network evaluations, classifier-free guidance, sway sampling.
STEPS, GUIDANCE, SWAY = 32, 2.0, -1.0


@dataclass(frozen=True)
class Sampling:
    """Settings of synthesis.

    Args:
        steps: Network evaluations of the Euler solver; fewer are faster.
        guidance: Strength of classifier-free guidance; 0 disables it and halves the time.
        sway: Sway sampling coefficient: negative values put more steps at the beginning, 0 spaces them evenly.
        speed: Speaking rate; 2 is twice as fast.

    Raises:
        InputError: A setting is out of range.
    """

    steps: int = STEPS
    guidance: float = GUIDANCE
    sway: float = SWAY
    speed: float = 1.0

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")
        # Beyond these limits the schedule would run backwards.
        if not -1 <= self.sway <= 2 / (math.pi - 2):
            raise InputError(f"sway must lie in -1 … 1.75, got {self.sway}")
        if not self.guidance >= 0:
            raise InputError(f"guidance must not be negative, got {self.guidance}")
        if not self.speed > 0:
            raise InputError(f"speed must be positive, got {self.speed}")

    def replace(self, **values: float | None) -> Sampling:
        """Return a copy with every given value that is not None."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})


def schedule(steps: int, sway: float = SWAY) -> list[float]:
    """Return the solver's `steps` + 1 times from 0 to 1, warped by sway sampling (Chen et al. 2024, F5-TTS).

    A time t becomes t + s (cos(πt/2) - 1 + t).
    """
    even = [step / steps for step in range(steps + 1)]
    return [time + sway * (math.cos(math.pi / 2 * time) - 1 + time) for time in even]


def integrate(flow: Callable[[Tensor, float], Tensor], start: Tensor, times: Sequence[float]) -> Tensor:
    """Follow a flow from `start` through the times with Euler's method.

    Args:
        flow: The velocity (B, L, D) at a state (B, L, D) and a time.
        start: The state (B, L, D) at the first time.
        times: Increasing.
    """
    state = start
    for now, later in itertools.pairwise(times):
        state = state + (later - now) * flow(state, now)
    return state


def initial_noise(lengths: Tensor, longest: int, channels: int, seeds: int | Sequence[int] | None) -> Tensor:
    """Draw the noise (B, L, D) that sampling starts from, on the CPU so that every device gives the same speech.

    Args:
        lengths: (B,) frames; the noise is zero beyond them.
        longest: L.
        channels: D.
        seeds: One for all items, or one per item: an item's noise then depends on its length and seed alone. None draws
            from PyTorch's global generator.

    Raises:
        InputError: The number of seeds is not the number of items.
    """
    if seeds is None:
        return mask_frames(torch.randn(len(lengths), longest, channels), lengths.cpu())
    seeds = [seeds] * len(lengths) if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(lengths):
        raise InputError(f"got {len(seeds)} seeds for {len(lengths)} items")
    noise = torch.zeros(len(lengths), longest, channels)
    for item, (frames, seed) in enumerate(zip(lengths.tolist(), seeds, strict=True)):
        noise[item, :frames] = torch.randn(frames, channels, generator=torch.Generator().manual_seed(int(seed)))
    return noise
