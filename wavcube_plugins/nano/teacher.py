"""Trains a small WavLM to be semantic: `python -m wavcube_plugins.nano.teacher teacher.yaml --corpus CORPUS …`.

The encoder learns to say which phone each of its frames is in, where the times are known, and which phones follow each
other (CTC), where they are not, though parts of the audio are silenced or drowned in noise: WavLM's masked prediction
and denoising, with phones in the place of clusters. As WavLM's features know more than phones, the last layer has to
give the undisturbed spectrum too, with `phase_weight` below 1 kHz its phases as well, and a middle one the speaker.
With `whisper` it also learns what a Whisper encoder hears in the clean audio, frame by frame, however disturbed its own
input is. CORPUS is what `corpus.py` makes, or a list of several. OUT/export gets the encoder: `model.safetensors` and
`config.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any, cast

import speechbrain as sb
import torch
import torch.nn.functional as F
import torchaudio
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from tqdm import tqdm

from wavcube_plugins.checkpoints.backbones import load_backbone
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.nano.batches import (
    BANDS,
    IGNORED,
    INDEX,
    PHASED,
    Reader,
    TrainBatches,
    ValidBatches,
    read_manifest,
)
from wavcube_plugins.nano.whisper import WhisperStates
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.synthetic.speech import PHONES, SILENCE


class Heads(nn.Module):
    """What is learned beside the encoder and not kept: all of the last layer, but speakers of a middle one.

    Args:
        dim: Channels of the encoder.
        speakers: How many there are to tell apart.
        targets: Means and standard deviations (layers, C) of Whisper's states, which are compared in these units.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, speakers: int, targets: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.phones = nn.Linear(dim, len(PHONES))
        # The phones as CTC has them, with its blank in the place of silence.
        self.order = nn.Linear(dim, len(PHONES))
        self.spectrum = nn.Linear(dim, BANDS)
        self.speakers = nn.Linear(dim, speakers)
        # After the others, whose random weights stay those of the packaged encoder's training.
        self.phases = nn.Linear(dim, 2 * (PHASED.stop - PHASED.start))
        if targets is not None:
            self.register_buffer("mean", targets[0])
            self.register_buffer("deviation", targets[1])
            self.whisper = nn.Linear(dim, targets[0].numel())

    def whisper_loss(self, last: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of Whisper's states (N, layers, C), foretold from the last layer (N, dim)."""
        wanted = (targets - self.mean) / self.deviation
        return F.mse_loss(self.whisper(last).float(), wanted.flatten(1))


class TeacherBrain(sb.Brain):
    """Trains the encoder; every checkpoint is exported.

    Attributes:
        batches: The `TrainBatches` it is fitted to.
        results: What the export says about quality.
    """

    batches: TrainBatches
    results: dict[str, float]

    def compute_forward(self, batch, stage):
        waveforms, lengths = batch["waveforms"].to(self.device), batch["lengths"].to(self.device)
        whole = None if bool((lengths == waveforms.shape[1]).all()) else lengths
        states = self.modules["encoder"](waveforms, whole)
        middle = states[self.hparams.speaker_layer]  # (B, L, C)
        frames = self.hparams.frame_lengths(lengths)
        inside = length_mask(frames, middle.shape[1])[..., None]
        pooled = (middle * inside).sum(1) / frames[:, None]  # (B, C)
        heads = cast(Heads, self.modules["heads"])
        last = states[-1]
        return (
            heads.phones(last),
            heads.order(last),
            heads.spectrum(last),
            heads.phases(last),
            heads.speakers(pooled),
            last,
            frames,
        )

    def compute_objectives(self, predictions, batch, stage):
        phones, order, spectrum, phases, speakers, last, frames = predictions
        phones, order, spectrum, phases = phones.float(), order.float(), spectrum.float(), phases.float()
        labels = batch.get("labels")
        if stage != sb.Stage.TRAIN:
            self._count(order if labels is None else phones, labels, batch["pronunciations"])
            return phones.new_zeros(())
        if labels is None:
            loss = self._order_loss(order, frames, batch["pronunciations"])
        else:
            loss = self.hparams.phone_weight * self._phone_loss(phones, labels.to(self.device))
        inside = length_mask(frames, spectrum.shape[1])
        difference = (spectrum - batch["spectrum"].to(self.device)).abs().mean(-1)
        loss = loss + self.hparams.spectrum_weight * difference[inside].mean()
        if "targets" in batch:
            heads, targets = cast(Heads, self.modules["heads"]), batch["targets"].to(self.device)
            distance = heads.whisper_loss(last[inside], targets[inside])
            loss = loss + self.hparams.whisper_weight * distance
            self.distances.append(float(distance.detach()))
        if "phases" in batch:
            # The share of their energy that is not explained.
            wanted = batch["phases"].to(self.device)[inside]
            loss = loss + self.hparams.phase_weight * F.mse_loss(phases[inside], wanted) / wanted.square().mean()
        speaker_loss = F.cross_entropy(speakers.float(), batch["speakers"].to(self.device))
        return loss + self.hparams.speaker_weight * speaker_loss

    def _phone_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the frames (B, L) whose phones are known."""
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss / (labels != IGNORED).sum().clamp_min(1)

    def _order_loss(self, logits, frames, pronunciations):
        """Return CTC's loss per frame, as the frame-wise one is."""
        targets = torch.tensor([phone for said in pronunciations for phone in said], device=logits.device)
        counts = torch.tensor([len(said) for said in pronunciations], device=logits.device)
        scores = F.log_softmax(logits, -1).transpose(0, 1)  # (L, B, C)
        blank = INDEX[SILENCE]
        loss = F.ctc_loss(scores, targets, frames, counts, blank=blank, reduction="sum", zero_infinity=True)
        return loss / frames.sum()

    def _count(self, logits, labels, pronunciations):
        best = logits.argmax(-1).cpu()
        kind = "pico" if labels is None else "espeak"
        if labels is not None:
            self.counts["right"] += int((best == labels).sum())
            self.counts["frames"] += int((labels != IGNORED).sum())
        for row, said in zip(best, pronunciations, strict=True):
            heard = [phone for phone in torch.unique_consecutive(row).tolist() if phone != INDEX[SILENCE]]
            self.counts[f"errors_{kind}"] += torchaudio.functional.edit_distance(heard, said)
            self.counts[f"phones_{kind}"] += len(said)

    def on_stage_start(self, stage, epoch=None):
        self.counts: dict[str, int] = dict.fromkeys(
            ("right", "frames", "errors_espeak", "phones_espeak", "errors_pico", "phones_pico"), 0
        )
        if stage == sb.Stage.TRAIN:
            self.batches.epoch = epoch or 1
            self.distances: list[float] = []

    def on_fit_batch_start(self, batch, should_step):
        hparams = self.hparams
        warmup = max(hparams.warmup * hparams.steps, 1)
        progress = min(max(self.optimizer_step - warmup, 0) / max(hparams.steps - warmup, 1), 1)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = hparams.lr * min((self.optimizer_step + 1) / warmup, 0.01 + 0.99 * cosine)

    def scores(self) -> dict[str, float]:
        """Return what the validation so far found: frame accuracy and phone error rates, in percent."""
        counts = self.counts
        scores = {"frame_accuracy": 100 * counts["right"] / max(counts["frames"], 1)}
        for kind in ("espeak", "pico"):
            if counts[f"phones_{kind}"]:
                scores[f"phone_error_{kind}"] = 100 * counts[f"errors_{kind}"] / counts[f"phones_{kind}"]
        return {name: round(value, 2) for name, value in scores.items()}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.train_losses = {"loss": float(stage_loss)}
            if self.distances:
                self.train_losses["whisper"] = sum(self.distances) / len(self.distances)
            return
        if stage == sb.Stage.TEST:
            return
        scores = self.scores()
        self.results = {f"valid_{name}": value for name, value in scores.items()}
        self.hparams.train_logger.log_stats({"epoch": epoch, "steps": self.optimizer_step}, self.train_losses, scores)
        assert self.checkpointer is not None  # `train` gives it one
        self.checkpointer.save_and_keep_only(meta={"epoch": epoch} | scores, num_to_keep=1)
        self.export()

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        self.export()

    def export(self):
        """Write the encoder as it is now."""
        run_on_main(self._export)

    def _export(self):
        folder = Path(self.hparams.output_folder) / "export"
        encoder = self.hparams.encoder
        metadata = {"steps": str(self.optimizer_step), "seed": str(self.hparams.seed), "data": self.hparams.data}
        metadata |= {name: str(value) for name, value in self.results.items()}
        config = {"format": "wavlm-1", "config": dataclasses.asdict(encoder.config), "metadata": metadata}
        weights = {name: value.detach().cpu().float().contiguous() for name, value in encoder.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as path:
            save_file(weights, path)
        with atomic_path(folder / "config.json") as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class HiddenStates(nn.Module):
    """Calls an encoder for all of its hidden states, as data-parallel wrappers know only `forward`."""

    def __init__(self, encoder: WavLM):
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
        return self.encoder.hidden_states(waveforms, lengths)


def train(hparams: dict, run_opts: Any) -> dict[str, float]:
    """Train or go on training, export, and return the validation's and the test's results."""
    config = WavCubeConfig.preset(hparams["preset"]).wavlm
    readers = [Reader(corpus, config, keep=hparams["keep_audio"]) for corpus in corpora(hparams)]
    splits = {split: [(r, read_manifest(r.corpus, split)) for r in readers] for split in ("train", "valid", "test")}
    if hparams["whisper"] is not None:
        make_targets(splits["train"], hparams["whisper"], hparams["whisper_layers"], run_opts.get("device", "cpu"))
    batches = TrainBatches(splits["train"], hparams)
    torch.manual_seed(hparams["seed"])
    encoder = WavLM(config)
    if hparams["start"] is not None:
        encoder.load_state_dict(load_backbone(hparams["start"]).state_dict())
    targets = measure_targets(splits["train"]) if batches.distilled else None
    heads = Heads(config.hidden_dim, len(batches.speakers), targets)
    modules = {"encoder": HiddenStates(encoder), "heads": heads}
    seconds = sum(record["duration"] for records in batches.crops for record in records)
    if not batches.distilled:
        seconds += sum(record["duration"] for group in batches.whole for _, record in group)
    hparams |= {
        "encoder": encoder,
        "frame_lengths": encoder.frame_lengths,
        "data": f"{seconds / 3600:.1f} h of labelled synthesised speech by {len(batches.speakers)} speakers",
    }
    checkpointer = hparams["checkpointer"]
    checkpointer.add_recoverables(modules | {"counter": hparams["epoch_counter"]})
    brain = TeacherBrain(
        modules,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=hparams["lr"], betas=(0.9, 0.98), weight_decay=hparams["weight_decay"]
        ),
        hparams,
        run_opts,
        checkpointer,
    )
    brain.batches, brain.results = batches, {}
    loading = {"batch_size": None, "num_workers": hparams["num_workers"]}
    brain.fit(hparams["epoch_counter"], batches, _loader(splits["valid"]), train_loader_kwargs=loading)
    results = {}
    for name, new in (("valid", None), ("test_seen", False), ("test_unseen", True)):
        split = splits["valid" if new is None else "test"]
        if new is not None:
            split = [(r, [one for one in part if (one["speaker"] not in batches.speakers) == new]) for r, part in split]
        loader = _loader(split)
        if loader is not None:
            brain.evaluate(loader)
            results |= {f"{name}_{key}": value for key, value in brain.scores().items()}
    brain.results = results
    brain.export()
    return results


def corpora(hparams: dict) -> list[Path]:
    """Return the folders of the corpora that the settings name."""
    named = hparams["corpus"]
    return [Path(one) for one in (named if isinstance(named, list) else [named])]


def make_targets(splits: list[tuple[Reader, list[dict]]], source: str, layers: list[int], device: str = "cpu") -> None:
    """Compute what is missing of Whisper's targets of the training utterances."""
    missing = [(r, one) for r, part in splits for one in part if not r.targets.path(one["id"]).is_file()]
    if not missing:
        return
    whisper = WhisperStates.load(source, layers).to(device)
    for reader, record in tqdm(missing, desc="Whisper", unit="utterance"):
        reader.targets.write(record["id"], reader.waveform(record), whisper, reader.config.receptive_field // 2)


def measure_targets(splits: list[tuple[Reader, list[dict]]], count: int = 200) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations (layers, C) of the targets, over some utterances of each corpus."""
    parts = []
    for reader, records in splits:
        for record in records[:: max(1, len(records) // count)]:
            parts.append(reader.targets.read(record["id"], 0, 1500))
    states = torch.cat(parts)
    return states.mean(0), states.std(0).clamp_min(1e-4)


def _loader(split: list[tuple[Reader, list[dict]]]) -> DataLoader | None:
    parts = [ValidBatches(reader, records) for reader, records in split if records]
    return DataLoader(ConcatDataset(parts), batch_size=None) if parts else None


def _load(path: str, overrides: str | dict) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return load_hyperpyyaml(file, overrides)
    except KeyError as error:
        raise InputError(f"{path} has no such option: {error}") from error
    except ValueError as error:
        if "PLACEHOLDER" not in str(error):
            raise
        raise InputError("both --corpus and --output_folder must be given") from error


def main(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    try:
        hparams = _load(hparams_file, overrides)
        # Before anything is written.
        for corpus in corpora(hparams):
            for split in ("train", "valid", "test"):
                read_manifest(corpus, split)
        sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
        results = train(hparams, run_opts)
    except (InputError, DataError, OSError) as error:
        print(f"teacher.py: error: {error}", file=sys.stderr)
        return 2
    if if_main_process():
        with atomic_path(Path(hparams["output_folder"]) / "results.json") as path:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for name, value in results.items():
            print(f"{name}: {value} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
