"""Hyperparameter files: their plain values, and checks that every key is used and every value can be."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.run_opts import RunOptions

from wavcube_plugins.errors import InputError

# Whole numbers that must not be 0.
_POSITIVE = {"number_of_epochs", "batch_size", "valid_batch_size"}


def read_settings(hparams_file: Path, overrides: dict[str, Any], script: str) -> dict[str, Any]:
    """Return the plain values of a hyperparameter file, before any object is made.

    Args:
        hparams_file: The file.
        overrides: Values from the command line that replace those of the file; numbers written as text are converted.
        script: The training script that uses the file.

    Returns:
        Values by key, references resolved; an object is {tag: its arguments}, such as {"new:torch.nn.Linear": {…}}.

    Raises:
        InputError: not YAML, a key that nothing uses, or a value that cannot be used.
    """
    text = _read(hparams_file)
    plain = _plain(text, hparams_file)
    unknown = [key for key in overrides if key not in plain]
    if unknown:
        raise InputError(f"there is no setting {unknown[0]!r}; {hparams_file} lists and explains them all")
    unused = unused_keys(text, plain, Path(script).read_text(encoding="utf-8"))
    if unused:
        raise InputError(f"{hparams_file}: nothing uses the setting {unused[0]!r}; is it misspelt?")
    _check_values(overrides, plain)
    return _plain(resolved_text(hparams_file, overrides), hparams_file)


def unused_keys(text: str, keys: Mapping[str, Any], script: str) -> list[str]:
    """Return the keys that neither the hyperparameter file nor the script nor SpeechBrain uses.

    Args:
        text: The hyperparameter file.
        keys: Its keys.
        script: The text of the training script, which uses a key as `hparams["key"]`, `settings["key"]` or
            `hparams.key`.
    """
    references = set(re.findall(r"<(\w+)", text))
    accesses = set(re.findall(r"""(?:hparams|settings)(?:\[["']|\.get\(["']|\.)(\w+)""", script))
    options = set(RunOptions().as_dict())
    calls = {key for key, value in keys.items() if isinstance(value, dict) and next(iter(value), "")[:6] == "apply:"}
    return [key for key in keys if key not in references | accesses | options | calls]


def resolved_text(hparams_file: Path, overrides: Mapping[str, Any]) -> str:
    """Return the text of a hyperparameter file with overrides applied and references resolved.

    Raises:
        InputError: it cannot be resolved; the message names the file.
    """
    try:
        return resolve_references(_read(hparams_file), dict(overrides)).getvalue()
    except (ValueError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{hparams_file}: {' '.join(str(error).split())}") from error


def load_hparams(hparams_file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Load a hyperparameter file with its objects.

    Raises:
        InputError: an object cannot be made; one sentence.
    """
    try:
        return load_hyperpyyaml(_read(hparams_file), dict(overrides), overrides_must_match=False)
    except (InputError, OSError, ImportError):
        raise
    except Exception as error:
        # A ValueError is one sentence of the lobe or a head; anything else needs the place.
        where = "" if isinstance(error, ValueError) else f"{hparams_file}: "
        raise InputError(f"{where}{' '.join(str(error).split())}") from error


class _Plain(yaml.SafeLoader):
    """Reads the plain values of a HyperPyYAML file; what a tag makes becomes {tag: its arguments}."""


def _tagged(loader: _Plain, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.MappingNode):
        return {suffix: loader.construct_mapping(node, deep=True)}
    return {suffix: loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value}


_Plain.add_multi_constructor("!", _tagged)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _plain(text: str, path: Path) -> dict[str, Any]:
    try:
        plain = yaml.load(text, Loader=_Plain)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML, {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or "output_folder" not in plain:
        raise InputError(f"{path}: not a hyperparameter file for this script, it has no 'output_folder'")
    return plain


def _check_values(overrides: dict[str, Any], plain: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        expected = _expected(name, value, plain[name])
        if isinstance(plain[name], float) and isinstance(value, str):
            with contextlib.suppress(ValueError):  # in YAML, 1e-4 is text
                value = overrides[name] = float(value)
                expected = _expected(name, value, plain[name])
        if expected:
            raise InputError(f"{name} must be {expected}, got {value!r}")


def _expected(name: str, value: Any, default: Any) -> str:
    """Return what a value would have to be to replace a default, or nothing if it can."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if default is None or isinstance(default, dict):
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, int):
        least = 1 if name in _POSITIVE else 0
        return "" if number and isinstance(value, int) and value >= least else f"a whole number of at least {least}"
    if isinstance(default, float):
        return "" if number and math.isfinite(value) and value >= 0 else "a number of at least 0"
    if isinstance(default, list):
        return "" if isinstance(value, list) else "a list, such as '[valid, test]'"
    return "" if isinstance(value, str) and value else "text"
