"""What WavCube-nano's teacher learns from: crops of speech with phones, speakers, spectra and Whisper's targets.

A batch follows from the seed, the step and the corpora alone, so that resuming is exact.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor, nn
from torch.utils.data import Dataset

from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.lengths import length_mask, pad_batch
from wavcube_plugins.models.wavcube import normalise
from wavcube_plugins.nano.texts import SAMPLE_RATE, stable_seed
from wavcube_plugins.nano.whisper import Targets
from wavcube_plugins.pretraining.data import Mixture
from wavcube_plugins.pretraining.disturb import disturb
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

INDEX = {phone: index for index, phone in enumerate(PHONES)}
IGNORED = -100
# Of the spectrum that the last layer has to give: bands, length of the FFT, and the least magnitude, of a waveform of
# unit variance.
BANDS, _BINS, _FLOOR = 80, 1024, 1e-3
# Of the complex spectrum that it has to give: length of the FFT, and the bins from 60 Hz to 1 kHz, where the lowest
# harmonics of speech are. Nothing else here tells one phase from another, and an encoder that is deaf to phase leaves
# the decoder no way to place harmonics: it answers every pitch with one of 100 Hz, its own frame rate.
_PHASE_BINS, PHASED = 512, slice(2, 33)


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
    """Reads waveforms, labels and Whisper's targets of a corpus for an encoder with the given config.

    Args:
        corpus: Its folder.
        config: Of the encoder.
        keep: Keep every utterance in memory, as 16-bit samples, once it was read: an hour is 115 MB.
    """

    def __init__(self, corpus: str | Path, config: WavLMConfig, *, keep: bool = False):
        self.corpus, self.config = Path(corpus), config
        self.targets = Targets(self.corpus / "targets")
        self.kept: dict[str, np.ndarray] | None = {} if keep else None

    def waveform(self, record: dict, start: int = 0, samples: int = -1) -> np.ndarray:
        """Return float32 samples (T,), fewer than wanted where the file ends."""
        if self.kept is None:
            return self._read(record, start, samples, "float32")
        if record["path"] not in self.kept:
            self.kept[record["path"]] = self._read(record, 0, -1, "int16")
        end = None if samples < 0 else start + samples
        return self.kept[record["path"]][start:end].astype(np.float32) / 32768

    def _read(self, record: dict, start: int, samples: int, dtype: Literal["float32", "int16"]) -> np.ndarray:
        path = self.corpus / record["path"]
        try:
            return soundfile.read(path, frames=samples, start=start, dtype=dtype)[0]
        except (soundfile.LibsndfileError, OSError) as error:
            raise InputError(f"{path}: not readable as audio") from error

    def frames(self, samples: int) -> int:
        """Return how many frames the encoder has for so many samples."""
        return max((samples - self.config.receptive_field) // self.config.hop_length + 1, 1)

    def labels(self, record: dict, start: int, samples: int) -> np.ndarray:
        """Return the phone (L,) at the centre of each frame of a crop, `IGNORED` where the times are unknown."""
        if "phones" not in record:
            return np.full(self.frames(samples), IGNORED)
        centres = start + np.arange(self.frames(samples)) * self.config.hop_length + self.config.receptive_field / 2
        ends = [end for _, _, end in record["phones"]]
        positions = np.searchsorted(ends, centres / SAMPLE_RATE, side="right").clip(max=len(ends) - 1)
        return np.array([INDEX[label] for label, _, _ in record["phones"]])[positions]


class TrainBatches(Dataset):
    """Item i is batch i of the epoch: it depends on seed, step and corpora alone, so that resuming is exact.

    Set `epoch` (1, 2, …) before each epoch.

    Args:
        corpora: A reader of each corpus, with its training utterances.
        hparams: The settings of `teacher.yaml`.
    """

    def __init__(self, corpora: Sequence[tuple[Reader, list[dict]]], hparams: dict):
        self.readers = [reader for reader, _ in corpora]
        self.hparams, self.epoch = hparams, 1
        names = {record["speaker"] for _, records in corpora for record in records}
        self.speakers = {name: index for index, name in enumerate(sorted(names))}
        self.distilled = hparams["whisper"] is not None
        self.crops = [[one for one in records if self.distilled or "phones" in one] for _, records in corpora]
        for reader, crops in zip(self.readers, self.crops, strict=True):
            if not crops:
                raise InputError(f"{reader.corpus}: no training utterance has phones with times")
        self.whole = [group for number, (_, records) in enumerate(corpora) for group in self._groups(number, records)]
        sizes, weights = [len(crops) for crops in self.crops], hparams["corpus_weights"]
        self.mixture = Mixture(sizes, [1.0] * len(sizes) if weights is None else weights)
        # For each step whether it takes whole utterances, and how many of its kind came before.
        self.plan: list[tuple[bool, int]] = []
        counts = [0, 0]
        for step in range(hparams["steps"]):
            chance = random.Random(stable_seed(hparams["seed"], "kind", step)).random()
            late = step >= hparams["whole_after"] * hparams["steps"]
            kind = bool(self.whole) and late and chance < hparams["whole_share"]
            self.plan.append((kind, counts[kind]))
            counts[kind] += 1

    def _groups(self, number: int, records: list[dict]) -> list[list[tuple[int, dict]]]:
        """Return batches of whole utterances of about one length, without times, as pairs of corpus and record."""
        longest, seconds = self.hparams["whole_longest"], self.hparams["whole_seconds"]
        records = [one for one in records if "phones" not in one and "pronunciation" in one]
        groups: list[list[tuple[int, dict]]] = []
        for record in sorted((r for r in records if r["duration"] <= longest), key=lambda r: r["duration"]):
            if not groups or (len(groups[-1]) + 1) * record["duration"] > seconds:
                groups.append([])
            groups[-1].append((number, record))
        return groups

    def __len__(self) -> int:
        # The last epoch ends with the last step.
        return max(0, min(self.hparams["steps_per_epoch"], self.hparams["steps"] - self._first))

    @property
    def _first(self) -> int:
        return (self.epoch - 1) * self.hparams["steps_per_epoch"]

    def __getitem__(self, index: int) -> dict:
        step = self._first + index
        whole, number = self.plan[step]
        if whole:
            order = _order(self.hparams["seed"], "whole", number // len(self.whole), len(self.whole))
            return self._whole(self.whole[order[number % len(self.whole)]], step)
        size = self.hparams["batch_crops"]
        return self._crops([self._draw(position) for position in range(number * size, (number + 1) * size)], step)

    def _draw(self, position: int) -> tuple[int, dict]:
        """Return the corpus and the record of a crop of the training."""
        seed = self.hparams["seed"]
        number, place = (0, position) if len(self.crops) == 1 else self.mixture.part(position, seed)
        records = self.crops[number]
        turn, place = divmod(place, len(records))
        kind = "crops" if number == 0 else f"crops of {number}"
        return number, records[_order(seed, kind, turn, len(records))[place]]

    def _crops(self, drawn: list[tuple[int, dict]], step: int) -> dict:
        hop = self.readers[0].config.hop_length
        wanted = int(self.hparams["crop_seconds"] * SAMPLE_RATE)
        waveforms, labels, targets = [], [], []
        for number, record in drawn:
            reader = self.readers[number]
            generator = random.Random(stable_seed(self.hparams["seed"], "crop", step, record["id"]))
            start = generator.randint(0, max(round(record["duration"] * SAMPLE_RATE) - wanted, 0))
            if self.distilled:
                # Where a frame of Whisper begins too.
                start = start // hop * hop
            waveforms.append(torch.from_numpy(reader.waveform(record, start, wanted)))
            frames = reader.frames(len(waveforms[-1]))
            labels.append(torch.from_numpy(reader.labels(record, start, len(waveforms[-1]))))
            if self.distilled:
                targets.append(reader.targets.read(record["id"], start // hop, frames))
        batch = {"labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)}
        if self.distilled:
            batch["targets"] = nn.utils.rnn.pad_sequence(targets, batch_first=True)
        return self._finish(drawn, waveforms, step) | batch

    def _whole(self, drawn: list[tuple[int, dict]], step: int) -> dict:
        waveforms = [torch.from_numpy(self.readers[number].waveform(record)) for number, record in drawn]
        return self._finish(drawn, waveforms, step) | {
            "pronunciations": [[INDEX[label] for label in record["pronunciation"]] for _, record in drawn]
        }

    def _finish(self, drawn: list[tuple[int, dict]], waveforms: list[Tensor], step: int) -> dict:
        hparams, config = self.hparams, self.readers[0].config
        padded, lengths = pad_batch(waveforms)
        padded = normalise(padded, lengths)
        spectrum = log_spectrum(padded, config)
        # Before anything is done to the audio.
        phases = {"phases": low_spectrum(padded, config)} if hparams["phase_weight"] > 0 else {}
        if hparams["disturb"]:
            inside = length_mask(lengths, padded.shape[1])
            padded = normalise(disturb(padded, stable_seed(hparams["seed"], "disturb", step)) * inside, lengths)
        for row, (_, record) in enumerate(drawn):
            generator = np.random.default_rng(stable_seed(hparams["seed"], "mask", step, record["id"]))
            _mask(padded[row, : lengths[row]].numpy(), hparams["masked_share"], generator)
        speakers = torch.tensor([self.speakers[record["speaker"]] for _, record in drawn])
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
    bands = torchaudio.functional.melscale_fbanks(_BINS // 2 + 1, 0.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE)
    return (magnitudes @ bands).clamp_min(_FLOOR).log()


def low_spectrum(waveforms: Tensor, config: WavLMConfig) -> Tensor:
    """Return real and imaginary parts (B, L, 2 * bins) of the low spectrum of waveforms (B, T), frame by frame.

    Magnitudes are square roots of the true ones, so that loud vowels are not all that counts.
    """
    spectrum = _spectrum(waveforms, config, _PHASE_BINS)[..., PHASED]
    spectrum = spectrum * spectrum.abs().clamp_min(_FLOOR).rsqrt()
    return torch.cat([spectrum.real, spectrum.imag], dim=-1)


def _spectrum(waveforms: Tensor, config: WavLMConfig, n_fft: int) -> Tensor:
    field = config.receptive_field
    frames = waveforms.unfold(1, field, config.hop_length) * torch.hann_window(field)
    return torch.fft.rfft(frames, n_fft) / field**0.5
