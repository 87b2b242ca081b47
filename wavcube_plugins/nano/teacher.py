"""Trains a small WavLM to be semantic: `python teacher.py teacher.yaml --corpus CORPUS --output_folder OUT`.

The encoder learns to say which phone each of its frames is in, where the times are known, and which phones follow each
other (CTC), where they are not, though parts of the audio are silenced or drowned in noise: WavLM's masked prediction
and denoising, with phones in the place of clusters. As WavLM's features know more than phones, the last layer has to
give the undisturbed spectrum too, with `phase_weight` below 1 kHz its phases as well, and a middle one the speaker.
CORPUS is what `corpus.py` makes. OUT/export gets the encoder: `model.safetensors` and `config.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import speechbrain as sb
import torch
import torch.nn.functional as F
import torchaudio
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wavcube_plugins.config import WavCubeConfig, WavLMConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.lengths import length_mask, pad_batch
from wavcube_plugins.models.wavcube import normalise
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.nano.corpus import SAMPLE_RATE, stable_seed
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

INDEX = {phone: index for index, phone in enumerate(PHONES)}
IGNORED = -100
# Of the spectrum that the last layer has to give: bands, length of the FFT, and the least magnitude, of a waveform of
# unit variance.
_BANDS, _BINS, _FLOOR = 80, 1024, 1e-3
# Of the complex spectrum that it has to give: length of the FFT, and the bins from 60 Hz to 1 kHz, where the lowest
# harmonics of speech are. Nothing else here tells one phase from another, and an encoder that is deaf to phase leaves
# the decoder no way to place harmonics: it answers every pitch with one of 100 Hz, its own frame rate.
_PHASE_BINS, _PHASED = 512, slice(2, 33)


def read_manifest(corpus: Path, split: str) -> list[dict]:
    """Return the utterances of a split whose phones are known in some way.

    Raises:
        InputError: no manifest, or none that can be read.
    """
    path = Path(corpus) / f"{split}.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the corpus with corpus.py")
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: not JSON, {error}") from error
            if not isinstance(record, dict) or not record.keys() >= {"id", "path", "duration", "speaker"}:
                raise InputError(f"{path}, line {number}: an utterance has an id, a path, a duration and a speaker")
            labels = {label for label, _, _ in record.get("phones", ())} | set(record.get("pronunciation", ()))
            if not labels <= INDEX.keys():
                raise InputError(f"{path}, line {number}: no such phone as {min(labels - INDEX.keys())!r}")
            if labels:
                records.append(record)
    return records


class Reader:
    """Reads waveforms and labels of a corpus for an encoder with the given config."""

    def __init__(self, corpus: str | Path, config):
        self.corpus, self.config = Path(corpus), config

    def waveform(self, record: dict, start: int = 0, samples: int = -1) -> np.ndarray:
        """Return float32 samples (T,), fewer than wanted where the file ends."""
        path = self.corpus / record["path"]
        try:
            return soundfile.read(path, frames=samples, start=start, dtype="float32")[0]
        except (soundfile.LibsndfileError, OSError) as error:
            raise InputError(f"{path}: not readable as audio") from error

    def labels(self, record: dict, start: int, samples: int) -> np.ndarray:
        """Return the phone (L,) at the centre of each frame of a crop."""
        frames = max((samples - self.config.receptive_field) // self.config.hop_length + 1, 1)
        centres = start + np.arange(frames) * self.config.hop_length + self.config.receptive_field / 2
        ends = [end for _, _, end in record["phones"]]
        positions = np.searchsorted(ends, centres / SAMPLE_RATE, side="right").clip(max=len(ends) - 1)
        return np.array([INDEX[label] for label, _, _ in record["phones"]])[positions]


class TrainBatches(Dataset):
    """Item i is batch i of the epoch: a function of the seed, the step and the corpus alone, so that resuming is exact.

    Set `epoch` (1, 2, …) before each epoch.
    """

    def __init__(self, reader: Reader, records: list[dict], hparams: dict):
        self.reader, self.hparams, self.epoch = reader, hparams, 1
        self.speakers = {name: index for index, name in enumerate(sorted({record["speaker"] for record in records}))}
        self.timed = [record for record in records if "phones" in record]
        whole = [record for record in records if "phones" not in record]
        whole = sorted((r for r in whole if r["duration"] <= hparams["whole_longest"]), key=lambda r: r["duration"])
        if not self.timed:
            raise InputError(f"{reader.corpus}: no training utterance has phones with times")
        self.whole: list[list[dict]] = []
        for record in whole:
            full = self.whole and (len(self.whole[-1]) + 1) * record["duration"] > hparams["whole_seconds"]
            if not self.whole or full:
                self.whole.append([])
            self.whole[-1].append(record)
        # For each step whether it takes whole utterances, and how many of its kind came before.
        self.plan: list[tuple[bool, int]] = []
        counts = [0, 0]
        for step in range(hparams["steps"]):
            chance = random.Random(stable_seed(hparams["seed"], "kind", step)).random()
            late = step >= hparams["whole_after"] * hparams["steps"]
            kind = bool(self.whole) and late and chance < hparams["whole_share"]
            self.plan.append((kind, counts[kind]))
            counts[kind] += 1

    def __len__(self) -> int:
        return self.hparams["steps_per_epoch"]

    def __getitem__(self, index: int) -> dict:
        step = min((self.epoch - 1) * len(self) + index, self.hparams["steps"] - 1)
        whole, number = self.plan[step]
        if whole:
            order = _order(self.hparams["seed"], "whole", number // len(self.whole), len(self.whole))
            return self._whole(self.whole[order[number % len(self.whole)]], step)
        size = self.hparams["batch_crops"]
        records = []
        for position in range(number * size, (number + 1) * size):
            turn, place = divmod(position, len(self.timed))
            records.append(self.timed[_order(self.hparams["seed"], "crops", turn, len(self.timed))[place]])
        return self._crops(records, step)

    def _crops(self, records: list[dict], step: int) -> dict:
        wanted = int(self.hparams["crop_seconds"] * SAMPLE_RATE)
        waveforms, labels = [], []
        for record in records:
            generator = random.Random(stable_seed(self.hparams["seed"], "crop", step, record["id"]))
            start = generator.randint(0, max(round(record["duration"] * SAMPLE_RATE) - wanted, 0))
            waveforms.append(torch.from_numpy(self.reader.waveform(record, start, wanted)))
            labels.append(torch.from_numpy(self.reader.labels(record, start, len(waveforms[-1]))))
        labels = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return self._finish(records, waveforms, step) | {"labels": labels}

    def _whole(self, records: list[dict], step: int) -> dict:
        waveforms = [torch.from_numpy(self.reader.waveform(record)) for record in records]
        return self._finish(records, waveforms, step) | {
            "pronunciations": [[INDEX[label] for label in record["pronunciation"]] for record in records]
        }

    def _finish(self, records: list[dict], waveforms: list[Tensor], step: int) -> dict:
        padded, lengths = pad_batch(waveforms)
        padded = normalise(padded, lengths)
        spectrum = log_spectrum(padded, self.reader.config)
        # Before the mask, which works in place.
        phased = self.hparams["phase_weight"] > 0
        phases = {"phases": low_spectrum(padded, self.reader.config)} if phased else {}
        for row, record in enumerate(records):
            generator = np.random.default_rng(stable_seed(self.hparams["seed"], "mask", step, record["id"]))
            _mask(padded[row, : lengths[row]].numpy(), self.hparams["masked_share"], generator)
        speakers = torch.tensor([self.speakers[record["speaker"]] for record in records])
        return {"waveforms": padded, "lengths": lengths, "speakers": speakers, "spectrum": spectrum} | phases


class ValidBatches(Dataset):
    """Item i is utterance i by itself."""

    def __init__(self, reader: Reader, records: list[dict]):
        self.reader, self.records = reader, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        waveform = torch.from_numpy(self.reader.waveform(record))
        batch = {"waveforms": normalise(waveform[None]), "lengths": torch.tensor([len(waveform)])}
        if "phones" in record:
            batch["labels"] = torch.from_numpy(self.reader.labels(record, 0, len(waveform)))[None]
            said = [label for label, _, _ in record["phones"] if label != SILENCE]
        else:
            said = record["pronunciation"]
        return batch | {"pronunciations": [[INDEX[label] for label in said]]}


@lru_cache(maxsize=4)
def _order(seed: int, kind: str, turn: int, count: int) -> list[int]:
    order = list(range(count))
    random.Random(stable_seed(seed, kind, turn)).shuffle(order)
    return order


def _mask(waveform: np.ndarray, share: float, generator: np.random.Generator) -> None:
    """Silence spans of 60 to 260 ms or fill them with noise, in place, until about the given share is gone."""
    left = share * len(waveform) * generator.uniform(0, 2)
    while left > 0:
        length = min(int(generator.uniform(0.06, 0.26) * SAMPLE_RATE), len(waveform) // 2)
        start = generator.integers(0, len(waveform) - length)
        kind = generator.integers(3)
        span = waveform[start : start + length]
        if kind == 0:
            span[:] = 0
        else:
            noise = generator.standard_normal(length).astype(np.float32)
            # Replaced by noise, or drowned in it.
            span[:] = noise * generator.uniform(0.1, 1) + (span if kind == 2 else 0)
        left -= max(length, 1)


def log_spectrum(waveforms: Tensor, config: WavLMConfig) -> Tensor:
    """Return log-mel magnitudes (B, L, bands) of waveforms (B, T), on the samples that the encoder's frames see."""
    # Zeros behind the frame give the lowest bands bins of their own.
    magnitudes = _spectrum(waveforms, config, _BINS).abs()
    bands = torchaudio.functional.melscale_fbanks(_BINS // 2 + 1, 0.0, SAMPLE_RATE / 2, _BANDS, SAMPLE_RATE)
    return (magnitudes @ bands).clamp_min(_FLOOR).log()


def low_spectrum(waveforms: Tensor, config: WavLMConfig) -> Tensor:
    """Return real and imaginary parts (B, L, 2 * bins) of the low spectrum of waveforms (B, T), frame by frame.

    Magnitudes are square roots of the true ones, so that loud vowels are not all that counts.
    """
    spectrum = _spectrum(waveforms, config, _PHASE_BINS)[..., _PHASED]
    spectrum = spectrum * spectrum.abs().clamp_min(_FLOOR).rsqrt()
    return torch.cat([spectrum.real, spectrum.imag], dim=-1)


def _spectrum(waveforms: Tensor, config: WavLMConfig, n_fft: int) -> Tensor:
    field = config.receptive_field
    frames = waveforms.unfold(1, field, config.hop_length) * torch.hann_window(field)
    return torch.fft.rfft(frames, n_fft) / field**0.5


class Heads(nn.Module):
    """What is learned beside the encoder and not kept: all of the last layer, but speakers of a middle one."""

    def __init__(self, dim: int, speakers: int):
        super().__init__()
        self.phones = nn.Linear(dim, len(PHONES))
        # The phones as CTC has them, with its blank in the place of silence.
        self.order = nn.Linear(dim, len(PHONES))
        self.spectrum = nn.Linear(dim, _BANDS)
        self.speakers = nn.Linear(dim, speakers)
        # After the others, whose random weights stay those of the packaged encoder's training.
        self.phases = nn.Linear(dim, 2 * (_PHASED.stop - _PHASED.start))


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
        states = self.modules.encoder(waveforms, whole)
        middle = states[self.hparams.speaker_layer]  # (B, L, C)
        frames = self.hparams.frame_lengths(lengths)
        inside = length_mask(frames, middle.shape[1])[..., None]
        pooled = (middle * inside).sum(1) / frames[:, None]  # (B, C)
        heads = self.modules.heads
        last = states[-1]
        return (
            heads.phones(last),
            heads.order(last),
            heads.spectrum(last),
            heads.phases(last),
            heads.speakers(pooled),
            frames,
        )

    def compute_objectives(self, predictions, batch, stage):
        phones, order, spectrum, phases, speakers, frames = predictions
        phones, order, spectrum, phases = phones.float(), order.float(), spectrum.float(), phases.float()
        labels = batch.get("labels")
        if stage != sb.Stage.TRAIN:
            self._count(order if labels is None else phones, labels, batch["pronunciations"])
            return phones.new_zeros(())
        if labels is None:
            loss = self._order_loss(order, frames, batch["pronunciations"])
        else:
            loss = F.cross_entropy(phones.flatten(0, 1), labels.to(self.device).flatten(), ignore_index=IGNORED)
        inside = length_mask(frames, spectrum.shape[1])
        difference = (spectrum - batch["spectrum"].to(self.device)).abs().mean(-1)
        loss = loss + self.hparams.spectrum_weight * difference[inside].mean()
        if "phases" in batch:
            # The share of their energy that is not explained.
            wanted = batch["phases"].to(self.device)[inside]
            loss = loss + self.hparams.phase_weight * F.mse_loss(phases[inside], wanted) / wanted.square().mean()
        speaker_loss = F.cross_entropy(speakers.float(), batch["speakers"].to(self.device))
        return loss + self.hparams.speaker_weight * speaker_loss

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
        self.counts = dict.fromkeys(
            ("right", "frames", "errors_espeak", "phones_espeak", "errors_pico", "phones_pico"), 0
        )
        if stage == sb.Stage.TRAIN:
            self.batches.epoch = epoch

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
            self.train_loss = float(stage_loss)
            return
        if stage == sb.Stage.TEST:
            return
        scores = self.scores()
        self.results = {f"valid_{name}": value for name, value in scores.items()}
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "steps": self.optimizer_step}, {"loss": self.train_loss}, scores
        )
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


def train(hparams: dict, run_opts: dict) -> dict[str, float]:
    """Train or go on training, export, and return the validation's and the test's results."""
    config = WavCubeConfig.preset(hparams["preset"]).wavlm
    corpus = Path(hparams["corpus"])
    reader = Reader(corpus, config)
    train_records, valid_records, test_records = (read_manifest(corpus, split) for split in ("train", "valid", "test"))
    batches = TrainBatches(reader, train_records, hparams)
    torch.manual_seed(hparams["seed"])
    encoder = WavLM(config)
    modules = {"encoder": HiddenStates(encoder), "heads": Heads(config.hidden_dim, len(batches.speakers))}
    seconds = sum(record["duration"] for record in batches.timed) + sum(
        record["duration"] for group in batches.whole for record in group
    )
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
    valid = _loader(reader, valid_records)
    brain.fit(hparams["epoch_counter"], batches, valid, train_loader_kwargs={"batch_size": None})
    results = {}
    unseen = [record["speaker"] not in batches.speakers for record in test_records]
    for name, records in (
        ("valid", valid_records),
        ("test_seen", [record for record, new in zip(test_records, unseen, strict=True) if not new]),
        ("test_unseen", [record for record, new in zip(test_records, unseen, strict=True) if new]),
    ):
        if records:
            brain.evaluate(_loader(reader, records))
            results |= {f"{name}_{key}": value for key, value in brain.scores().items()}
    brain.results = results
    brain.export()
    return results


def _loader(reader: Reader, records: list[dict]) -> DataLoader | None:
    return DataLoader(ValidBatches(reader, records), batch_size=None) if records else None


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
        for split in ("train", "valid", "test"):
            read_manifest(hparams["corpus"], split)
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
