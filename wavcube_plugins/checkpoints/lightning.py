"""The public checkpoints, as Lightning wrote them: names, sizes, teacher and discriminators."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavcube_plugins.checkpoints.encoders import build_wavlm, encoder_name, join_attention, name_missing_tensors
from wavcube_plugins.checkpoints.names import CheckpointError
from wavcube_plugins.checkpoints.native import CONFIG_NAME, build, check_tensors, describe, write_weights
from wavcube_plugins.checkpoints.pickles import read_torch
from wavcube_plugins.checkpoints.sizes import match_wavcube
from wavcube_plugins.config import WavCubeConfig, WavLMConfig
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.models.wavlm import WavLM

LIGHTNING_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

_PARTS = {  # prefix in the file: prefix in our model
    "feature_extractor.enc_transformer.": "compressor.layers.",
    "feature_extractor.enc_projection.": "compressor.projection.",
    "feature_extractor.dec_transformer.": "restorer.layers.",
    "feature_extractor.dec_projection.": "restorer.projection.",
    "feature_extractor.post_wavlm_layer_norm.": "post_wavlm_layer_norm.",
    "backbone.upsample_proj.": "decoder.upsample_proj.",
    "backbone.decoder.dconv2.": "decoder.upsampler.",
    "backbone.decoder.vocoder.head.out.": "decoder.vocoder.head.",
    "backbone.decoder.": "decoder.",
}
_TEACHER, _STUDENT = "feature_extractor.model.", "feature_extractor.rep_model."
_DISCRIMINATORS = ("multiperioddisc.", "multiresddisc.")
# In the decoder, yet not needed: a layer that 50 Hz never uses, and a Hann window.
_UNUSED = ("backbone.decoder.dconv1.", "backbone.decoder.vocoder.head.istft.window")


def load_lightning(path: Path, config: WavCubeConfig | None) -> WavCube:
    """Load a public checkpoint of stage 1 or 2.

    Args:
        path: The file.
        config: Sizes; None takes them from a `config.json` beside it, or finds the preset that fits.

    Raises:
        CheckpointError: not such a file, or of other sizes.
    """
    state, config, metadata = _read(path, config)
    # Copied out of the mapped file, which may be replaced or removed while the model lives.
    return build(config, {name: tensor.clone() for name, tensor in state.items()}, path, True, metadata)


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: WavCubeConfig | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> WavCubeConfig:
    """Turn a public Lightning file into a native folder that keeps only what inference needs.

    The file is mapped into memory and never read as a whole, so it takes about as much memory as what is kept.

    Args:
        source: The `.ckpt` file.
        destination: The folder to write.
        config: Sizes or a preset's name, as in `load_model`.
        dtype: Type of the weights on disk; None keeps the file's.

    Returns:
        The sizes of the converted model.

    Raises:
        CheckpointError: not such a file, or the destination cannot be written.
        InputError: an unknown preset or dtype.
    """
    source = Path(source)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file; expected a public WavCube checkpoint (.ckpt)")
    sizes = WavCubeConfig.preset(config) if isinstance(config, str) else config
    state, sizes, metadata = _read(source, sizes)
    with torch.device("meta"):
        check_tensors(WavCube(sizes), state, source)
    write_weights(state, describe(sizes, trained=True, metadata=metadata), destination, dtype=dtype)
    return sizes


def load_teacher(path: str | os.PathLike, *, config: WavLMConfig | None = None) -> WavLM:
    """Load the frozen teacher of a public checkpoint: WavLM as it was before stage 2.

    Args:
        path: A Lightning `.ckpt` of stage 1 or 2.
        config: Sizes, if they are those of no preset and no backbone.

    Returns:
        The teacher in eval mode, float32.

    Raises:
        CheckpointError: not such a file.
    """
    path = Path(path)
    _, state, _ = _read_state(path)
    beside = _config_beside(path) if config is None else None
    state = {name[len(_TEACHER) :]: tensor for name, tensor in state.items() if name.startswith(_TEACHER)}
    return build_wavlm(state, path, beside.wavlm if beside else config)


def load_discriminators(path: str | os.PathLike) -> dict[str, Tensor]:
    """Load the discriminators of a public Lightning checkpoint.

    Args:
        path: The `.ckpt` file, of stage 1 or 2.

    Returns:
        State dict for `pretraining.discriminators.Discriminators`, in float32.

    Raises:
        CheckpointError: not such a file, or it has no discriminators.
    """
    path = Path(path)
    _, state, _ = _read_state(path)
    spellings = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    found = {}
    for name, tensor in state.items():
        if name.startswith(_DISCRIMINATORS) and ".spec_fn." not in name:  # windows are not trained
            for old, new in spellings.items():
                name = re.sub(re.escape(old) + "$", new, name)
            found[name] = tensor.to(torch.float32, copy=True)
    lacking = [prefix for prefix in _DISCRIMINATORS if not any(name.startswith(prefix) for name in found)]
    if lacking:
        raise CheckpointError(f"{path}: expected a checkpoint with discriminators, but it has no {lacking[0]}…")
    return found


def _read(path: Path, config: WavCubeConfig | None) -> tuple[dict[str, Tensor], WavCubeConfig, dict[str, str]]:
    """Return tensors, sizes and notes; tensors that need no change stay mapped to the file."""
    content, state, stage = _read_state(path)
    config = _config_beside(path) if config is None else config
    with name_missing_tensors(path):
        state = _native_names(state, _STUDENT if stage == 2 else _TEACHER)
        config = match_wavcube(state, config)
    if config.wavlm_layer == -1:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("post_wavlm_layer_norm.")}
    metadata = {"stage": str(stage)}
    for counter in ("epoch", "global_step"):
        if isinstance(content.get(counter), int):
            metadata[counter] = str(content[counter])
    return state, config, metadata


def _read_state(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor], int]:
    """Return the content of a public checkpoint, its tensors, and the stage of training it comes from."""
    content = read_torch(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = list(content)[:4] if isinstance(content, Mapping) else []
        found = f"the entries {', '.join(map(str, entries))}" if entries else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: expected a Lightning checkpoint with a 'state_dict' of tensors, found {found}")
    if not any(name.startswith(_TEACHER) for name in state):
        found = next(iter(state), "nothing")
        raise CheckpointError(f"{path}: expected a WavCube state_dict ({_TEACHER}…), found {found}")
    return content, state, 2 if any(name.startswith(_STUDENT) for name in state) else 1


def _config_beside(path: Path) -> WavCubeConfig | None:
    """Return the sizes in the `config.json` beside a public checkpoint, None if there is none."""
    path = path.parent / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text())
        sizes = description.get("config", description) if isinstance(description, dict) else description
        return WavCubeConfig.from_dict(sizes)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a WavCube configuration, {error}") from error


def _native_names(state: Mapping[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """Rename the tensors that inference needs, and join each attention's q, k and v as torchaudio does."""
    renamed = {}
    for name, tensor in state.items():
        native = _native_name(name, encoder)
        if native is not None:
            renamed[native] = tensor
    return join_attention(renamed)


def _native_name(name: str, encoder: str) -> str | None:
    if name.startswith(encoder):
        inner = encoder_name(name[len(encoder) :])
        return None if inner is None else "wavlm." + inner
    if name.startswith(_UNUSED):
        return None
    for prefix, native in _PARTS.items():
        if name.startswith(prefix):
            return native + name[len(prefix) :]
    return None  # the teacher of stage 2, discriminators, losses and metrics
