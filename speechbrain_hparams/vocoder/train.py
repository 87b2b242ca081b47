#!/usr/bin/env python
"""Fine-tunes WavCube's AcousticDecoder, the vocoder of its latent, on your own speech; the encoder stays as it is."""

from __future__ import annotations

import sys

try:
    import speechbrain as sb
except ImportError:
    sys.exit("vocoder/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import math
from importlib.util import find_spec

import torch
from speechbrain.utils.distributed import get_rank, if_main_process, main_process_only

from wavcube_plugins import load_model
from wavcube_plugins.audio import write_audio
from wavcube_plugins.checkpoints import save_model
from wavcube_plugins.evaluation import compare
from wavcube_plugins.models.mel import LogMel
from wavcube_plugins.pretraining.discriminators import Discriminators
from wavcube_plugins.pretraining.losses import LossWeights, mel_loss
from wavcube_plugins.pretraining.step import NonFiniteError, PretrainingStep, Schedule
from wavcube_plugins.speechbrain.lengths import absolute_lengths
from wavcube_plugins.speechbrain.recipes.brain import Recipe, TrainingError, crop
from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.data import DataError, make_dataset
from wavcube_plugins.speechbrain.vocoder import TrainableDecoder

_METRICS = ("stoi", "pesq", "si_sdr", "mel_distance")


class Vocoder(Recipe):
    """The step of pretraining with an encoder that does not move; the test compares with the decoder as it was."""

    monitor = ("mel_distance", "min")

    def build(self):
        for package in ("pesq", "pystoi"):
            if find_spec(package) is None:
                raise ImportError(f"the scores of this recipe need {package}; from a clone: pip install '.[eval]'")
        settings = self.settings
        windows = settings["mel_windows"]
        if not windows or not all(isinstance(window, int) and window >= 16 for window in windows):
            raise DataError(f"mel_windows must be a list of lengths in samples, got {windows!r}")
        self.samples = round(settings["crop_seconds"] * self.lobe.sample_rate)
        if self.samples < self.lobe.hop_length:
            raise DataError(f"crop_seconds must be at least 0.02, got {settings['crop_seconds']}")
        return {
            "generator": TrainableDecoder(self.lobe),
            "discriminators": Discriminators(settings["discriminator_width"]),
        }

    def dataset(self, split, manifest):
        dataset = make_dataset(manifest, split, self.speech, features=["wav"])
        if split == "train":
            dataset.add_dynamic_item(self._fill, takes="wav_input", provides="filled")
            dataset.set_output_keys(["id", "filled"])
        return dataset

    def init_optimizers(self):
        if self.precision == "fp16":
            raise DataError("--precision fp16 is not supported here; use bf16, which has the range that losses need")
        if self.grad_accumulation_factor > 1:
            raise DataError("--grad_accumulation_factor has no effect here; raise --batch_size")
        settings = self.settings
        self.training = PretrainingStep(
            self.modules.generator,
            self.modules.discriminators,
            LossWeights(settings["mel_weight"], settings["adversarial_weight"], 0.0, settings["adversarial_from"]),
            Schedule(settings["lr"], settings["warmup_steps"], self.batches_per_epoch * settings["number_of_epochs"]),
            seed=settings["seed"],
            rank=get_rank() or 0,
            autocast={"fp32": None, "bf16": torch.bfloat16}[self.precision],
            max_gradient_norm=self.max_grad_norm,
            sample_rate=self.lobe.sample_rate,
            mel_windows=settings["mel_windows"],
            weight_decay=settings["weight_decay"],
        )
        self.checkpointer.add_recoverable("training", self.training, load_state, save_state)

    def fit_batch(self, batch):
        number = self.batches_before(self.epochs.current) + self.step
        self.seed_batch(number)
        batch = batch.to(self.device)
        (pieces,), _ = crop([batch.filled.data], batch.filled.lengths, self.samples, [1])
        try:
            result = self.training(pieces, number - 1)
        except NonFiniteError as error:
            raise TrainingError(str(error)) from error
        self.optimizer_step += 1
        return result.losses["mel"].cpu()

    def evaluate_batch(self, batch, stage):
        batch = batch.to(self.device)
        speech, lens = batch.wav_input
        rebuilt = self.lobe.reconstruct(speech, lens)
        before = None
        if stage == sb.Stage.TEST:
            self.first = self.first or load_model(self.lobe.source, device=self.device)
            before = self.first.reconstruct(speech, absolute_lengths(lens, speech))[0]
        losses = []
        for row, (name, length) in enumerate(zip(batch.id, absolute_lengths(lens, speech).tolist(), strict=True)):
            real, ours = (x[row, :length].float().cpu() for x in (speech, rebuilt))
            losses.append(mel_loss(self.log_mel, real, ours))
            if stage == sb.Stage.VALID:
                self.sums.setdefault("mel_distance", []).append(float(losses[-1]))
                continue
            for kind, estimate in (("", ours), ("_before", before[row, :length].float().cpu())):
                values = compare(real, estimate, self.lobe.sample_rate).to_dict()
                for metric in _METRICS:
                    if values[metric] is not None:
                        self.sums.setdefault(f"{metric}{kind}", []).append(values[metric])
                if self.examples < self.settings["examples"] and if_main_process():
                    place = self.folder / "examples" / self.split / f"{name}{kind or '_after'}.wav"
                    write_audio(place, estimate, self.lobe.sample_rate)
            self.examples += 1
        return torch.stack(losses).mean()

    def start_scores(self, stage):
        self.sums: dict[str, list[float]] = {}
        self.examples = 0
        self.first = None
        self.log_mel = LogMel(self.lobe.sample_rate)

    def scores(self, stage):
        return {name: sum(values) / len(values) for name, values in self.sums.items()}

    def export(self, folder):
        self.lobe.model.metadata = {**self.lobe.model.metadata, "vocoder": "fine-tuned by the vocoder recipe"}
        save_model(self.lobe.model, folder)

    def _fill(self, waveform: torch.Tensor) -> torch.Tensor:
        return waveform.repeat(math.ceil(self.samples / len(waveform)))


@main_process_only
def save_state(training: PretrainingStep, path) -> None:
    torch.save(training.state_dict(), path)


def load_state(training: PretrainingStep, path, end_of_epoch: bool) -> None:
    training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


if __name__ == "__main__":
    status = main(Vocoder, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
