"""`wavcube manifest`: a list of speech for training."""

from __future__ import annotations

import argparse
from pathlib import Path

from wavcube_plugins.cli.common import (
    add_command,
    add_source,
    check_source,
    check_writable,
    count,
    count_of,
    fail,
    note_failures,
    note_overlooked,
    say,
)
from wavcube_plugins.errors import FAILED, OK, InputError


def register(commands) -> None:
    command = add_command(
        commands,
        "manifest",
        run,
        summary="a list of speech for training, from a folder or another list",
        description="Write a manifest: one JSON object per line with id, path, duration, sample_rate, and start for a\n"
        "part of a file. Only headers are read. Entries that cannot be used are named and left out; then the exit\n"
        "code is 1. Train on the result with --train OUT.jsonl.\n\n"
        "SOURCE is what `wavcube extract` takes: a folder, a list of paths, Kaldi's wav.scp, or JSON lines such as\n"
        "LibriHeavy's, gzipped or not.",
        example="wavcube manifest LibriSpeech/ librispeech.jsonl\n"
        "wavcube manifest libriheavy_cuts_small.jsonl.gz small.jsonl --root /data/librilight",
    )
    add_source(command)
    command.add_argument("output", metavar="OUT.jsonl", type=Path, help="the manifest to write; replaced if it exists")
    command.add_argument(
        "--relative",
        action="store_true",
        help="write paths relative to --root, or without it to OUT's folder, instead of absolute ones",
    )
    command.add_argument(
        "--jobs",
        type=count,
        default=8,
        metavar="N",
        help="threads that read headers; more help on network disks (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    source, output = arguments.source, arguments.output
    check_source(source, arguments.root)
    if output.is_dir():
        raise InputError(f"{output}: is a folder, not a file")
    if output.suffix != ".jsonl":
        raise InputError(f"{output}: a manifest is written as .jsonl")
    check_writable(output)

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import progress_interval
    from wavcube_plugins.data.manifest_writing import write_manifest

    summary = write_manifest(
        source,
        output,
        kind=arguments.format,
        root=arguments.root,
        relative=arguments.relative,
        jobs=arguments.jobs,
        watch=lambda entries, total: tqdm(entries, total=total, unit="entry", mininterval=progress_interval()),
    )
    say(f"{output}: {count_of(summary.written, 'utterance')}, {summary.seconds / 3600:.3f} h")
    note_overlooked(summary.overlooked)
    if not summary.failed:
        return FAILED if summary.overlooked else OK
    more = note_failures("left out", summary.failed)
    entries = count_of(summary.total, "entry", "entries")
    return fail("manifest", f"{len(summary.failed)} of {entries} cannot be used{more}")
