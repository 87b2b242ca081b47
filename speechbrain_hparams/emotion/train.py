#!/usr/bin/env python
"""Trains emotion recognition: one of a few classes per utterance, from pooled WavCube features."""

from __future__ import annotations

import sys

try:
    import speechbrain as sb
except ImportError:
    sys.exit("emotion/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
from iemocap_prepare import prepare_iemocap

from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.recipes.batches import crop, training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.classification import classes_of, save_encoder, write_classifier
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.data import check_augmentation
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings

LABEL = "emotion"


class EmotionBrain(RecipeBrain):
    """A vector per utterance and a classifier on it."""

    def compute_forward(self, batch, stage):
        """Return log probabilities of classes (B, classes)."""
        batch = batch.to(self.device)
        speech, lens = batch.sig  # waveforms (B, T), or cached latents (B, L, D)
        classes, margin = None, 0.0
        if stage == sb.Stage.TRAIN:
            lobe, classes, margin = self.hparams.wavcube, batch.number, self.hparams.margin
            if self.hparams.crop_seconds:
                frames = round(self.hparams.crop_seconds * lobe.sample_rate / lobe.hop_length)
                (speech,), lens = crop([speech], lens, frames, [1 if speech.ndim == 3 else lobe.hop_length])
            if self.hparams.augment:
                speech, lens = self.hparams.wav_augment(speech, lens)
                classes = self.hparams.wav_augment.replicate_labels(classes)
        embedding = self.modules.embedding_model(speech, lens)
        return self.modules.classifier(embedding, classes, margin)

    def compute_objectives(self, predictions, batch, stage):
        """Return the cross entropy."""
        classes = batch.number
        if stage == sb.Stage.TRAIN and self.hparams.augment:
            classes = self.hparams.wav_augment.replicate_labels(classes)
        if stage != sb.Stage.TRAIN:
            self.accuracy.append(predictions, classes)
        return self.hparams.compute_cost(predictions, classes)

    def on_stage_start(self, stage, epoch=None):
        """Start new scores."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.accuracy = self.hparams.accuracy_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the scores, and keep the checkpoint with the highest accuracy."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {"loss": float(stage_loss), **self.accuracy.summarize()}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, max_keys=["accuracy"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_iemocap(
            settings["data_folder"],
            settings["manifests"],
            test_session=settings["test_session"],
            resample=settings["resample"],
        )


def dataio_prepare(hparams, manifests, encoder):
    """Return the data set of each split, with the items `sig` and `number`, the class."""
    speech = hparams["speech"]

    @sb.utils.data_pipeline.takes(LABEL)
    @sb.utils.data_pipeline.provides("number")
    def label_pipeline(name):
        return encoder.encode_label(str(name))

    def dataset_of(split):
        @sb.utils.data_pipeline.takes("id", "wav")
        @sb.utils.data_pipeline.provides("sig")
        def audio_pipeline(name, path):
            return speech.load("wav", split, name, path)

        items = [audio_pipeline, label_pipeline]
        return sb.dataio.dataset.DynamicItemDataset(manifests[split], items, ["id", "sig", "number"])

    return {split: dataset_of(split) for split in manifests}


def export(brain, settings, encoder, folder):
    """Write the folder for SpeechBrain's `EncoderClassifier`."""
    save_encoder(encoder, folder / "label_encoder.ckpt")
    write_classifier(folder, brain, settings["head"], settings["classifier"], settings["embedding_dim"], len(encoder))


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the folder for inference."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings

    experiment.prepare(prepare)
    splits = ["train", "valid", *settings["evaluate"]]
    manifests = experiment.manifests(splits, ["wav", LABEL])
    encoder = classes_of(manifests, LABEL, splits)

    hparams = experiment.load(n_classes=len(encoder))
    check_augmentation(hparams["augment"], hparams["speech"])
    hparams["speech"].fill(manifests, ["wav"], experiment.device)
    datasets = dataio_prepare(hparams, manifests, encoder)
    train_data, train_loader_opts = training_batches(
        datasets["train"],
        hparams["train_dataloader_opts"],
        sorting=hparams["sorting"],
        dynamic=hparams["dynamic_batch_sampler"] if hparams["dynamic_batching"] else None,
    )

    brain = EmotionBrain(
        hparams["modules"],
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
        wavcube_opt_class=hparams["wavcube_opt_class"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], max_key="accuracy")
    return experiment.finish(brain.results, lambda folder: export(brain, settings, encoder, folder))


if __name__ == "__main__":
    sys.exit(run(main, __file__))
