"""Writing files so that a killed process never leaves half of one behind."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Bytes of a name that are kept in the temporary one: file systems allow 255, and the rest is added to it.
_KEPT = 100


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    The temporary name keeps the suffix, since writers choose their format by it, and has a random part, since threads,
    processes and machines may write the same file at once. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written; the error names `path`, not the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(path.stem)[:_KEPT])
    temporary = path.with_name(f".{stem}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def array_bytes(values: np.ndarray) -> bytes:
    """Return the content of a .npy file with this array."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def save_array(path: str | os.PathLike, values: np.ndarray) -> None:
    """Write an array as a .npy file, atomically.

    Raises:
        OSError: it cannot be written; the error names the path.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(array_bytes(values))  # NumPy itself would not say why writing to a file failed
