#!/usr/bin/env python
"""Trains speech enhancement: the latent of noisy speech to that of clean speech, with a mask for the noisy spectrum."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import speechbrain as sb
except ImportError:
    sys.exit("enhance/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
from voicebank_prepare import prepare_voicebank

from wavcube_plugins.heads.losses import best_order, in_order
from wavcube_plugins.heads.restoration import apply_masks
from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.modules import decode_sources
from wavcube_plugins.speechbrain.recipes.batches import training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings
from wavcube_plugins.speechbrain.recipes.restoration import (
    SourceStats,
    check_metrics,
    make_dataset,
    make_views,
    write_restorer,
)

# Keys of the sources in a manifest.
TARGETS = ("clean",)
# Name of the module in the folder for inference.
MODEL = "enhance_model"


class EnhancementBrain(RecipeBrain):
    """Maps the latent of disturbed speech to that of each source, with a mask beside it."""

    def compute_forward(self, batch, stage):
        """Return latents and masks of the sources, and the views of the batch that they belong to."""
        batch = batch.to(self.device)
        seconds = self.hparams.crop_seconds if stage == sb.Stage.TRAIN else None
        views = make_views(batch, TARGETS, self.hparams.wavcube, seconds)
        return self.modules.model(views.inputs, views.lens, views.mixture), views

    def compute_objectives(self, predictions, batch, stage):
        """Return the losses of latents and masks, in the order of sources that minimises their sum."""
        outputs, views = predictions
        losses = 0.0
        if "latents" in outputs:
            loss = self.hparams.latents_cost(outputs["latents"], views.targets, views.frames)
            losses = losses + self.hparams.latents_weight * loss
        if "masks" in outputs:
            filtered = apply_masks(views.mixture, outputs["masks"], views.frames)
            loss = self.hparams.masks_cost(filtered, views.sources, views.lengths)
            losses = losses + self.hparams.masks_weight * loss
        # One order for both, so that the latent and the mask of an output belong to the same source.
        loss, order = best_order(losses)
        if stage != sb.Stage.TRAIN:
            waveforms = {"masks": in_order(filtered, order)} if "masks" in outputs else {}
            if stage == sb.Stage.TEST:
                waveforms |= self.decode(outputs, views, order)
            self.stats.append(batch.id, views, waveforms)
        return loss.mean()

    def decode(self, outputs, views, order):
        """Return what the decoder makes of the mapped latents, and of the sources' own, which no other can surpass."""
        lobe, samples = self.hparams.wavcube, views.mixture.shape[1]
        waveforms = {"ceiling": decode_sources(lobe, views.targets, views.frames, samples)}
        if "latents" in outputs:
            waveforms["latents"] = decode_sources(lobe, in_order(outputs["latents"], order), views.frames, samples)
        return waveforms

    def on_stage_start(self, stage, epoch=None):
        """Start new scores."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            folder = Path(self.hparams.output_folder, "examples", self.split) if stage == sb.Stage.TEST else None
            self.stats = SourceStats(self.hparams.wavcube.sample_rate, self.hparams.examples, folder)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the scores, and keep the checkpoint with the lowest loss."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {"loss": float(stage_loss), **self.stats.summarize()}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, min_keys=["loss"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_voicebank(settings["data_folder"], settings["manifests"], resample=settings["resample"])


def dataio_prepare(hparams, manifests):
    """Return the data set of each split, with waveforms and cached latents of mixtures and sources."""
    return {split: make_dataset(manifest, split, hparams["speech"], TARGETS) for split, manifest in manifests.items()}


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the folder for inference."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings
    check_metrics()

    experiment.prepare(prepare)
    manifests = experiment.manifests(["train", "valid", *settings["evaluate"]], ["wav", *TARGETS])
    hparams = experiment.load()
    hparams["speech"].fill(manifests, ["wav", *TARGETS], experiment.device)
    datasets = dataio_prepare(hparams, manifests)
    train_data, train_loader_opts = training_batches(datasets["train"], hparams["train_dataloader_opts"])

    brain = EnhancementBrain(hparams["modules"], hparams["opt_class"], hparams, run_opts, hparams["checkpointer"])
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], min_key="loss")
    return experiment.finish(
        brain.results, lambda folder: write_restorer(folder, brain, settings["head"], len(TARGETS), MODEL)
    )


if __name__ == "__main__":
    sys.exit(run(main, __file__))
