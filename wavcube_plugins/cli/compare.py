"""`wavcube compare`: scores and a picture of two recordings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wavcube_plugins.cli.common import add_command, check_writable, note, say, say_table
from wavcube_plugins.errors import OK, InputError

# The rate that PESQ-WB is defined at, and that the other scores are published at.
_RATE = 16000
# What the judges' scores are called, and how they are written.
_TITLES = {"dnsmos": ("DNSMOS", ".2f"), "voice": ("voice similarity", ".3f"), "wer": ("word errors", ".1%")}


def register(commands) -> None:
    command = add_command(
        commands,
        "compare",
        run,
        summary="scores and a picture of two recordings",
        description="Compare an estimate with its reference, both as mono at 16 kHz: STOI, PESQ, SI-SDR and mel\n"
        "distance, and a picture of both spectrograms. The recordings are not aligned; the end of the longer one is\n"
        "left out. DNSMOS and the similarity of the voices are shown where the extra `eval` is installed.",
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
    command.add_argument(
        "--whisper",
        metavar="MODEL",
        help="count word errors too, by a Whisper: a folder as faster-whisper reads it, or a name on the Hugging Face "
        "hub such as base, which is downloaded",
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
    judged, remarks = _judge(reference, estimate, arguments.whisper)
    # The scores come first: if the picture cannot be drawn, they are not lost.
    if arguments.json:
        say(json.dumps({**comparison.to_dict(), **judged, "picture": str(picture)}, indent=2))
    else:
        for remark in (*comparison.notes, *remarks):
            note(remark)
        say_table(
            {
                "STOI": f"{comparison.stoi:.3f}",
                "PESQ-WB": f"{comparison.pesq:.2f}",
                "SI-SDR": f"{comparison.si_sdr:.2f} dB",
                "mel distance": f"{comparison.mel_distance:.3f}",
                **{_TITLES[name][0]: format(value, _TITLES[name][1]) for name, value in judged.items()},
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


def _judge(reference, estimate, whisper: str | None) -> tuple[dict[str, float], list[str]]:
    """Return what the installed judges say, by name, and notes on what could not be judged."""
    from wavcube_plugins.evaluation.judges import installed_judges
    from wavcube_plugins.evaluation.metrics import MetricError

    judged, notes = {}, []
    for name, judge in installed_judges(whisper).items():
        try:
            judged[name] = judge(reference, estimate, _RATE)
        except MetricError as error:
            notes.append(str(error))
    return judged, notes
