#!/usr/bin/env python
"""Fine-tunes WavCube's AcousticDecoder, the vocoder of its latent, on your own speech; the encoder stays as it is."""

from __future__ import annotations

import math
import sys
from pathlib import Path

try:
    import speechbrain as sb
except ImportError:
    sys.exit("vocoder/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch
from speech_prepare import prepare_speech
from speechbrain.utils.distributed import get_rank, if_main_process, main_process_only

from wavcube_plugins import load_model
from wavcube_plugins.audio import write_audio
from wavcube_plugins.checkpoints import save_model
from wavcube_plugins.evaluation import compare
from wavcube_plugins.models.mel import LogMel
from wavcube_plugins.pretraining.losses import mel_loss
from wavcube_plugins.pretraining.step import NonFiniteError, PretrainingStep, Schedule
from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.lengths import absolute_lengths
from wavcube_plugins.speechbrain.recipes.batches import crop, training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain, TrainingError
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings
from wavcube_plugins.speechbrain.recipes.restoration import check_metrics

_METRICS = ("stoi", "pesq", "si_sdr", "mel_distance")


class VocoderBrain(RecipeBrain):
    """The step of pretraining with an encoder that does not move; the test compares with the decoder as it was."""

    def init_optimizers(self):
        """Make the step, which has an optimiser for the decoder and one for the discriminators."""
        hparams = self.hparams
        total = self.batches_per_epoch * hparams.number_of_epochs
        self.training = PretrainingStep(
            self.modules.generator,
            self.modules.discriminators,
            hparams.loss_weights,
            Schedule(hparams.lr, hparams.warmup_steps, total),
            seed=hparams.seed,
            rank=get_rank() or 0,
            autocast={"fp32": None, "bf16": torch.bfloat16}[self.precision],
            max_gradient_norm=self.max_grad_norm,
            sample_rate=hparams.wavcube.sample_rate,
            mel_windows=hparams.mel_windows,
            weight_decay=hparams.weight_decay,
        )
        self.checkpointer.add_recoverable("training", self.training, load_state, save_state)

    def fit_batch(self, batch):
        """Make one step for each of the two networks."""
        number = self.batches_before(self.hparams.epoch_counter.current) + self.step
        self.seed_batch(number)
        batch = batch.to(self.device)
        samples = round(self.hparams.crop_seconds * self.hparams.wavcube.sample_rate)
        (pieces,), _ = crop([batch.sig.data], batch.sig.lengths, samples, [1])
        try:
            result = self.training(pieces, number - 1)
        except NonFiniteError as error:
            raise TrainingError(str(error)) from error
        self.optimizer_step += 1
        return result.losses["mel"].cpu()

    def evaluate_batch(self, batch, stage):
        """Score reconstructions, in the test also those of the decoder as it was."""
        batch = batch.to(self.device)
        speech, lens = batch.sig
        lengths = absolute_lengths(lens, speech)
        rebuilt = {"": self.hparams.wavcube.reconstruct(speech, lens)}
        if stage == sb.Stage.TEST:
            lobe = self.hparams.wavcube
            self.first = self.first or load_model(
                lobe.source, config=lobe.config, revision=lobe.revision, device=self.device
            )
            rebuilt["_before"] = self.first.reconstruct(speech, lengths)[0]
        losses = []
        for row, (name, length) in enumerate(zip(batch.id, lengths.tolist(), strict=True)):
            real = speech[row, :length].float().cpu()
            estimates = {kind: waveforms[row, :length].float().cpu() for kind, waveforms in rebuilt.items()}
            losses.append(mel_loss(self.log_mel, real, estimates[""]))
            if stage == sb.Stage.VALID:
                self.values.setdefault("mel_distance", []).append(float(losses[-1]))
            else:
                self.score(name, real, estimates)
        return torch.stack(losses).mean()

    def score(self, name, real, estimates):
        """Collect the metrics of an utterance, and write the first few to listen to."""
        for kind, estimate in estimates.items():
            values = compare(real, estimate, self.hparams.wavcube.sample_rate).to_dict()
            for metric in _METRICS:
                if values[metric] is not None:
                    self.values.setdefault(f"{metric}{kind}", []).append(values[metric])
            if self.count < self.hparams.examples and if_main_process():
                place = Path(self.hparams.output_folder, "examples", self.split, f"{name}{kind or '_after'}.wav")
                write_audio(place, estimate, self.hparams.wavcube.sample_rate)
        self.count += 1

    def on_stage_start(self, stage, epoch=None):
        """Start new scores."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.values, self.count, self.first = {}, 0, None
            self.log_mel = LogMel(self.hparams.wavcube.sample_rate)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the scores, and keep the checkpoint with the lowest mel distance."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {"loss": float(stage_loss)}
        scores |= {name: sum(values) / len(values) for name, values in self.values.items()}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, min_keys=["mel_distance"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores


@main_process_only
def save_state(training: PretrainingStep, path) -> None:
    """Save the optimisers of the step."""
    torch.save(training.state_dict(), path)


def load_state(training: PretrainingStep, path, end_of_epoch: bool) -> None:
    """Load the optimisers of the step."""
    training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_speech(settings["data_folder"], settings["manifests"], resample=settings["resample"])


def check(settings, experiment):
    """Check what the step of pretraining needs."""
    windows = settings["mel_windows"]
    if not windows or not all(isinstance(window, int) and window >= 16 for window in windows):
        raise DataError(f"mel_windows must be a list of lengths in samples, got {windows!r}")
    if settings["crop_seconds"] < 0.02:
        raise DataError(f"crop_seconds must be at least 0.02, got {settings['crop_seconds']}")
    if experiment.option("precision") == "fp16":
        raise DataError("--precision fp16 is not supported here; use bf16, which has the range that losses need")
    if experiment.option("grad_accumulation_factor") > 1:
        raise DataError("--grad_accumulation_factor has no effect here; raise --batch_size")
    check_metrics()


def dataio_prepare(hparams, manifests):
    """Return the data set of each split, with the item `sig`; short training utterances are repeated to fill a crop."""
    speech = hparams["speech"]
    samples = round(hparams["crop_seconds"] * hparams["wavcube"].sample_rate)

    def dataset_of(split):
        @sb.utils.data_pipeline.takes("wav")
        @sb.utils.data_pipeline.provides("sig")
        def audio_pipeline(path):
            wav = speech.read(path)
            return wav.repeat(math.ceil(samples / len(wav))) if split == "train" else wav

        return sb.dataio.dataset.DynamicItemDataset(manifests[split], [audio_pipeline], ["id", "sig"])

    return {split: dataset_of(split) for split in manifests}


def export(brain, folder):
    """Write a model folder, for `load_model` and everything that takes a `source`."""
    model = brain.hparams.wavcube.model
    model.metadata = {**model.metadata, "vocoder": "fine-tuned by the vocoder recipe"}
    save_model(model, folder)


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the model folder."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings
    check(settings, experiment)

    experiment.prepare(prepare)
    manifests = experiment.manifests(["train", "valid", *settings["evaluate"]], ["wav"])
    hparams = experiment.load()
    datasets = dataio_prepare(hparams, manifests)
    train_data, train_loader_opts = training_batches(datasets["train"], hparams["train_dataloader_opts"])

    brain = VocoderBrain(hparams["modules"], None, hparams, run_opts, hparams["checkpointer"])
    hparams["wavcube"].to(brain.device)
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], min_key="mel_distance")
    return experiment.finish(brain.results, lambda folder: export(brain, folder))


if __name__ == "__main__":
    sys.exit(run(main, __file__))
