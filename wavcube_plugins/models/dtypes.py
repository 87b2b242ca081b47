"""Number types, given as PyTorch's own or by name."""

from __future__ import annotations

import torch

from wavcube_plugins.errors import InputError

# The types that configurations and command lines name.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a floating point type that may be given by name.

    Args:
        dtype: A floating point `torch.dtype`, or one of `float32`, `bfloat16` and `float16`.

    Raises:
        InputError: anything else.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
