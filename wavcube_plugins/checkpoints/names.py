"""What can be named instead of a path: the packaged models and the published ones."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from wavcube_plugins.errors import InputError

ASSETS = Path(__file__).parents[1] / "assets"

# Presets that need no download: nano's weights come with the package, those of tiny are random, for tests.
PACKAGED = ("nano", "tiny")
# Hub repository and folder of the published models.
PUBLISHED = {"wavcube": ("yhaha/WavCube", "WavCube"), "wavcube_pro": ("yhaha/WavCube", "WavCube-Pro")}
# What `load_model` knows by name.
NAMES = (*PACKAGED, *PUBLISHED)


class CheckpointError(InputError):
    """A model cannot be loaded or saved; the message says what was expected and what was found."""


def local_path(source: str | os.PathLike, names: Collection[str]) -> Path | None:
    """Return the path that a source stands for, or None if it is a name.

    A known name given as text always means that name, even where a folder is called the same; `./name` and a `Path`
    mean the folder.

    Args:
        source: A path, or a name.
        names: The known names.
    """
    path = Path(source).expanduser()
    if isinstance(source, str) and source in names:
        return None
    return path if path.exists() else None
