"""`load_model`: from a name, a path or a hub name to a model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from wavcube_plugins.checkpoints.hub import fetch
from wavcube_plugins.checkpoints.lightning import LIGHTNING_SUFFIXES, load_lightning
from wavcube_plugins.checkpoints.names import ASSETS, NAMES, PACKAGED, CheckpointError, local_path
from wavcube_plugins.checkpoints.native import CONFIG_NAME, WEIGHTS_NAME, is_folder, load_folder
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.models.dtypes import parse_dtype
from wavcube_plugins.models.wavcube import WavCube


def load_model(
    source: str | os.PathLike,
    *,
    config: WavCubeConfig | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> WavCube:
    """Load a model. Its weights are trainable; for inference use it under `torch.inference_mode()`.

    Args:
        source: `nano` (comes with the package) or `tiny` (random weights, for tests); `wavcube` or `wavcube_pro`
            (published on the Hugging Face hub); a hub name `owner/name` or `owner/name/folder`; a native folder, a
            `.safetensors` file with its `config.json` beside it, or a public Lightning `.ckpt` of stage 1 or 2. The
            four names always mean these models; for a folder of that name write `./nano` or pass a `Path`.
        config: Sizes or a preset's name, for a Lightning file whose sizes are those of no preset (heads and windows
            cannot be read from its tensors).
        device: Where to put the model; None leaves it on the CPU.
        dtype: Type of the weights, as `torch.dtype` or by name; None means float32.
        local_files_only: Take hub models from the local cache only. `HF_HUB_OFFLINE` does the same.
        revision: Branch, tag or commit of a hub model.
        cache_dir: Folder that hub models are downloaded to; None means the hub's own cache.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: nothing loadable by that name, or an option that does not apply to it.
        InputError: an unknown preset or dtype.
        MemoryError: there is not enough memory for the weights.
    """
    weights_type = torch.float32 if dtype is None else parse_dtype(dtype)
    sizes = WavCubeConfig.preset(config) if isinstance(config, str) else config
    path = local_path(source, NAMES)
    name = os.fspath(source)
    if revision is not None and (path is not None or name in PACKAGED):
        raise CheckpointError(f"{source}: is not on the hub, so revision {revision!r} does not apply to it")
    if path is None and name in PACKAGED:
        if sizes is not None:
            raise CheckpointError(f"{source}: has its own sizes; config is for Lightning files")
        folder = ASSETS / name
        model = load_folder(folder) if folder.is_dir() else _untrained(name)
    else:
        if path is None:
            path = fetch(name, local_files_only=local_files_only, revision=revision, cache_dir=cache_dir)
        model = _load_path(path, sizes)
    return model.to(device=device, dtype=weights_type).eval()


def _load_path(path: Path, config: WavCubeConfig | None) -> WavCube:
    if path.is_dir() and not is_folder(path):
        candidates = sorted(path.rglob("*.ckpt"))
        if len(candidates) != 1:
            found = ", ".join(item.name for item in candidates[:5]) or "neither"
            raise CheckpointError(
                f"{path}: expected {WEIGHTS_NAME} with {CONFIG_NAME}, or exactly one .ckpt file, found {found}"
            )
        path = candidates[0]
    if path.is_dir() or path.suffix == ".safetensors":
        if config is not None:
            raise CheckpointError(f"{path}: has its own sizes in {CONFIG_NAME}; config is for Lightning files")
        return load_folder(path) if path.is_dir() else load_folder(path.parent, path.name)
    if path.suffix not in LIGHTNING_SUFFIXES:
        raise CheckpointError(
            f"{path}: expected a folder, a .safetensors file or a Lightning file ({', '.join(LIGHTNING_SUFFIXES)}), "
            f"found {path.suffix or 'no suffix'}"
        )
    return load_lightning(path, config)


def _untrained(preset: str) -> WavCube:
    """Build a preset with random weights, the same ones every time."""
    warnings.warn(
        f"the weights of {preset!r} are UNTRAINED random numbers: shapes are right, sounds and features mean nothing",
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WavCube(WavCubeConfig.preset(preset))
    model.metadata = {"source": f"random weights of preset {preset}"}
    return model
