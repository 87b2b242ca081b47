"""Lhotse's own cuts: several sources or channels, transforms, mixtures, read by Lhotse where it is installed."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.audio import AudioError, AudioInfo, AudioWarning, resample
from wavcube_plugins.data.utterance import Base, ManifestError, Utterance

# Sources that Lhotse would run or download.
_REFUSED_SOURCES = ("command", "url")


def has_lhotse() -> bool:
    """Whether Lhotse is installed."""
    return importlib.util.find_spec("lhotse") is not None


def check_sources(entry: Mapping[str, Any], where: str) -> None:
    """Check that reading a cut runs no command and downloads nothing.

    Raises:
        ManifestError: it would.
    """
    for source in _sources(dict(entry)):
        if source.get("type") in _REFUSED_SOURCES:
            raise ManifestError(
                f"{where}: a source of the type {source['type']!r}; commands are not run, and nothing is downloaded"
            )


@dataclass(frozen=True)
class LhotseCut(Utterance):
    """A cut of Lhotse's that Lhotse reads.

    Args:
        entry: The JSON text of the cut, with absolute paths.
    """

    entry: str = field(default="", repr=False)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], name: str, where: str, base: Base) -> LhotseCut:
        """Return the cut of a parsed JSON object.

        Raises:
            ManifestError: Lhotse does not read it.
        """
        entry = copy.deepcopy(dict(entry))
        files = []
        for source in _sources(entry):
            if source.get("type") == "file":
                source["source"] = base.locate(str(source.get("source")), where)
                files.append(source["source"])
        cut = cls(name, files[0] if files else name, entry=json.dumps(entry))
        try:
            cut.info()
        except Exception as error:
            raise ManifestError(f"{where}: Lhotse does not read it, {type(error).__name__}: {error}") from error
        return cut

    @property
    def place(self) -> str:
        return f"{self.source} as a cut of Lhotse's"

    @property
    def origin(self) -> dict[str, Any]:
        return {"source": self.source, "cut": hashlib.blake2b(self.entry.encode(), digest_size=8).hexdigest()}

    @property
    def files(self) -> tuple[str, ...]:
        sources = _sources(json.loads(self.entry))
        return tuple(source["source"] for source in sources if source.get("type") == "file")

    def info(self) -> AudioInfo:
        cut = self._cut
        channels = getattr(cut, "num_channels", None)
        return AudioInfo(int(cut.sampling_rate), int(cut.num_samples), int(channels or 1))

    def read(self, sample_rate: int) -> Tensor:
        return resample(self._load(), self.info().sample_rate, sample_rate)

    def read_samples(self, sample_rate: int, start: int, num_frames: int | None) -> Tensor:
        # Of the whole cut: levels in a mixture, and the edges of transforms, would differ in a part of it.
        end = None if num_frames is None else start + num_frames
        waveform = self._load()[start:end]
        if not len(waveform):
            raise AudioError(f"{self.source}: ends before the wanted start at sample {start}")
        return resample(waveform, self.info().sample_rate, sample_rate)

    def _load(self) -> Tensor:
        try:
            samples = self._cut.load_audio()
        except Exception as error:  # Lhotse has no error class of its own for audio that it cannot read
            raise AudioError(f"{self.source}: not readable by Lhotse, {' '.join(str(error).split())[:300]}") from error
        if samples is None:
            raise AudioError(f"{self.source}: this cut of Lhotse's has no audio")
        waveform = torch.from_numpy(samples)
        if not torch.isfinite(waveform).all():
            raise AudioError(f"{self.source}: has samples that are NaN or infinite")
        if len(waveform) > 1:
            warnings.warn(f"{self.source}: {len(waveform)} channels, mixed down to one", AudioWarning, stacklevel=3)
        return waveform.mean(dim=0)

    @cached_property
    def _cut(self) -> Any:  # a lhotse.cut.Cut
        item = importlib.import_module("lhotse.serialization").deserialize_item(json.loads(self.entry))
        return item.to_cut() if "sources" in json.loads(self.entry) else item

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes read the cut anew.
        return {name: value for name, value in self.__dict__.items() if name != "_cut"}


def _sources(entry: object) -> Iterator[dict[str, Any]]:
    """Yield the sources of all recordings in a cut, however deep."""
    if isinstance(entry, list):
        for part in entry:
            yield from _sources(part)
    elif isinstance(entry, dict):
        for key, value in entry.items():
            if key == "sources" and isinstance(value, list):
                yield from (source for source in value if isinstance(source, dict))
            elif key in ("recording", "cut", "tracks"):
                yield from _sources(value)
