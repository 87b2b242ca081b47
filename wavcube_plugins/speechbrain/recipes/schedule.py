"""A learning rate schedule in SpeechBrain's form."""

from __future__ import annotations

import math
from typing import Any

import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks


@register_checkpoint_hooks
class WarmupCosine:
    """Linear warm-up to the optimiser's learning rate, then a cosine down to a hundredth of it.

    It is called with an optimiser before each of its steps, like SpeechBrain's schedulers that work in steps
    (`NoamScheduler` for instance), which can be used in its place.

    Args:
        warmup_steps: Steps of the warm-up.
        total_steps: Steps of the training; None lets `RecipeBrain.fit` fill in epochs times steps per epoch.
    """

    def __init__(self, warmup_steps: int, total_steps: int | None = None):
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.steps = 0

    def __call__(self, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """Set the learning rate of the next step in every group; return those of the first group before and after."""
        before = optimizer.param_groups[0]["lr"]
        factor = learning_rate(self.steps, self.total_steps or 1, self.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        self.steps += 1
        return before, optimizer.param_groups[0]["lr"]

    @mark_as_saver
    def save(self, path: Any) -> None:
        """Save how many steps were made."""
        torch.save({"steps": self.steps}, path)

    @mark_as_loader
    def load(self, path: Any, end_of_epoch: bool = False) -> None:
        """Load how many steps were made."""
        self.steps = torch.load(path, weights_only=True)["steps"]


def learning_rate(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak at a step: a linear rise over the warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
