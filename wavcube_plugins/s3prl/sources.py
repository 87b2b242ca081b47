"""Where `-k` points: a URL to download, or a path on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from wavcube_plugins.checkpoints import CheckpointError


def is_url(source: Any) -> bool:
    """Return whether a source must be downloaded from a URL."""
    return isinstance(source, str) and source.startswith(("https://", "http://", "file://"))


def url_source(url: str, *, refresh: bool = False) -> str:
    """Download a URL into torch.hub's folder, unless it is already there, and return the path of the file.

    Args:
        url: Of a checkpoint; beside a `.safetensors` file its `config.json` is downloaded too.
        refresh: Download again.

    Raises:
        CheckpointError: this is not a URL, or the download failed.
    """
    import torch

    if not is_url(url):
        raise CheckpointError(f"{url}: expected a URL (https://…); for a local file use the entry that ends in _local")
    # Different URLs may end in the same file name, and load_model goes by its suffix: a folder for each.
    folder = Path(torch.hub.get_dir()) / "wavcube" / hashlib.sha256(url.encode()).hexdigest()[:16]
    address, question_mark, query = url.partition("?")
    parent, _, name = address.rpartition("/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for wanted in [name, "config.json"] if name.endswith(".safetensors") else [name]:
            if refresh or not (folder / wanted).exists():
                source = f"{parent}/{wanted}{question_mark}{query}"
                torch.hub.download_url_to_file(source, os.fspath(folder / wanted))
    except OSError as error:
        raise CheckpointError(f"{url}: cannot be downloaded, {error}") from error
    return os.fspath(folder / name)


def local_source(path: str | os.PathLike) -> str:
    """Return the absolute path of weights on this machine.

    Raises:
        CheckpointError: nothing is there.
    """
    if not Path(path).expanduser().exists():
        raise CheckpointError(
            f"{path}: no such file or folder; the entry without _local also takes presets and hub names"
        )
    # Absolute, because a bare `nano` means the packaged model.
    return os.path.abspath(Path(path).expanduser())
