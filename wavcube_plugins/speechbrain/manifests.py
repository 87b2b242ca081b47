"""SpeechBrain's manifests: JSON files of {id: {"wav", "duration", labels …}}, written and kept.

Paths below the data folder begin with `{data_root}`, durations are in seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wavcube_plugins.audio import AudioError, read_info
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.data.corpora import CorpusError
from wavcube_plugins.data.extraction import progress_interval
from wavcube_plugins.data.speech import check_rate
from wavcube_plugins.files import atomic_path

ROOT = "{data_root}"
# Keys of a manifest that hold paths of audio.
AUDIO_KEYS = ("wav", "clean", "source_1", "source_2")
# Lies beside manifests that were made here, and says what they were made of.
PREPARED_NAME = "prepared.json"

_THREADS, _PORTION = 8, 512

# An utterance's id and its labels, among them paths under `AUDIO_KEYS`.
Entry = tuple[str, dict[str, Any]]


def write_manifests(
    splits: Mapping[str, Iterable[Entry]],
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    sample_rate: int = WavCubeConfig.sample_rate,
    resample: bool = False,
    progress: bool = True,
) -> None:
    """Write one manifest per split, after reading the header of every file.

    Args:
        splits: The entries of each.
        data_folder: Root that paths are written relative to.
        save_folder: Folder of the manifests.
        sample_rate: What the model takes, in Hz.
        resample: Accept other rates, which are converted when the files are read.
        progress: Show a progress bar.

    Raises:
        CorpusError: a split has no entries, or an id occurs twice in it.
        AudioError: a file is missing, broken, or of another sample rate; the message names it.
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)

    def look(entry: Entry) -> Entry:
        return _with_header(entry, data_folder, None if resample else sample_rate)

    with ThreadPoolExecutor(_THREADS) as threads:
        for split, entries in splits.items():
            manifest: dict[str, dict] = {}
            bar = tqdm(desc=f"preparing {split}", unit="file", disable=not progress, mininterval=progress_interval())
            with bar:
                for portion in _portions(entries):
                    for name, labels in threads.map(look, portion):
                        if name in manifest:
                            raise CorpusError(f"{data_folder}: the id {name!r} occurs twice in {split}")
                        manifest[name] = labels
                        bar.update()
            if not manifest:
                raise CorpusError(f"{data_folder}: found nothing for {split}; is this the folder of the corpus?")
            # An empty note tells these manifests from a user's own; `mark_prepared` completes it.
            write_json(save_folder / PREPARED_NAME, {})
            write_json(save_folder / f"{split}.json", manifest)


def _with_header(entry: Entry, data_folder: Path, sample_rate: int | None) -> Entry:
    """Return an entry with paths relative to the data folder and its duration; None accepts every sample rate."""
    name, labels = entry
    infos = {key: read_info(labels[key]) for key in AUDIO_KEYS if key in labels}
    if sample_rate is not None:
        for key, info in infos.items():
            check_rate(labels[key], info.sample_rate, sample_rate, "--resample True")
    for key, info in infos.items():
        if not info.num_frames:
            raise AudioError(f"{labels[key]}: has no samples")
    paths = {key: _rooted(labels[key], data_folder) for key in infos}
    return name, {**labels, **paths, "duration": round(infos["wav"].seconds, 6)}


def write_json(path: Path, content) -> None:
    """Write a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def prepared(data_folder: str | os.PathLike, save_folder: str | os.PathLike, names: Sequence[str], **options) -> bool:
    """Return whether files of these names were made from the same corpus with the same options."""
    path = Path(save_folder) / PREPARED_NAME
    wanted = json.loads(json.dumps(_note(data_folder, names, options)))
    complete = all((Path(save_folder) / name).is_file() for name in names)
    if complete and path.is_file() and json.loads(path.read_text(encoding="utf-8")) == wanted:
        return True
    if path.is_file():
        write_json(path, {})  # until `mark_prepared`, so that an interruption is noticed
    return False


def mark_prepared(
    data_folder: str | os.PathLike, save_folder: str | os.PathLike, names: Sequence[str], **options
) -> None:
    """Note what files of these names were made from, for `prepared`."""
    write_json(Path(save_folder) / PREPARED_NAME, _note(data_folder, names, options))


def _note(data_folder: str | os.PathLike, names: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"data_folder": os.path.abspath(data_folder), "files": list(names), **options}


def _rooted(path: str, data_folder: Path) -> str:
    path, root = os.path.abspath(path), os.path.abspath(data_folder)
    return f"{ROOT}{path[len(root) :]}" if path.startswith(root + os.sep) else path


def _portions(entries: Iterable) -> Iterator[list]:
    entries = iter(entries)
    while portion := list(islice(entries, _PORTION)):
        yield portion
