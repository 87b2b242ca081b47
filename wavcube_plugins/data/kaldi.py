"""Kaldi-style data folders for the recipes, made and checked without Kaldi: what ESPnet's shell tools do, offline.

    python -m wavcube_plugins.data.kaldi mini data/             # synthesised speech: data/train, data/valid, data/test
    python -m wavcube_plugins.data.kaldi libritts /corpora/LibriTTS data/
    python -m wavcube_plugins.data.kaldi librispeech /corpora/LibriSpeech data/
    python -m wavcube_plugins.data.kaldi format data/ dump/raw/ train valid test --fs 16000
    python -m wavcube_plugins.data.kaldi check dump/raw/train --token_list tokens.txt
    python -m wavcube_plugins.data.kaldi prompts dump/raw/test  # prompt.scp and prompt_text, for zero-shot TTS
    python -m wavcube_plugins.data.kaldi latents tts --config conf/train.yaml   # options for `wavcube extract`

A folder holds `wav.scp`, `text`, `utt2spk` and `spk2utt`, sorted by bytes; ids begin with the speaker's. Exit code 0,
or 2 with one sentence that names what cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

OK, BAD_INPUT = 0, 2

# The parts of a corpus that make each of a recipe's sets.
LIBRITTS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "valid": ("dev-clean",),
    "test": ("test-clean",),
}
LIBRISPEECH = {"train": ("train-clean-100",), "valid": ("dev-clean",), "test": ("test-clean",)}

# A zero-shot prompt: shorter ones say too little of a voice, longer ones leave no room for the sentence.
SHORTEST_PROMPT, LONGEST_PROMPT = 1.0, 12.0

# Suffixes that ESPnet's `sound` reads and that keep 16 bits.
_KEPT_SUFFIXES = (".wav", ".flac")


class DataError(InputError):
    """A data folder or corpus cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Entry:
    """One utterance of a folder: its audio file, text and speaker."""

    path: str
    text: str
    speaker: str


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """Read a file of `id value` lines, with any white space between the two, as Kaldi and ESPnet have it.

    Raises:
        DataError: it is missing, empty, not UTF-8, or has an id twice or without a value.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the data stage first (--stage 1)")
    try:
        # Not splitlines: texts may have characters in them that Unicode takes for ends of lines.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *value = line.strip().split(maxsplit=1)
        if not value:
            raise DataError(f"{path}:{number}: {key} has nothing behind it")
        if key in table:
            raise DataError(f"{path}:{number}: {key} is there twice")
        table[key] = value[0]
    if not table:
        raise DataError(f"{path}: is empty; the corpus gave no utterances, or the file was cut off")
    return table


def write_table(path: str | os.PathLike, table: Mapping[str, object]) -> None:
    """Write `id value` lines in the order of bytes, as Kaldi's tools want them, atomically."""
    with atomic_path(path) as temporary:
        lines = (f"{key} {table[key]}\n" for key in sorted(table, key=os.fsencode))
        temporary.write_text("".join(lines), encoding="utf-8")


def write_folder(folder: str | os.PathLike, entries: Mapping[str, Entry]) -> None:
    """Write a data folder.

    Args:
        folder: Made if missing; its files are replaced.
        entries: By utterance id, which must begin with the speaker's name.

    Raises:
        DataError: no entries.
    """
    folder = Path(folder)
    if not entries:
        raise DataError(f"{folder}: no utterances to write")
    speakers: dict[str, list[str]] = {}
    for key in sorted(entries, key=os.fsencode):
        speakers.setdefault(entries[key].speaker, []).append(key)
    write_table(folder / "wav.scp", {key: entry.path for key, entry in entries.items()})
    write_table(folder / "text", {key: entry.text for key, entry in entries.items()})
    write_table(folder / "utt2spk", {key: entry.speaker for key, entry in entries.items()})
    write_table(folder / "spk2utt", {speaker: " ".join(keys) for speaker, keys in speakers.items()})


def read_folder(folder: str | os.PathLike) -> dict[str, Entry]:
    """Read a data folder.

    Raises:
        DataError: a file is missing or broken, or the files speak of different utterances.
    """
    folder = Path(folder)
    if (folder / "segments").exists():
        raise DataError(f"{folder}/segments: not supported without Kaldi's tools; cut the recordings into utterances")
    paths, texts, speakers = (read_table(folder / name) for name in ("wav.scp", "text", "utt2spk"))
    for name, table in (("text", texts), ("utt2spk", speakers)):
        for one, other, missing in (("wav.scp", name, paths.keys() - table), (name, "wav.scp", table.keys() - paths)):
            if missing:
                raise DataError(f"{folder}: {min(missing)} is in {one} but not in {other}")
    return {key: Entry(path, texts[key], speakers[key]) for key, path in paths.items()}


def prepare_mini(
    data: str | os.PathLike, sizes: Mapping[str, int], *, speakers: int, corpus: Path, join: int = 1
) -> None:
    """Synthesise the mini corpus and write its folders: DATA/train, DATA/valid and DATA/test, with `phones` in each.

    Args:
        data: Where the folders go.
        sizes: Sentences of each.
        speakers: How many.
        corpus: Where the audio goes.
        join: Utterances of train and valid have 1, 2, … and up to so many sentences of their speaker, in turn.
            Zero-shot TTS needs it: there, text follows the text of a prompt, which single sentences do not teach.

    Raises:
        ValueError: the corpus folder holds another set, or sizes that make none.
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
                # How many there are is in the name: in a smaller corpus a group may end earlier.
                key = f"{speaker}-{path.stem}"
                entries[key] = Entry(os.fspath(path.absolute()), " ".join(one["text"] for one in group), speaker)
                phones[key] = " ".join(label for one in group for label, _, _ in one["phones"])
        write_folder(Path(data) / split, entries)
        write_table(Path(data) / split / "phones", phones)


def _groups(records: Sequence[dict], most: int) -> Iterable[Sequence[dict]]:
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


def prepare_libritts(root: str | os.PathLike, data: str | os.PathLike, sets: Mapping[str, Sequence[str]]) -> None:
    """Write folders from LibriTTS as it is unpacked, with its normalised texts.

    Args:
        root: The folder with `train-clean-100` and so on in it, or the one above.
        data: Where the folders go.
        sets: The parts that make each of them.

    Raises:
        DataError: the corpus or a part of it is missing, or has no utterances.
    """
    root = _corpus_root(root, "LibriTTS", sets)
    for name, parts in sets.items():
        entries = {}
        for part in parts:
            files = sorted((root / part).glob("*/*/*.wav"))
            for path in tqdm(files, desc=f"LibriTTS {part}", unit="utt", disable=None):
                text = path.with_suffix(".normalized.txt")
                if not text.is_file():
                    raise DataError(f"{text}: missing beside {path.name}; unpack LibriTTS {part} again")
                words = " ".join(text.read_text(encoding="utf-8").split())
                if words:
                    # 1034_121119_000001_000001: speaker, chapter, paragraph, sentence.
                    # Hyphens, because Kaldi wants ids and speakers in one order, and digits sort behind them.
                    key = path.stem.replace("_", "-")
                    entries[key] = Entry(os.fspath(path), words, key.split("-")[0])
        if not entries:
            raise DataError(f"{root}: no utterances in {', '.join(parts)} (expected SPEAKER/CHAPTER/*.wav)")
        write_folder(Path(data) / name, entries)


def prepare_librispeech(root: str | os.PathLike, data: str | os.PathLike, sets: Mapping[str, Sequence[str]]) -> None:
    """Write folders from LibriSpeech as it is unpacked; arguments and errors as in `prepare_libritts`."""
    root = _corpus_root(root, "LibriSpeech", sets)
    for name, parts in sets.items():
        entries = {}
        for part in parts:
            lists = sorted((root / part).glob("*/*/*.trans.txt"))
            for path in tqdm(lists, desc=f"LibriSpeech {part}", unit="chapter", disable=None):
                for key, words in read_table(path).items():
                    entries[key] = Entry(os.fspath(path.with_name(f"{key}.flac")), words, key.split("-")[0])
        if not entries:
            raise DataError(f"{root}: no utterances in {', '.join(parts)} (expected SPEAKER/CHAPTER/*.trans.txt)")
        write_folder(Path(data) / name, entries)


def make_prompts(
    folder: str | os.PathLike,
    *,
    given: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    fs: int = 16000,
    shortest: float = SHORTEST_PROMPT,
    longest: float = LONGEST_PROMPT,
) -> None:
    """Give every utterance of a folder a prompt for zero-shot TTS: `prompt.scp` and `prompt_text` beside the others.

    Args:
        folder: A formatted data folder.
        given: A folder whose `prompt.scp` and `prompt_text` are taken, if it has them; their recordings may have any
            rate. Where there are none, the prompt is another utterance by the same speaker; that choice depends on the
            folders alone.
        source: Data folder that prompts are chosen from; None is the folder itself.
        fs: Sample rate of the prompts in Hz.
        shortest: Seconds a prompt must have at least.
        longest: And at most.

    Raises:
        DataError: an utterance for which there is none, or a given one that cannot be used.
    """
    folder = Path(folder)
    entries = read_folder(folder)
    if given is not None and (Path(given) / "prompt.scp").is_file():
        paths, texts = (read_table(Path(given) / name) for name in ("prompt.scp", "prompt_text"))
        _check_prompts(Path(given), entries, paths, texts, shortest, longest)
        chosen = {key: (paths[key], texts[key]) for key in entries}
    else:
        chosen = _choose_prompts(folder, entries, source, shortest, longest)
    paths = {key: _to_rate(path, folder / "prompt", key, fs)[0] for key, (path, _) in chosen.items()}
    write_table(folder / "prompt.scp", paths)
    write_table(folder / "prompt_text", {key: text for key, (_, text) in chosen.items()})


def _choose_prompts(
    folder: Path, entries: Mapping[str, Entry], source: str | os.PathLike | None, shortest: float, longest: float
) -> dict[str, tuple[str, str]]:
    offered = entries if source is None else read_folder(source)
    by_speaker: dict[str, list[str]] = {}
    for key in sorted(offered, key=os.fsencode):
        if shortest <= _info(offered[key].path).seconds <= longest:
            by_speaker.setdefault(offered[key].speaker, []).append(key)
    chosen = {}
    for key in sorted(entries, key=os.fsencode):
        own = [other for other in by_speaker.get(entries[key].speaker, []) if other != key]
        if not own:
            raise DataError(
                f"{source or folder}: no prompt for {key}: speaker {entries[key].speaker} has no other utterance of "
                f"{shortest:g} to {longest:g} s"
            )
        later = [other for other in own if os.fsencode(other) > os.fsencode(key)]
        prompt = offered[later[0] if later else own[0]]
        chosen[key] = prompt.path, prompt.text
    return chosen


def _check_prompts(
    folder: Path,
    keys: Iterable[str],
    paths: Mapping[str, str],
    texts: Mapping[str, str],
    shortest: float,
    longest: float,
) -> None:
    for key in keys:
        for name, table in (("prompt.scp", paths), ("prompt_text", texts)):
            if key not in table:
                raise DataError(f"{folder}/{name}: {key} is missing; a prompt needs a recording and its transcript")
        seconds = _info(paths[key]).seconds
        if not shortest <= seconds <= longest:
            how = "short" if seconds < shortest else "long"
            raise DataError(
                f"{paths[key]}: the prompt of {key} is too {how}, {seconds:.2f} s; {shortest:g} to {longest:g} s can "
                "be used"
            )


def format_folder(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    fs: int,
    shortest: float | None = None,
    longest: float | None = None,
    workers: int = 4,
) -> None:
    """Copy a data folder for training: every recording mono at one sample rate, with `utt2num_samples`.

    Files that are so already stay where they are; the others are written as FLAC into TARGET/audio. What a stopped run
    has written is kept, unless its source is another one now.

    Args:
        source: A data folder.
        target: The folder to write.
        fs: Sample rate in Hz.
        shortest: Leave out what is shorter, in seconds; None leaves nothing out.
        longest: Leave out what is longer.
        workers: Threads.

    Raises:
        DataError: nothing is left.
        AudioError: a recording that cannot be read.
    """
    source, target = Path(source), Path(target)
    entries = read_folder(source)
    jobs = {key: entry.path for key, entry in entries.items()}
    for key, path in jobs.items():
        if path.endswith("|"):
            raise DataError(f"{source}/wav.scp: {key} is a pipe, which needs Kaldi's tools; name an audio file")

    def convert(item: tuple[str, str]) -> tuple[str, str, int]:
        key, path = item
        return (key, *_to_rate(path, target / "audio", key, fs))

    from wavcube_plugins.audio import AudioWarning

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", AudioWarning)  # several channels are mixed, as format_wav_scp.sh does not warn
        progress = tqdm(
            pool.map(convert, jobs.items()), total=len(jobs), desc=f"format {source.name}", unit="utt", disable=None
        )
        done = {key: (path, samples) for key, path, samples in progress}
    kept = {}
    for key, entry in entries.items():
        seconds = done[key][1] / fs
        if (shortest is None or seconds > shortest) and (longest is None or seconds < longest):
            kept[key] = Entry(done[key][0], entry.text, entry.speaker)
    if not kept:
        raise DataError(
            f"{source}: no utterance lasts between {shortest} and {longest} s (--min_wav_duration, --max_wav_duration)"
        )
    write_folder(target, kept)
    write_table(target / "utt2num_samples", {key: done[key][1] for key in kept})
    if len(kept) < len(entries):
        print(f"{source}: {len(entries) - len(kept)} of {len(entries)} utterances left out for their length")


def check_folder(
    folder: str | os.PathLike,
    *,
    token_list: str | os.PathLike | None = None,
    token_type: str = "char",
    fs: int | None = None,
) -> None:
    """Check what a later stage would stumble over, or silently get wrong.

    Args:
        folder: A formatted data folder; the texts of prompts are checked too, where there are any.
        token_list: Tokens of the model; with `token_type` char every character must be among them, since ESPnet turns
            others into `<unk>` without a word.
        token_type: As ESPnet has it; other types than char are not checked.
        fs: The sample rate that every recording must have.

    Raises:
        DataError: the first thing that is wrong.
        AudioError: a recording that cannot be read.
    """
    folder = Path(folder)
    entries = read_folder(folder)
    if fs is not None:
        for key, entry in entries.items():
            rate = _info(entry.path).sample_rate
            if rate != fs:
                raise DataError(f"{entry.path}: {key} has {rate} Hz, the model takes {fs} Hz; run --stage 2 again")
    if token_list is None or token_type != "char":
        return
    known = _read_tokens(token_list)
    texts = {"text": {key: entry.text for key, entry in entries.items()}}
    if (folder / "prompt_text").is_file():
        texts["prompt_text"] = read_table(folder / "prompt_text")
    for name, table in texts.items():
        for key, text in table.items():
            unknown = sorted({letter for letter in text if ("<space>" if letter == " " else letter) not in known})
            if unknown:
                letters = " ".join(map(repr, unknown[:5]))
                raise DataError(
                    f"{folder}/{name}: {key} has characters that the model was not trained on, {letters} (token list "
                    f"{token_list}); write the text with those of the training set"
                )


def split_keys(folder: str | os.PathLike, parts: int, lists: Mapping[str, str | os.PathLike]) -> int:
    """Split lists of `id value` lines into FOLDER/NAME.1.scp and so on, for parallel jobs that need a part of each.

    Args:
        folder: Where the parts go.
        parts: How many are wanted.
        lists: The files, by the name of their parts.

    Returns:
        How many parts each list has now: never more than the shortest list has lines.

    Raises:
        DataError: a list is missing or empty.
    """
    tables = {name: list(read_table(path).items()) for name, path in lists.items()}
    parts = min(parts, *(len(table) for table in tables.values()))
    for name, table in tables.items():
        for part in range(parts):
            share = table[part * len(table) // parts : (part + 1) * len(table) // parts]
            write_table(Path(folder) / f"{name}.{part + 1}.scp", dict(share))
    return parts


def extract_options(task: str, arguments: Sequence[str]) -> list[str]:
    """Return the options with which `wavcube extract` writes the latents that a training would compute by itself.

    Args:
        task: tts or asr.
        arguments: Those of ESPnet's `tts_train` or `asr_train`: `--config` and what overrides it.

    Raises:
        DataError: a configuration that cannot be read, or features that cannot come from disk.
        OSError: there is no such configuration.
    """
    import yaml
    from espnet2.utils.nested_dict_action import NestedDictAction

    from wavcube_plugins import espnet

    part, kind = ("feats_extract", espnet.WavCubeFeatures) if task == "tts" else ("frontend", espnet.WavCubeFrontend)
    # As ESPnet reads them, without its tasks, which take long to import.
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument(f"--{part}")
    parser.add_argument(f"--{part}_conf", action=NestedDictAction, default={})
    try:
        config = parser.parse_known_args(arguments)[0].config
        if config is not None:
            written = yaml.safe_load(config.read_text(encoding="utf-8"))
            if not isinstance(written, dict):
                raise DataError(f"{config}: not a configuration, which has lines `name: value`")
            parser.set_defaults(**{name: written[name] for name in (part, f"{part}_conf") if name in written})
        found = vars(parser.parse_known_args(arguments)[0])
    except yaml.YAMLError as error:
        raise DataError(f"--config or --{part}_conf: not YAML: {error}") from error
    except argparse.ArgumentError as error:
        raise DataError(str(error)) from error
    if found[part] != "wavcube":
        raise DataError(f"--cache_latents true: {part} is {found[part]}, only wavcube has latents")
    settings = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    settings |= found[f"{part}_conf"] or {}
    if settings.get("trainable") or settings.get("features", "latent") != "latent":
        what = "trainable: true" if settings.get("trainable") else f"features: {settings['features']}"
        raise DataError(
            f"--cache_latents true: {part}_conf has {what}, which needs waveforms; latents on disk serve features: "
            "latent of a frozen model"
        )
    if settings["revision"] is not None:
        raise DataError(
            f"--cache_latents true: {part}_conf has revision: {settings['revision']}, of which no latents can be "
            "extracted; download that revision and name its folder as model"
        )
    return ["--model", str(settings["model"]), "--dtype", str(settings["dtype"])]


def train_bpe(text: str | os.PathLike, folder: str | os.PathLike, size: int) -> None:
    """Train a sentencepiece model of sub-words on a file of `id text` lines: FOLDER/bpe.model and FOLDER/tokens.txt.

    Raises:
        DataError: the text is too small for so many sub-words.
    """
    import sentencepiece

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sentences = list(read_table(text).values())
    try:
        with atomic_path(folder / "bpe.model") as temporary:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_prefix=os.fspath(temporary.with_suffix("")),
                vocab_size=size,
                character_coverage=1.0,
                input_sentence_size=100_000_000,
                minloglevel=1,
            )
            pieces = sentencepiece.SentencePieceProcessor(os.fspath(temporary))
            temporary.with_suffix(".vocab").unlink(missing_ok=True)
    except RuntimeError as error:
        raise DataError(f"{text}: no {size} sub-words can be made of {len(sentences)} texts; lower --nbpe") from error
    special = ("<unk>", "<s>", "</s>")
    tokens = [piece for piece in map(pieces.id_to_piece, range(len(pieces))) if piece not in special]
    with atomic_path(folder / "tokens.txt") as temporary:
        temporary.write_text("\n".join(["<blank>", "<unk>", *tokens, "<sos/eos>"]) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; see the module's description."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            error = f"{error.filename or arguments.command}: {(error.strerror or str(error)).lower()}"
        print(f"data {arguments.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    command = add("mini", _run_mini, "a small corpus synthesised by espeak-ng, offline")
    command.add_argument("data", type=Path, help="folder for train, valid and test")
    command.add_argument("--corpus", type=Path, help="where the audio goes; default: DATA/mini_corpus")
    for name, count in (("train", 200), ("valid", 20), ("test", 20)):
        command.add_argument(f"--{name}", type=int, default=count, help="sentences (default: %(default)s)")
    command.add_argument("--speakers", type=int, default=12, help="speakers (default: %(default)s)")
    command.add_argument("--join", type=int, default=1, help="most sentences of an utterance (default: %(default)s)")

    for name, run, sets in (
        ("libritts", prepare_libritts, LIBRITTS),
        ("librispeech", prepare_librispeech, LIBRISPEECH),
    ):
        command = add(
            name,
            lambda arguments, run=run: run(arguments.corpus, arguments.data, _sets(arguments)),
            f"{name}, unpacked",
        )
        command.add_argument("corpus", type=Path, help="folder of the corpus")
        command.add_argument("data", type=Path, help="folder for train, valid and test")
        for split, parts in sets.items():
            command.add_argument(
                f"--{split}", default=",".join(parts), help="parts, with commas between (default: %(default)s)"
            )

    def add_check(command: argparse.ArgumentParser) -> None:
        command.add_argument("--token_list", type=Path, help="tokens that the text may have")
        command.add_argument("--token_type", default="char", help="default: %(default)s; others are not checked")

    command = add("prompts", _run_prompts, "a prompt by the same speaker for every utterance")
    command.add_argument("folder", type=Path)
    command.add_argument("--given", type=Path, help="folder whose prompt.scp and prompt_text are taken, if it has them")
    command.add_argument("--source", type=Path, help="data folder to choose from else; default: the folder itself")
    command.add_argument("--fs", default="16000", help="sample rate of the prompts (default: %(default)s)")
    command.add_argument("--shortest", type=float, default=SHORTEST_PROMPT, help="seconds (default: %(default)g)")
    command.add_argument("--longest", type=float, default=LONGEST_PROMPT, help="seconds (default: %(default)g)")
    add_check(command)

    command = add("format", _run_format, "every recording mono at one sample rate: SOURCE/SET -> TARGET/SET")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("sets", nargs="+", metavar="SET")
    command.add_argument("--fs", required=True, help="sample rate, 16000 or 16k")
    command.add_argument("--min_wav_duration", type=float, help="leave out what is shorter, in seconds")
    command.add_argument("--max_wav_duration", type=float, help="leave out what is longer, in seconds")
    command.add_argument("--nj", type=int, default=4, help="threads (default: %(default)s)")

    command = add("check", _run_check, "everything that a later stage needs is there")
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    add_check(command)
    command.add_argument("--fs", help="sample rate that recordings must have")

    command = add(
        "latents", _run_latents, "options for `wavcube extract`, one a line: the model and type that a training names"
    )
    command.add_argument("task", choices=("tts", "asr"))
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="of ESPnet's training: --config and so on")

    command = add("bpe", _run_bpe, "a sentencepiece model and its token list: FOLDER/bpe.model, FOLDER/tokens.txt")
    command.add_argument("text", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("size", type=int, help="sub-words")

    command = add("split", _run_split, "lists in several parts, for parallel jobs; prints how many")
    command.add_argument("folder", type=Path)
    command.add_argument("parts", type=int)
    command.add_argument("lists", nargs="+", metavar="NAME=FILE", help="parts are FOLDER/NAME.1.scp and so on")
    return parser


def _run_mini(arguments: argparse.Namespace) -> None:
    sizes = {name: getattr(arguments, name) for name in ("train", "valid", "test")}
    corpus = arguments.corpus or arguments.data / "mini_corpus"
    if arguments.join < 1:
        raise DataError(f"--join must be at least 1, got {arguments.join}")
    prepare_mini(arguments.data, sizes, speakers=arguments.speakers, corpus=corpus, join=arguments.join)


def _run_prompts(arguments: argparse.Namespace) -> None:
    make_prompts(
        arguments.folder,
        given=arguments.given,
        source=arguments.source,
        fs=_rate(arguments.fs),
        shortest=arguments.shortest,
        longest=arguments.longest,
    )
    check_folder(arguments.folder, token_list=arguments.token_list, token_type=arguments.token_type)


def _run_format(arguments: argparse.Namespace) -> None:
    for name in arguments.sets:
        format_folder(
            arguments.source / name,
            arguments.target / name,
            fs=_rate(arguments.fs),
            shortest=arguments.min_wav_duration,
            longest=arguments.max_wav_duration,
            workers=arguments.nj,
        )


def _run_check(arguments: argparse.Namespace) -> None:
    for folder in arguments.folders:
        check_folder(
            folder,
            token_list=arguments.token_list,
            token_type=arguments.token_type,
            fs=None if arguments.fs is None else _rate(arguments.fs),
        )


def _run_latents(arguments: argparse.Namespace) -> None:
    print(*extract_options(arguments.task, arguments.arguments), sep="\n")


def _run_bpe(arguments: argparse.Namespace) -> None:
    train_bpe(arguments.text, arguments.folder, arguments.size)


def _run_split(arguments: argparse.Namespace) -> None:
    lists = dict(item.split("=", 1) for item in arguments.lists)
    print(split_keys(arguments.folder, arguments.parts, lists))


def _sets(arguments: argparse.Namespace) -> dict[str, list[str]]:
    # Commas, since what run.sh hands on to local/data.sh is split at spaces.
    return {name: getattr(arguments, name).replace(",", " ").split() for name in ("train", "valid", "test")}


def _corpus_root(root: str | os.PathLike, name: str, sets: Mapping[str, Sequence[str]]) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; say in db.sh where {name} is unpacked")
    wanted = [part for parts in sets.values() for part in parts]
    if not (root / wanted[0]).is_dir() and (root / name).is_dir():
        root = root / name
    missing = [part for part in wanted if not (root / part).is_dir()]
    if missing:
        raise DataError(f"{root}: no folder {missing[0]} in it; unpack {name}'s {' '.join(missing)} there")
    return root


def _rate(text: str) -> int:
    from wavcube_plugins.espnet.held import parse_rate

    return parse_rate(text)


def _info(path: str):
    # Imported on first use, like all that brings torch: commands that only read lists start in no time without.
    from wavcube_plugins.audio import read_info

    return read_info(path)


def _to_rate(path: str, folder: Path, key: str, fs: int) -> tuple[str, int]:
    """Return a file's path and length at a rate, converted into the folder unless it is so already or was before."""
    from wavcube_plugins.audio import read_audio, write_audio

    info = _info(path)
    if info.sample_rate == fs and info.num_channels == 1 and Path(path).suffix.lower() in _KEPT_SUFFIXES:
        return os.fspath(Path(path).absolute()), info.num_frames
    # What it was made from is in the name, so that the conversion of another file, or of an earlier one, is not taken.
    source = os.path.abspath(path)
    state = os.stat(source)
    made_from = hashlib.sha256(os.fsencode(f"{source} {state.st_mtime_ns} {state.st_size} {fs}")).hexdigest()[:12]
    target = folder / f"{key}.{made_from}.flac"
    if not target.is_file():
        write_audio(target, read_audio(path, fs), fs)
    return os.fspath(target.absolute()), _info(os.fspath(target)).num_frames


def _read_tokens(path: str | os.PathLike) -> set[str]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such token list; run --stage 4 first")
    tokens = {line.rstrip("\n") for line in path.open(encoding="utf-8")}
    if not tokens:
        raise DataError(f"{path}: the token list is empty; remove it and run --stage 4 again")
    return tokens


if __name__ == "__main__":
    sys.exit(main())
