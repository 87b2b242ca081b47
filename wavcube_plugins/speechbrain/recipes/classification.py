"""What recipes with one label per utterance share: classes of the training data, and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.files import atomic_path
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.speechbrain.recipes.export import ON_WAVCUBE, lobe_yaml, object_yaml, write_inference
from wavcube_plugins.speechbrain.recipes.text import ClassEncoder


def classes_of(manifests: Mapping[str, Mapping[str, dict]], label: str, splits: Iterable[str]) -> ClassEncoder:
    """Return an encoder of the training data's classes, in alphabetical order.

    Args:
        manifests: Entries by id, by split.
        label: Key of the entries that names the class.
        splits: Splits whose classes must all be in the training data.

    Raises:
        DataError: only one class, or a class that training does not have.
    """
    names = sorted({str(entry[label]) for entry in manifests["train"].values()})
    if len(names) < 2:
        raise DataError(f"train.json: has only one {label}, {names[0]!r}")
    known = set(names)
    for split in splits:
        for entry in manifests[split].values():
            if str(entry[label]) not in known:
                raise DataError(f"{split}.json: the {label} {str(entry[label])!r} is not in train.json")
    encoder = ClassEncoder(len(names))
    encoder.update_from_iterable(names, sequence_input=False)
    return encoder


def save_encoder(encoder: ClassEncoder, path: Path) -> None:
    """Write the file from which an encoder is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        encoder.save(str(temporary))


def write_classifier(
    folder: Path, brain: RecipeBrain, head: Mapping[str, Any], classifier: Mapping[str, Any], size: int, classes: int
) -> None:
    """Write the folder for SpeechBrain's `EncoderClassifier`, beside `label_encoder.ckpt`.

    Args:
        folder: Where to write.
        brain: With the modules `embedding_model` and `classifier`.
        head: Setting of the head, as `read_settings` returns it.
        classifier: Setting of the classifier.
        size: Size of the vector.
        classes: Number of classes.
    """
    lobe = brain.hparams.wavcube
    angular = brain.module("classifier").angular
    unchanged = "!new:wavcube_plugins.speechbrain.modules.Unchanged"
    names = ("compute_features", "mean_var_norm", "embedding_model", "classifier", "mean_var_norm_emb")
    write_inference(
        folder,
        {
            "wavcube": lobe_yaml(lobe),
            "head": object_yaml(head, in_dim=lobe.output_dim, out_dim=size),
            "embedding_model": ON_WAVCUBE,
            "classifier": object_yaml(classifier, in_dim=size, out_dim=classes, angular=angular),
            "label_encoder": f"!new:wavcube_plugins.speechbrain.recipes.text.ClassEncoder\n    size: {classes}",
            "compute_features": unchanged,
            "mean_var_norm": unchanged,
            "mean_var_norm_emb": unchanged,
        },
        {
            "embedding_model": brain.module("embedding_model"),
            "classifier": brain.module("classifier"),
            "label_encoder": None,
        },
        "modules:\n" + "".join(f"    {name}: !ref <{name}>\n" for name in names),
    )


class AccuracyStats:
    """Accuracy, and the mean recall of the classes, which the literature on emotions calls unweighted accuracy."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def append(self, log_probs: Tensor, classes: Tensor) -> None:
        """Add log probabilities (B, classes) and true classes (B,)."""
        self.pairs += zip(classes.tolist(), log_probs.argmax(-1).tolist(), strict=True)

    def summarize(self) -> dict[str, float]:
        """Return the scores in percent."""
        right = Counter(true for true, found in self.pairs if true == found)
        total = Counter(true for true, _ in self.pairs)
        recalls = [right[number] / count for number, count in total.items()]
        return {
            "accuracy": 100 * sum(right.values()) / len(self.pairs),
            "macro_recall": 100 * sum(recalls) / len(recalls),
        }


def verification_scores(same: Tensor, different: Tensor, prior: float = 0.01) -> dict[str, float]:
    """Return SpeechBrain's EER in percent, its threshold, and minDCF, in memory linear in the number of trials.

    Args:
        same: (N,) scores of trials of the same speaker.
        different: (M,) scores of trials of different speakers.
        prior: Share of trials of the same speaker that minDCF assumes.
    """
    thresholds = torch.cat([same, different]).unique()  # ascending
    # Compared as whole numbers, so that the first of several equally good thresholds is taken.
    missed = torch.searchsorted(same.sort().values, thresholds, right=True)  # scores up to each threshold
    alarms = len(different) - torch.searchsorted(different.sort().values, thresholds, right=True)
    best = (alarms * len(same) - missed * len(different)).abs().argmin()
    miss_rates, alarm_rates = missed / len(same), alarms / len(different)
    return {
        "EER": 50 * float(miss_rates[best] + alarm_rates[best]),
        "minDCF": float((prior * miss_rates + (1 - prior) * alarm_rates).min()),
        "threshold": float(thresholds[best]),
    }
