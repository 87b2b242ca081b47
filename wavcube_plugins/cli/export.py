"""`wavcube export`: the model of a training run, to use and to share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wavcube_plugins.cli.common import (
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
        "export",
        run,
        summary="the model of a training run, to use and to share",
        description="Write the model of a training run as a folder with model.safetensors, config.json and a model\n"
        "card, README.md, without discriminators and optimisers. Use the folder with --model, or upload it to the\n"
        "Hugging Face hub.",
        example="wavcube export results/wavcube/stage2 wavcube-mine --checkpoint best --license apache-2.0 "
        "--data LibriSpeech",
    )
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run of stage 1 or 2")
    command.add_argument("output", metavar="OUT", type=Path, help="the folder to write; a model in it is replaced")
    command.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="the newest, or the one with the lowest mel distance in validation (default: %(default)s)",
    )
    command.add_argument(
        "--dtype", choices=("float32", "float16"), help="precision of the weights on disk (default: as trained)"
    )
    command.add_argument(
        "--license", metavar="TEXT", help="licence of the weights for the card, as an identifier of the hub"
    )
    command.add_argument("--data", metavar="TEXT", help="what the model was trained on, for the card")
    command.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help='JSON with scores for the card: {"STOI": 0.97} or {"test-clean": {"STOI": 0.97}} (default: those of the '
        "run's last validation)",
    )
    command.add_argument("--notes", type=Path, metavar="FILE.md", help="Markdown for the card, after the scores")


def run(arguments: argparse.Namespace) -> int:
    folder, output = arguments.run_folder, arguments.output
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is a file, not the folder of a run' if folder.exists() else 'no such folder'}")
    check_folder(output)
    if output.exists() and output.samefile(folder):
        raise InputError(f"{output}: is the run itself; choose another folder")
    scores = None
    if arguments.scores is not None:
        try:
            scores = json.loads(arguments.scores.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{arguments.scores}: not JSON, {error}") from error
    notes = None
    if arguments.notes is not None:
        try:
            notes = arguments.notes.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{arguments.notes}: not a text file") from error
    check_writable(output)

    import torch

    from wavcube_plugins.pretraining.cards import CARD_NAME, publish

    model = publish(
        folder,
        output,
        which=arguments.checkpoint,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
        license=arguments.license,
        data=arguments.data,
        scores=scores,
        notes=notes,
    )
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    stage, step = model.metadata["stage"], model.metadata["global_step"]
    say(f"{output}: stage {stage}, step {step}, {megabytes(size)}; use it with --model {model_argument(output)}")
    if not arguments.license or not arguments.data:
        note(f"{output / CARD_NAME} states no licence or no training data; add them with --license and --data")
    return OK
