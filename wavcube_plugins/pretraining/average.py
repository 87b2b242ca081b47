"""An exponential moving average of the weights that are trained, for validation and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of a module's trainable weights, updated explicitly after each optimiser step.

    Args:
        module: Its trainable parameters are averaged.
        decay: Of the average per step. The first steps count for more, so that a short run does not end with the
            average of its beginning.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in 0 … 1, got {decay}")
        self.decay, self.steps = decay, 0
        self._live = {name: one for name, one in module.named_parameters() if one.requires_grad}
        self._average = {name: one.detach().clone() for name, one in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step into the average."""
        share = max(1 - self.decay, 9 / (10 + self.steps))
        for name, weight in self._live.items():
            self._average[name].lerp_(weight, share)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights until the block ends."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self._live.items():
            weight.data, self._average[name] = self._average[name], weight.data

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by the names of the module's parameters."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take averaged weights.

        Raises:
            ValueError: they are those of another module.
        """
        if state.keys() != self._average.keys():
            name = min(state.keys() ^ self._average.keys())
            raise ValueError(f"the averaged weights are those of another model: the two differ in {name}")
        for name, average in self._average.items():
            average.copy_(state[name])
