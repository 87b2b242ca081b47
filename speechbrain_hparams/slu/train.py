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
from slurp_prepare import prepare_slurp
from speechbrain.decoders import ctc_greedy_decode

from wavcube_plugins.heads.slots import CLOSE, opening, read_tags, slot_f1, tag_text
from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.lengths import frame_counts
from wavcube_plugins.speechbrain.recipes.batches import training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.data import DataError, check_augmentation
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings
from wavcube_plugins.speechbrain.recipes.export import ON_WAVCUBE, lobe_yaml, object_yaml, write_inference
from wavcube_plugins.speechbrain.recipes.text import Characters


class SLU(RecipeBrain):
    """Scored by intent accuracy (every part right), slot F1 (name and words right) and word error rate."""

    def compute_forward(self, batch, stage):
        """Return log probabilities of units and of the intent's parts, and the frames (B,) of each utterance."""
        batch = batch.to(self.device)
        speech, lens = batch.sig  # waveforms (B, T), or cached latents (B, L, D)
        if stage == sb.Stage.TRAIN and self.hparams.augment:
            speech, lens = self.hparams.wav_augment(speech, lens)
        return self.modules.model(speech, lens), self.module("model").frame_counts(speech, lens)

    def compute_objectives(self, predictions, batch, stage):
        """Return the CTC loss of words and slots, plus the losses of the intent's parts."""
        result, frames = predictions
        tokens, token_lens = batch.tokens
        classes = batch.classes.data
        if stage == sb.Stage.TRAIN and self.hparams.augment:
            replicate = self.hparams.wav_augment.replicate_labels
            tokens, token_lens, classes = replicate(tokens), replicate(token_lens), replicate(classes)
        units = result["units"]
        if stage != sb.Stage.TRAIN:
            self.score(batch, result, frames, classes)
        lengths = frame_counts(token_lens, tokens.shape[1])
        loss = self.hparams.ctc_cost(units.transpose(0, 1), tokens, frames, lengths)
        for column, part in enumerate(self.parts):
            loss = loss + self.hparams.intent_weight * self.hparams.intent_cost(result[part], classes[:, column])
        return loss

    def score(self, batch, result, frames, classes):
        """Collect what `on_stage_end` sums up."""
        best = ctc_greedy_decode(result["units"], frames / result["units"].shape[1], blank_id=0)
        heard = [read_tags(self.tokenizer.labels(ids)) for ids in best]
        self.wer_metric.append(batch.id, [text.split() for text, _ in heard], [text.split() for text in batch.text])
        self.slots += [(true, found) for true, (_, found) in zip(batch.slots, heard, strict=True)]
        found = torch.stack([result[part].argmax(-1) for part in self.parts], 1)
        self.right += (found == classes).all(1).tolist()

    def on_stage_start(self, stage, epoch=None):
        """Start new scores."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.wer_metric, self.slots, self.right = self.hparams.error_rate_computer(), [], []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the scores, and keep the checkpoint with the highest intent accuracy."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {
            "loss": float(stage_loss),
            "intent_accuracy": 100 * sum(self.right) / len(self.right),
            "slot_F1": slot_f1(self.slots),
            "WER": self.wer_metric.summarize("error_rate"),
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, max_keys=["intent_accuracy"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_slurp(
            settings["data_folder"],
            settings["manifests"],
            synthetic=settings["synthetic"],
            resample=settings["resample"],
        )


def classes_of_intents(manifests, folder):
    """Return the classes of each part of the intent, after checking that all entries have the same parts."""
    parts = list(next(iter(manifests["train"].values()))["intent"])
    for split, manifest in manifests.items():
        for name, entry in manifest.items():
            intent, slots = entry["intent"], entry["slots"]
            where = f"{folder}/{split}.json: the entry {name!r}"
            if set(intent) != set(parts) or not all(isinstance(value, str) for value in intent.values()):
                raise DataError(f"{where} needs an 'intent' with text for {', '.join(parts)}, got {intent!r}")
            if not all(isinstance(slot, list) and list(map(type, slot)) == [str, str] for slot in slots):
                raise DataError(f"{where} needs 'slots' such as [[name, words], ...], got {slots!r}")
    entries = manifests["train"].values()
    return {part: sorted({entry["intent"][part] for entry in entries}) for part in parts}


def dataio_prepare(hparams, manifests, tokenizer, parts):
    """Return the data set of each split, with the items `sig`, `tokens`, `classes`, `text` and `slots`."""
    speech = hparams["speech"]

    @sb.utils.data_pipeline.takes("text", "slots")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(text, slots):
        return torch.tensor(tokenizer.encode(tag_text(text, slots)))

    @sb.utils.data_pipeline.takes("intent")
    @sb.utils.data_pipeline.provides("classes")
    def intent_pipeline(intent):
        # A class that the training data lack counts as wrong and has no loss.
        return torch.tensor(
            [names.index(intent[part]) if intent[part] in names else -1 for part, names in parts.items()]
        )

    def dataset_of(split):
        @sb.utils.data_pipeline.takes("id", "wav")
        @sb.utils.data_pipeline.provides("sig")
        def audio_pipeline(name, path):
            return speech.load("wav", split, name, path)

        items = [audio_pipeline, text_pipeline, intent_pipeline]
        outputs = ["id", "sig", "tokens", "classes", "text", "slots"]
        return sb.dataio.dataset.DynamicItemDataset(manifests[split], items, outputs)

    return {split: dataset_of(split) for split in manifests}


def export(brain, settings, folder):
    """Write the folder for our `SpokenLanguage`."""
    lobe = brain.hparams.wavcube
    folder.mkdir(parents=True, exist_ok=True)
    brain.tokenizer.save(folder / "tokenizer.ckpt")
    write_inference(
        folder,
        {
            "wavcube": lobe_yaml(lobe),
            "head": object_yaml(settings["head"], in_dim=lobe.output_dim, out_dim=brain.sizes),
            "model": ON_WAVCUBE,
            "tokenizer": brain.tokenizer.yaml,
            "intents": yaml.safe_dump(brain.parts, default_flow_style=True, width=10**6).strip(),
        },
        {"model": brain.module("model"), "tokenizer": None},
        "modules:\n    model: !ref <model>\n",
    )


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the folder for inference."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings

    experiment.prepare(prepare)
    manifests = experiment.manifests(["train", "valid", *settings["evaluate"]], ["wav", "text", "intent", "slots"])
    parts = classes_of_intents(manifests, settings["manifests"])
    entries = manifests["train"].values()
    names = sorted({name for entry in entries for name, _ in entry["slots"]})
    tokenizer = Characters([entry["text"] for entry in entries], [CLOSE, *map(opening, names)])
    sizes = {"units": len(tokenizer), **{part: len(classes) for part, classes in parts.items()}}

    hparams = experiment.load(output_neurons=sizes)
    check_augmentation(hparams["augment"], hparams["speech"])
    hparams["speech"].fill(manifests, ["wav"], experiment.device)
    datasets = dataio_prepare(hparams, manifests, tokenizer, parts)
    train_data, train_loader_opts = training_batches(
        datasets["train"],
        hparams["train_dataloader_opts"],
        sorting=hparams["sorting"],
        dynamic=hparams["dynamic_batch_sampler"] if hparams["dynamic_batching"] else None,
    )

    brain = SLU(
        hparams["modules"],
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
        wavcube_opt_class=hparams["wavcube_opt_class"],
    )
    brain.tokenizer, brain.parts, brain.sizes = tokenizer, parts, sizes
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], max_key="intent_accuracy")
    return experiment.finish(brain.results, lambda folder: export(brain, settings, folder))


if __name__ == "__main__":
    sys.exit(run(main, __file__))
