"""Fetching what a model needs from the Hugging Face hub, and nothing else."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from wavcube_plugins.checkpoints.lightning import LIGHTNING_SUFFIXES
from wavcube_plugins.checkpoints.names import NAMES, PUBLISHED, CheckpointError
from wavcube_plugins.checkpoints.native import CONFIG_NAME, WEIGHTS_NAME, is_folder


def fetch(
    source: str, *, local_files_only: bool, revision: str | None, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Fetch the files of a hub model that are not in the local cache yet.

    These are `model.safetensors` and `config.json`; where the repository lacks them, its only `.ckpt` file.

    Args:
        source: A published name, `owner/name` or `owner/name/folder`.
        local_files_only: Take the files from the local cache only.
        revision: Branch, tag or commit; None means the default branch.
        cache_dir: Where to download to; None means the hub's own cache.

    Returns:
        The folder that holds them, or the `.ckpt` file.

    Raises:
        CheckpointError: not a hub name, not there or not reachable, or a repository without a model or with several.
    """
    repository, folder = _parse(source)
    inside = f"{folder}/" if folder else ""

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def download(*names: str) -> Path:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[glob.escape(inside + name) for name in names],
            local_files_only=local_files_only,
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
        return Path(snapshot) / inside

    try:
        path = download(CONFIG_NAME, WEIGHTS_NAME)
        if not is_folder(path) and not local_files_only:
            files = _list_files(repository, revision)
            if files is not None:
                checkpoint = _only_checkpoint(source, [name for name in files if name.startswith(inside)])
                path = download(checkpoint.removeprefix(inside)) / checkpoint.removeprefix(inside)
    except HFValidationError as error:
        raise CheckpointError(f"{source}: not a hub name, {error}") from error
    except _connection_errors() as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            reason = f"the hub answers {error.response.status_code}: no such repository or revision, or no access"
        else:
            reason = "it is not in the local cache, and the hub cannot be reached or downloads are off"
        raise CheckpointError(
            f"{source}: {reason}; give a local file or folder, or 'nano', which comes with the package"
        ) from error
    if not path.exists():
        raise CheckpointError(f"{source}: the repository {repository} has no folder {folder!r} with weights")
    return path


def _parse(source: str) -> tuple[str, str | None]:
    """Return the repository and the folder in it that a hub name means."""
    if source in PUBLISHED:
        return PUBLISHED[source]
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?", source)
    is_file = Path(source).suffix in (*LIGHTNING_SUFFIXES, ".safetensors")
    if match is None or source.startswith((".", "/")) or is_file:
        raise CheckpointError(
            f"{source}: no such file or folder; known names are {', '.join(NAMES)}, or a hub name owner/name"
        )
    # The repository of the published models holds several; its bare name means the paper's main one.
    main_repository, main_folder = PUBLISHED["wavcube"]
    return match[1], match[2] or (main_folder if match[1] == main_repository else None)


def _list_files(repository: str, revision: str | None) -> list[str] | None:
    """Return the names of a repository's files, None if the hub cannot be asked: the cache may have what is needed."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except _connection_errors():
        return None


def _only_checkpoint(source: str, files: list[str]) -> str:
    found = sorted(name for name in files if name.endswith(".ckpt"))
    if len(found) != 1:
        names = ", ".join(found[:5]) or "neither"
        raise CheckpointError(
            f"{source}: expected {WEIGHTS_NAME} with {CONFIG_NAME}, or exactly one .ckpt file; "
            f"the repository has {names}"
        )
    return found[0]


def _connection_errors() -> tuple[type[BaseException], ...]:
    """Return what huggingface_hub raises when the hub cannot be reached: `requests` errors before 1.0, then `httpx`."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *HfHubHTTPError.__bases__
