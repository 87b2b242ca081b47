#!/usr/bin/env python
"""Trains spoken language understanding: words with slots by CTC, and the parts of the intent from the same states."""

from __future__ import annotations

import sys

try:
    import speechbrain as sb
except ImportError:
    sys.exit("slu/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch
import yaml
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.metric_stats import ErrorRateStats

from wavcube_plugins.heads.slots import CLOSE, opening, read_tags, slot_f1, tag_text
from wavcube_plugins.speechbrain import OnWavCube
from wavcube_plugins.speechbrain.recipes.brain import ON_WAVCUBE, Recipe, head_yaml
from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset
from wavcube_plugins.speechbrain.recipes.text import Characters


class Understander(Recipe):
    """Intent accuracy (every part right), slot F1 (name and words right) and word error rate."""

    needs = ("wav", "text", "intent", "slots")
    monitor = ("intent_accuracy", "max")

    def build(self):
        entries = list(self.manifests["train"].values())
        self._check(list(entries[0]["intent"]))
        slots = sorted({name for entry in entries for name, _ in entry["slots"]})
        self.tokens = Characters([entry["text"] for entry in entries], [CLOSE, *map(opening, slots)])
        self.parts = {part: sorted({entry["intent"][part] for entry in entries}) for part in entries[0]["intent"]}
        self.sizes = {"units": len(self.tokens), **{part: len(names) for part, names in self.parts.items()}}
        return {"model": OnWavCube(self.lobe, self.settings["head"](self.lobe.output_dim, self.sizes))}

    def dataset(self, split, manifest):
        items = [(self._encode, ("text", "slots"), "tokens"), (self._classes, "intent", "classes")]
        labels = ["text", "slots"]
        return make_dataset(manifest, split, self.speech, features=["wav"], labels=labels, items=items)

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        inputs, lens = batch.wav_input
        return self.modules.model(inputs, lens), self.raw["model"].frame_counts(inputs, lens)

    def compute_objectives(self, predictions, batch, stage):
        result, frames = predictions
        targets, target_lens = batch.tokens
        lengths = (target_lens * targets.shape[1]).round().long()
        classes = batch.classes.data
        units = result["units"]
        if stage != sb.Stage.TRAIN:
            best = ctc_greedy_decode(units, frames / units.shape[1], blank_id=0)
            heard = [read_tags(self.tokens.labels(ids)) for ids in best]
            self.words.append(batch.id, [text.split() for text, _ in heard], [text.split() for text in batch.text])
            self.slots += [(true, found) for true, (_, found) in zip(batch.slots, heard, strict=True)]
            found = torch.stack([result[part].argmax(-1) for part in self.parts], 1)
            self.right += (found == classes).all(1).tolist()
        loss = torch.nn.functional.ctc_loss(units.transpose(0, 1), targets, frames, lengths, zero_infinity=True)
        for column, part in enumerate(self.parts):
            loss = loss + self.settings["intent_weight"] * torch.nn.functional.nll_loss(
                result[part], classes[:, column], ignore_index=-1
            )
        return loss

    def start_scores(self, stage):
        self.words, self.slots, self.right = ErrorRateStats(), [], []

    def scores(self, stage):
        return {
            "intent_accuracy": 100 * sum(self.right) / len(self.right),
            "slot_F1": slot_f1(self.slots),
            "WER": self.words.summarize("error_rate"),
        }

    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens.save(folder / "tokenizer.ckpt")
        self.write_inference(
            folder,
            {
                "wavcube": self.lobe_yaml(),
                "head": head_yaml(self.settings["head"], self.lobe.output_dim, self.sizes),
                "model": ON_WAVCUBE,
                "tokenizer": Characters.yaml,
                "intents": yaml.safe_dump(self.parts, default_flow_style=True, width=10**6).strip(),
            },
            {"model": self.raw["model"], "tokenizer": None},
            "modules:\n    model: !ref <model>\n",
        )

    def _encode(self, text: str, slots: list) -> torch.Tensor:
        return torch.tensor(self.tokens.encode(tag_text(text, slots)))

    def _check(self, parts: list[str]) -> None:
        for split, manifest in self.manifests.items():
            for name, entry in manifest.items():
                intent, slots = entry["intent"], entry["slots"]
                where = f"{self.settings['manifests']}/{split}.json: the entry {name!r}"
                if set(intent) != set(parts) or not all(isinstance(value, str) for value in intent.values()):
                    raise DataError(f"{where} needs an 'intent' with text for {', '.join(parts)}, got {intent!r}")
                if not all(isinstance(slot, list) and list(map(type, slot)) == [str, str] for slot in slots):
                    raise DataError(f"{where} needs 'slots' such as [[name, words], ...], got {slots!r}")

    def _classes(self, intent: dict) -> torch.Tensor:
        # A class that training never saw is wrong whatever is found, and has no loss.
        numbers = [names.index(intent[part]) if intent[part] in names else -1 for part, names in self.parts.items()]
        return torch.tensor(numbers)


if __name__ == "__main__":
    status = main(Understander, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
