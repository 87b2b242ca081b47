"""`wavcube extract`: the latents of a corpus."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.cli.common import (
    add_command,
    add_model,
    add_source,
    check_folder,
    check_source,
    count,
    count_of,
    fail,
    load,
    note,
    note_failures,
    note_overlooked,
    positive,
    say,
)
from wavcube_plugins.errors import FAILED, OK, InputError

if TYPE_CHECKING:
    from wavcube_plugins.data.extraction import ExtractionResult
    from wavcube_plugins.data.manifests import Listing

_DESCRIPTION = """\
Write the latents of a corpus: OUT/npy/ID.npy (float16), OUT/index.jsonl, and OUT/feats.scp with
OUT/feats_shape for ESPnet and Kaldi-style tools. After a stop, run the same command again: it continues, and
repeats nothing but files that have changed since. Files that fail are listed at the end and in OUT/failed.tsv;
then the exit code is 1.

SOURCE is a folder (ids are the paths below it), or a manifest, gzipped or not:
  list    one path per line (ids are the paths)
  scp     Kaldi's wav.scp, `id path` per line; the segments are taken where a file of that name is beside it
  jsonl   one JSON object per line, or an array of them: the path as audio_filepath, audio, audio_path,
          path, wav, file or a Lhotse recording; the id as id, utt_id, utt or key; a part of a file by start
          or offset, and duration or end, in seconds; one of several channels by channel
What a manifest says about the audio and cannot be obeyed is refused by name."""


def register(commands) -> None:
    command = add_command(
        commands,
        "extract",
        run,
        summary="the latents of a corpus, resumable, with many processes",
        description=_DESCRIPTION,
        example="wavcube extract corpus/ latents/\n"
        "wavcube extract data/train/wav.scp latents/train --device cuda\n"
        "torchrun --nproc_per_node 8 -m wavcube_plugins.cli extract manifest.jsonl latents/",
    )
    add_source(command)
    command.add_argument("output", metavar="OUT", type=Path, help="output folder")
    command.add_argument(
        "--batch-seconds",
        type=positive,
        default=120.0,
        metavar="SECONDS",
        help="audio per batch, padding included; lower it to save memory (default: %(default)g)",
    )
    command.add_argument(
        "--workers",
        type=count,
        default=min(8, _cores()),
        metavar="N",
        help="threads that read files (default: %(default)s)",
    )
    add_model(command, window=True)


def run(arguments: argparse.Namespace) -> int:
    rank, world_size = _shard()
    check_source(arguments.source, arguments.root)
    check_folder(arguments.output)

    from wavcube_plugins.data.extraction import extract
    from wavcube_plugins.data.manifests import list_utterances

    listing = list_utterances(arguments.source, kind=arguments.format, root=arguments.root)
    if not listing.utterances:
        raise next(iter(listing.failed.values()))
    model = load(arguments, local_rank=int(os.environ.get("LOCAL_RANK", rank)) if world_size > 1 else 0)
    result = extract(
        model,
        listing.utterances,
        arguments.output,
        model_name=arguments.model,
        window_seconds=arguments.window,
        batch_seconds=arguments.batch_seconds,
        workers=arguments.workers,
        rank=rank,
        world_size=world_size,
        progress=rank == 0,
        refused={name: str(error) for name, error in listing.failed.items()},
    )
    process = f"process {rank + 1} of {world_size}: " if world_size > 1 else ""
    say(f"{arguments.output}: {process}{_summary(result)}")
    if rank == 0:
        note_overlooked(listing.overlooked)
    return _outcome(result, listing, arguments.output)


def _outcome(result: ExtractionResult, listing: Listing, output: Path) -> int:
    """Report what is missing or has failed, and return the exit code."""
    if result.missing:
        # Other processes report when they end, and torchrun would stop them at an exit code other than 0.
        others = "is with another process" if result.missing == 1 else "are with other processes"
        note(f"{count_of(result.missing, 'utterance')} {others}; if it was stopped, run the same command again")
        return OK
    if not result.failed:
        return FAILED if listing.overlooked else OK
    more = note_failures("failed", result.failed)
    total = count_of(len(listing.utterances) + len(listing.failed), "utterance")
    return fail("extract", f"{len(result.failed)} of {total} failed{more}; all are in {output / 'failed.tsv'}")


def _summary(result: ExtractionResult) -> str:
    parts = [f"{count_of(result.extracted, 'utterance')} extracted"]
    if result.extracted:
        rate = result.seconds / result.elapsed
        parts[0] += (
            f", {result.seconds / 3600:.3f} h of audio in {result.elapsed:.1f} s "
            f"({rate:.0f}x real time, {rate / 3600:.4f} h/s)"
        )
    if result.resumed:
        parts.append(f"{result.resumed} were there already")
    if result.changed:
        parts.append(f"{count_of(result.changed, 'source')} changed since the last run, made anew")
    return "; ".join(parts)


def _shard() -> tuple[int, int]:
    """Return rank and number of processes as torchrun and similar launchers announce them."""
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        raise InputError(f"RANK={texts[0]} and WORLD_SIZE={texts[1]} in the environment make no sense")
    return int(texts[0]), int(texts[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
