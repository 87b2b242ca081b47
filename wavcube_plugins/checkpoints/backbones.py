"""Backbones: the pretrained speech encoders that a WavCube starts from and is anchored to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wavcube_plugins.checkpoints.encoders import build_wavlm
from wavcube_plugins.checkpoints.lightning import LIGHTNING_SUFFIXES, load_teacher
from wavcube_plugins.checkpoints.loading import load_model
from wavcube_plugins.checkpoints.names import ASSETS, CheckpointError, local_path
from wavcube_plugins.checkpoints.native import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_tensors,
    read_description,
    read_metadata,
    read_safetensors,
    reason,
    write_weights,
)
from wavcube_plugins.checkpoints.native import FORMAT as WAVCUBE_FORMAT
from wavcube_plugins.checkpoints.pickles import read_torch
from wavcube_plugins.config import BACKBONES, WavLMConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.models.wavlm import WavLM

FORMAT = "wavlm-1"
ADDRESS = "https://download.pytorch.org/torchaudio/models/"
FILES = {  # on that server, and so in torch.hub's cache
    "wavlm_large": "wavlm_large.pth",
    "wavlm_base": "wavlm_base.pth",
    "wavlm_base_plus": "wavlm_base_plus.pth",
    "hubert_base": "hubert_fairseq_base_ls960.pth",
    "hubert_large": "hubert_fairseq_large_ll60k.pth",
    "hubert_xlarge": "hubert_fairseq_xlarge_ll60k.pth",
    "wav2vec2_base": "wav2vec2_fairseq_base_ls960.pth",
    "wav2vec2_large": "wav2vec2_fairseq_large_ls960.pth",
    "wav2vec2_large_lv60k": "wav2vec2_fairseq_large_lv60k.pth",
    "wav2vec2_xlsr53": "wav2vec2_fairseq_large_xlsr53.pth",
    "wav2vec2_xlsr_300m": "wav2vec2_xlsr_300m.pth",
}


def load_backbone(
    source: str | os.PathLike, config: WavLMConfig | None = None, *, local_files_only: bool = False
) -> WavLM:
    """Load a pretrained speech encoder, to initialise a model from or to anchor one to.

    >>> wavlm = load_backbone("wavlm_base_plus")
    >>> model = WavCube(dataclasses.replace(WavCubeConfig(), wavlm=wavlm.config))
    >>> init_from_backbone(model, wavlm)

    Args:
        source: One of

            * a name in `wavcube_plugins.config.BACKBONES`, such as `wavlm_large`, `wavlm_base_plus` or `hubert_base`:
              torchaudio's weights, from its cache or downloaded into it;
            * `nano`, the teacher that comes with the package;
            * a folder that `save_backbone` wrote;
            * a `.pt`, `.pth`, `.bin` or `.safetensors` file with torchaudio's or Hugging Face's names, a folder in
              Hugging Face's layout, or the authors' own file (`WavLM-Large.pt`);
            * a WavCube: a native folder, whose WavLM is taken, or a public Lightning file, whose teacher is taken.

            The names always mean these encoders; for a folder or file of that name write `./nano` or pass a `Path`.
        config: Sizes, for a file whose sizes are those of no known encoder.
        local_files_only: Never download anything. `HF_HUB_OFFLINE` does the same.

    Returns:
        The encoder in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: nothing loadable by that name; the message says what was expected and what was found.
    """
    known = ("nano", *FILES)
    name, path = os.fspath(source), local_path(source, known)
    if path is not None:
        return _load_folder(path, config) if path.is_dir() else _load_file(path, config)
    if name == "nano":
        folder = ASSETS / "nano" / "teacher"
        if not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(f"nano: its teacher is missing from {folder}; reinstall wavcube_plugins")
        return _load_folder(folder, config)
    if name not in FILES:
        raise CheckpointError(f"{name}: no such file or folder; the known backbones are {', '.join(known)}")
    return _load_file(_published(name, local_files_only=local_files_only), BACKBONES[name])


def save_backbone(
    wavlm: WavLM,
    folder: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | str | None = None,
) -> None:
    """Write a backbone as a folder that `load_backbone` reads: `model.safetensors` and `config.json`.

    Args:
        wavlm: The encoder.
        folder: Created if missing. A backbone that is already in it is replaced, each file atomically.
        metadata: Notes on the weights, besides the encoder's own metadata.
        dtype: Type of the weights on disk; None keeps the encoder's.

    Raises:
        CheckpointError: the folder cannot be written.
        InputError: an unknown dtype.
    """
    metadata = {**wavlm.metadata, **(metadata or {})}
    description = {"format": FORMAT, "config": wavlm.config.to_dict(), "metadata": metadata}
    write_weights(wavlm.state_dict(), description, folder, dtype=dtype)


def init_from_backbone(model: WavCube, backbone: WavLM, *, adapters: bool = True) -> None:
    """Initialise a new model for stage 1: WavLM's weights, and its first layers for Compressor and Restorer.

    All other weights stay random.

    Args:
        model: The model to be trained; its weights are overwritten in place.
        backbone: The pretrained encoder, with the sizes of `model.config.wavlm`.
        adapters: False leaves Compressor and Restorer random, an ablation of the paper.

    Raises:
        InputError: the backbone has other sizes, or fewer layers than Compressor and Restorer need.
    """
    ours, theirs = model.config.wavlm.to_dict(), backbone.config.to_dict()
    for name, value in ours.items():
        if theirs[name] != value:
            raise InputError(f"the model's configuration has wavlm.{name} {value}, the backbone has {theirs[name]}")
    num_layers = model.config.bottleneck.num_layers
    if adapters and num_layers > backbone.config.num_layers:
        raise InputError(
            f"bottleneck.num_layers is {num_layers}, the backbone has {backbone.config.num_layers} layers to start from"
        )
    model.wavlm.load_state_dict(backbone.state_dict())
    if adapters:
        first = backbone.encoder.transformer.layers[:num_layers].state_dict()
        model.compressor.layers.load_state_dict(first)
        model.restorer.layers.load_state_dict(first)


def _published(name: str, *, local_files_only: bool) -> Path:
    """Return the file of a published backbone in torch.hub's folder, where torchaudio keeps it too."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILES[name]
    if path.is_file():
        return path
    url = ADDRESS + FILES[name]
    remedy = f"download {url} and give its path, or put it into {path.parent}"
    if local_files_only or _truth(os.environ.get("HF_HUB_OFFLINE")):
        raise CheckpointError(f"{name}: not on this machine, and downloads are off; {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, os.fspath(path))
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be downloaded, {error}; {remedy}") from error
    return path


def _truth(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads it


def _load_folder(folder: Path, config: WavLMConfig | None) -> WavLM:
    description = _description(folder)
    if description.get("format") == FORMAT:
        return _load_own(folder, WEIGHTS_NAME)
    if description.get("format") == WAVCUBE_FORMAT:
        return _take_wavlm(folder)
    for name in (WEIGHTS_NAME, "pytorch_model.bin"):
        if (folder / name).is_file():
            return _load_file(folder / name, config)
    found = sorted(folder.rglob("*.ckpt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "neither"
        raise CheckpointError(
            f"{folder}: expected a backbone or a WavCube, {WEIGHTS_NAME} with {CONFIG_NAME}, or one .ckpt file; "
            f"found {names}"
        )
    return load_teacher(found[0], config=config)


def _load_file(path: Path, config: WavLMConfig | None) -> WavLM:
    description = _description(path.parent)
    if path.suffix == ".safetensors":
        if description.get("format") == FORMAT:
            return _load_own(path.parent, path.name)
        if description.get("format") == WAVCUBE_FORMAT:
            return _take_wavlm(path)
        state = read_safetensors(path)
    elif path.suffix in LIGHTNING_SUFFIXES:
        content = read_torch(path)
        if isinstance(content, Mapping) and "state_dict" in content:
            return load_teacher(path, config=config)
        state = content
        if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
            state = content["model"]
            settings = content.get("cfg")
            if config is None and isinstance(settings, Mapping) and "layer_norm_first" in settings:
                return build_wavlm(state, path, rest=_rest_of_authors(settings, path))
    else:
        suffixes = ", ".join((*LIGHTNING_SUFFIXES, ".safetensors"))
        raise CheckpointError(f"{path}: expected a file of weights ({suffixes}), found {path.suffix or 'no suffix'}")
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dict of tensors, found {_kind(state)}")
    if config is None and "do_stable_layer_norm" in description:
        return build_wavlm(state, path, rest=_rest_of_hugging_face(description, path))
    return build_wavlm(state, path, config)


def _description(folder: Path) -> Mapping[str, Any]:
    """Return the content of a folder's `config.json`, ours or Hugging Face's; empty if there is none."""
    try:
        description = json.loads((folder / CONFIG_NAME).read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: cannot be read, {reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: not readable as JSON, {error}") from error
    return description if isinstance(description, Mapping) else {}


def _load_own(folder: Path, weights_name: str) -> WavLM:
    config, description = read_description(folder, weights_name, WavLMConfig, FORMAT)
    state = read_safetensors(folder / weights_name)
    with torch.device("meta"):
        wavlm = WavLM(config)
    check_tensors(wavlm, state, folder / weights_name)
    wavlm.load_state_dict(state, assign=True)
    wavlm.metadata = {**read_metadata(description), "source": str(folder)}
    return wavlm.float().eval()


def _take_wavlm(path: Path) -> WavLM:
    wavlm = load_model(path).wavlm
    wavlm.metadata = {"source": str(path)}
    return wavlm


def _rest_of_authors(cfg: Mapping[str, Any], path: Path) -> WavLMConfig:
    """Return the sizes that shapes do not tell, from the settings in the authors' WavLM files."""
    return _rest(
        path,
        num_heads=cfg.get("encoder_attention_heads"),
        max_distance=cfg.get("max_distance"),
        layer_norm_first=cfg.get("layer_norm_first"),
    )


def _rest_of_hugging_face(description: Mapping[str, Any], path: Path) -> WavLMConfig:
    """Return the sizes that shapes do not tell, from a `config.json` of Hugging Face's."""
    strides = description.get("conv_stride")
    return _rest(
        path,
        num_heads=description.get("num_attention_heads"),
        max_distance=description.get("max_bucket_distance"),
        layer_norm_first=description.get("do_stable_layer_norm"),
        conv_strides=tuple(strides) if isinstance(strides, list) else None,
    )


def _rest(path: Path, **settings: Any) -> WavLMConfig:
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        # Any number of channels and buckets will do that fits the settings, since the tensors tell the right one.
        rest = {"hidden_dim": 16 * given.get("num_heads", 16), **given}
        if given.get("max_distance", math.inf) <= WavLMConfig().num_buckets // 4:
            rest["num_buckets"] = 4
        return WavLMConfig.from_dict(rest)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its settings make no sense, {error}") from error


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the entries {', '.join(map(str, list(value)[:4]))}" if value else "an empty mapping"
    return f"a {type(value).__name__}"
