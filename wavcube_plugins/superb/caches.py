"""Caches that s3prl's tasks keep, written here so that they belong to the corpus of the bench."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb import corpora
from wavcube_plugins.superb.job import Job, TaskError

_SID_PARTS = {"1": "train", "2": "dev", "3": "test"}


def _identification_cache(job: Job) -> None:
    """Write the file lists of speaker identification; s3prl would search the corpus three times, and never again."""
    root = Path(job.value("downstream_expert.datarc.file_path"))
    listing = Path(job.value("downstream_expert.datarc.meta_data"))
    folder = job.run.bench.code / "s3prl/downstream/voxceleb1/.cache"
    parts = [path for path in sorted(root.iterdir()) if path.is_dir()]
    files: dict[str, list[str]] = {part: [] for part in _SID_PARTS.values()}
    for line in listing.read_text(encoding="utf-8").splitlines():
        if line.strip():
            number, place = line.split()
            found = [part / "wav" / place for part in parts if (part / "wav" / place).is_file()]
            if not found:
                raise TaskError(f"{root}: {place} of {listing.name} is missing; run `wavcube superb prepare`")
            files[_SID_PARTS[number]].append(str(found[0]))
    for part, names in files.items():
        with atomic_path(folder / f"{part}.pkl") as temporary:
            temporary.write_bytes(pickle.dumps(names))


def _verification_cache(job: Job) -> None:
    """Write the lengths without silence of speaker verification, unless they are those of this corpus already."""
    import torch
    from tqdm import tqdm

    root = Path(job.value("downstream_expert.datarc.file_path")) / "dev" / "wav"
    path = corpora.asv_lengths(job.run.bench)
    stamp = path.with_suffix(".root")
    if path.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == str(root):
        return
    files = sorted(root.rglob("*.wav"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lengths = list(tqdm(pool.map(_sounding_length, files), total=len(files), desc="silence removed", unit="file"))
    with atomic_path(path) as temporary:
        torch.save([[file.parts[-3:] for file in files], lengths], temporary)
    with atomic_path(stamp) as temporary:
        temporary.write_text(str(root), encoding="utf-8")


def _sounding_length(path: Path) -> int:
    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.data.silence import remove_silence

    return len(remove_silence(read_audio(path, 16000) * 10 ** (-3 / 20), 16000, seconds=0.1, level=0.001))


CACHES: Mapping[str, Callable[[Job], None]] = {"sid": _identification_cache, "asv": _verification_cache}
