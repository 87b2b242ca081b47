"""`wavcube convert`: a public checkpoint to a folder for inference."""

from __future__ import annotations

import argparse
from pathlib import Path

from wavcube_plugins.cli.common import (
    DTYPES,
    add_command,
    check_folder,
    check_writable,
    megabytes,
    model_argument,
    note,
    say,
)
from wavcube_plugins.errors import OK, InputError


def register(commands) -> None:
    command = add_command(
        commands,
        "convert",
        run,
        summary="a public checkpoint to a folder for inference",
        description="Turn a public WavCube checkpoint (a Lightning .ckpt of either stage) into a folder with\n"
        "model.safetensors and config.json that keeps only what inference needs. The memory required is close to the\n"
        "size of what is kept.",
        example="wavcube convert vocos_checkpoint.ckpt wavcube-large/",
    )
    command.add_argument("source", metavar="SRC", type=Path, help="the .ckpt file")
    command.add_argument("destination", metavar="DST", type=Path, help="the folder to write")
    command.add_argument("--dtype", choices=DTYPES, help="precision of the weights on disk (default: as in the file)")


def run(arguments: argparse.Namespace) -> int:
    source, destination = arguments.source, arguments.destination
    if not source.is_file():
        raise InputError(f"{source}: {'is a folder, not a .ckpt file' if source.is_dir() else 'no such file'}")
    check_folder(destination)
    check_writable(destination)

    import torch

    from wavcube_plugins.checkpoints import convert

    size = source.stat().st_size
    note(f"reading {source} ({megabytes(size)})")
    convert(source, destination, dtype=getattr(torch, arguments.dtype) if arguments.dtype else None)
    kept = sum(path.stat().st_size for path in destination.glob("*.safetensors"))
    say(
        f"{destination}: kept {megabytes(kept)} of {megabytes(size)}; use it with --model {model_argument(destination)}"
    )
    return OK
