"""`wavcube info`: the sizes, rates and parameters of a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.cli.common import add_command, add_model, load, megabytes, say, say_table
from wavcube_plugins.errors import OK

if TYPE_CHECKING:
    from wavcube_plugins.models.wavcube import WavCube


def register(commands) -> None:
    command = add_command(
        commands,
        "info",
        run,
        summary="the sizes, rates and parameters of a model",
        description="Print the sizes of a model, its parameters per part, and where its weights come from.",
        example="wavcube info nano\nwavcube info wavcube-large/ --json",
    )
    command.add_argument("name", metavar="MODEL", nargs="?", help="same as --model")
    command.add_argument("--json", action="store_true", help="print JSON with all sizes")
    add_model(command)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        arguments.model = arguments.name
    model = load(arguments)
    weights = Path(model.metadata.get("source", ""))
    size = weights.stat().st_size if weights.is_file() else None
    if arguments.json:
        say(json.dumps(_description(model, arguments.model, size), indent=2))
    else:
        say_table(_rows(model, arguments.model, size))
    return OK


def _parameters(model: WavCube) -> dict[str, int]:
    parts = {
        "WavLM": model.wavlm,
        "Compressor": model.compressor,
        "Restorer": model.restorer,
        "AcousticDecoder": model.decoder,
        "total": model,
    }
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _description(model: WavCube, name: str, size: int | None) -> dict:
    return {
        "model": name,
        "trained": model.trained,
        "sample_rate": model.sample_rate,
        "hop_length": model.hop_length,
        "frame_rate": model.frame_rate,
        "latent_dim": model.latent_dim,
        "parameters": _parameters(model),
        "file_size": size,
        "metadata": model.metadata,
        "config": model.config.to_dict(),
    }


def _rows(model: WavCube, name: str, size: int | None) -> dict[str, str]:
    return {
        "model": name,
        "weights": "trained" if model.trained else "UNTRAINED, random",
        "sample rate": f"{model.sample_rate} Hz",
        "latent": f"{model.latent_dim} channels at {model.frame_rate:g} Hz, one frame per {model.hop_length} samples",
        "numbers per second": f"{model.latent_dim * model.frame_rate:,.0f}",
        **{f"parameters, {part}": f"{number:>13,}" for part, number in _parameters(model).items()},
        **({"file size": megabytes(size)} if size is not None else {}),
        **model.metadata,
    }
