#!/usr/bin/env python
"""Trains a speech recogniser: CTC over characters or sentencepiece on WavCube's features."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import speechbrain as sb
except ImportError:
    sys.exit("asr_ctc/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch
from librispeech_prepare import prepare_librispeech
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process

from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.lengths import frame_counts
from wavcube_plugins.speechbrain.recipes.batches import training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.data import check_augmentation
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings
from wavcube_plugins.speechbrain.recipes.export import ON_WAVCUBE, lobe_yaml, object_yaml, write_inference
from wavcube_plugins.speechbrain.recipes.text import make_tokens


class ASR(RecipeBrain):
    """Recognises text units by CTC; scored by word and character error rates."""

    def compute_forward(self, batch, stage):
        """Return log probabilities of units (B, L, units), and the frames (B,) of each utterance."""
        batch = batch.to(self.device)
        speech, lens = batch.sig  # waveforms (B, T), or cached latents (B, L, D)
        if stage == sb.Stage.TRAIN and self.hparams.augment:
            speech, lens = self.hparams.wav_augment(speech, lens)
        return self.modules.encoder(speech, lens), self.module("encoder").frame_counts(speech, lens)

    def compute_objectives(self, predictions, batch, stage):
        """Return the CTC loss, averaged over utterances, each divided by its length."""
        log_probs, frames = predictions
        tokens, token_lens = batch.tokens
        if stage == sb.Stage.TRAIN and self.hparams.augment:
            tokens = self.hparams.wav_augment.replicate_labels(tokens)
            token_lens = self.hparams.wav_augment.replicate_labels(token_lens)
        if stage != sb.Stage.TRAIN:
            best = ctc_greedy_decode(log_probs, frames / log_probs.shape[1], blank_id=0)
            found = [self.tokenizer.decode(ids).split() for ids in best]
            wanted = [text.split() for text in batch.text]
            self.wer_metric.append(batch.id, found, wanted)
            self.cer_metric.append(batch.id, found, wanted)
        lengths = frame_counts(token_lens, tokens.shape[1])
        return self.hparams.ctc_cost(log_probs.transpose(0, 1), tokens, frames, lengths)

    def on_stage_start(self, stage, epoch=None):
        """Start new scores."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()
            self.cer_metric = self.hparams.cer_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the scores, and keep the checkpoint with the lowest word error rate."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {
            "loss": float(stage_loss),
            "WER": self.wer_metric.summarize("error_rate"),
            "CER": self.cer_metric.summarize("error_rate"),
        }
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, min_keys=["WER"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores
        if if_main_process():
            path = Path(self.hparams.output_folder, f"wer_{self.split}.txt")
            with path.open("w", encoding="utf-8") as file:
                self.wer_metric.write_stats(file)


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_librispeech(
            settings["data_folder"],
            settings["manifests"],
            train=settings["train_splits"],
            valid=settings["dev_splits"],
            test=settings["test_splits"],
            resample=settings["resample"],
        )


def dataio_prepare(hparams, manifests, tokenizer):
    """Return the data set of each split, with the items `sig`, `tokens` and `text`."""
    speech = hparams["speech"]

    @sb.utils.data_pipeline.takes("text")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(text):
        return torch.tensor(tokenizer.encode(text))

    def dataset_of(split):
        @sb.utils.data_pipeline.takes("id", "wav")
        @sb.utils.data_pipeline.provides("sig")
        def audio_pipeline(name, path):
            return speech.load("wav", split, name, path)

        items = [audio_pipeline, text_pipeline]
        return sb.dataio.dataset.DynamicItemDataset(manifests[split], items, ["id", "sig", "tokens", "text"])

    return {split: dataset_of(split) for split in manifests}


def export(brain, settings, folder):
    """Write the folder for SpeechBrain's `EncoderASR`."""
    lobe, tokenizer = brain.hparams.wavcube, brain.tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.ckpt")
    write_inference(
        folder,
        {
            "wavcube": lobe_yaml(lobe),
            "head": object_yaml(settings["head"], in_dim=lobe.output_dim, out_dim=len(tokenizer)),
            "encoder": ON_WAVCUBE,
            "tokenizer": tokenizer.yaml,
            "decoding_function": "!name:speechbrain.decoders.ctc_greedy_decode\n    blank_id: 0",
        },
        {"encoder": brain.module("encoder"), "tokenizer": None},
        "modules:\n    encoder: !ref <encoder>\n",
    )


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the folder for inference."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings

    experiment.prepare(prepare)
    manifests = experiment.manifests(["train", "valid", *settings["evaluate"]], ["wav", "text"])
    texts = [entry["text"] for entry in manifests["train"].values()]
    tokenizer = make_tokens(settings["token_type"], texts, settings["vocab_size"], experiment.folder)

    hparams = experiment.load(output_neurons=len(tokenizer))
    check_augmentation(hparams["augment"], hparams["speech"])
    hparams["speech"].fill(manifests, ["wav"], experiment.device)
    datasets = dataio_prepare(hparams, manifests, tokenizer)
    train_data, train_loader_opts = training_batches(
        datasets["train"],
        hparams["train_dataloader_opts"],
        sorting=hparams["sorting"],
        dynamic=hparams["dynamic_batch_sampler"] if hparams["dynamic_batching"] else None,
    )

    brain = ASR(
        hparams["modules"],
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
        wavcube_opt_class=hparams["wavcube_opt_class"],
    )
    brain.tokenizer = tokenizer
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], min_key="WER")
    return experiment.finish(brain.results, lambda folder: export(brain, settings, folder))


if __name__ == "__main__":
    sys.exit(run(main, __file__))
