"""What ESPnet's recipes prepare before training: the mini corpus, sub-words, and the options for cached latents."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wavcube_plugins.data.kaldi import Entry, KaldiError, read_table, write_folder, write_table
from wavcube_plugins.files import atomic_path

_SPECIAL_PIECES = ("<unk>", "<s>", "</s>")


def prepare_mini(
    data: str | os.PathLike, sizes: Mapping[str, int], *, speakers: int, corpus: Path, join: int = 1
) -> None:
    """Synthesise the mini corpus and write its data folders, with the phones of each utterance in `phones`.

    Args:
        data: Where the folders go, one per set.
        sizes: Sentences of each set.
        speakers: How many.
        corpus: Where the audio goes.
        join: The utterances of train and valid have 1, 2, … up to this many sentences of their speaker in turn.
            Zero-shot TTS needs this: there, the text follows the text of a prompt, which single sentences do not teach.

    Raises:
        ValueError: the corpus folder holds another set, or the sizes are invalid.
        ImportError: espeak-ng's library is missing.
    """
    from wavcube_plugins.synthetic.mini import make_mini, read_mini

    make_mini(corpus, "read", sizes, speakers=speakers)
    for split, count in sizes.items():
        by_speaker: dict[str, list[dict]] = {}
        for record in read_mini(corpus, split)[:count]:
            by_speaker.setdefault(record["speaker"], []).append(record)
        entries, phones = {}, {}
        for speaker, records in by_speaker.items():
            for group in _groups(records, 1 if split == "test" else join):
                path = _joined(corpus, group)
                # The name says how many sentences it has: in a smaller corpus a group may end earlier.
                key = f"{speaker}-{path.stem}"
                entries[key] = Entry(os.fspath(path.absolute()), " ".join(one["text"] for one in group), speaker)
                phones[key] = " ".join(label for one in group for label, _, _ in one["phones"])
        write_folder(Path(data) / split, entries)
        write_table(Path(data) / split / "phones", phones)


def _groups(records: Sequence[dict], most: int) -> Iterator[Sequence[dict]]:
    start, size = 0, 0
    while start < len(records):
        size = size % most + 1
        yield records[start : start + size]
        start += size


def _joined(corpus: Path, records: Sequence[dict]) -> Path:
    paths = [corpus / record["path"] for record in records]
    if len(paths) == 1:
        return paths[0]
    import torch

    from wavcube_plugins.audio import read_audio, write_audio

    path = corpus / "joined" / f"{paths[0].stem}-{len(paths)}.wav"
    if not path.is_file():
        write_audio(path, torch.cat([read_audio(one) for one in paths]))
    return path


def extract_options(task: str, arguments: Sequence[str]) -> list[str]:
    """Return the options with which `wavcube extract` writes the latents that a training would compute itself.

    Args:
        task: tts or asr.
        arguments: Those of ESPnet's `tts_train` or `asr_train`: `--config` and what overrides it.

    Raises:
        KaldiError: the configuration cannot be read, or its features cannot come from disk.
        OSError: there is no such configuration.
    """
    from wavcube_plugins import espnet

    part, kind = (
        ("feats_extract", espnet.WavCubeFeatsExtract) if task == "tts" else ("frontend", espnet.WavCubeFrontend)
    )
    name, given = _read_options(part, arguments)
    if name != "wavcube":
        raise KaldiError(f"--cache_latents true: {part} is {name}, only wavcube has latents")
    settings = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()} | given
    if settings.get("trainable") or settings.get("features", "latent") != "latent":
        what = "trainable: true" if settings.get("trainable") else f"features: {settings['features']}"
        raise KaldiError(
            f"--cache_latents true: {part}_conf has {what}, which needs waveforms; latents on disk serve features: "
            "latent of a frozen model"
        )
    if settings["revision"] is not None:
        raise KaldiError(
            f"--cache_latents true: {part}_conf has revision: {settings['revision']}, of which no latents can be "
            "extracted; download that revision and name its folder as model"
        )
    return ["--model", str(settings["model"]), "--dtype", str(settings["dtype"])]


def _read_options(part: str, arguments: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the values of `--PART` and `--PART_conf` as ESPnet reads them, without its tasks, which import slowly."""
    import yaml
    from espnet2.utils.nested_dict_action import NestedDictAction

    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument(f"--{part}")
    parser.add_argument(f"--{part}_conf", action=NestedDictAction, default={})
    try:
        config = parser.parse_known_args(arguments)[0].config
        if config is not None:
            written = yaml.safe_load(config.read_text(encoding="utf-8"))
            if not isinstance(written, dict):
                raise KaldiError(f"{config}: not a configuration, which has lines `name: value`")
            parser.set_defaults(**{name: written[name] for name in (part, f"{part}_conf") if name in written})
        found = vars(parser.parse_known_args(arguments)[0])
    except yaml.YAMLError as error:
        raise KaldiError(f"--config or --{part}_conf: not YAML: {error}") from error
    except argparse.ArgumentError as error:
        raise KaldiError(str(error)) from error
    return found[part], found[f"{part}_conf"] or {}


def train_bpe(text: str | os.PathLike, folder: str | os.PathLike, size: int) -> None:
    """Train a sentencepiece model of sub-words: FOLDER/bpe.model and FOLDER/tokens.txt, as ESPnet expects them.

    Args:
        text: File of `id text` lines.
        folder: Where the model goes.
        size: Sub-words.

    Raises:
        KaldiError: the text is too small for so many sub-words.
    """
    import sentencepiece

    # Both get their methods when they are imported, which type checkers do not see.
    trainer: Any = sentencepiece.SentencePieceTrainer
    processor: Any = sentencepiece.SentencePieceProcessor
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sentences = list(read_table(text).values())
    try:
        with atomic_path(folder / "bpe.model") as temporary:
            trainer.train(
                sentence_iterator=iter(sentences),
                model_prefix=os.fspath(temporary.with_suffix("")),
                vocab_size=size,
                character_coverage=1.0,
                input_sentence_size=100_000_000,
                minloglevel=1,
            )
            pieces = processor(os.fspath(temporary))
            temporary.with_suffix(".vocab").unlink(missing_ok=True)
    except RuntimeError as error:
        raise KaldiError(f"{text}: {len(sentences)} texts do not give {size} sub-words; lower --nbpe") from error
    tokens = [piece for piece in map(pieces.id_to_piece, range(len(pieces))) if piece not in _SPECIAL_PIECES]
    with atomic_path(folder / "tokens.txt") as temporary:
        temporary.write_text("\n".join(["<blank>", "<unk>", *tokens, "<sos/eos>"]) + "\n", encoding="utf-8")
