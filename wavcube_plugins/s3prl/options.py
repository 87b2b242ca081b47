"""Options of the upstream, which s3prl passes as a file with `-g`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.errors import InputError
from wavcube_plugins.models.dtypes import DTYPES


class OptionsError(InputError):
    """An option of the upstream, or the file with it, cannot be used."""


@dataclasses.dataclass(frozen=True)
class UpstreamOptions:
    """What a file given with `-g` may set.

    Args:
        config: The sizes of a `.ckpt` file that matches no preset: the name of a preset, or a mapping as in
            `config.json`.
        revision: Branch, tag or commit of a model on the Hugging Face hub.
        dtype: The type to compute in: float32, bfloat16 or float16. Features are always float32; fine-tune in float32.
        only_hidden_states: Return no key but `hidden_states` and `last_hidden_state`. s3prl does not tell an upstream
            which keys it needs, so by default all are computed; this saves the Restorer's time and the memory of
            WavLM's layers.
    """

    config: str | Mapping[str, Any] | None = None
    revision: str | None = None
    dtype: str = "float32"
    only_hidden_states: bool = False

    def __post_init__(self):
        if self.config is not None and not isinstance(self.config, (str, Mapping)):
            raise OptionsError(f"config must be the name of a preset or a mapping, got {self.config!r}")
        if self.revision is not None and not isinstance(self.revision, str):
            raise OptionsError(f"revision must be text, got {self.revision!r}; put it in quotes")
        if self.dtype not in DTYPES:
            raise OptionsError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not isinstance(self.only_hidden_states, bool):
            raise OptionsError(f"only_hidden_states must be true or false, got {self.only_hidden_states!r}")

    @classmethod
    def read(cls, source: str | os.PathLike | Mapping[str, Any] | None, **more: Any) -> UpstreamOptions:
        """Read options from a YAML or JSON file or a mapping; keyword arguments override them.

        The `config.json` of a model folder can be given too; its sizes are used.

        Raises:
            OptionsError: no such file, not a mapping, an unknown name or a value of the wrong kind.
        """
        where = "the options" if source is None or isinstance(source, Mapping) else str(source)
        values = {} if source is None else source if isinstance(source, Mapping) else _read_mapping(source)
        if "format" in values and "config" in values:
            values = {"config": values["config"]}
        values = {**values, **more}
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise OptionsError(f"{where}: unknown option {unknown[0]!r}; known are {', '.join(known)}")
        try:
            return cls(**values)
        except OptionsError as error:
            raise OptionsError(f"{where}: {error}") from error


def _read_mapping(path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "not YAML or JSON"
        raise OptionsError(f"{path}: expected a file of options for -g, {reason}") from error
    if not isinstance(values, Mapping):
        raise OptionsError(f"{path}: expected a mapping of options for -g, found {type(values).__name__}")
    return values
