"""Data sets from manifests: SpeechBrain's `DynamicItemDataset` with speech or cached latents in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import get_rank, if_main_process
from torch import Tensor

from wavcube_plugins.audio import AudioError, read_info
from wavcube_plugins.data.extraction import extract
from wavcube_plugins.data.speech import check_rate, read_speech
from wavcube_plugins.data.utterance import Utterance
from wavcube_plugins.errors import InputError
from wavcube_plugins.speechbrain.lobe import WavCube
from wavcube_plugins.speechbrain.manifests import AUDIO_KEYS, ROOT

INDEX_NAME = "index.jsonl"

# What stands under the keys of a manifest; other keys are labels.
_KINDS = {
    **dict.fromkeys(AUDIO_KEYS, (str, "a path")),
    "text": (str, "text"),
    "intent": (dict, "a mapping"),
    "slots": (list, "a list"),
}
_LABEL = ((str, int, float), "a name")


class DataError(InputError):
    """A manifest or a cache cannot be used; the message names it."""


def read_manifest(
    path: str | os.PathLike, data_folder: str | os.PathLike | None, keys: Iterable[str]
) -> dict[str, dict]:
    """Read a manifest and check that every entry has the keys, with values that can be used.

    Args:
        path: JSON file of {id: {key: value}}.
        data_folder: What stands for `{data_root}` in it; None if nothing does.
        keys: That every entry must have.

    Raises:
        DataError: no such file, no such content, or nothing in it; the message names file and entry.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON, {error}") from error
    if not isinstance(manifest, dict) or not all(isinstance(entry, dict) for entry in manifest.values()):
        raise DataError(f"{path}: expected a mapping of ids to entries such as {{'wav': …, 'duration': …}}")
    if not manifest:
        raise DataError(f"{path}: this manifest is empty")
    for name, entry in manifest.items():
        for key in keys:
            if key not in entry:
                raise DataError(f"{path}: the entry {name!r} has no {key!r}")
            kind, expected = _KINDS.get(key, _LABEL)
            if not isinstance(entry[key], kind):
                raise DataError(f"{path}: {key!r} of the entry {name!r} must be {expected}, got {entry[key]!r}")
        for key, value in entry.items():
            if isinstance(value, str) and value.startswith(ROOT):
                if data_folder is None:
                    raise DataError(f"{path}: has paths below {ROOT}; say with --data_folder where that is")
                entry[key] = f"{data_folder}{value[len(ROOT) :]}"
    return manifest


class Speech:
    """Gives each entry's waveforms or latents; how, the settings say.

    Args:
        lobe: The model that is trained on.
        resample: Convert other sample rates than the model's.
        cache: Folder of cached latents, one folder per audio key below it; None computes latents in the training loop.
    """

    def __init__(self, lobe: WavCube, *, resample: bool = False, cache: str | os.PathLike | None = None):
        self.lobe, self.resample = lobe, resample
        self.sample_rate = lobe.sample_rate
        self.cache = None if cache is None else Path(cache)
        self.indices: dict[str, dict[str, str]] = {}

    def read(self, path: str) -> Tensor:
        """Read a waveform (T,)."""
        return read_speech(path, self.sample_rate, resample=self.resample, remedy="--resample True")

    def fill(self, manifests: dict[str, dict[str, dict]], key: str, progress: bool = True) -> None:
        """Compute the latents of an audio key of all manifests that the cache does not have; all processes share it.

        Raises:
            DataError: the cache belongs to other weights or other audio.
            AudioError: a file that cannot be used; the message names it.
        """
        if self.lobe.features != "latent" or not self.lobe.freeze:
            raise DataError("--cache keeps latents of a frozen model: it needs features: latent and freeze: True")
        utterances = [
            Utterance(f"{split}/{name}", os.path.abspath(entry[key]))
            for split, manifest in sorted(manifests.items())
            for name, entry in manifest.items()
        ]
        folder = self.cache / key
        if not self.resample:
            known = _read_index(folder)
            for utterance in utterances:
                if utterance.id not in known:
                    self._check(utterance.source)
        rank, size = get_rank() or 0, 1
        if torch.distributed.is_initialized():
            size = torch.distributed.get_world_size()
        outcome = extract(
            self.lobe.model,
            utterances,
            folder,
            model_name=self.lobe.source,
            rank=rank,
            world_size=size,
            progress=progress and if_main_process(),
        )
        failures = [outcome.failed]
        if torch.distributed.is_initialized():
            # All processes stop at what one of them found, and none goes on before the others are done.
            failures *= size
            torch.distributed.all_gather_object(failures, outcome.failed)
        for failed in failures:
            if failed:
                raise AudioError(next(iter(failed.values())))
        self.indices[key] = _read_index(folder)

    def latent(self, key: str, split: str, name: str) -> Tensor:
        """Return a cached latent (L, latent_dim)."""
        path = self.cache / key / self.indices[key][f"{split}/{name}"]
        return torch.from_numpy(np.load(path).astype(np.float32))

    def _check(self, path: str) -> None:
        check_rate(path, read_info(path).sample_rate, self.sample_rate, "--resample True")


def make_dataset(
    manifest: dict[str, dict],
    split: str,
    speech: Speech,
    *,
    waveforms: Sequence[str] = (),
    features: Sequence[str] = (),
    labels: Sequence[str] = (),
    items: Sequence = (),
) -> DynamicItemDataset:
    """Make a data set of what a recipe needs.

    Args:
        manifest: Entries by id.
        split: Its name, by which the cache knows it.
        speech: Reads audio and cached latents.
        waveforms: Audio keys whose waveforms are wanted, as `<key>_signal`.
        features: Audio keys that go through the lobe, as `<key>_input`: latents where there is a cache, else waveforms.
        labels: Keys of the manifest that are handed on as they are.
        items: More dynamic items, (function, takes, provides) each.
    """
    dataset = DynamicItemDataset(manifest)
    outputs = ["id", *labels]
    for key in waveforms:
        dataset.add_dynamic_item(speech.read, takes=key, provides=f"{key}_signal")
        outputs.append(f"{key}_signal")
    for key in features:
        if speech.cache is None:
            dataset.add_dynamic_item(speech.read, takes=key, provides=f"{key}_input")
        else:
            dataset.add_dynamic_item(_Cached(speech, key, split), takes="id", provides=f"{key}_input")
        outputs.append(f"{key}_input")
    for function, takes, provides in items:
        dataset.add_dynamic_item(function, takes=takes, provides=provides)
        outputs.append(provides)
    dataset.set_output_keys(outputs)
    return dataset


class _Cached:
    def __init__(self, speech: Speech, key: str, split: str):
        self.speech, self.key, self.split = speech, key, split

    def __call__(self, name: str) -> Tensor:
        return self.speech.latent(self.key, self.split, name)


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    return {record["id"]: record["path"] for record in records}
