"""Manifests, and the speech or cached latents of their entries, for SpeechBrain's dynamic items."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
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

# The types of a manifest's values by key; other keys are labels.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(AUDIO_KEYS, (str, "a path")),
    "text": (str, "text"),
    "intent": (dict, "a mapping"),
    "slots": (list, "a list"),
}
_LABEL: tuple[tuple[type, ...], str] = ((str, int, float), "a name")


class DataError(InputError):
    """A manifest or a cache cannot be used; the message names it."""


def read_manifest(
    path: str | os.PathLike, data_folder: str | os.PathLike | None, keys: Iterable[str]
) -> dict[str, dict]:
    """Read a manifest and check that every entry has the keys, with values that can be used.

    Args:
        path: JSON file of {id: {key: value}}.
        data_folder: Replaces `{data_root}` in it; None if no path needs that.
        keys: Keys that every entry must have.

    Raises:
        DataError: no such file, other content, or an empty manifest; the message names file and entry.
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
                    raise DataError(f"{path}: has paths below {ROOT}; --data_folder says where that is")
                entry[key] = f"{data_folder}{value[len(ROOT) :]}"
    return manifest


class Speech:
    """The waveforms of a manifest's entries, or their cached latents.

    Args:
        wavcube: The lobe; its model computes the cache, its sample rate is that of the waveforms.
        resample: Convert files whose sample rate is not the model's; False refuses them.
        cache: Keep the latents on disk; False computes them in the training loop.
        cache_folder: Folder of the cached latents, with one folder per audio key.
    """

    def __init__(
        self, wavcube: WavCube, *, resample: bool = False, cache: bool = False, cache_folder: str | os.PathLike = ""
    ):
        self.lobe, self.resample = wavcube, resample
        self.cache = Path(cache_folder) if cache else None
        self.indices: dict[str, dict[str, str]] = {}

    def __repr__(self) -> str:
        return f"Speech(resample={self.resample}, cache={self.cache})"

    def read(self, path: str) -> Tensor:
        """Read a waveform (T,)."""
        return read_speech(path, self.lobe.sample_rate, resample=self.resample, remedy="--resample True")

    def load(self, key: str, split: str, name: str, path: str) -> Tensor:
        """Return the cached latent (L, D) of an entry's audio, or without a cache its waveform (T,)."""
        return self.read(path) if self.cache is None else self.latent(key, split, name)

    def latent(self, key: str, split: str, name: str) -> Tensor:
        """Return a cached latent (L, D)."""
        assert self.cache is not None
        path = self.cache / key / self.indices[key][f"{split}/{name}"]
        return torch.from_numpy(np.load(path).astype(np.float32))

    def fill(
        self,
        manifests: dict[str, dict[str, dict]],
        keys: Iterable[str],
        device: str | torch.device,
        *,
        progress: bool = True,
    ) -> None:
        """Compute the latents that the cache lacks; all processes share the work. Without a cache, do nothing.

        Args:
            manifests: Entries by id, by split.
            keys: Audio keys to encode.
            device: Where to compute.
            progress: Show a progress bar.

        Raises:
            DataError: the lobe does not give latents of a frozen model, or the cache belongs to another one.
            AudioError: a file that cannot be used; the message names it.
        """
        if self.cache is None:
            return
        if self.lobe.features != "latent" or not self.lobe.freeze:
            raise DataError("--cache keeps latents of a frozen model: it needs features: latent and freeze: True")
        self.lobe.to(device)
        for key in keys:
            self._fill(manifests, key, self.cache / key, progress)

    def _fill(self, manifests: dict[str, dict[str, dict]], key: str, folder: Path, progress: bool) -> None:
        utterances = [
            Utterance(f"{split}/{name}", os.path.abspath(entry[key]))
            for split, manifest in sorted(manifests.items())
            for name, entry in manifest.items()
        ]
        if not self.resample:
            known = _read_index(folder)
            for utterance in utterances:
                if utterance.id not in known:
                    rate = read_info(utterance.source).sample_rate
                    check_rate(utterance.source, rate, self.lobe.sample_rate, "--resample True")
        parallel = torch.distributed.is_initialized()
        size = torch.distributed.get_world_size() if parallel else 1
        outcome = extract(
            self.lobe.model,
            utterances,
            folder,
            model_name=self.lobe.source,
            rank=get_rank() or 0,
            world_size=size,
            progress=progress and if_main_process(),
        )
        failures = [outcome.failed] * size
        if parallel:
            # All processes stop at what one of them found, and none goes on before the others are done.
            torch.distributed.all_gather_object(failures, outcome.failed)
        for failed in failures:
            if failed:
                raise AudioError(next(iter(failed.values())))
        self.indices[key] = _read_index(folder)


def check_augmentation(augment: bool, speech: Speech) -> None:
    """Check that there are waveforms to augment.

    Raises:
        DataError: the latents are cached.
    """
    if augment and speech.cache is not None:
        raise DataError("augment: True changes waveforms, but the latents are cached; drop --cache")


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines]
    return {record["id"]: record["path"] for record in records}
