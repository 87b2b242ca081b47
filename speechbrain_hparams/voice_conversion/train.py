#!/usr/bin/env python
"""Trains any-to-any voice conversion on WavCube's latent: what is said from one utterance, the voice from another."""

from __future__ import annotations

import sys

try:
    import speechbrain as sb
except ImportError:
    sys.exit(
        "voice_conversion/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'"
    )
import hashlib
from collections import defaultdict

import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats

from wavcube_plugins.audio import write_audio
from wavcube_plugins.evaluation.probes import fit_probe, pool
from wavcube_plugins.heads.losses import pairwise_latent_loss
from wavcube_plugins.speechbrain.lengths import relative_lengths
from wavcube_plugins.speechbrain.recipes.brain import Recipe, crop, head_yaml
from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset

# Utterances that the speaker probe learns from.
_MOST_PROBED = 2000


class Conversion(Recipe):
    """Restores utterances from their content and another utterance of their speaker.

    The test lets every utterance sound like somebody else. A linear probe on the latents of the training speakers says
    whom the result sounds like once it was decoded and encoded again; with `asr`, a folder that `asr_ctc` wrote, a
    recogniser says how much of the words is left.
    """

    needs = ("wav", "speaker")

    def build(self):
        if not self.lobe.freeze or self.lobe.features != "latent":
            raise DataError("this recipe maps the latent of a frozen model: it needs freeze: True, features: latent")
        speakers = {entry["speaker"] for entry in self.manifests["train"].values()}
        if len(speakers) < 2:
            raise DataError(f"{self.settings['manifests']}/train.json: has only one speaker")
        for split in self.settings["evaluate"]:
            for name, entry in self.manifests[split].items():
                if entry["speaker"] not in speakers:
                    raise DataError(f"{split}.json: the speaker of {name!r} is not in train.json")
        self.partners = {split: Partners(manifest, self.settings["seed"]) for split, manifest in self.manifests.items()}
        self.asr = None
        if self.settings["asr"]:
            from speechbrain.inference.ASR import EncoderASR

            self.asr = EncoderASR.from_hparams(self.settings["asr"])
        return {"converter": self.settings["head"](self.lobe.output_dim, self.settings["voice_dim"])}

    def dataset(self, split, manifest, other: bool = False):
        partners = self.partners[split]
        choose = partners.other if other else partners
        cached = self.speech.cache is not None

        def target(name: str) -> torch.Tensor:
            partner = choose(name)
            return self.speech.latent("wav", split, partner) if cached else self.speech.read(manifest[partner]["wav"])

        items = [(target, "id", "target_input")]
        return make_dataset(manifest, split, self.speech, features=["wav"], labels=["speaker"], items=items)

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.partners["train"].epoch = epoch if stage == sb.Stage.TRAIN else 0

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        source, frames = self.to_latents(*batch.wav_input)
        target, target_frames = self.to_latents(*batch.target_input)
        if stage == sb.Stage.TRAIN:
            length = round(self.settings["crop_seconds"] * self.lobe.sample_rate / self.lobe.hop_length)
            (source,), lens = crop([source], relative_lengths(frames, source.shape[1]), length, [1])
            frames = (lens * source.shape[1]).round().long()
        return self.modules.converter(source, frames, target, target_frames), source, frames

    def compute_objectives(self, predictions, batch, stage):
        converted, source, frames = predictions
        return pairwise_latent_loss(converted[:, None], source[:, None], frames).mean()

    def more_results(self):
        self._fit_probe()
        return {f"conversion of {split}": self._convert(split) for split in self.settings["evaluate"]}

    def export(self, folder):
        self.write_inference(
            folder,
            {
                "wavcube": self.lobe_yaml(decoder=True),
                "converter": head_yaml(self.settings["head"], self.lobe.output_dim, self.settings["voice_dim"]),
                "voice_converter": "!new:wavcube_plugins.speechbrain.modules.WaveformConverter\n"
                "    wavcube: !ref <wavcube>\n    converter: !ref <converter>",
            },
            {"converter": self.raw["converter"]},
            "modules:\n    voice_converter: !ref <voice_converter>\n",
        )

    @torch.no_grad()
    def _convert(self, split: str) -> dict[str, float]:
        manifest = self.manifests[split]
        dataset = self.dataset(split, manifest, other=True)
        options = {"batch_size": self.settings["valid_batch_size"], "num_workers": self.settings["num_workers"]}
        counts, total = defaultdict(int), 0
        words = {kind: ErrorRateStats() for kind in ("converted", "decoded")}
        for batch in self.make_dataloader(dataset, sb.Stage.TEST, ckpt_prefix=None, **options):
            batch = batch.to(self.device)
            source, frames = self.to_latents(*batch.wav_input)
            target, target_frames = self.to_latents(*batch.target_input)
            converted = self.raw["converter"](source, frames, target, target_frames)
            lens = relative_lengths(frames, source.shape[1])
            for kind, latent in (("converted", converted), ("decoded", source)):
                waveforms = self.lobe.decode(latent, lens)
                again, counts_again = self.to_latents(waveforms, lens)
                for row, name in enumerate(batch.id):
                    heard = self._speaker(again[row, : counts_again[row]])
                    wanted = manifest[self.partners[split].other(name)]["speaker"]
                    counts[kind, "target"] += heard == wanted
                    counts[kind, "source"] += heard == batch.speaker[row]
                    if kind == "decoded":
                        counts["input"] += self._speaker(source[row, : frames[row]]) == batch.speaker[row]
                    length = int(frames[row]) * self.lobe.hop_length
                    if self.asr and "text" in manifest[name]:
                        found = self.asr.transcribe_batch(waveforms[row : row + 1, :length], torch.ones(1))[0][0]
                        words[kind].append([name], [found.split()], [manifest[name]["text"].split()])
                    if total + row < self.settings["examples"] and if_main_process():
                        place = self.folder / "examples" / split / f"{name}.{kind}.wav"
                        write_audio(place, waveforms[row, :length], self.lobe.sample_rate)
            total += len(batch.id)
        scores = {
            "heard_as_target": 100 * counts["converted", "target"] / total,
            "heard_as_source": 100 * counts["converted", "source"] / total,
            "ceiling_decoded": 100 * counts["decoded", "source"] / total,
            "ceiling_probe": 100 * counts["input"] / total,
        }
        if self.asr and words["converted"].scores:
            scores |= {f"WER_{kind}": stats.summarize("error_rate") for kind, stats in words.items()}
        return scores

    @torch.no_grad()
    def _fit_probe(self) -> None:
        manifest = self.manifests["train"]
        self.speakers = sorted({entry["speaker"] for entry in manifest.values()})
        chosen = sorted(manifest, key=stable_hash)[:_MOST_PROBED]
        dataset = make_dataset({name: manifest[name] for name in chosen}, "train", self.speech, features=["wav"])
        options = {"batch_size": self.settings["valid_batch_size"], "num_workers": self.settings["num_workers"]}
        pooled, labels = [], []
        for batch in self.make_dataloader(dataset, sb.Stage.TEST, ckpt_prefix=None, **options):
            batch = batch.to(self.device)
            # Decoded and encoded again, as conversions will be.
            latent, frames = self.to_latents(*batch.wav_input)
            lens = relative_lengths(frames, latent.shape[1])
            again, frames_again = self.to_latents(self.lobe.decode(latent, lens), lens)
            for row, name in enumerate(batch.id):
                views = (latent[row, : frames[row]], again[row, : frames_again[row]])
                pooled += [pool(view.float()).cpu() for view in views]
                labels += [self.speakers.index(manifest[name]["speaker"])] * len(views)
        with torch.enable_grad():
            self.probe = fit_probe(torch.stack(pooled), torch.tensor(labels), len(self.speakers))

    def _speaker(self, latent: torch.Tensor) -> str:
        return self.speakers[int(self.probe(pool(latent.float()).cpu()[None]))]


class Partners:
    """Chooses, for an utterance, another one: of its speaker, another in every epoch, or of somebody else."""

    def __init__(self, manifest: dict[str, dict], seed: int):
        self.manifest, self.seed, self.epoch = manifest, seed, 0
        self.own: dict[str, list[str]] = defaultdict(list)
        for name, entry in manifest.items():
            self.own[entry["speaker"]].append(name)

    def __call__(self, name: str) -> str:
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


def stable_hash(text: str) -> int:
    """Return a number that follows from a text, in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


if __name__ == "__main__":
    status = main(Conversion, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
