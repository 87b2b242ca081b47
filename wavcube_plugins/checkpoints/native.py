"""The native folder: `model.safetensors` with the weights for inference, `config.json` with sizes and notes on them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from wavcube_plugins.checkpoints.names import CheckpointError
from wavcube_plugins.config import WavCubeConfig, WavLMConfig
from wavcube_plugins.errors import NAME_FAULTS
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.dtypes import parse_dtype
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.models.wavlm import WavLM

FORMAT = "wavcube-1"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

_Config = TypeVar("_Config", WavCubeConfig, WavLMConfig)


def save_model(model: WavCube, folder: str | os.PathLike, *, dtype: torch.dtype | str | None = None) -> None:
    """Write a native folder.

    Args:
        model: The model; its `metadata` is kept.
        folder: Created if missing. A model that is already in it is replaced, each file atomically.
        dtype: Type of the weights on disk; None keeps the model's.

    Raises:
        CheckpointError: the folder cannot be written.
        InputError: an unknown dtype.
    """
    description = describe(model.config, trained=model.trained, metadata=model.metadata)
    write_weights(model.state_dict(), description, folder, dtype=dtype)


def load_folder(folder: Path, weights_name: str = WEIGHTS_NAME) -> WavCube:
    """Load a native folder, or a safetensors file of any name with its `config.json` beside it.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the configuration.
    """
    config, description = read_description(folder, weights_name, WavCubeConfig, FORMAT)
    state = read_safetensors(folder / weights_name)
    return build(config, state, folder / weights_name, bool(description.get("trained")), read_metadata(description))


def is_folder(folder: Path) -> bool:
    """Return whether a folder has the two files of a native one."""
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def describe(config: WavCubeConfig, *, trained: bool, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of a model's `config.json`."""
    return {"format": FORMAT, "config": config.to_dict(), "trained": trained, "metadata": dict(metadata)}


def write_weights(
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
) -> None:
    """Write tensors and their description into a folder, each of the two files atomically.

    Args:
        state: The tensors.
        description: The content of `config.json`: `format`, `config` and whatever else is known.
        folder: Created if missing.
        dtype: Type of the tensors on disk; None keeps theirs.

    Raises:
        CheckpointError: the folder cannot be written.
        OSError: the disk is full, or takes no more for another reason; the error names the folder.
        InputError: an unknown dtype.
    """
    folder = Path(folder)
    wanted = None if dtype is None else parse_dtype(dtype)
    state = {name: tensor.detach().to("cpu", wanted).contiguous() for name, tensor in state.items()}
    try:
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors creates files that only their owner can read
        with atomic_path(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise CheckpointError(f"{folder}: cannot be written, {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(folder)) from error
    except OSError as error:
        if error.errno not in NAME_FAULTS:
            raise
        raise CheckpointError(f"{folder}: cannot be written, {error}") from error


def read_description(folder: Path, weights_name: str, kind: type[_Config], name: str) -> tuple[_Config, dict[str, Any]]:
    """Read the `config.json` beside a file of weights.

    Args:
        folder: The folder that holds both.
        weights_name: Name of the file of weights, for the message.
        kind: `WavCubeConfig` or `WavLMConfig`.
        name: The format that is expected; a file that names none is taken to have it.

    Returns:
        The sizes, and the whole description.

    Raises:
        CheckpointError: the file is missing, or not of that kind.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder / weights_name}: expected {CONFIG_NAME} beside it, found none")
    what = "WavCube" if kind is WavCubeConfig else "WavLM"
    try:
        description = json.loads(path.read_text())
        if not isinstance(description, dict) or "config" not in description:
            raise ValueError("it has no entry 'config'")
        if description.get("format", name) != name:
            raise ValueError(f"its format is {description['format']!r} and not {name!r}")
        return kind.from_dict(description["config"]), description
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, {reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a {what} configuration, but {error}") from error


def read_metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the notes on the weights in a `config.json`, as text."""
    return {str(key): str(value) for key, value in description.get("metadata", {}).items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is truncated or of another format, or cannot be read.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, {reason(error)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error


def reason(error: OSError) -> str:
    """Return why a file could not be read or written, without its name and the number of the error."""
    return (error.strerror or str(error)).lower()


def build(config: WavCubeConfig, state: Mapping[str, Tensor], path: Path, trained: bool, metadata: dict) -> WavCube:
    """Return the model of a configuration and its tensors, which it takes over without a copy.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        model = WavCube(config)
    check_tensors(model, state, path)
    model.load_state_dict(state, assign=True)
    model.trained, model.metadata = trained, {**metadata, "source": str(path)}
    return model


def check_tensors(model: WavCube | WavLM, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors are those that a model needs, by name and shape.

    Args:
        model: The model; it may be on the meta device.
        state: The tensors.
        path: Where they come from, for the message.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        problem, names = ("lacks", missing) if missing else ("has the unknown", unknown)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{path}: expected the tensors of a {type(model).__name__} model, but it {problem} {names[0]}{more}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} was expected with shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            )
