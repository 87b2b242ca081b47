"""Scores of what a recipe has recognised or synthesised.

    python -m wavcube_plugins.evaluation.tts_scores text dump/raw/test/text exp/…/test/text
    python -m wavcube_plugins.evaluation.tts_scores speech data/test/phones exp/…/test/wav/wav.scp

`text` gives word and character error rates, `speech` the phone error rate.

Exit code 0, or 2 with one sentence that names what cannot be used.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wavcube_plugins.data.kaldi import KaldiError, read_table
from wavcube_plugins.errors import BAD_INPUT, OK
from wavcube_plugins.files import atomic_path


def score_text(reference: str | os.PathLike, hypothesis: str | os.PathLike) -> dict[str, float]:
    """Score recognised texts, as files of `id text` lines.

    Returns:
        `wer` and `cer` in percent, characters without spaces; `utterances`, and `missing`, those without a result,
        which count as wrong as a whole.

    Raises:
        KaldiError: a file is missing, or nothing of the reference was recognised.
    """
    wanted, found = read_table(reference), _read_results(hypothesis)
    if not wanted.keys() & found:
        raise KaldiError(f"{hypothesis}: has none of the utterances of {reference}")
    pairs = [(text, found.get(key, "")) for key, text in wanted.items()]
    return {
        "wer": _error_rate([(one.split(), other.split()) for one, other in pairs]),
        "cer": _error_rate([(one.replace(" ", ""), other.replace(" ", "")) for one, other in pairs]),
        "utterances": len(wanted),
        "missing": len(wanted.keys() - found),
    }


def score_speech(
    phones: str | os.PathLike, *recordings: str | os.PathLike, cache: Path | None = None, **training: Any
) -> list[dict[str, float]]:
    """Score recordings by the project's own phone recogniser, which knows synthesised voices alone.

    Args:
        phones: What is to be heard, as a file of lines `id phone phone …`.
        recordings: Files like `wav.scp`.
        cache: Folder that the recogniser is kept in; see `load_recogniser`, for `training` too.

    Returns:
        For each of the recordings, `per`, phone error rate in percent, `utterances` and `missing`.

    Raises:
        KaldiError: a file is missing, or has nothing of the other.
    """
    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.evaluation.recogniser import load_recogniser

    wanted = {key: text.split() for key, text in read_table(phones).items()}
    lists = [read_table(path) for path in recordings]
    for path, found in zip(recordings, lists, strict=True):
        if not wanted.keys() & found:
            raise KaldiError(f"{path}: has none of the utterances of {phones}")
    recogniser = load_recogniser(cache, **training)
    scores = []
    for found in lists:
        keys = [key for key in wanted if key in found]
        per = 100 * recogniser.error_rate((read_audio(found[key]), wanted[key]) for key in keys)
        scores.append({"per": per, "utterances": len(keys), "missing": len(wanted) - len(keys)})
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; see the module's description."""
    parser = argparse.ArgumentParser(
        prog="score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = commands.add_parser("text", help="word and character error rate of recognised text", allow_abbrev=False)
    text.add_argument("reference", type=Path, help="file of `id text` lines")
    text.add_argument("hypothesis", type=Path, help="likewise")
    speech = commands.add_parser("speech", help="phone error rate of synthesised speech", allow_abbrev=False)
    speech.add_argument("phones", type=Path, help="file of lines `id phone phone …`")
    speech.add_argument("recordings", type=Path, nargs="+", help="wav.scp files; the first is the one that counts")
    speech.add_argument("--cache", type=Path, help="folder for the recogniser; default: the user's cache")
    speech.add_argument("--utterances", type=int, help="sentences the recogniser is trained on")
    speech.add_argument("--epochs", type=int, help="and how often")
    for command in (text, speech):
        command.add_argument("--out", type=Path, help="JSON file for the scores")
    arguments = parser.parse_args(argv)
    try:
        _report(arguments)
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, OSError):
            error = f"{error.filename or arguments.command}: {(error.strerror or str(error)).lower()}"
        print(f"score {arguments.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return OK


def _report(arguments: argparse.Namespace) -> None:
    if arguments.command == "text":
        scores = score_text(arguments.reference, arguments.hypothesis)
        print(f"WER {scores['wer']:.1f} %  CER {scores['cer']:.1f} %  {_counted(scores)}")
    else:
        training = {name: getattr(arguments, name) for name in ("utterances", "epochs")}
        training = {name: value for name, value in training.items() if value is not None}
        results = score_speech(arguments.phones, *arguments.recordings, cache=arguments.cache, **training)
        for path, result in zip(arguments.recordings, results, strict=True):
            print(f"PER {result['per']:.1f} %  {_counted(result)}  {path}")
        scores = {str(path): result for path, result in zip(arguments.recordings, results, strict=True)}
    if arguments.out is not None:
        with atomic_path(arguments.out) as temporary:
            temporary.write_text(json.dumps(scores, indent=2) + "\n")


def _counted(scores: dict[str, float]) -> str:
    missing = f", {scores['missing']} without a result" if scores["missing"] else ""
    return f"({scores['utterances']} utterances{missing})"


def _error_rate(pairs: Sequence[tuple[Sequence, Sequence]]) -> float:
    from torchaudio.functional import edit_distance

    errors = sum(edit_distance(list(wanted), list(found)) for wanted, found in pairs)
    return 100 * errors / max(sum(len(wanted) for wanted, _ in pairs), 1)


def _read_results(path: str | os.PathLike) -> dict[str, str]:
    """Read recognised texts, of which one may be empty."""
    path = Path(path)
    if not path.is_file():
        raise KaldiError(f"{path}: no such file; run the decoding stage first")
    lines = (line.strip().split(maxsplit=1) for line in path.open(encoding="utf-8") if line.strip())
    return {key: "".join(text) for key, *text in lines}


if __name__ == "__main__":
    sys.exit(main())
