#!/usr/bin/env python
"""Trains any-to-any voice conversion on WavCube's latent: the words of one utterance in the voice of another."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from pathlib import Path

try:
    import speechbrain as sb
except ImportError:
    sys.exit(
        "voice_conversion/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'"
    )
import torch
from speechbrain.utils.distributed import if_main_process
from vctk_prepare import prepare_vctk

from wavcube_plugins.audio import write_audio
from wavcube_plugins.evaluation.probes import fit_probe, pool
from wavcube_plugins.speechbrain.corpora import prepare_mini
from wavcube_plugins.speechbrain.lengths import frame_counts, relative_lengths
from wavcube_plugins.speechbrain.recipes.batches import crop, training_batches
from wavcube_plugins.speechbrain.recipes.brain import RecipeBrain
from wavcube_plugins.speechbrain.recipes.command import run
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.speechbrain.recipes.experiment import Experiment, read_settings
from wavcube_plugins.speechbrain.recipes.export import lobe_yaml, object_yaml, write_inference

# Utterances that the speaker probe is fitted to.
_MOST_PROBED = 2000


class ConversionBrain(RecipeBrain):
    """Restores utterances from their content and another utterance of their speaker."""

    def compute_forward(self, batch, stage):
        """Return the restored latent (B, L, D), the source's own, and its frames (B,)."""
        batch = batch.to(self.device)
        source, frames = self.to_latents(*batch.sig)
        target, target_frames = self.to_latents(*batch.target_sig)
        if stage == sb.Stage.TRAIN:
            lobe = self.hparams.wavcube
            length = round(self.hparams.crop_seconds * lobe.sample_rate / lobe.hop_length)
            (source,), lens = crop([source], relative_lengths(frames, source.shape[1]), length, [1])
            frames = frame_counts(lens, source.shape[1])
        return self.modules.converter(source, frames, target, target_frames), source, frames

    def compute_objectives(self, predictions, batch, stage):
        """Return the absolute difference and cosine of latents."""
        restored, source, frames = predictions
        return self.hparams.compute_cost(restored[:, None], source[:, None], frames).mean()

    def to_latents(self, speech, lens):
        """Return latents (B, L, D) and their frames (B,), of waveforms (B, T) or of cached latents."""
        if speech.ndim == 2:
            speech, lens = self.hparams.wavcube.encode(speech, lens)
        return speech, frame_counts(lens, speech.shape[1])

    def on_stage_start(self, stage, epoch=None):
        """Choose other partners in each epoch."""
        super().on_stage_start(stage, epoch)
        self.partners["train"].epoch = epoch if stage == sb.Stage.TRAIN else 0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the loss, and keep the checkpoint with the lowest."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = {"loss": float(stage_loss)}
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            self.checkpointer.save_and_keep_only(meta=scores, min_keys=["loss"])
            return
        self.hparams.train_logger.log_stats({"split": self.split}, test_stats=scores)
        self.results[self.split] = scores


class Partners:
    """Chooses another utterance for each one: of its speaker, a different one in every epoch, or of somebody else."""

    def __init__(self, manifest: dict[str, dict], seed: int):
        self.manifest, self.seed, self.epoch = manifest, seed, 0
        self.own: dict[str, list[str]] = defaultdict(list)
        for name, entry in manifest.items():
            self.own[entry["speaker"]].append(name)

    def same(self, name: str) -> str:
        """Return another utterance of the same speaker, if there is one."""
        candidates = [one for one in self.own[self.manifest[name]["speaker"]] if one != name] or [name]
        return candidates[stable_hash(f"{self.seed}/{self.epoch}/{name}") % len(candidates)]

    def other(self, name: str) -> str:
        """Return an utterance of another speaker, always the same one."""
        others = sorted(speaker for speaker in self.own if speaker != self.manifest[name]["speaker"])
        if not others:
            return name
        number = stable_hash(f"{self.seed}/other/{name}")
        speaker = others[number % len(others)]
        return self.own[speaker][number % len(self.own[speaker])]


class ConversionTest:
    """Lets every utterance of a split sound like somebody else, and counts whom a probe hears.

    The probe is linear, fitted to the latents of the training speakers; it hears conversions after they were decoded
    and encoded again. With `asr`, a recogniser counts which words survive.
    """

    def __init__(self, brain: ConversionBrain, train_dataset, loader_opts):
        self.brain, self.lobe, self.loader_opts = brain, brain.hparams.wavcube, loader_opts
        self.recogniser = None
        if brain.hparams.asr:
            from speechbrain.inference.ASR import EncoderASR

            self.recogniser = EncoderASR.from_hparams(brain.hparams.asr)
        self.speakers = sorted({entry["speaker"] for entry in train_dataset.data.values()})
        self.probe = self._fit_probe(train_dataset)

    @torch.no_grad()
    def run(self, split: str, dataset, partners: Partners) -> dict[str, float]:
        """Return the shares of conversions heard as target and as source, and what limits them, in percent."""
        counts, number = defaultdict(int), 0
        words = {kind: self.brain.hparams.error_rate_computer() for kind in ("converted", "decoded")}
        for batch in self._batches(dataset):
            source, frames = self.brain.to_latents(*batch.sig)
            target, target_frames = self.brain.to_latents(*batch.target_sig)
            converted = self.brain.module("converter")(source, frames, target, target_frames)
            lens = relative_lengths(frames, source.shape[1])
            for row in range(len(batch.id)):
                counts["input"] += self._hear(source[row, : frames[row]]) == batch.speaker[row]
            for kind, latent in (("converted", converted), ("decoded", source)):
                waveforms = self.lobe.decode(latent, lens)
                again, again_frames = self.brain.to_latents(waveforms, lens)
                for row, name in enumerate(batch.id):
                    heard = self._hear(again[row, : again_frames[row]])
                    counts[kind, "target"] += heard == partners.manifest[partners.other(name)]["speaker"]
                    counts[kind, "source"] += heard == batch.speaker[row]
                    wav = waveforms[row, : int(frames[row]) * self.lobe.hop_length]
                    self._recognise(words[kind], name, wav, partners.manifest[name])
                    if number + row < self.brain.hparams.examples and if_main_process():
                        place = Path(self.brain.hparams.output_folder, "examples", split, f"{name}.{kind}.wav")
                        write_audio(place, wav, self.lobe.sample_rate)
            number += len(batch.id)
        scores = {
            "heard_as_target": 100 * counts["converted", "target"] / number,
            "heard_as_source": 100 * counts["converted", "source"] / number,
            "ceiling_decoded": 100 * counts["decoded", "source"] / number,
            "ceiling_probe": 100 * counts["input"] / number,
        }
        if words["converted"].scores:
            scores |= {f"WER_{kind}": stats.summarize("error_rate") for kind, stats in words.items()}
        return scores

    def _recognise(self, stats, name, wav, entry) -> None:
        if self.recogniser is not None and "text" in entry:
            found = self.recogniser.transcribe_batch(wav[None], torch.ones(1))[0][0]
            stats.append([name], [found.split()], [entry["text"].split()])

    def _fit_probe(self, dataset):
        pooled, labels = [], []
        with torch.no_grad():
            for batch in self._batches(dataset):
                # Decoded and encoded again, as conversions will be.
                latent, frames = self.brain.to_latents(*batch.sig)
                lens = relative_lengths(frames, latent.shape[1])
                again, again_frames = self.brain.to_latents(self.lobe.decode(latent, lens), lens)
                for row, speaker in enumerate(batch.speaker):
                    views = (latent[row, : frames[row]], again[row, : again_frames[row]])
                    pooled += [pool(view.float()).cpu() for view in views]
                    labels += [self.speakers.index(speaker)] * len(views)
        return fit_probe(torch.stack(pooled), torch.tensor(labels), len(self.speakers))

    def _batches(self, dataset):
        for batch in self.brain.make_dataloader(dataset, sb.Stage.TEST, ckpt_prefix=None, **self.loader_opts):
            yield batch.to(self.brain.device)

    def _hear(self, latent: torch.Tensor) -> str:
        return self.speakers[int(self.probe(pool(latent.float()).cpu()[None]))]


def stable_hash(text: str) -> int:
    """Return a number that depends on the text alone, in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def prepare(settings):
    """Make the manifests."""
    if settings["mini"]:
        prepare_mini(settings["mini_folder"], settings["manifests"], **settings["mini_data"])
    elif settings["data_folder"] is not None:
        prepare_vctk(settings["data_folder"], settings["manifests"], resample=settings["resample"])


def check_speakers(manifests, splits):
    """Check that there are several speakers, and none that the training data lack."""
    speakers = {entry["speaker"] for entry in manifests["train"].values()}
    if len(speakers) < 2:
        raise DataError("train.json: has only one speaker")
    for split in splits:
        for name, entry in manifests[split].items():
            if entry["speaker"] not in speakers:
                raise DataError(f"{split}.json: the speaker of {name!r} is not in train.json")


def make_dataset(speech, manifest, split, choose):
    """Return a data set with the items `sig`, `target_sig`, that of the utterance chosen for each, and `speaker`."""

    @sb.utils.data_pipeline.takes("id", "wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(name, path):
        return speech.load("wav", split, name, path)

    @sb.utils.data_pipeline.takes("id")
    @sb.utils.data_pipeline.provides("target_sig")
    def target_pipeline(name):
        partner = choose(name)
        return speech.load("wav", split, partner, manifest[partner]["wav"])

    items, outputs = [audio_pipeline, target_pipeline], ["id", "sig", "target_sig", "speaker"]
    return sb.dataio.dataset.DynamicItemDataset(manifest, items, outputs)


def dataio_prepare(hparams, manifests, partners):
    """Return the data set of each split, paired with utterances of the same speakers."""
    speech = hparams["speech"]
    return {split: make_dataset(speech, manifests[split], split, partners[split].same) for split in manifests}


def score_conversions(brain, hparams, manifests, partners, splits):
    """Return the scores of the conversions of each split."""
    speech, loader_opts = hparams["speech"], hparams["valid_dataloader_opts"]
    chosen = sorted(manifests["train"], key=stable_hash)[:_MOST_PROBED]
    train = {name: manifests["train"][name] for name in chosen}
    test = ConversionTest(brain, make_dataset(speech, train, "train", lambda name: name), loader_opts)
    results = {}
    for split in splits:
        dataset = make_dataset(speech, manifests[split], split, partners[split].other)
        results[f"conversion of {split}"] = test.run(split, dataset, partners[split])
    return results


def export(brain, settings, folder):
    """Write the folder for our `VoiceConversion`."""
    lobe = brain.hparams.wavcube
    write_inference(
        folder,
        {
            "wavcube": lobe_yaml(lobe, decoder=True),
            "converter": object_yaml(settings["converter"], in_dim=lobe.output_dim),
            "voice_converter": "!new:wavcube_plugins.speechbrain.modules.WaveformConverter\n"
            "    wavcube: !ref <wavcube>\n    converter: !ref <converter>",
        },
        {"converter": brain.module("converter")},
        "modules:\n    voice_converter: !ref <voice_converter>\n",
    )


def main(hparams_file, run_opts, overrides):
    """Train, score the best checkpoint, and write the folder for inference."""
    settings = read_settings(hparams_file, overrides, __file__)
    if settings["mini"]:
        overrides = {**settings["mini_settings"], **overrides}
    experiment = Experiment(hparams_file, overrides, run_opts, __file__)
    settings = experiment.settings

    experiment.prepare(prepare)
    manifests = experiment.manifests(["train", "valid", *settings["evaluate"]], ["wav", "speaker"])
    check_speakers(manifests, settings["evaluate"])
    partners = {split: Partners(manifest, settings["seed"]) for split, manifest in manifests.items()}

    hparams = experiment.load()
    hparams["speech"].fill(manifests, ["wav"], experiment.device)
    datasets = dataio_prepare(hparams, manifests, partners)
    train_data, train_loader_opts = training_batches(datasets["train"], hparams["train_dataloader_opts"])

    brain = ConversionBrain(hparams["modules"], hparams["opt_class"], hparams, run_opts, hparams["checkpointer"])
    brain.partners = partners
    hparams["wavcube"].to(brain.device)
    brain.fit(
        hparams["epoch_counter"],
        train_data,
        datasets["valid"],
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    tests = {split: datasets[split] for split in settings["evaluate"]}
    brain.evaluate_best(tests, hparams["valid_dataloader_opts"], min_key="loss")
    brain.results |= score_conversions(brain, hparams, manifests, partners, settings["evaluate"])
    return experiment.finish(brain.results, lambda folder: export(brain, settings, folder))


if __name__ == "__main__":
    sys.exit(run(main, __file__))
