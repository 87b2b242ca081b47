"""ESPnet's TTS task with the WavCube names registered, for Python users and ESPnet3."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from espnet2.tasks.tts import TTSTask

from wavcube_plugins.espnet.registration import register

register()


class WavCubeTTSTask(TTSTask):
    """ESPnet's TTS task with `feats_extract: wavcube` and `tts: wavcube_cfm` as defaults.

    >>> WavCubeTTSTask.main(cmd=["--config", "conf/train.yaml", …])

    In ESPnet3, name it by its class path: `task: wavcube_plugins.espnet.WavCubeTTSTask`.
    """

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ESPnet's arguments and set our defaults."""
        super().add_task_arguments(parser)
        parser.set_defaults(feats_extract="wavcube", tts="wavcube_cfm")

    @classmethod
    def get_default_config(cls) -> dict[str, Any]:
        """Return the defaults with which ESPnet3 completes a configuration.

        They have no normalisation, because ESPnet3 removes `normalize` from the configuration to collect statistics.
        """
        return super().get_default_config() | {"normalize": None, "normalize_conf": {}}

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Return ESPnet's names, and in inference those of the prompt."""
        names = super().optional_data_names(train, inference)
        return (*names, "prompt_text", "prompt_speech") if inference else names


class PromptedTTSTask(WavCubeTTSTask):
    """The task from which `espnet2.bin.tts_inference` takes its model and data."""

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Callable | None:
        """Keep the texts of a `wavcube_cfm` model as they are: the length rule and the splitting need them."""
        return texts_to_bytes if args.tts == "wavcube_cfm" else super().build_preprocess_fn(args, train)


def texts_to_bytes(uid: str, data: dict[str, Any]) -> dict[str, Any]:
    """Turn an utterance's texts into arrays of bytes, since ESPnet's loader stacks arrays only."""
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    arrays = {f"{name}_utf8": np.frombuffer(text.encode(), np.uint8).astype(np.int64) for name, text in texts.items()}
    return arrays | {name: value for name, value in data.items() if name not in texts}


def bytes_to_texts(values: dict[str, Any]) -> dict[str, Any]:
    """Undo `texts_to_bytes`."""
    return {
        name.removesuffix("_utf8"): bytes(value.tolist()).decode() if name.endswith("_utf8") else value
        for name, value in values.items()
    }
