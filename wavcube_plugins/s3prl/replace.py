"""Replacing a file of an installation in one step."""

from __future__ import annotations

import shutil
from pathlib import Path

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path


class InstallError(InputError):
    """The hook or the folder cannot be installed or removed; nothing was changed."""


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file at once, so that no reader sees half of it and hard links to the old one keep their content.

    Raises:
        InstallError: it cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            if path.exists():
                shutil.copymode(path, temporary)
    except OSError as error:
        raise InstallError(f"{path}: cannot be written, {error.strerror or error}") from error
