"""What the result of a run depends on, so that runs with other settings or weights are not mixed with it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavcube_plugins.superb.runs import Run


def dependencies(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a digest of a run's settings, and of the files or packaged weights of its row.

    Args:
        run: The run.
        config: The configuration of its task.
    """
    text = json.dumps([config, run.row.arguments()], sort_keys=True, default=str)
    found: dict[str, Any] = {"settings": hashlib.sha256(text.encode()).hexdigest()[:16]}
    files: dict[str, Any] = {}
    for place in map(Path, filter(None, (run.row.checkpoint, run.row.options))):
        for path in (place, place / "config.json", *sorted(place.glob("*.safetensors"))):
            if place.is_absolute() and path.is_file():  # existing paths have been made absolute
                files[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
    if weights := _packaged_weights(run.row.checkpoint):
        files[str(run.row.checkpoint)] = weights
    return found | ({"files": files} if files else {})


def has_begun(run: Run) -> bool:
    """Return whether there is something that a run would continue from."""
    return bool(run.state().get("steps")) or any((run.folder / "exp").glob("*.ckpt"))


def what_changed(run: Run, config: Mapping[str, Any]) -> str:
    """Return what differs from when a run began, in words, or ""; what was not recorded then counts as the same."""
    if not has_begun(run):
        return ""
    state = run.state()
    found = [key for key, value in dependencies(run, config).items() if state.get(key, value) != value]
    return {"settings": "settings", "files": "contents of its row's files"}[found[0]] if found else ""


def _packaged_weights(name: str | None) -> str | None:
    """Return a digest of the weights of a packaged model, which may differ between releases; None for other models."""
    from wavcube_plugins.checkpoints import ASSETS, NAMES

    path = ASSETS / str(name) / "model.safetensors"
    return _digest(path) if name in NAMES and path.is_file() else None


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
