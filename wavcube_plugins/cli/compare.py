"""`wavcube compare`: scores and a picture of two recordings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wavcube_plugins.cli.common import add_command, check_writable, note, say, say_table
from wavcube_plugins.errors import OK, InputError

# The rate that PESQ-WB is defined at, and that the other scores are published at.
_RATE = 16000


def register(commands) -> None:
    command = add_command(
        commands,
        "compare",
        run,
        summary="scores and a picture of two recordings",
        description="Compare an estimate with its reference, both as mono at 16 kHz: STOI, PESQ, SI-SDR and mel\n"
        "distance, and a picture of both spectrograms. The recordings are not aligned; the end of the longer one is\n"
        "left out.",
        example="wavcube compare speech.wav speech.wavcube.wav -o comparison.png",
    )
    command.add_argument("reference", metavar="REFERENCE", type=Path, help="audio file")
    command.add_argument("estimate", metavar="ESTIMATE", type=Path, help="audio file")
    command.add_argument(
        "-o",
        "--output",
        "--picture",
        dest="picture",
        type=Path,
        metavar="FILE",
        help="where to save the picture (.png, .pdf or .svg), or a folder for it; default: ESTIMATE.comparison.png in "
        "the current folder",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    paths = arguments.reference, arguments.estimate
    for path in paths:
        if path.is_dir() or not path.exists():
            raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    # Not beside the estimate, which may lie in a corpus that must not be written to.
    picture = arguments.picture or Path(".")
    if picture.is_dir():
        picture = picture / f"{paths[1].stem}.comparison.png"
    for path in paths:
        if picture.resolve() == path.resolve():
            raise InputError(f"{picture}: is an input and would be overwritten; choose another --output")
    check_writable(picture)

    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.evaluation import compare, save_comparison

    reference, estimate = (read_audio(path, _RATE) for path in paths)
    comparison = compare(reference, estimate, _RATE)
    # The scores come first: if the picture cannot be drawn, they are not lost.
    if arguments.json:
        say(json.dumps({**comparison.to_dict(), "picture": str(picture)}, indent=2))
    else:
        for remark in comparison.notes:
            note(remark)
        say_table(
            {
                "STOI": f"{comparison.stoi:.3f}",
                "PESQ-WB": f"{comparison.pesq:.2f}",
                "SI-SDR": f"{comparison.si_sdr:.2f} dB",
                "mel distance": f"{comparison.mel_distance:.3f}",
                "compared": f"{comparison.seconds:.2f} s",
                "picture": str(picture),
            }
        )
    names = paths[0].name, paths[1].name
    try:
        save_comparison(picture, reference, estimate, _RATE, names=names, comparison=comparison)
    except ValueError as error:  # Matplotlib refuses the suffix
        raise InputError(f"{picture}: {error}") from error
    return OK
