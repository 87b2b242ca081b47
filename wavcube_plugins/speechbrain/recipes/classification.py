"""One label per utterance: speakers, emotions, and whatever else manifests name."""

from __future__ import annotations

from collections import Counter
from functools import partial

import speechbrain as sb
import torch
from speechbrain.dataio.encoder import CategoricalEncoder

from wavcube_plugins.files import atomic_path
from wavcube_plugins.heads.classification import Classifier
from wavcube_plugins.speechbrain.modules import OnWavCube
from wavcube_plugins.speechbrain.recipes.brain import ON_WAVCUBE, Recipe, crop, head_yaml
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset


class ClassificationRecipe(Recipe):
    """A vector per utterance and a classifier on it; `label` is the key of the manifests that names the class."""

    label = ""
    monitor = ("accuracy", "max")

    def build(self):
        settings = self.settings
        names = sorted({str(entry[self.label]) for entry in self.manifests["train"].values()})
        if len(names) < 2:
            raise DataError(f"{settings['manifests']}/train.json: has only one {self.label}, {names[0]!r}")
        self.names = {name: number for number, name in enumerate(names)}
        self.classifier = partial(Classifier, angular=settings["margin"] > 0)
        size = settings["embedding_dim"]
        return {
            "embedding_model": OnWavCube(self.lobe, settings["head"](self.lobe.output_dim, size)),
            "classifier": self.classifier(size, len(names)),
        }

    def dataset(self, split, manifest):
        return make_dataset(
            manifest, split, self.speech, features=["wav"], items=[(partial(self._number, split), self.label, "number")]
        )

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        inputs, lens = batch.wav_input
        numbers = batch.number
        if stage == sb.Stage.TRAIN and self.settings["crop_seconds"]:
            hop = 1 if inputs.ndim == 3 else self.lobe.hop_length
            frames = round(self.settings["crop_seconds"] * self.lobe.sample_rate / self.lobe.hop_length)
            (inputs,), lens = crop([inputs], lens, frames, [hop])
        embedding = self.modules.embedding_model(inputs, lens)
        if stage == sb.Stage.TRAIN:
            return self.modules.classifier(embedding, numbers, self.settings["margin"])
        return self.modules.classifier(embedding)

    def compute_objectives(self, predictions, batch, stage):
        if stage != sb.Stage.TRAIN:
            self.pairs += zip(batch.number.tolist(), predictions.argmax(-1).tolist(), strict=True)
        return torch.nn.functional.nll_loss(predictions, batch.number)

    def start_scores(self, stage):
        self.pairs: list[tuple[int, int]] = []

    def scores(self, stage):
        right, all_of = Counter(true for true, found in self.pairs if true == found), Counter(t for t, _ in self.pairs)
        recalls = [right[number] / count for number, count in all_of.items()]
        return {
            "accuracy": 100 * sum(right.values()) / len(self.pairs),
            "macro_recall": 100 * sum(recalls) / len(recalls),
        }

    def export(self, folder):
        size, head = self.settings["embedding_dim"], self.settings["head"]
        folder.mkdir(parents=True, exist_ok=True)
        encoder = CategoricalEncoder()
        encoder.update_from_iterable(self.names)
        with atomic_path(folder / "label_encoder.ckpt") as path:
            encoder.save(str(path))
        unchanged = "!new:wavcube_plugins.speechbrain.modules.Unchanged"
        names = ("compute_features", "mean_var_norm", "embedding_model", "classifier", "mean_var_norm_emb")
        self.write_inference(
            folder,
            {
                "wavcube": self.lobe_yaml(),
                "head": head_yaml(head, self.lobe.output_dim, size),
                "embedding_model": ON_WAVCUBE,
                "classifier": head_yaml(self.classifier, size, len(self.names)),
                "label_encoder": "!new:speechbrain.dataio.encoder.CategoricalEncoder",
                "compute_features": unchanged,
                "mean_var_norm": unchanged,
                "mean_var_norm_emb": unchanged,
            },
            {
                "embedding_model": self.raw["embedding_model"],
                "classifier": self.raw["classifier"],
                "label_encoder": None,
            },
            "modules:\n" + "".join(f"    {name}: !ref <{name}>\n" for name in names),
        )

    def _number(self, split: str, name) -> int:
        if str(name) not in self.names:
            raise DataError(
                f"{self.settings['manifests']}/{split}.json: the {self.label} {str(name)!r} is not in train.json"
            )
        return self.names[str(name)]
