"""Matrix products by the fastest way there is; the only place that touches PyTorch's private operators.

In float32 `F.linear` goes to MKL, which uses AVX-512 on Intel processors only. oneDNN uses it wherever it exists, and
PyTorch reaches it through the operator that `torch.compile` emits. That operator is private, so each of its forms is
tried out once before it is used, and a plain product takes its place where a form is missing or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows from which on oneDNN's product is the faster one, since it reorders the weights at every call.
ONEDNN_ROWS = 96


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Return x @ weight.T + bias, followed by an exact GELU if wanted.

    Args:
        x: (..., C_in).
        weight: (C_out, C_in).
        bias: (C_out,) or None.
        gelu: Apply the activation.

    Returns:
        (..., C_out).
    """
    if x.numel() >= ONEDNN_ROWS * x.shape[-1] and _fits_onednn(x, weight):
        operator = _onednn("gelu" if gelu else "plain")
        if operator is not None:
            return operator(x, weight, bias)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear_add(x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """Return x @ weight.T + other for (N, C_in), (C_out, C_in) and (N, C_out)."""
    operator = _onednn("add") if _fits_onednn(x, weight) else None
    return torch.addmm(other, x, weight.t()) if operator is None else operator(x, weight, other)


def has_fast_products(dtype: torch.dtype) -> bool:
    """Return whether products on this CPU go through oneDNN, and faster for it; gradients are another matter."""
    if dtype == torch.bfloat16:
        # `F.linear` reaches oneDNN by itself in half precision.
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return supported is not None and supported()
    return dtype == torch.float32 and _onednn("plain") is not None


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@lru_cache(maxsize=8)
def _onednn(form: str) -> Callable[[Tensor, Tensor, Any], Tensor] | None:
    """Return one form of oneDNN's product, or None where PyTorch's own is at least as good, or the form does not work.

    Args:
        form: `plain` or `gelu`, called with input, weight and bias or None; `add`, called with input, weight and what
            is added to the product.
    """
    operator = _operator()
    if operator is None:
        return None
    forms = {
        "plain": lambda x, weight, bias: operator(x, weight, bias, "none", [], ""),
        "gelu": lambda x, weight, bias: operator(x, weight, bias, "gelu", [], "none"),
        "add": lambda x, weight, other: operator(x, other, weight, None, "add"),
    }
    return forms[form] if _is_right(form, forms[form]) else None


def _operator() -> Callable[..., Tensor] | None:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _is_right(form: str, function: Callable[[Tensor, Tensor, Any], Tensor]) -> bool:
    """Try one form on a small product, with and without a bias."""
    with torch.inference_mode():
        x, weight = torch.linspace(-1, 1, 12).float().view(3, 4), torch.linspace(-2, 1, 8).float().view(2, 4)
        product = x @ weight.t()
        if form == "add":
            other = torch.linspace(0, 5, 6).float().view(3, 2)
            cases = [(other, product + other)]
        else:
            bias = torch.tensor([0.5, -1.0], dtype=torch.float32)
            cases = [(bias, product + bias), (None, product)]
            if form == "gelu":
                cases = [(argument, F.gelu(expected)) for argument, expected in cases]
        try:
            return all(torch.allclose(function(x, weight, argument), expected) for argument, expected in cases)
        except (RuntimeError, TypeError, ValueError):
            return False
