"""Random crops of speech for training, the same ones in every run, whatever is killed or resumed in between.

Nothing here keeps a state: which utterance stands where in which batch, which part of it is cut out and how loud it is
follow from the seed, the step and the utterance's id. So a run that starts anew at step n sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from wavcube_plugins.audio import AudioError, AudioWarning
from wavcube_plugins.data.manifests import Manifest
from wavcube_plugins.data.utterance import ManifestError, Utterance
from wavcube_plugins.errors import InputError
from wavcube_plugins.pretraining.disturb import disturb

# Utterances tried in the place of one that cannot be read, and before training for the first one that can.
_TRIES, _FIRST_TRIES = 100, 1000

# Peaks in dB below full scale: drawn between these two while training, the third in validation.
LOUDEST, QUIETEST, VALIDATION_LEVEL = -1.0, -6.0, -3.0

# What a crop is amplified by at most, 30 dB: more makes speech of the noise in a pause.
MOST_GAIN = 10**1.5


class DataError(InputError):
    """Training cannot go on with these data; the message says what was tried."""


@dataclass(frozen=True)
class Skipped:
    """An utterance that could not be used, and why."""

    id: str
    reason: str


@dataclass
class Batch:
    """Crops of one step.

    Attributes:
        waveforms: (B, T), all whole.
        ids: The utterances they come from.
        skipped: What could not be used on the way.
    """

    waveforms: Tensor
    ids: list[str]
    skipped: list[Skipped]

    def pin_memory(self) -> Batch:
        self.waveforms = self.waveforms.pin_memory()
        return self

    def __len__(self) -> int:
        return len(self.waveforms)


def draw(*key: object) -> np.random.Generator:
    """Return a random generator that depends on a key alone, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def read_crop(
    utterance: Utterance, seconds: float, sample_rate: int, *, position: float, peak_db: float, shortest: float = 0.1
) -> Tensor:
    """Read a crop of an utterance; only the crop is decoded, however long the file is.

    Args:
        utterance: What to read.
        seconds: Length of the crop. What is shorter is repeated until it fills it.
        sample_rate: Wanted rate in Hz.
        position: Where the crop lies in what there is, 0 (its beginning) … 1 (its end).
        peak_db: Level of the crop's highest peak, in dB of full scale, unless that is more than 30 dB above what it
            has: the paper sets the level of whole utterances, in which a pause stays one.
        shortest: Utterances of fewer seconds are refused.

    Returns:
        (T,) with T = seconds * sample_rate.

    Raises:
        AudioError: the file is unreadable, broken or too short; the message names it.
    """
    info = utterance.info()
    start = round(utterance.start * info.sample_rate)
    available = info.num_frames - start
    if utterance.duration is not None:
        available = min(available, round(utterance.duration * info.sample_rate))
    if available < shortest * info.sample_rate:
        raise AudioError(
            f"{utterance.source}: {max(0, available) / info.sample_rate:.2f} s long, too short to train on "
            f"(at least {shortest} s)"
        )
    samples = round(seconds * sample_rate)
    wanted = min(available, math.ceil(samples * info.sample_rate / sample_rate))
    start += round(position * (available - wanted))
    with warnings.catch_warnings():
        # That stereo is averaged need not be said for every crop.
        warnings.simplefilter("ignore", AudioWarning)
        waveform = utterance.read_samples(sample_rate, start, wanted)
    waveform = waveform.repeat(math.ceil(samples / len(waveform)))[:samples]
    peak = 10 ** (peak_db / 20)
    return waveform * (peak / waveform.abs().max().clamp_min(peak / MOST_GAIN))


class Crops(Dataset):
    """Random crops; an utterance that cannot be read gives way to another one, always the same, and is noted.

    Args:
        utterances: What to draw from.
        seconds: Length of a crop.
        sample_rate: In Hz.
        seed: Another one gives other crops.
        mixture: Says how often each part of the utterances is to be drawn, for `StepSampler`.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        seconds: float,
        sample_rate: int,
        seed: int = 0,
        mixture: Mixture | None = None,
    ):
        self.utterances, self.mixture = utterances, mixture
        self.seconds, self.sample_rate, self.seed = seconds, sample_rate, seed

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, str, list[Skipped]]:
        """Return the crop (T,) of an utterance in a pass over the data, its id, and what was skipped.

        Args:
            key: The utterance's index, and the pass.

        Raises:
            DataError: neither this utterance nor many in its place can be read.
        """
        first, epoch = key
        index, skipped = first, []
        for attempt in range(_TRIES):
            name = f"entry {index + 1}"
            try:
                utterance = self.utterances[index]
                name = utterance.id
                random = draw(self.seed, epoch, name)
                position, level = random.random(2)
                return self._crop(utterance, position, level), name, skipped
            except (AudioError, ManifestError, OSError) as error:
                skipped.append(Skipped(name, " ".join(str(error).split())))
            # From the first one's key and the number of the attempt: drawn from the name of the broken one, a broken
            # utterance that leads to itself would be tried for ever.
            index = int(draw(self.seed, epoch, first, attempt, "instead").integers(len(self)))
        raise DataError(
            f"{_TRIES} utterances in a row could not be read, the last one because: {skipped[-1].reason}; "
            "are the disk and the manifest's paths still right?"
        )

    def _crop(self, utterance: Utterance, position: float, level: float) -> Tensor:
        peak_db = QUIETEST + level * (LOUDEST - QUIETEST)
        return read_crop(utterance, self.seconds, self.sample_rate, position=position, peak_db=peak_db)


class Beginnings(Crops):
    """For validation: the beginning of every utterance, at one level. Keys are (index, pass) too."""

    def _crop(self, utterance: Utterance, position: float, level: float) -> Tensor:
        return read_crop(utterance, self.seconds, self.sample_rate, position=0.0, peak_db=VALIDATION_LEVEL)


class Mixture:
    """Which part of the data each utterance of a training comes from, by weight.

    Of every thousand utterances each part has its share to the nearest one, in an order drawn anew.

    Args:
        sizes: Utterances of each part.
        weights: How often each part is drawn, in proportion.

    Raises:
        InputError: not one positive weight for each part, or a part that would never be drawn.
    """

    _BLOCK = 1000

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]):
        if len(sizes) != len(weights) or not all(weight > 0 for weight in weights):
            raise InputError(f"expected {len(sizes)} positive weights, one for each source, got {list(weights)}")
        self.sizes = tuple(sizes)
        edges = np.rint(np.cumsum(weights) / sum(weights) * self._BLOCK).astype(int)
        self.counts = np.diff(edges, prepend=0)
        if not self.counts.all():
            raise InputError(f"weights {list(weights)}: the smallest is less than a thousandth of all")
        self._parts = np.repeat(np.arange(len(sizes)), self.counts)
        self._block: tuple[object, np.ndarray] = (None, self._parts)

    def part(self, position: int, seed: int) -> tuple[int, int]:
        """Return the part at a position of the training, and how many of that part came before."""
        block, place = divmod(position, self._BLOCK)
        if self._block[0] != (block, seed):
            self._block = (block, seed), draw(seed, block, "mixture").permutation(self._parts)
        parts = self._block[1]
        part = int(parts[place])
        return part, block * int(self.counts[part]) + int((parts[:place] == part).sum())


class StepSampler(Sampler):
    """The keys of every step's batch, for one of several processes.

    Passes over the data follow each other without a seam: every batch is full, and every utterance comes up once per
    pass, in an order of its own.

    Args:
        size: Number of utterances.
        batch_size: Per process.
        seed: Another one gives other orders.
        rank: This process's number.
        world_size: Processes; each gets other utterances.
        mixture: Draws from several parts of the data by weight; each part then has passes of its own.

    Attributes:
        steps: The steps that the next iteration goes over.
        stopped: Set to True, it ends the iteration that is going on.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
    ):
        if mixture is not None and sum(mixture.sizes) != size:
            raise ValueError(f"the parts of the mixture have {sum(mixture.sizes)} utterances, the data {size}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.mixture = rank, world_size, mixture
        self.steps, self.stopped = range(0), False
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            if self.stopped:
                return
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self._key(first + offset) for offset in range(self.batch_size)]

    def epoch(self, step: int) -> float:
        """How many times the data were gone over before a step."""
        return step * self.world_size * self.batch_size / self.size

    def _key(self, position: int) -> tuple[int, int]:
        if self.mixture is None:
            return self._in_part(0, position, self.size, "order")
        part, position = self.mixture.part(position, self.seed)
        first = sum(self.mixture.sizes[:part])
        index, number = self._in_part(part, position, self.mixture.sizes[part], f"order of {part}")
        return first + index, number

    def _in_part(self, part: int, position: int, size: int, kind: str) -> tuple[int, int]:
        number, place = divmod(position, size)
        if self._orders.get(part, (-1, None))[0] != number:
            self._orders[part] = number, draw(self.seed, number, kind).permutation(size)
        return int(self._orders[part][1][place]), number


def collate(items: Sequence[tuple[Tensor, str, list[Skipped]]]) -> Batch:
    """Make a batch of what `Crops` gives."""
    waveforms, ids, skipped = zip(*items, strict=True)
    return Batch(torch.stack(waveforms), list(ids), [entry for entries in skipped for entry in entries])


def collate_disturbed(items: Sequence[tuple[Tensor, str, list[Skipped]]], sample_rate: int) -> Batch:
    """Make a batch of what `Crops` gives, most of it with noise, rooms, filters or second talkers.

    What happens to a batch depends on its samples alone; the peaks stay at their levels.
    """
    batch = collate(items)
    peaks = batch.waveforms.abs().amax(1, keepdim=True)
    digest = hashlib.blake2b(batch.waveforms.numpy().tobytes(), digest_size=7).digest()
    disturbed = disturb(batch.waveforms, int.from_bytes(digest, "little"), sample_rate)
    batch.waveforms = disturbed * (peaks / disturbed.abs().amax(1, keepdim=True).clamp_min(1e-9))
    return batch


def check_data(crops: Crops) -> None:
    """Make sure, before training, that there is at least one utterance to train on.

    Raises:
        DataError: none of those tried can be used.
    """
    size = len(crops)
    indices = range(size) if size <= _FIRST_TRIES else draw("check", size).choice(size, _FIRST_TRIES, replace=False)
    first = ""
    for index in indices:
        try:
            crops._crop(crops.utterances[int(index)], 0.0, 0.0)
            return
        except (AudioError, ManifestError, OSError) as error:
            first = first or str(error)
    raise DataError(f"none of the {len(indices)} utterances tried, of {size}, can be read; the first because: {first}")


def open_utterances(sources: str | Sequence[str], root: str | None = None) -> Sequence[Utterance]:
    """Open a folder or manifest, or several one after the other.

    Raises:
        ManifestError: as `manifests.Manifest`.
    """
    return Manifest(*([sources] if isinstance(sources, str) else sources), root=root)


def chain(parts: Sequence[Sequence[Utterance]]) -> Sequence[Utterance]:
    """Return the utterances of several parts one after the other."""
    return parts[0] if len(parts) == 1 else _Chain(parts)


def hold_out(
    utterances: Sequence[Utterance], size: int, seed: int = 0
) -> tuple[Sequence[Utterance], Sequence[Utterance]]:
    """Split utterances into those to train on and those to validate on, always the same ones.

    Args:
        utterances: All.
        size: How many to validate on; of few utterances a tenth, at least one.
        seed: Another one gives others.

    Raises:
        DataError: there is only one utterance.
    """
    if len(utterances) < 2:
        raise DataError("there is only one utterance; give others to validate on with --valid")
    size = max(1, min(size, len(utterances) // 10))
    chosen = _choose(len(utterances), size, seed)
    rest = np.delete(np.arange(len(utterances)), chosen)
    return _Selection(utterances, rest), _Selection(utterances, chosen)


def take(utterances: Sequence[Utterance], size: int, seed: int = 0) -> Sequence[Utterance]:
    """Return so many of the utterances, always the same ones, or all if there are no more."""
    return utterances if len(utterances) <= size else _Selection(utterances, _choose(len(utterances), size, seed))


def _choose(total: int, size: int, seed: int) -> np.ndarray:
    return np.sort(draw(seed, "valid").choice(total, size, replace=False))


class _Selection(Sequence[Utterance]):
    def __init__(self, utterances: Sequence[Utterance], indices: np.ndarray):
        self._utterances, self._indices = utterances, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Utterance:
        return self._utterances[int(self._indices[index])]


class _Chain(Sequence[Utterance]):
    def __init__(self, parts: Sequence[Sequence[Utterance]]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Utterance:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - int(self._ends[part]) + len(self._parts[part])]
