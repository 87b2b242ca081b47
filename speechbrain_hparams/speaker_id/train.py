#!/usr/bin/env python
"""Trains speaker recognition: identification (train.yaml), or vectors that tell unknown speakers apart
(verification.yaml), from pooled WavCube features with an angular margin."""

from __future__ import annotations

import json
import sys
from pathlib import Path

try:
    import speechbrain  # noqa: F401
except ImportError:
    sys.exit("speaker_id/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch

from wavcube_plugins.speechbrain.corpora import TRIALS_NAME
from wavcube_plugins.speechbrain.recipes.classification import ClassificationRecipe
from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset

# Share of trials of the same speaker that minDCF assumes.
_TARGETS = 0.01


class Speakers(ClassificationRecipe):
    """The key `speaker` of the manifests; with `verify`, trials on the vectors of a split of other speakers."""

    needs = ("wav", "speaker")
    label = "speaker"

    @classmethod
    def splits(cls, settings):
        return [*super().splits(settings), *([settings["verify"]] if settings["verify"] else [])]

    def build(self):
        if self.settings["verify"]:
            self.trials = read_trials(
                Path(self.settings["manifests"]) / TRIALS_NAME, self.manifests[self.settings["verify"]]
            )
        return super().build()

    def more_results(self):
        split = self.settings["verify"]
        if not split:
            return {}
        vectors = self._vectors(split)
        scores = torch.tensor([float(vectors[one] @ vectors[two]) for _, one, two in self.trials])
        same = torch.tensor([bool(label) for label, _, _ in self.trials])
        return {f"trials of {split}": verification_scores(scores[same], scores[~same])}

    @torch.no_grad()
    def _vectors(self, split: str) -> dict[str, torch.Tensor]:
        """Return the vector of each utterance, of length 1."""
        dataset = make_dataset(self.manifests[split], split, self.speech, features=["wav"])
        options = {"batch_size": self.settings["valid_batch_size"], "num_workers": self.settings["num_workers"]}
        vectors = {}
        for batch in self.make_dataloader(dataset, None, ckpt_prefix=None, **options):
            batch = batch.to(self.device)
            found = torch.nn.functional.normalize(self.raw["embedding_model"](*batch.wav_input), dim=-1).cpu()
            vectors |= zip(batch.id, found, strict=True)
        return vectors


def verification_scores(same: torch.Tensor, different: torch.Tensor) -> dict[str, float]:
    """Return SpeechBrain's EER in percent, with its threshold, and minDCF, in memory that grows with the trials alone.

    Args:
        same: (N,) scores of trials of the same speaker.
        different: (M,) scores of trials of different ones.
    """
    thresholds = torch.cat([same, different]).unique()  # in rising order
    # Whole numbers, so that of several thresholds that are as good it is the first.
    missed = torch.searchsorted(same.sort().values, thresholds, right=True)  # scores up to each threshold
    alarms = len(different) - torch.searchsorted(different.sort().values, thresholds, right=True)
    best = (alarms * len(same) - missed * len(different)).abs().argmin()
    miss_rates, alarm_rates = missed / len(same), alarms / len(different)
    return {
        "EER": 50 * float(miss_rates[best] + alarm_rates[best]),
        "minDCF": float((_TARGETS * miss_rates + (1 - _TARGETS) * alarm_rates).min()),
        "threshold": float(thresholds[best]),
    }


def read_trials(path: Path, utterances: dict) -> list[tuple[int, str, str]]:
    """Read pairs [1 for the same speaker or 0, id, id] and check that the utterances are there, and both kinds."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; verification needs trials, [[1 or 0, id, id], ...]")
    try:
        trials = [(int(same), one, two) for same, one, two in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: expected [[1 or 0, id, id], ...], {error}") from error
    for _, *pair in trials:
        for name in pair:
            if name not in utterances:
                raise DataError(f"{path}: the utterance {name!r} is not in the manifest")
    if {same for same, _, _ in trials} != {0, 1}:
        raise DataError(f"{path}: needs trials of the same speaker and of different ones")
    return trials


if __name__ == "__main__":
    status = main(Speakers, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
