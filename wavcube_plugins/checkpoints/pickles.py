"""Reading PyTorch's own files without running any code in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from wavcube_plugins.checkpoints.names import CheckpointError
from wavcube_plugins.checkpoints.native import reason

# Bytes of a file that always fits into memory.
_SMALL = 1 << 20

# How PyTorch's allocators say that memory has run out.
_NO_MEMORY = re.compile("cannot allocate memory|not enough memory|can't allocate memory", re.IGNORECASE)


def read_torch(path: Path) -> Any:
    """Read a PyTorch file, mapped into memory where its format allows it; no code in it runs.

    Raises:
        CheckpointError: the file is truncated or of another format, holds more than tensors and plain values, or
            cannot be read.
        MemoryError: there is not enough memory for it.
    """
    try:
        return _load(path)
    except MemoryError as error:
        if path.stat().st_size > _SMALL:
            raise
        # The file claims to hold more than it does.
        raise CheckpointError(_foreign(path)) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, {reason(error)}") from error
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"the Python object {unsafe[1]}, which is not loaded" if unsafe else "something else, or a damaged file"
        raise CheckpointError(f"{path}: expected a checkpoint of plain tensors and numbers, found {found}") from error
    except Exception as error:  # a foreign file makes the unpickler fail in ways that are documented nowhere
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            raise MemoryError(f"{path}: {error}") from error
        raise CheckpointError(_foreign(path)) from error


def _foreign(path: Path) -> str:
    return f"{path}: expected a PyTorch checkpoint, found a truncated or foreign file of {path.stat().st_size:,} bytes"


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
