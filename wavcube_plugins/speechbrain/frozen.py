"""Keeps frozen weights out of the lobe's checkpoints, and loads checkpoints that lack them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from wavcube_plugins.speechbrain.lobe import WavCube

# Parts of the model that a lobe may have frozen, and left out of its checkpoints, as a whole.
_PARTS = ("wavlm.feature_extractor", "wavlm.encoder", "post_wavlm_layer_norm", "compressor", "restorer", "decoder")


def keep_frozen_out(lobe: WavCube) -> None:
    """Let the state dict of a lobe hold only trained weights, and let state dicts without the others be loaded."""
    lobe.register_state_dict_post_hook(_leave_out_frozen)
    lobe.register_load_state_dict_pre_hook(_fill_in_frozen)


def _leave_out_frozen(lobe: WavCube, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """Remove from a state dict what `source` provides and nothing has trained."""
    for name, weight in lobe.model.named_parameters(prefix="model"):
        if name not in lobe.saved_weights and not weight.requires_grad:
            state.pop(prefix + name, None)


def _fill_in_frozen(lobe: WavCube, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Accept a state dict that holds less than the lobe, or more.

    Weights that are frozen here may be missing. So may a whole part, which was frozen where the state dict was saved. A
    part of which only some weights are there is an error as usual. Weights of a decoder that was dropped are ignored.
    """
    weights = dict(lobe.named_parameters(prefix=prefix[:-1]))
    for part in _PARTS:
        start = f"{prefix}model.{part}."
        own = {name: weight for name, weight in weights.items() if name.startswith(start)}
        present = any(name in state for name in own)
        for name, weight in own.items():
            needed = name.removeprefix(prefix) in lobe.saved_weights or weight.requires_grad
            if name not in state and not (present and needed):
                state[name] = weight
        if part == "decoder" and lobe.model.decoder is None:
            for name in [name for name in state if name.startswith(start)]:
                del state[name]
