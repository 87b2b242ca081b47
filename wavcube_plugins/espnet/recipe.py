"""The data commands of the ESPnet recipes; they need no checkout of ESPnet, no Kaldi and no network.

    python -m wavcube_plugins.espnet.recipe mini data/      # synthesised speech: data/train, data/valid, data/test
    python -m wavcube_plugins.espnet.recipe libritts /corpora/LibriTTS data/
    python -m wavcube_plugins.espnet.recipe librispeech /corpora/LibriSpeech data/
    python -m wavcube_plugins.espnet.recipe format data/ dump/raw/ train valid test --fs 16000
    python -m wavcube_plugins.espnet.recipe check dump/raw/train --token_list tokens.txt
    python -m wavcube_plugins.espnet.recipe prompts dump/raw/test   # prompt.scp and prompt_text, for zero-shot TTS
    python -m wavcube_plugins.espnet.recipe latents tts --config conf/train.yaml     # options for `wavcube extract`

The exit code is 0, or 2 with one sentence that names what cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from wavcube_plugins.data import kaldi
from wavcube_plugins.data.corpora import Record, librispeech, libritts
from wavcube_plugins.errors import BAD_INPUT, OK, InputError
from wavcube_plugins.espnet import preparation

SETS = ("train", "valid", "test")
# The parts of a corpus that make up each set of a recipe.
LIBRITTS = {"train": libritts.TRAIN, "valid": ("dev-clean",), "test": ("test-clean",)}
LIBRISPEECH = {"train": ("train-clean-100",), "valid": ("dev-clean",), "test": ("test-clean",)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; see the module's description."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, ImportError) as error:
        return _complain(arguments.command, str(error))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return _complain(arguments.command, f"{error.filename or arguments.command}: {reason}")
    return OK


def _complain(command: str, message: str) -> int:
    print(f"data {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, add_arguments, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _add_mini(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", type=Path, help="folder for train, valid and test")
    command.add_argument("--corpus", type=Path, help="where the audio goes; default: DATA/mini_corpus")
    for name, count in zip(SETS, (200, 20, 20), strict=True):
        command.add_argument(f"--{name}", type=int, default=count, help="sentences (default: %(default)s)")
    command.add_argument("--speakers", type=int, default=12, help="speakers (default: %(default)s)")
    command.add_argument("--join", type=int, default=1, help="most sentences of an utterance (default: %(default)s)")


def _run_mini(arguments: argparse.Namespace) -> None:
    if arguments.join < 1:
        raise InputError(f"--join must be at least 1, got {arguments.join}")
    preparation.prepare_mini(
        arguments.data,
        {name: getattr(arguments, name) for name in SETS},
        speakers=arguments.speakers,
        corpus=arguments.corpus or arguments.data / "mini_corpus",
        join=arguments.join,
    )


def _add_corpus(sets: Mapping[str, Sequence[str]]) -> Callable[[argparse.ArgumentParser], None]:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument("corpus", type=Path, help="folder of the corpus")
        command.add_argument("data", type=Path, help="folder for train, valid and test")
        for name, parts in sets.items():
            command.add_argument(
                f"--{name}", default=",".join(parts), help="parts, separated by commas (default: %(default)s)"
            )

    return add


def _run_corpus(read: Callable[[Path, Sequence[str]], Iterator[Record]]) -> Callable[[argparse.Namespace], None]:
    def run(arguments: argparse.Namespace) -> None:
        # Commas, because run.sh splits what it passes to local/data.sh at spaces.
        parts = {name: getattr(arguments, name).replace(",", " ").split() for name in SETS}
        kaldi.write_sets(arguments.data, {name: read(arguments.corpus, some) for name, some in parts.items()})

    return run


def _add_prompts(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path)
    command.add_argument("--given", type=Path, help="folder whose prompt.scp and prompt_text are used if it has them")
    command.add_argument("--source", type=Path, help="data folder to choose from otherwise; default: the folder itself")
    command.add_argument("--fs", default="16000", help="sample rate of the prompts (default: %(default)s)")
    for name, seconds in (("shortest", kaldi.SHORTEST_PROMPT), ("longest", kaldi.LONGEST_PROMPT)):
        command.add_argument(f"--{name}", type=float, default=seconds, help="seconds (default: %(default)g)")
    _add_tokens(command)


def _run_prompts(arguments: argparse.Namespace) -> None:
    kaldi.make_prompts(
        arguments.folder,
        given=arguments.given,
        source=arguments.source,
        fs=_rate(arguments.fs),
        shortest=arguments.shortest,
        longest=arguments.longest,
    )
    kaldi.check_folder(arguments.folder, token_list=arguments.token_list, token_type=arguments.token_type)


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("sets", nargs="+", metavar="SET")
    command.add_argument("--fs", required=True, help="sample rate, 16000 or 16k")
    command.add_argument("--min_wav_duration", type=float, help="leave out what is not longer, in seconds")
    command.add_argument("--max_wav_duration", type=float, help="leave out what is not shorter, in seconds")
    command.add_argument("--nj", type=int, default=4, help="threads (default: %(default)s)")


def _run_format(arguments: argparse.Namespace) -> None:
    for name in arguments.sets:
        kaldi.format_folder(
            arguments.source / name,
            arguments.target / name,
            fs=_rate(arguments.fs),
            shortest=arguments.min_wav_duration,
            longest=arguments.max_wav_duration,
            workers=arguments.nj,
        )


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    _add_tokens(command)
    command.add_argument("--fs", help="sample rate that recordings must have")


def _run_check(arguments: argparse.Namespace) -> None:
    fs = None if arguments.fs is None else _rate(arguments.fs)
    for folder in arguments.folders:
        kaldi.check_folder(folder, token_list=arguments.token_list, token_type=arguments.token_type, fs=fs)


def _add_latents(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", choices=("tts", "asr"))
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="of ESPnet's training: --config and so on")


def _run_latents(arguments: argparse.Namespace) -> None:
    print(*preparation.extract_options(arguments.task, arguments.arguments), sep="\n")


def _add_bpe(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("size", type=int, help="sub-words")


def _run_bpe(arguments: argparse.Namespace) -> None:
    preparation.train_bpe(arguments.text, arguments.folder, arguments.size)


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path)
    command.add_argument("parts", type=int)
    command.add_argument("lists", nargs="+", metavar="NAME=FILE", help="parts are FOLDER/NAME.1.scp and so on")


def _run_split(arguments: argparse.Namespace) -> None:
    lists = dict(item.split("=", 1) for item in arguments.lists)
    print(kaldi.split_keys(arguments.folder, arguments.parts, lists))


def _add_tokens(command: argparse.ArgumentParser) -> None:
    command.add_argument("--token_list", type=Path, help="tokens that the text may have")
    command.add_argument("--token_type", default="char", help="default: %(default)s; others are not checked")


def _rate(text: str) -> int:
    from wavcube_plugins.espnet.held import parse_rate

    return parse_rate(text)


# What runs a command, what adds its arguments, and its summary.
_COMMANDS = {
    "mini": (_run_mini, _add_mini, "a small corpus synthesised by espeak-ng, offline"),
    "libritts": (_run_corpus(libritts.read), _add_corpus(LIBRITTS), "LibriTTS, unpacked"),
    "librispeech": (_run_corpus(librispeech.read), _add_corpus(LIBRISPEECH), "LibriSpeech, unpacked"),
    "prompts": (_run_prompts, _add_prompts, "a prompt by the same speaker for every utterance"),
    "format": (_run_format, _add_format, "every recording mono at one sample rate: SOURCE/SET -> TARGET/SET"),
    "check": (_run_check, _add_check, "check that everything a later stage needs is there"),
    "latents": (
        _run_latents,
        _add_latents,
        "options for `wavcube extract`, one a line: model and dtype that a training configures",
    ),
    "bpe": (_run_bpe, _add_bpe, "a sentencepiece model and its token list: FOLDER/bpe.model, FOLDER/tokens.txt"),
    "split": (_run_split, _add_split, "split lists for parallel jobs; prints the number of parts"),
}


if __name__ == "__main__":
    sys.exit(main())
