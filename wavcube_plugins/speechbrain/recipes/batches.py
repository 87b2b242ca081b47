"""Batches: the order of the training data, and random crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from torch import Tensor, nn

from wavcube_plugins.speechbrain.recipes.data import DataError


def training_batches(
    dataset: DynamicItemDataset,
    options: Mapping[str, Any],
    *,
    sorting: str = "random",
    dynamic: Mapping[str, Any] | None = None,
) -> tuple[DynamicItemDataset, dict[str, Any]]:
    """Choose how the training data are ordered and batched.

    Args:
        dataset: Its entries need a `duration` in seconds, unless they are shuffled in batches of a fixed size.
        options: Options of the data loader.
        sorting: `random`, or `ascending` or `descending` by duration.
        dynamic: Options of SpeechBrain's `DynamicBatchSampler`, whose batches have a fixed duration instead of a fixed
            size; None has a fixed size. The sampler has an order of its own.

    Returns:
        The data set and the options for `Brain.fit`.

    Raises:
        DataError: an entry without a duration.
    """
    if dynamic is None and sorting == "random":
        return dataset, {**options, "shuffle": True}
    for name, entry in dataset.data.items():
        if "duration" not in entry:
            raise DataError(f"the entry {name!r} of the training data has no 'duration', which sorting needs")
    if dynamic is None:
        return dataset.filtered_sorted(sort_key="duration", reverse=sorting == "descending"), dict(options)
    sampler = DynamicBatchSampler(dataset, length_func=lambda entry: entry["duration"], **dynamic)
    return dataset, {"num_workers": options.get("num_workers", 0), "batch_sampler": sampler}


def crop(batch: list[Tensor], lens: Tensor, frames: int, hops: list[int]) -> tuple[list[Tensor], Tensor]:
    """Cut the same random piece out of several views of each item of a batch.

    Args:
        batch: Views of the same audio, (B, T, ...) each, aligned at their beginnings.
        lens: (B,) relative lengths of the first view.
        frames: Length of a piece, in the unit that `hops` refers to.
        hops: Number of steps of each view per unit.

    Returns:
        The pieces of each view, and their relative lengths (B,); shorter items are kept whole.
    """
    first, hop = batch[0], hops[0]
    units = (lens.double().cpu() * first.shape[1] / hop).round().long().clamp(min=1)
    starts = [int(torch.randint(0, max(1, int(count) - frames + 1), ())) for count in units]
    longest = min(frames, int(units.max()))
    pieces = []
    for view, size in zip(batch, hops, strict=True):
        rows = []
        for row, start in zip(view, starts, strict=True):
            piece = row[start * size : (start + longest) * size]
            missing = longest * size - len(piece)
            rows.append(nn.functional.pad(piece, (0,) * (2 * (piece.ndim - 1)) + (0, missing)))
        pieces.append(torch.stack(rows))
    return pieces, (units.clamp(max=longest).float() / longest).to(lens.device)
