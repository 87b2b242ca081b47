"""Which parameters of a WavCube an output depends on, for freezing the rest, dropping it, or training under DDP."""

from __future__ import annotations

from collections.abc import Iterator

from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.models.wavcube import WavCube

# The sub-modules that each output passes through.
_PARTS = {
    "hidden_states": ("wavlm",),
    "features": ("wavlm", "post_wavlm_layer_norm"),
    "latent": ("wavlm", "post_wavlm_layer_norm", "compressor"),
    "restored": ("wavlm", "post_wavlm_layer_norm", "compressor", "restorer"),
    "reconstruction": ("wavlm", "post_wavlm_layer_norm", "compressor", "decoder"),
}


def used_parameters(model: WavCube, *outputs: str) -> frozenset[str]:
    """Name the parameters that at least one of the given outputs depends on.

    These are exactly the parameters that receive a gradient when a loss is computed from the outputs, so they are the
    ones to train: under DDP a trainable parameter without a gradient is an error.

    Args:
        model: The model. Parts that have been removed from it are left out.
        outputs: One or more of `hidden_states` (all of them, or the last one alone), `features` (what the Compressor
            takes), `latent`, `restored` and `reconstruction`.

    Returns:
        Names as in `model.named_parameters()`.

    Raises:
        ValueError: an unknown output.
    """
    parts = _parts(outputs)
    unused = tuple(_unused_prefixes(model.config, every_layer="hidden_states" in outputs))
    return frozenset(
        name for name, _ in model.named_parameters() if name.split(".")[0] in parts and not name.startswith(unused)
    )


def unused_parts(*outputs: str) -> tuple[str, ...]:
    """Name the sub-modules of a WavCube, in order, that none of the given outputs passes through.

    Args:
        outputs: As in `used_parameters`.

    Raises:
        ValueError: an unknown output.
    """
    used = _parts(outputs)
    every = ("wavlm", "post_wavlm_layer_norm", "compressor", "restorer", "decoder")
    return tuple(part for part in every if part not in used)


def train_only(model: WavCube, names: frozenset[str] | set[str]) -> None:
    """Make the named parameters trainable and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def _parts(outputs: tuple[str, ...]) -> set[str]:
    for output in outputs:
        if output not in _PARTS:
            raise ValueError(f"outputs must be among {', '.join(_PARTS)}, got {output!r}")
    return {part for output in outputs for part in _PARTS[output]}


def _unused_prefixes(config: WavCubeConfig, *, every_layer: bool) -> Iterator[str]:
    """Yield the prefixes of WavLM's parameters that no output depends on."""
    wavlm, layer = config.wavlm, config.wavlm_layer
    if wavlm.extractor_mode == "group_norm" and wavlm.conv_bias:
        # The GroupNorm behind the first convolution subtracts its bias again.
        yield "wavlm.feature_extractor.conv_layers.0.conv.bias"
    if every_layer or layer in (-1, wavlm.num_layers):
        return
    for above in range(layer, wavlm.num_layers):
        yield f"wavlm.encoder.transformer.layers.{above}."
    if wavlm.layer_norm_first:  # it follows the last layer; in Base models it precedes the first one
        yield "wavlm.encoder.transformer.layer_norm."
