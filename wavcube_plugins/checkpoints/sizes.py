"""Finding the sizes of a model from the shapes of its tensors.

Shapes do not tell everything: the heads of plain attention, strides, windows and the place of the layer norms come from
the known configuration whose other sizes agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wavcube_plugins.checkpoints.native import CONFIG_NAME
from wavcube_plugins.config import BACKBONES, PRESETS, WavCubeConfig, WavLMConfig


def match_wavcube(state: Mapping[str, Tensor], config: WavCubeConfig | None) -> WavCubeConfig:
    """Return the given configuration if it agrees with the tensors, or without one the preset that does.

    Args:
        state: Tensors under the names of our model.
        config: The sizes that are expected; None looks through the presets.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the given configuration does not agree, or no preset does.
    """
    found = _wavcube_sizes(state)
    differences = []
    for candidate in [config] if config is not None else PRESETS.values():
        parts = (_difference(sizes, getattr(candidate, part), f"{part}.") for part, sizes in found.items())
        difference = next(filter(None, parts), "")
        if not difference:
            return candidate
        differences.append(difference)
    if config is not None:
        raise ValueError(f"the given configuration does not fit: {differences[0]}")
    raise ValueError(
        "its sizes are those of no preset, and heads and windows cannot be read from tensors; pass config= with all "
        f"sizes, or put a {CONFIG_NAME} beside it (against preset 'wavcube': {differences[0]})"
    )


def match_wavlm(state: Mapping[str, Tensor], config: WavLMConfig | None) -> WavLMConfig:
    """Return the given configuration if it agrees with the tensors, or without one the known encoder that does.

    Args:
        state: Tensors under torchaudio's names.
        config: The sizes that are expected; None looks through the backbones and presets.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the given configuration does not agree, or no known one does.
    """
    found = wavlm_sizes(state)
    known = [*BACKBONES.values(), *(preset.wavlm for preset in PRESETS.values())]
    differences = []
    for candidate in known if config is None else [config]:
        difference = _difference(found, candidate)
        if not difference:
            return candidate
        differences.append(difference)
    if config is not None:
        raise ValueError(f"the given configuration does not fit: {differences[0]}")
    raise ValueError(
        "its sizes are those of no known backbone, and heads, strides and the place of the layer norms cannot be read "
        f"from tensors; give all sizes as a WavLMConfig (against WavLM-Large: {differences[0]})"
    )


def wavlm_sizes(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Return every field of `WavLMConfig` that the shapes tell.

    Raises:
        KeyError: a tensor is missing.
    """
    stem, layers = f"{prefix}feature_extractor.conv_layers", f"{prefix}encoder.transformer.layers"
    convolutions = [state[f"{stem}.{i}.conv.weight"] for i in range(_count(state, rf"{re.escape(stem)}\.(\d+)\."))]
    position = state[f"{prefix}encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"]
    first = f"{layers}.0"
    sizes = {
        "conv_dims": tuple(weight.shape[0] for weight in convolutions),
        "conv_kernels": tuple(weight.shape[2] for weight in convolutions),
        "hidden_dim": position.shape[0],
        "num_layers": _count(state, rf"{re.escape(layers)}\.(\d+)\."),
        "ffn_dim": state[f"{first}.feed_forward.intermediate_dense.weight"].shape[0],
        "pos_conv_kernel": position.shape[2],
        "pos_conv_groups": position.shape[0] // position.shape[1],
        "extractor_mode": "layer_norm" if f"{stem}.1.layer_norm.weight" in state else "group_norm",
        "conv_bias": f"{stem}.0.conv.bias" in state,
        "relative_positions": f"{first}.attention.q_proj.weight" not in state,
    }
    if sizes["relative_positions"]:
        sizes["num_heads"] = state[f"{first}.attention.gru_rel_pos_const"].shape[1]
        sizes["num_buckets"] = state[f"{first}.attention.rel_attn_embed.weight"].shape[0]
    return sizes


def _wavcube_sizes(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return every field of `WavCubeConfig`'s parts that the shapes tell.

    Raises:
        KeyError: a tensor is missing.
    """
    return {
        "wavlm": wavlm_sizes(state, "wavlm."),
        "bottleneck": {
            "latent_dim": state["compressor.projection.3.weight"].shape[0],
            "num_layers": _count(state, r"compressor\.layers\.(\d+)\."),
        },
        "decoder": {
            "dim": state["decoder.upsample_proj.weight"].shape[0],
            "num_layers": _count(state, r"decoder\.layers\.(\d+)\."),
            "ffn_dim": state["decoder.layers.0.fc1.weight"].shape[0],
            "num_mels": state["decoder.upsampler.conv.weight"].shape[1],
            "vocoder_dim": state["decoder.vocoder.embeddings.weight"].shape[0],
            "vocoder_layers": _count(state, r"decoder\.vocoder\.layers\.(\d+)\."),
            "vocoder_ffn_dim": state["decoder.vocoder.layers.0.fc1.weight"].shape[0],
            "n_fft": state["decoder.vocoder.head.weight"].shape[0] - 2,
        },
    }


def _difference(found: Mapping[str, Any], expected: object, where: str = "") -> str:
    """Return the first size in which tensors and a configuration differ, empty if there is none."""
    for name, value in found.items():
        if value != getattr(expected, name):
            return f"expected {where}{name} {getattr(expected, name)}, found {value}"
    return ""


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
