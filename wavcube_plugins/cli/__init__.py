"""The `wavcube` command.

Nothing heavy is imported before a subcommand runs, so `--help`, mistyped arguments and `install-s3prl` cost no time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from wavcube_plugins.errors import BAD_INPUT, FAILED, INTERRUPTED, OK, InputError

DEFAULT_MODEL = "nano"
DEBUG_VARIABLE = "WAVCUBE_DEBUG"

# Work on one file takes a progress bar of its own from this many seconds of audio on.
_LONG = 60.0

# Recordings are compared at the models' rate.
_COMPARED_RATE = 16000

# Notes and failures shown one by one by `extract`; the rest is counted.
_SHOWN = 20


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes the process's.

    Returns:
        0, or 2 for bad input, 1 for other failures (some of several files among them), 130 after Ctrl-C; anything but
        0 comes with one line on stderr.
    """
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or OK)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    try:
        with _plain_notes(_SHOWN if arguments.command == "extract" else None):
            return arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`wavcube info | head -1`); Python would complain once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        code, message = _explain(error)
        print(f"{parser.prog} {arguments.command}: error: {' '.join(message.split())}", file=sys.stderr)
        return code


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = _Parser(
        prog="wavcube",
        description="WavCube: speech as one compact continuous latent, 50 frames a second, and back.",
        epilog="example:\n  wavcube reconstruct speech.wav\n\n"
        f"`wavcube COMMAND --help` explains each command. {DEBUG_VARIABLE}=1 in the environment shows tracebacks.",
    )
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"wavcube {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)

    def add(name: str, run: Callable, summary: str, description: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=description, epilog="example:\n" + textwrap.indent(example, "  ")
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "encode",
        _run_encode,
        "audio to latents (.npy)",
        "Encode audio into latents: one .npy of shape (frames, channels) per file.",
        "wavcube encode speech.wav -o speech.npy\nwavcube encode recordings/ -o latents/",
    )
    _add_files(command, "audio files, or folders of them", "a .npy file, or a folder; default: FILE.npy beside each")
    command.add_argument("--float16", action="store_true", help="write float16 instead of float32: half the size")
    _add_model(command, window=True)

    command = add(
        "decode",
        _run_decode,
        "latents (.npy) to audio",
        "Decode latents of shape (frames, channels) into audio, 20 ms per frame (40 ms where the model has 25 Hz).",
        "wavcube decode speech.npy -o speech.wav",
    )
    _add_files(command, ".npy files, or folders of them", "audio file or folder; default: FILE.wavcube.wav beside each")
    _add_model(command, window=True)

    command = add(
        "reconstruct",
        _run_reconstruct,
        "audio to audio, through the latent",
        "Encode audio and decode it again, to hear what the latent keeps.",
        "wavcube reconstruct speech.wav -o heard.wav",
    )
    _add_files(
        command, "audio files, or folders of them", "audio file or folder; default: FILE.wavcube.wav beside each"
    )
    _add_model(command, window=True)

    command = add(
        "extract",
        _run_extract,
        "the latents of a corpus, resumable, on many processes",
        "Write the latents of a corpus: OUT/npy/ID.npy (float16), OUT/index.jsonl, and OUT/feats.scp with\n"
        "OUT/feats_shape for ESPnet and Kaldi-style tools. Run it again to go on after a stop: nothing is redone.\n"
        "Files that fail are listed at the end and in OUT/failed.tsv; then the exit code is 1.\n\n"
        "SOURCE is a folder (ids are the paths below it), or a manifest, gzipped or not:\n"
        "  list    one path per line (ids are the paths)\n"
        "  scp     Kaldi's wav.scp, `id path` per line\n"
        "  jsonl   one JSON object per line: the path as audio_filepath, audio, audio_path, path, wav, file or\n"
        "          Lhotse's recording.sources; the id as id, utt_id, utt or key; a part of a file by start or\n"
        "          offset, and duration, in seconds",
        "wavcube extract corpus/ latents/\nwavcube extract data/train/wav.scp latents/train --device cuda\n"
        "torchrun --nproc_per_node 8 -m wavcube_plugins.cli extract manifest.jsonl latents/",
    )
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder, manifest or audio file")
    command.add_argument("output", metavar="OUT", type=Path, help="output folder")
    command.add_argument("--format", choices=("list", "scp", "jsonl"), help="of the manifest; default: by its looks")
    command.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="what relative paths in a manifest are below; default: the current folder, then the manifest's",
    )
    command.add_argument(
        "--batch-seconds",
        type=_positive,
        default=120.0,
        metavar="SECONDS",
        help="audio per batch, padding included (default: %(default)g); less needs less memory",
    )
    command.add_argument(
        "--workers",
        type=_count,
        default=min(8, _cores()),
        metavar="N",
        help="threads that read files (default: %(default)s)",
    )
    _add_model(command, window=True)

    command = add(
        "convert",
        _run_convert,
        "a public checkpoint to a folder for inference",
        "Turn a public WavCube checkpoint (a Lightning .ckpt of either stage) into a folder with model.safetensors\n"
        "and config.json, keeping only what inference needs. The memory needed is near the size of what is kept.",
        "wavcube convert vocos_checkpoint.ckpt wavcube-large/",
    )
    command.add_argument("source", metavar="SRC", type=Path, help="the .ckpt file")
    command.add_argument("destination", metavar="DST", type=Path, help="the folder to write")
    command.add_argument("--dtype", choices=_DTYPES, help="of the weights on disk; default: as in the file")

    command = add(
        "manifest",
        _run_manifest,
        "a list of speech for training, from a folder or another list",
        "Write a manifest: one JSON object per line with id, path, duration, sample_rate, and start for a part of a\n"
        "file. Only headers are read. What cannot be used is named and left out; then the exit code is 1. Train on it\n"
        "with --train OUT.jsonl.\n\n"
        "SOURCE is what `wavcube extract` takes: a folder, a list of paths, Kaldi's wav.scp, or JSON lines,\n"
        "LibriHeavy's among them, gzipped or not.",
        "wavcube manifest LibriSpeech/ librispeech.jsonl\n"
        "wavcube manifest libriheavy_cuts_small.jsonl.gz small.jsonl --root /data/librilight",
    )
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder, manifest or audio file")
    command.add_argument("output", metavar="OUT.jsonl", type=Path, help="the manifest to write; replaced if it exists")
    command.add_argument("--format", choices=("list", "scp", "jsonl"), help="of the source; default: by its looks")
    command.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="what relative paths in the source are below; default: the current folder, then the source's",
    )
    command.add_argument(
        "--relative",
        action="store_true",
        help="write paths relative to --root, or without it to OUT's folder, instead of absolute ones",
    )
    command.add_argument(
        "--jobs",
        type=_count,
        default=8,
        metavar="N",
        help="threads that read headers; more help on network disks (default: %(default)s)",
    )

    command = add(
        "export",
        _run_export,
        "the model of a training run, to use and to share",
        "Write the model of a training run as a folder with model.safetensors, config.json and a model card,\n"
        "README.md, without discriminators and optimisers. The folder is what --model takes, and what can be uploaded\n"
        "to the Hugging Face hub.",
        "wavcube export results/wavcube/stage2 wavcube-mine --checkpoint best --license apache-2.0 --data LibriSpeech",
    )
    command.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run of stage 1 or 2")
    command.add_argument("output", metavar="OUT", type=Path, help="the folder to write; a model in it is replaced")
    command.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="the newest, or the one with the lowest mel distance in validation (default: %(default)s)",
    )
    command.add_argument("--dtype", choices=("float32", "float16"), help="of the weights on disk; default: as trained")
    command.add_argument("--license", metavar="TEXT", help="of the weights, for the card; an identifier of the hub")
    command.add_argument("--data", metavar="TEXT", help="what it was trained on, for the card")
    command.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help='JSON with scores for the card, {"STOI": 0.97} or {"test-clean": {"STOI": 0.97}}; default: those of the '
        "run's last validation",
    )
    command.add_argument("--notes", type=Path, metavar="FILE.md", help="Markdown for the card, behind the scores")

    command = add(
        "info",
        _run_info,
        "what a model is: sizes, rates, parameters",
        "Print the sizes of a model, its parameters per part, and where its weights come from.",
        "wavcube info nano\nwavcube info wavcube-large/ --json",
    )
    command.add_argument("name", metavar="MODEL", nargs="?", help="as --model")
    command.add_argument("--json", action="store_true", help="print JSON, with all sizes")
    _add_model(command)

    command = add(
        "compare",
        _run_compare,
        "scores and a picture of two recordings",
        "Compare an estimate with its reference, both as mono at 16 kHz: STOI, PESQ, SI-SDR and mel distance, and a\n"
        "picture of both spectrograms. Nothing is aligned; if one is longer, its end is left out.",
        "wavcube compare speech.wav speech.wavcube.wav --picture comparison.png",
    )
    command.add_argument("reference", metavar="REFERENCE", type=Path, help="audio file")
    command.add_argument("estimate", metavar="ESTIMATE", type=Path, help="audio file")
    command.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where to save the picture (.png, .pdf or .svg); default: ESTIMATE.comparison.png beside the estimate",
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    from wavcube_plugins.superb.command import EXAMPLE, add_subcommands

    command = add(
        "superb",
        _run_superb,
        "SUPERB and SUPERB-SG through s3prl: plan, prepare, run, tune, collect, score",
        "Run tasks of SUPERB and SUPERB-SG with s3prl's own runner on any of its upstreams. A bench file says what:\n\n"
        + textwrap.indent(EXAMPLE, "  "),
        "wavcube superb plan bench.yaml\nwavcube superb prepare bench.yaml\nwavcube superb run bench.yaml --gpus 0,1\n"
        "wavcube superb collect bench.yaml\nwavcube superb mini superb_mini/",
    )
    add_subcommands(command, _Parser)

    command = add(
        "install-s3prl",
        _run_install_s3prl,
        "make `-u wavcube` known to s3prl",
        "Make the WavCube upstreams known to the s3prl of this Python environment, without editing it.",
        "wavcube install-s3prl\nwavcube install-s3prl --folder ~/s3prl",
    )
    command.add_argument(
        "--folder",
        nargs="?",
        const="",
        metavar="S3PRL",
        help="put an upstream folder into this s3prl instead, a checkout or its package; without a value: into the one "
        "Python imports",
    )

    command = add(
        "uninstall-s3prl",
        _run_uninstall_s3prl,
        "undo install-s3prl",
        "Remove what `wavcube install-s3prl` installed, the hook as well as the folder.",
        "wavcube uninstall-s3prl",
    )
    command.add_argument("--folder", metavar="S3PRL", help="remove the folder from this s3prl, and nothing else")
    return parser


_DTYPES = ("float32", "bfloat16", "float16")


def _add_files(command: argparse.ArgumentParser, inputs: str, output: str) -> None:
    command.add_argument("inputs", metavar="FILE", nargs="+", type=Path, help=inputs)
    command.add_argument("-o", "--output", type=Path, metavar="OUT", help=f"{output}. Existing files are replaced")


def _add_model(command: argparse.ArgumentParser, *, window: bool = False) -> None:
    group = command.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="nano (comes with this package), wavcube or wavcube_pro (from the Hugging Face hub), a hub name, a "
        "folder (./nano if it is called so), or a .safetensors or .ckpt file (default: %(default)s)",
    )
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:N or mps")
    group.add_argument("--dtype", choices=_DTYPES, default="float32", help="to compute in (default: %(default)s)")
    if window:
        group.add_argument(
            "--window",
            type=_positive,
            metavar="SECONDS",
            help="work in overlapping windows, for recordings of hours: the waveform itself is held, memory besides "
            "stays constant, and the result differs a little from the exact one (60 is a good value)",
        )


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


_positive.__name__, _count.__name__ = "number", "whole number"  # what argparse calls them in its messages


# The commands ---------------------------------------------------------------------------------------------------------


def _run_encode(arguments: argparse.Namespace) -> int:
    jobs = _plan(arguments, ".npy", from_audio=True)
    model = _load(arguments)

    import numpy as np
    import torch

    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.files import atomic_path

    def encode(source: Path, destination: Path, watch: Callable) -> str:
        waveform = read_audio(source, model.sample_rate).to(_device_of(model))
        seconds = len(waveform) / model.sample_rate
        with torch.inference_mode(), watch(seconds, model.wavlm, model.compressor):
            latent, _ = model.encode(waveform[None], window_seconds=arguments.window)
        values = latent[0].float().cpu().numpy().astype(np.float16 if arguments.float16 else np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{source}: the latent has NaN or infinite values; try --dtype float32")
        with atomic_path(destination) as temporary:
            np.save(temporary, values)
        return f"{values.shape[0]} frames of {values.shape[1]}, {values.dtype}, {seconds:.2f} s"

    return _run_jobs(jobs, model, encode)


def _run_decode(arguments: argparse.Namespace) -> int:
    jobs = _plan(arguments, ".wav", from_audio=False)
    model = _load(arguments)

    import torch

    from wavcube_plugins.audio import write_audio

    def decode(source: Path, destination: Path, watch: Callable) -> str:
        latent = torch.from_numpy(_read_latent(source, model.latent_dim)).to(_device_of(model))
        seconds = len(latent) / model.frame_rate
        with torch.inference_mode(), watch(seconds, model.decoder):
            waveforms, _ = model.decode(latent[None], window_seconds=arguments.window)
        write_audio(destination, waveforms[0], model.sample_rate)
        return f"{seconds:.2f} s at {model.sample_rate} Hz"

    return _run_jobs(jobs, model, decode)


def _run_reconstruct(arguments: argparse.Namespace) -> int:
    jobs = _plan(arguments, ".wav", from_audio=True)
    model = _load(arguments)

    import torch

    from wavcube_plugins.audio import read_audio, write_audio

    def reconstruct(source: Path, destination: Path, watch: Callable) -> str:
        waveform = read_audio(source, model.sample_rate).to(_device_of(model))
        seconds = len(waveform) / model.sample_rate
        with torch.inference_mode(), watch(seconds, model.wavlm, model.compressor, model.decoder):
            waveforms, _ = model.reconstruct(waveform[None], window_seconds=arguments.window)
        write_audio(destination, waveforms[0], model.sample_rate)
        return f"{seconds:.2f} s at {model.sample_rate} Hz"

    return _run_jobs(jobs, model, reconstruct)


def _run_extract(arguments: argparse.Namespace) -> int:
    rank, world_size = _shard()
    if arguments.root is not None and not arguments.root.is_dir():
        raise InputError(f"--root {arguments.root}: no such folder")
    if not arguments.source.exists():
        raise InputError(f"{arguments.source}: no such file or folder")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise InputError(f"{arguments.output}: is a file, not a folder")

    from wavcube_plugins.data.extraction import extract
    from wavcube_plugins.data.manifests import read_manifest

    utterances = read_manifest(arguments.source, kind=arguments.format, root=arguments.root)
    model = _load(arguments, local_rank=int(os.environ.get("LOCAL_RANK", rank)) if world_size > 1 else 0)
    result = extract(
        model,
        utterances,
        arguments.output,
        model_name=arguments.model,
        window_seconds=arguments.window,
        batch_seconds=arguments.batch_seconds,
        workers=arguments.workers,
        rank=rank,
        world_size=world_size,
        progress=rank == 0,
    )
    parts = [f"{_count_of(result.extracted, 'utterance')} extracted"]
    if result.extracted:
        rate = result.seconds / result.elapsed
        parts[0] += (
            f", {result.seconds / 3600:.3f} h of audio in {result.elapsed:.1f} s "
            f"({rate:.0f}x real time, {rate / 3600:.4f} h/s)"
        )
    if result.resumed:
        parts.append(f"{result.resumed} were there already")
    process = f"process {rank + 1} of {world_size}: " if world_size > 1 else ""
    _say(f"{arguments.output}: {process}{'; '.join(parts)}")
    if result.missing:
        # Other processes report when they end, and the exit code of one that ends early must not stop them.
        others = "is with another process" if result.missing == 1 else "are with other processes"
        _note(f"{_count_of(result.missing, 'utterance')} {others}; should it have been stopped, run the same again")
        return OK
    if not result.failed:
        return OK
    for name, reason in list(result.failed.items())[:_SHOWN]:
        _note(f"failed: {name}: {reason}")
    more = f", {len(result.failed) - _SHOWN} more than shown" if len(result.failed) > _SHOWN else ""
    print(
        f"wavcube extract: error: {len(result.failed)} of {_count_of(len(utterances), 'utterance')} failed{more}; "
        f"all are in {arguments.output / 'failed.tsv'}",
        file=sys.stderr,
    )
    return FAILED


def _run_convert(arguments: argparse.Namespace) -> int:
    source, destination = arguments.source, arguments.destination
    if not source.is_file():
        raise InputError(f"{source}: {'is a folder, not a .ckpt file' if source.is_dir() else 'no such file'}")
    if destination.exists() and not destination.is_dir():
        raise InputError(f"{destination}: is a file, not a folder")

    import torch

    from wavcube_plugins.checkpoints import convert

    size = source.stat().st_size
    _note(f"reading {source} ({_megabytes(size)})")
    convert(source, destination, dtype=getattr(torch, arguments.dtype) if arguments.dtype else None)
    kept = sum(path.stat().st_size for path in destination.glob("*.safetensors"))
    _say(f"{destination}: {_megabytes(kept)} of {_megabytes(size)} kept; use it with --model {_model_at(destination)}")
    return OK


def _run_manifest(arguments: argparse.Namespace) -> int:
    source, output = arguments.source, arguments.output
    if arguments.root is not None and not arguments.root.is_dir():
        raise InputError(f"--root {arguments.root}: no such folder")
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if output.is_dir():
        raise InputError(f"{output}: is a folder, not a file")
    if output.suffix != ".jsonl":
        raise InputError(f"{output}: a manifest is written as .jsonl")
    _check_writable(output)

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import progress_interval
    from wavcube_plugins.data.manifests import write_manifest

    summary = write_manifest(
        source,
        output,
        kind=arguments.format,
        root=arguments.root,
        relative=arguments.relative,
        jobs=arguments.jobs,
        watch=lambda entries, total: tqdm(entries, total=total, unit="entry", mininterval=progress_interval()),
    )
    _say(f"{output}: {_count_of(summary.written, 'utterance')}, {summary.seconds / 3600:.3f} h")
    if not summary.failed:
        return OK
    for name, reason in list(summary.failed.items())[:_SHOWN]:
        _note(f"left out: {name}: {reason}")
    more = f", {len(summary.failed) - _SHOWN} more than shown" if len(summary.failed) > _SHOWN else ""
    entries = "entry" if summary.total == 1 else "entries"
    print(
        f"wavcube manifest: error: {len(summary.failed)} of {summary.total} {entries} cannot be used{more}",
        file=sys.stderr,
    )
    return FAILED


def _run_export(arguments: argparse.Namespace) -> int:
    run, output, scores = arguments.run_folder, arguments.output, None
    if not run.is_dir():
        raise InputError(f"{run}: {'is a file, not the folder of a run' if run.exists() else 'no such folder'}")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, not a folder")
    if output.exists() and output.samefile(run):
        raise InputError(f"{output}: is the run itself; choose another folder")
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
    _check_writable(output)

    import torch

    from wavcube_plugins.pretraining.cards import CARD_NAME, publish

    model = publish(
        run,
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
    _say(f"{output}: stage {stage}, step {step}, {_megabytes(size)}; use it with --model {_model_at(output)}")
    if not arguments.license or not arguments.data:
        _note(f"{output / CARD_NAME} states no licence or no training data; add them with --license and --data")
    return OK


def _run_info(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        arguments.model = arguments.name
    model = _load(arguments)
    parts = {
        "WavLM": model.wavlm,
        "Compressor": model.compressor,
        "Restorer": model.restorer,
        "AcousticDecoder": model.decoder,
    }
    parameters = {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}
    parameters["total"] = sum(weight.numel() for weight in model.parameters())
    weights = Path(model.metadata.get("source", ""))
    size = weights.stat().st_size if weights.is_file() else None
    if arguments.json:
        description = {
            "model": arguments.model,
            "trained": model.trained,
            "sample_rate": model.sample_rate,
            "hop_length": model.hop_length,
            "frame_rate": model.frame_rate,
            "latent_dim": model.latent_dim,
            "parameters": parameters,
            "file_size": size,
            "metadata": model.metadata,
            "config": model.config.to_dict(),
        }
        _say(json.dumps(description, indent=2))
        return OK
    rows = {
        "model": arguments.model,
        "weights": "trained" if model.trained else "UNTRAINED, random",
        "sample rate": f"{model.sample_rate} Hz",
        "latent": f"{model.latent_dim} channels at {model.frame_rate:g} Hz, one frame per {model.hop_length} samples",
        "numbers per second": f"{model.latent_dim * model.frame_rate:,.0f}",
        **{f"parameters, {name}": f"{count:>13,}" for name, count in parameters.items()},
        **({"file size": _megabytes(size)} if size is not None else {}),
        **model.metadata,
    }
    _say_table(rows)
    return OK


def _run_compare(arguments: argparse.Namespace) -> int:
    paths = arguments.reference, arguments.estimate
    for path in paths:
        if path.is_dir() or not path.exists():
            raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    picture = arguments.picture or paths[1].with_name(f"{paths[1].stem}.comparison.png")
    for path in paths:
        if picture.resolve() == path.resolve():
            raise InputError(f"{picture}: is an input and would be overwritten; choose another --picture")

    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.evaluation import compare, save_comparison

    reference, estimate = (read_audio(path, _COMPARED_RATE) for path in paths)
    comparison = compare(reference, estimate, _COMPARED_RATE)
    # The scores come before the picture: whatever keeps it from being drawn, they have been worked out.
    if arguments.json:
        _say(json.dumps({**comparison.to_dict(), "picture": str(picture)}, indent=2))
    else:
        for note in comparison.notes:
            _note(note)
        rows = {
            "STOI": f"{comparison.stoi:.3f}",
            "PESQ-WB": f"{comparison.pesq:.2f}",
            "SI-SDR": f"{comparison.si_sdr:.2f} dB",
            "mel distance": f"{comparison.mel_distance:.3f}",
            "compared": f"{comparison.seconds:.2f} s",
            "picture": str(picture),
        }
        _say_table(rows)
    names = paths[0].name, paths[1].name
    save_comparison(picture, reference, estimate, _COMPARED_RATE, names=names, comparison=comparison)
    return OK


def _run_superb(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.command import main as run_superb

    return run_superb(arguments)


def _run_install_s3prl(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.s3prl.install import install_folder, install_hook

    _say(install_hook() if arguments.folder is None else install_folder(arguments.folder or None))
    return OK


def _run_uninstall_s3prl(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.s3prl.install import uninstall

    _say("\n".join(uninstall(arguments.folder)))
    return OK


# What they share ------------------------------------------------------------------------------------------------------


def _plan(arguments: argparse.Namespace, suffix: str, *, from_audio: bool) -> list[tuple[Path, Path]]:
    """Pair every input file with its output; checked before anything heavy is loaded."""
    output = arguments.output
    for path in arguments.inputs:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_dir() and output is None:
            raise InputError(f"{path}: is a folder; say with --output which folder the results go to")
    single = len(arguments.inputs) == 1 and arguments.inputs[0].is_file()
    if output is not None and output.exists() and not output.is_dir() and not single:
        raise InputError(f"{output}: is a file; results of several files need a folder")
    to_file = single and output is not None and output.suffix and not output.is_dir()
    if to_file and suffix == ".npy" and output.suffix != suffix:
        raise InputError(f"{output}: latents are written as .npy")
    if to_file and suffix != ".npy":
        from wavcube_plugins.audio import check_suffix

        check_suffix(output)

    # A decoded file must not take the name of the recording it may come from.
    ending = suffix if suffix == ".npy" or output is not None else f".wavcube{suffix}"
    jobs = []
    for path in arguments.inputs:
        files = _find(path, from_audio) if path.is_dir() else [path]
        for file in files:
            if to_file:
                destination = output
            elif output is None:
                destination = file.with_name(file.stem + ending)
            else:
                below = file.relative_to(path) if path.is_dir() else Path(file.name)
                destination = output / below.with_name(below.stem + ending)
            jobs.append((file, destination))

    sources = {file.resolve() for file, _ in jobs}
    taken: dict[Path, Path] = {}
    for file, destination in jobs:
        if destination.resolve() in sources:
            raise InputError(f"{destination}: is an input and would be overwritten; choose another --output")
        if destination.is_dir():
            raise InputError(f"{destination}: is a folder, where the result of {file} should be written")
        if other := taken.get(destination.resolve()):
            raise InputError(f"{other} and {file}: both would be written to {destination}; run them one by one")
        taken[destination.resolve()] = file
        _check_writable(destination)
    return jobs


def _check_writable(path: Path) -> None:
    # Known before the work, not after it.
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{path}: cannot be written, {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, permission denied")


def _find(folder: Path, from_audio: bool) -> list[Path]:
    if from_audio:
        from wavcube_plugins.audio import find_audio

        files = find_audio(folder)
    else:
        files = sorted(path for path in folder.rglob("*.npy") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder}: no {'audio' if from_audio else '.npy'} files in this folder")
    return files


def _load(arguments: argparse.Namespace, *, local_rank: int = 0):
    import torch

    from wavcube_plugins import load_model

    device = _choose_device(arguments.device, local_rank)
    model = load_model(arguments.model, device=device, dtype=getattr(torch, arguments.dtype))
    if getattr(arguments, "window", None) is not None:
        from wavcube_plugins.models.windowed import window_frames

        window_frames(model, arguments.window)  # refuses what would fail for every file
    return model


def _model_at(folder: Path) -> str:
    """What to call the model of a folder: one that is named like a known model needs a path."""
    from wavcube_plugins.checkpoints import NAMES

    return os.path.join(".", folder) if str(folder) in NAMES else str(folder)


def _choose_device(name: str, local_rank: int) -> str:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return f"cuda:{local_rank % gpus}" if gpus else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        if not gpus:
            raise InputError(f"--device {name}: PyTorch finds no CUDA device here")
        if index and int(index) >= gpus:
            raise InputError(f"--device {name}: there are {gpus} CUDA devices, numbered from 0")
        return name if index else f"cuda:{local_rank % gpus}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: not available here")
    return kind


def _device_of(model):
    return next(model.parameters()).device


def _shard() -> tuple[int, int]:
    """Return rank and number of processes as torchrun and its like announce them."""
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        raise InputError(f"RANK={texts[0]} and WORLD_SIZE={texts[1]} in the environment make no sense")
    return int(texts[0]), int(texts[1])


def _run_jobs(jobs: list[tuple[Path, Path]], model, work: Callable[[Path, Path, Callable], str]) -> int:
    """Do the work on every file; one that cannot be used does not stop the others."""
    if len(jobs) == 1:
        source, destination = jobs[0]
        summary = work(source, destination, lambda *task: _watch_layers(model, *task))
        _say(f"{source} -> {destination}  ({summary})")
        return OK

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import is_out_of_memory, progress_interval

    failures = 0
    with tqdm(jobs, unit="file", mininterval=progress_interval()) as bar:
        for source, destination in bar:
            try:
                work(source, destination, lambda *_: _nothing())
            except (ValueError, RuntimeError, MemoryError) as error:
                if not isinstance(error, ValueError) and not is_out_of_memory(error):
                    raise
                failures += 1
                reason = str(error) if isinstance(error, ValueError) else f"{source}: out of memory; try --window 60"
                _note(f"failed: {reason}")
    _say(f"{len(jobs) - failures} of {len(jobs)} files done")
    if failures:
        print(f"wavcube: error: {failures} of {len(jobs)} files failed", file=sys.stderr)
    return FAILED if failures else OK


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _watch_layers(model, seconds: float, *parts) -> Iterator[None]:
    """Show progress through one long recording: transformer layers count the frames that have passed them."""
    from wavcube_plugins.models.decoder import DecoderLayer
    from wavcube_plugins.models.wavlm import EncoderLayer

    layers = [module for part in parts for module in part.modules() if isinstance(module, (EncoderLayer, DecoderLayer))]
    if seconds < _LONG:
        yield
        return

    from tqdm import tqdm

    from wavcube_plugins.data.extraction import progress_interval

    vocoder = set(model.decoder.vocoder.layers)
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=seconds, bar_format=form, mininterval=progress_interval()) as bar:

        def count(layer, _, output) -> None:
            rate = model.sample_rate / model.config.wavlm.hop_length * (2 if layer in vocoder else 1)
            passed = output.shape[0] * output.shape[1] / rate / len(layers)
            bar.update(min(passed, bar.total - bar.n))  # overlapping windows pass twice

        hooks = [layer.register_forward_hook(count) for layer in layers]
        try:
            yield
            bar.update(bar.total - bar.n)
        finally:
            for hook in hooks:
                hook.remove()


def _read_latent(path: Path, latent_dim: int):
    """Read a latent (L, D) from a .npy file as float32."""
    from tokenize import TokenError
    from zipfile import BadZipFile

    import numpy as np

    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, BadZipFile, SyntaxError, TokenError) as error:
        raise InputError(f"{path}: not a readable .npy file") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: an .npz archive; expected a .npy file with one latent")
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"{path}: expected a latent of shape (frames, {latent_dim}), found {values.shape}")
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{path}: expected a latent of floating point numbers, found {values.dtype}")
    if values.shape[1] != latent_dim:
        raise InputError(
            f"{path}: has {values.shape[1]} channels, the model's latent has {latent_dim}; "
            "choose the --model it was made with"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has values that are NaN or infinite")
    return values.astype(np.float32)


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the one line that an exception gets."""
    if isinstance(error, ValueError):
        return BAD_INPUT, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        wrong_place = isinstance(
            error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)
        )
        return BAD_INPUT if wrong_place else FAILED, f"{place}{(error.strerror or str(error)).lower()}"
    if isinstance(error, ImportError):
        return FAILED, str(error)
    if "torch" in sys.modules:
        from wavcube_plugins.data.extraction import is_out_of_memory

        if is_out_of_memory(error):
            return FAILED, "out of memory; try --window 60, a smaller --batch-seconds, or --device cpu"
    return FAILED, f"{type(error).__name__}: {error} ({DEBUG_VARIABLE}=1 shows the traceback)"


@contextmanager
def _plain_notes(limit: int | None) -> Iterator[None]:
    """Show what libraries warn users about as one line each, and nothing of what they warn programmers about."""
    hidden = 0

    def show(message, category, *_, **__) -> None:
        nonlocal hidden, limit
        if not issubclass(category, UserWarning):
            return
        if limit is not None:
            if limit == 0:
                hidden += 1
                return
            limit -= 1
        _note(str(message).strip().split("\n")[0])

    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield
    if hidden:
        _note(f"{_count_of(hidden, 'more note')} of this kind")


def _say(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _say_table(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    _say("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def _note(text: str) -> None:
    if "tqdm" in sys.modules:
        # Above a progress bar, not through it.
        sys.modules["tqdm"].tqdm.write(f"wavcube: {text}", file=sys.stderr)
    else:
        print(f"wavcube: {text}", file=sys.stderr)


def _count_of(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version() -> str:
    return (Path(__file__).parents[1] / "version.txt").read_text().strip()
