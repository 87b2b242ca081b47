"""Kaldi-style data folders, read, written and checked without Kaldi: what ESPnet's shell tools do, offline.

A folder holds `wav.scp`, `text`, `utt2spk` and `spk2utt`, sorted by bytes; ids begin with the speaker's.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from wavcube_plugins.data.corpora import Record
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

# Seconds of a zero-shot prompt: a shorter one does not characterise a voice, a longer one leaves no room for the
# sentence.
SHORTEST_PROMPT, LONGEST_PROMPT = 1.0, 12.0

# Suffixes that ESPnet's `sound` reads and that keep 16 bits.
_KEPT_SUFFIXES = (".wav", ".flac")


class KaldiError(InputError):
    """A data folder or one of its files cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Entry:
    """One utterance of a folder: its audio file, text and speaker."""

    path: str
    text: str
    speaker: str


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """Read a file of `id value` lines, separated by any white space, as in Kaldi and ESPnet.

    Raises:
        KaldiError: the file is missing, empty or not UTF-8, or an id occurs twice or has no value.
    """
    path = Path(path)
    if not path.is_file():
        raise KaldiError(f"{path}: no such file; run the data stage first (--stage 1)")
    try:
        # Not splitlines: texts may contain characters that Unicode counts as line breaks.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise KaldiError(f"{path}: not UTF-8 text") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *value = line.strip().split(maxsplit=1)
        if not value:
            raise KaldiError(f"{path}:{number}: {key} has no value")
        if key in table:
            raise KaldiError(f"{path}:{number}: {key} occurs twice")
        table[key] = value[0]
    if not table:
        raise KaldiError(f"{path}: is empty; the corpus has no utterances, or the file was cut off")
    return table


def write_table(path: str | os.PathLike, table: Mapping[str, object]) -> None:
    """Write `id value` lines in byte order, as Kaldi's tools expect them, atomically."""
    with atomic_path(path) as temporary:
        lines = (f"{key} {table[key]}\n" for key in sorted(table, key=os.fsencode))
        temporary.write_text("".join(lines), encoding="utf-8")


def write_folder(folder: str | os.PathLike, entries: Mapping[str, Entry]) -> None:
    """Write a data folder.

    Args:
        folder: Made if missing; its files are replaced.
        entries: By utterance id, which must begin with the speaker's name.

    Raises:
        KaldiError: there are no entries.
    """
    folder = Path(folder)
    if not entries:
        raise KaldiError(f"{folder}: no utterances to write")
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
        KaldiError: a file is missing or broken, or the files list different utterances.
    """
    folder = Path(folder)
    if (folder / "segments").exists():
        raise KaldiError(f"{folder}/segments: not supported without Kaldi's tools; cut the recordings into utterances")
    paths, texts, speakers = (read_table(folder / name) for name in ("wav.scp", "text", "utt2spk"))
    for name, table in (("text", texts), ("utt2spk", speakers)):
        for one, other, missing in (("wav.scp", name, paths.keys() - table), (name, "wav.scp", table.keys() - paths)):
            if missing:
                raise KaldiError(f"{folder}: {min(missing)} is in {one} but not in {other}")
    return {key: Entry(path, texts[key], speakers[key]) for key, path in paths.items()}


def write_sets(data: str | os.PathLike, sets: Mapping[str, Iterable[Record]]) -> None:
    """Write a data folder for each set of a corpus.

    Args:
        data: Where the folders go, each by the name of its set.
        sets: The utterances of each, which have a speaker and a text.

    Raises:
        KaldiError: a set has no utterances, or an id occurs twice in it.
        CorpusError: from the reader of the corpus.
    """
    for name, utterances in sets.items():
        entries: dict[str, Entry] = {}
        for utterance in tqdm(utterances, desc=f"prepare {name}", unit="utt", disable=None):
            if utterance.speaker is None or not utterance.text:
                raise KaldiError(f"{utterance.path}: a data folder needs its speaker and its text")
            # Hyphens, because Kaldi wants ids and speakers in the same order, and digits sort after them.
            key = utterance.id.replace("_", "-")
            if key in entries:
                raise KaldiError(f"{utterance.path}: the id {key} occurs twice in {name}")
            entries[key] = Entry(os.fspath(utterance.path), utterance.text, utterance.speaker)
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
    """Give every utterance of a folder a prompt for zero-shot TTS, in its new files `prompt.scp` and `prompt_text`.

    Args:
        folder: A formatted data folder.
        given: A folder whose `prompt.scp` and `prompt_text` are used if it has them; their recordings may have any
            sample rate. Otherwise the prompt is another utterance of the same speaker, chosen by the ids alone.
        source: Data folder that prompts are chosen from; None is the folder itself.
        fs: Sample rate of the prompts in Hz.
        shortest: Least length of a prompt in seconds.
        longest: Greatest length of a prompt in seconds.

    Raises:
        KaldiError: there is no prompt for an utterance, or a given one cannot be used.
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
            raise KaldiError(
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
                raise KaldiError(f"{folder}/{name}: {key} is missing; a prompt needs a recording and its transcript")
        seconds = _info(paths[key]).seconds
        if not shortest <= seconds <= longest:
            how = "short" if seconds < shortest else "long"
            raise KaldiError(
                f"{paths[key]}: the prompt of {key} is too {how}, {seconds:.2f} s; it must have {shortest:g} to "
                f"{longest:g} s"
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

    Recordings that already are stay where they are; the others are written as FLAC to TARGET/audio. What an interrupted
    run has written is reused unless its source has changed.

    Args:
        source: A data folder.
        target: The folder to write.
        fs: Sample rate in Hz.
        shortest: Leave out utterances of at most so many seconds; None keeps them.
        longest: Leave out utterances of at least so many seconds; None keeps them.
        workers: Threads.

    Raises:
        KaldiError: nothing is left.
        AudioError: a recording cannot be read.
    """
    source, target = Path(source), Path(target)
    entries = read_folder(source)
    for key, entry in entries.items():
        if entry.path.endswith("|"):
            raise KaldiError(f"{source}/wav.scp: {key} is a pipe, which needs Kaldi's tools; name an audio file")

    def convert(item: tuple[str, Entry]) -> tuple[str, str, int]:
        key, entry = item
        return (key, *_to_rate(entry.path, target / "audio", key, fs))

    from wavcube_plugins.audio import AudioWarning

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore", AudioWarning)  # format_wav_scp.sh does not warn of mixing channels either
        converted = pool.map(convert, entries.items())
        bar = tqdm(converted, total=len(entries), desc=f"format {source.name}", unit="utt", disable=None)
        done = {key: (path, samples) for key, path, samples in bar}
    kept = {
        key: replace(entry, path=done[key][0])
        for key, entry in entries.items()
        if (shortest is None or done[key][1] / fs > shortest) and (longest is None or done[key][1] / fs < longest)
    }
    if not kept:
        raise KaldiError(
            f"{source}: no utterance lasts between {shortest} and {longest} s (--min_wav_duration, --max_wav_duration)"
        )
    write_folder(target, kept)
    write_table(target / "utt2num_samples", {key: done[key][1] for key in kept})
    if len(kept) < len(entries):
        print(f"{source}: {len(entries) - len(kept)} of {len(entries)} utterances left out because of their length")


def check_folder(
    folder: str | os.PathLike,
    *,
    token_list: str | os.PathLike | None = None,
    token_type: str = "char",
    fs: int | None = None,
) -> None:
    """Check for what would make a later stage fail, or silently give wrong results.

    Args:
        folder: A formatted data folder; if it has prompts, their texts are checked too.
        token_list: Tokens of the model; with `token_type` char every character must be among them, since ESPnet
            replaces others by `<unk>` without a warning.
        token_type: As in ESPnet; types other than char are not checked.
        fs: The sample rate in Hz that every recording must have.

    Raises:
        KaldiError: the first fault.
        AudioError: a recording cannot be read.
    """
    folder = Path(folder)
    entries = read_folder(folder)
    if fs is not None:
        for key, entry in entries.items():
            rate = _info(entry.path).sample_rate
            if rate != fs:
                raise KaldiError(f"{entry.path}: {key} has {rate} Hz, the model takes {fs} Hz; run --stage 2 again")
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
                raise KaldiError(
                    f"{folder}/{name}: {key} has characters that the model was not trained on, {letters} (token list "
                    f"{token_list}); write the text with those of the training set"
                )


def split_keys(folder: str | os.PathLike, parts: int, lists: Mapping[str, str | os.PathLike]) -> int:
    """Split lists of `id value` lines into FOLDER/NAME.1.scp and so on, one part of each list per parallel job.

    Args:
        folder: Where the parts go.
        parts: How many are wanted.
        lists: The files, by the name of their parts.

    Returns:
        How many parts each list has now: never more than the shortest list has lines.

    Raises:
        KaldiError: a list is missing or empty.
    """
    tables = {name: list(read_table(path).items()) for name, path in lists.items()}
    parts = min(parts, *(len(table) for table in tables.values()))
    for name, table in tables.items():
        for part in range(parts):
            share = table[part * len(table) // parts : (part + 1) * len(table) // parts]
            write_table(Path(folder) / f"{name}.{part + 1}.scp", dict(share))
    return parts


def _info(path: str):
    # Imported on first use, since it brings torch: commands that only read lists start in no time without it.
    from wavcube_plugins.audio import read_info

    return read_info(path)


def _to_rate(path: str, folder: Path, key: str, fs: int) -> tuple[str, int]:
    """Return path and samples of a mono recording at a sample rate, converted into the folder unless already done."""
    from wavcube_plugins.audio import read_audio, write_audio

    info = _info(path)
    if info.sample_rate == fs and info.num_channels == 1 and Path(path).suffix.lower() in _KEPT_SUFFIXES:
        return os.fspath(Path(path).absolute()), info.num_frames
    # The name identifies the source, so that the conversion of another file, or of an earlier version, is not reused.
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
        raise KaldiError(f"{path}: no such token list; run --stage 5 first")
    tokens = {line.rstrip("\n") for line in path.open(encoding="utf-8")}
    if not tokens:
        raise KaldiError(f"{path}: the token list is empty; remove it and run --stage 5 again")
    return tokens
