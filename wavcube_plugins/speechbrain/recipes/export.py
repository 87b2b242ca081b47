"""Writing folders that SpeechBrain's `from_hparams` loads: a hyperparameter file, weights, and a custom head's code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from wavcube_plugins.checkpoints import NAMES
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.files import atomic_path
from wavcube_plugins.speechbrain.lobe import WavCube
from wavcube_plugins.speechbrain.recipes.data import DataError

INFERENCE_NAME = "inference"

# YAML text of a lobe with a head on it.
ON_WAVCUBE = "!new:wavcube_plugins.speechbrain.OnWavCube\n    wavcube: !ref <wavcube>\n    head: !ref <head>"


def write_inference(
    folder: Path,
    modules: Mapping[str, str],
    loadables: Mapping[str, nn.Module | None],
    more: str = "",
) -> None:
    """Write `hyperparams.yaml`, and beside it the weights and the modules that are not part of an installed package.

    Args:
        folder: Created if missing.
        modules: YAML text of the value of each key.
        loadables: Keys whose weights are loaded, with the module to save; None where the file is there already.
        more: YAML text for the end: keys that are not loaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in loadables.items():
        if module is not None:
            with atomic_path(folder / f"{name}.ckpt") as path:
                torch.save({key: value.cpu() for key, value in module.state_dict().items()}, path)
    text = "".join(f"{name}: {value}\n" for name, value in modules.items()) + more
    text += "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n    loadables:\n"
    text += "".join(f"        {name}: !ref <{name}>\n" for name in loadables)
    with atomic_path(folder / "hyperparams.yaml") as path:
        path.write_text(text, encoding="utf-8")
    for value in modules.values():
        if value.startswith("!new:"):
            _copy_own_module(value.split("\n")[0].removeprefix("!new:"), folder)


def lobe_yaml(lobe: WavCube, *, decoder: bool = False) -> str:
    """Return YAML text that builds the lobe again, frozen; what was trained of it comes from the weights."""
    source = lobe.source
    if source not in NAMES and Path(source).exists():
        source = os.path.abspath(source)
    options = {
        "source": source,
        "revision": lobe.revision,
        "config": lobe.config.to_dict() if isinstance(lobe.config, WavCubeConfig) else lobe.config,
        "features": lobe.features,
        "output_all_hiddens": lobe.output_all_hiddens,
        "output_norm": lobe.output_norm,
        "decoder": decoder,
        "freeze": True,
    }
    return f"!new:wavcube_plugins.speechbrain.WavCube\n{_indented(options)}"


def object_yaml(setting: Mapping[str, Any], **sizes: Any) -> str:
    """Return YAML text that builds an object of the hyperparameter file again.

    Args:
        setting: What `read_settings` returns for it: {"new:NAME": {argument: value}}.
        **sizes: Arguments that the file takes from other objects, with their values.

    Raises:
        DataError: other arguments refer to objects, too.
    """
    ((tag, options),) = setting.items()
    options = {**options, **sizes}
    for name, value in options.items():
        if isinstance(value, Mapping) and "ref" in value:
            raise DataError(
                f"{tag.partition(':')[2]}: the argument {name} refers to the object {value['ref']}, which the folder "
                "for inference cannot hold; give a plain value"
            )
    return f"!{tag}\n{_indented(options)}"


def _indented(options: Mapping[str, Any], depth: int = 4) -> str:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=False)
    return "\n".join(" " * depth + line for line in text.strip().splitlines())


def _copy_own_module(name: str, folder: Path) -> None:
    """Copy the module of a dotted name, unless it belongs to an installed package or to this one."""
    top = name.split(".")[0]
    file = getattr(sys.modules.get(top) or import_module(top), "__file__", None)
    if file is None or top in ("wavcube_plugins", "speechbrain", "torch") or "site-packages" in Path(file).parts:
        return
    if Path(file).name == "__init__.py":
        shutil.copytree(Path(file).parent, folder / top, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc"))
    else:
        shutil.copy(file, folder / Path(file).name)
