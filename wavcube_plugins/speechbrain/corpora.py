"""SpeechBrain's manifests of the standard corpora.

Each `prepare_*` function takes the folder of a corpus as it is published and the folder to write to, and is what the
key `prepare` of a hyperparameter file names (`!name:wavcube_plugins.speechbrain.corpora.prepare_librispeech`). The
layouts are read by `wavcube_plugins.data.corpora`; here are the splits and labels that the recipes train on. What was
prepared with the same options is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from wavcube_plugins.data.corpora import (
    CorpusError,
    Record,
    iemocap,
    libri2mix,
    librispeech,
    slurp,
    speech,
    vctk,
    voicebank,
    voxceleb,
)
from wavcube_plugins.data.corpora.layout import expect_folder
from wavcube_plugins.speechbrain.manifests import Entry, mark_prepared, prepared, write_json, write_manifests
from wavcube_plugins.synthetic.mini import make_mini, read_mini

TRIALS_NAME = "trials.json"

# Keys of a mini record that a manifest has no use for, or has under another name.
_MINI_KEYS = ("id", "path", "sources", "phones", "words")


def prepare_librispeech(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    train: Sequence[str] = librispeech.TRAIN,
    valid: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean", "test-other"),
    resample: bool = False,
) -> None:
    """LibriSpeech; each test set gets a manifest of its own.

    Labels: text (lower case), speaker.
    """
    groups = {"train": list(train), "valid": list(valid), **{name: [name] for name in test}}

    def entry(one: Record) -> Entry:
        return _entry(one, speaker=one.speaker, text=(one.text or "").lower())

    def make() -> dict[str, Iterator[Entry]]:
        return {name: map(entry, librispeech.read(data_folder, parts)) for name, parts in groups.items()}

    options = {"corpus": "librispeech", "groups": groups}
    _prepare(data_folder, save_folder, "LibriSpeech", make, options, resample=resample, splits=list(groups))


def prepare_voxceleb(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    task: str = "identification",
    split_file: str | None = None,
    valid_every: int = 50,
    resample: bool = False,
) -> None:
    """VoxCeleb1.

    Args:
        data_folder: The corpus.
        save_folder: Where manifests go.
        task: `identification` takes the published split of all speakers' utterances; `verification` trains on the
            speakers that are in no trial, and writes the trials.
        split_file: `iden_split.txt` or `veri_test.txt`, by default the one in the folder of the corpus.
        valid_every: For verification, one of so many training utterances is held out.
        resample: As in `write_manifests`.

    Labels: speaker.
    """
    if task not in ("identification", "verification"):
        raise CorpusError(f"the task of VoxCeleb must be identification or verification, got {task!r}")
    names = {"identification": voxceleb.IDENTIFICATION_LIST, "verification": voxceleb.TRIALS_LIST}
    listing = Path(split_file) if split_file else Path(data_folder, names[task])
    trials = voxceleb.read_trials(data_folder, listing) if task == "verification" else []
    tested = {one.id: one for trial in trials for one in (trial.one, trial.two)}
    secret = {one.speaker for one in tested.values()}

    def make() -> Mapping[str, Iterable[Entry]]:
        splits: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
        if task == "identification":
            for one in voxceleb.read_identification(data_folder, listing):
                splits[one.split].append(_entry(one, speaker=one.speaker))
            return splits
        for one in voxceleb.read(data_folder):
            if one.speaker not in secret:
                split = "valid" if _hash(one.id) % valid_every == 0 else "train"
                splits[split].append(_entry(one, speaker=one.speaker))
        splits["test"] = [_entry(one, speaker=one.speaker) for one in tested.values()]
        return _fill(splits, data_folder)

    options = {"corpus": "voxceleb", "task": task, "split_file": str(listing), "every": valid_every}
    pairs = [[int(trial.same), trial.one.id, trial.two.id] for trial in trials]
    extra = {TRIALS_NAME: pairs} if task == "verification" else {}
    _prepare(data_folder, save_folder, "VoxCeleb", make, options, resample=resample, extra=extra)


def prepare_iemocap(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    test_session: int = 5,
    valid_every: int = 10,
    resample: bool = False,
) -> None:
    """IEMOCAP, with the usual four classes: neu, ang, sad, and hap with the excited ones.

    One session is the test set, and one of `valid_every` of the other utterances is for validation.

    Labels: emotion, speaker, session.
    """
    if test_session not in iemocap.SESSIONS:
        raise CorpusError(f"test_session must be one of 1 … 5, got {test_session!r}")

    def make() -> Mapping[str, Iterable[Entry]]:
        splits: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
        for one in iemocap.read(data_folder):
            held_out = "valid" if _hash(one.id) % valid_every == 0 else "train"
            split = "test" if one.labels["session"] == test_session else held_out
            splits[split].append(_entry(one, speaker=one.speaker, **one.labels))
        return _fill(splits, data_folder)

    options = {"corpus": "iemocap", "test": test_session, "every": valid_every}
    _prepare(data_folder, save_folder, "IEMOCAP", make, options, resample=resample)


def prepare_slurp(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    synthetic: bool = True,
    resample: bool = False,
) -> None:
    """SLURP, one entry per recording, with the synthetic ones for training.

    Labels: text, intent {"scenario", "action"}, slots [[type, words], ...].
    """

    def entry(one: Record) -> Entry:
        slots = [[kind, _plain(value)] for kind, value in one.labels["slots"]]
        intent = {name: one.labels[name] for name in ("scenario", "action")}
        return _entry(one, text=_plain(one.text or ""), intent=intent, slots=slots)

    def make() -> dict[str, Iterator[Entry]]:
        parts = {
            "train": ["train", "train_synthetic"] if synthetic else ["train"],
            "valid": ["devel"],
            "test": ["test"],
        }
        return {split: map(entry, slurp.read(data_folder, names)) for split, names in parts.items()}

    options = {"corpus": "slurp", "synthetic": synthetic}
    _prepare(data_folder, save_folder, "SLURP", make, options, resample=resample)


def prepare_voicebank(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    valid_speakers: Sequence[str] = voicebank.VALID_SPEAKERS,
    resample: bool = True,
) -> None:
    """Voicebank-DEMAND with its 28 training speakers.

    Labels: clean (path), speaker.
    """

    def make() -> dict[str, list[Entry]]:
        splits: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
        for one in voicebank.read(data_folder):
            held_out = "valid" if one.speaker in valid_speakers else "train"
            splits["test" if one.split == "testset" else held_out].append(_entry(one, speaker=one.speaker))
        return splits

    options = {"corpus": "voicebank", "valid": list(valid_speakers)}
    _prepare(data_folder, save_folder, "Voicebank-DEMAND", make, options, resample=resample)


def prepare_libri2mix(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    train: Sequence[str] = ("train-100",),
    version: str = "wav16k/min",
    mixtures: str = "mix_clean",
    resample: bool = False,
) -> None:
    """Libri2Mix.

    Labels: source_1 and source_2 (paths).
    """

    def make() -> dict[str, Iterator[Entry]]:
        parts = {"train": train, "valid": ["dev"], "test": ["test"]}
        return {
            split: map(_entry, libri2mix.read(data_folder, names, version=version, mixtures=mixtures))
            for split, names in parts.items()
        }

    options = {"corpus": "libri2mix", "train": list(train), "version": version, "mixtures": mixtures}
    _prepare(data_folder, save_folder, "Libri2Mix", make, options, resample=resample)


def prepare_vctk(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    microphone: str = "mic1",
    valid_every: int = 40,
    test_every: int = 20,
    resample: bool = True,
) -> None:
    """VCTK, held out by the number of the sentence: all speakers are in all splits, no sentence is in two.

    Labels: speaker, text.
    """

    def make() -> Mapping[str, Iterable[Entry]]:
        splits: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
        for one in vctk.read(data_folder, microphone):
            split = _draw(one.labels["number"], valid_every, test_every)
            splits[split].append(_entry(one, speaker=one.speaker, text=_plain(one.text or "")))
        return _fill(splits, data_folder)

    options = {"corpus": "vctk", "microphone": microphone, "every": [valid_every, test_every]}
    _prepare(data_folder, save_folder, "VCTK", make, options, resample=resample)


def prepare_speech(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    valid_every: int = 50,
    test_every: int = 25,
    resample: bool = True,
) -> None:
    """A folder of speech of any kind: every audio file below it, without labels."""

    def make() -> Mapping[str, Iterable[Entry]]:
        splits: dict[str, list[Entry]] = {"train": [], "valid": [], "test": []}
        for one in speech.read(data_folder):
            splits[_draw(one.id, valid_every, test_every)].append(_entry(one))
        return _fill(splits, data_folder)

    options = {"corpus": "speech", "every": [valid_every, test_every]}
    _prepare(data_folder, save_folder, "your speech", make, options, resample=resample)


CORPORA = {
    "librispeech": prepare_librispeech,
    "voxceleb": prepare_voxceleb,
    "iemocap": prepare_iemocap,
    "slurp": prepare_slurp,
    "voicebank": prepare_voicebank,
    "libri2mix": prepare_libri2mix,
    "vctk": prepare_vctk,
    "speech": prepare_speech,
}


def prepare_mini(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    task: str,
    sizes: Mapping[str, int] | None = None,
    speakers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Synthesise a mini set of a task (`wavcube_plugins.synthetic.mini`) in `data_folder` and write its manifests.

    The sets of `verification` get trials too: all pairs of the test utterances.

    Raises:
        ValueError: as `make_mini`.
        ImportError: espeak-ng's library is missing; the message names the command that installs it.
    """
    sizes = dict(sizes or {"train": 200, "valid": 20, "test": 40})
    options = {"task": task, "sizes": sizes, "speakers": speakers, "seed": seed}
    names = [f"{split}.json" for split in sizes] + ([TRIALS_NAME] if task == "verification" else [])
    folder = Path(data_folder)
    make_mini(folder, task, sizes, speakers=speakers, seed=seed, progress=progress)
    if prepared(data_folder, save_folder, names, **options):
        return
    splits = {split: [_mini_entry(folder, record) for record in read_mini(folder, split)] for split in sizes}
    if task == "verification":
        # Its new speakers are for the trials; those that the classifier learns are held out by utterance.
        entries = splits["train"]
        heard = _every(entries, 4)
        splits["train"], splits["valid"] = [entry for entry in entries if entry not in heard], heard
    write_manifests(splits, folder, save_folder, progress=False)
    if task == "verification":
        pairs = combinations([(name, labels["speaker"]) for name, labels in splits["test"]], 2)
        write_json(Path(save_folder) / TRIALS_NAME, [[int(one == two), a, b] for (a, one), (b, two) in pairs])
    mark_prepared(data_folder, save_folder, names, **options)


def _prepare(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    name: str,
    make: Callable[[], Mapping[str, Iterable[Entry]]],
    options: Mapping[str, Any],
    *,
    resample: bool,
    splits: Sequence[str] = ("train", "valid", "test"),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifests of a corpus, and extra files, unless they were written with the same options.

    Args:
        data_folder: The corpus.
        save_folder: Where the manifests go.
        name: The corpus, in words.
        make: Returns the entries of each split.
        options: What the manifests depend on.
        resample: As in `write_manifests`.
        splits: Names of the splits that `make` returns.
        extra: Contents of other JSON files, by name.
    """
    expect_folder(data_folder, f"the folder of {name}")
    extra = extra or {}
    names = [f"{split}.json" for split in splits] + list(extra)
    options = {**options, "resample": resample}
    if prepared(data_folder, save_folder, names, **options):
        return
    write_manifests(make(), data_folder, save_folder, resample=resample)
    for file, content in extra.items():
        write_json(Path(save_folder) / file, content)
    mark_prepared(data_folder, save_folder, names, **options)


def _entry(utterance: Record, **labels: Any) -> Entry:
    parallel = {name: str(path) for name, path in utterance.parallel.items()}
    return utterance.id, {"wav": str(utterance.path), **parallel, **labels}


def _mini_entry(folder: Path, record: dict) -> Entry:
    labels = {key: value for key, value in record.items() if key not in _MINI_KEYS}
    labels["wav"] = str(folder / record["path"])
    if "clean" in record:
        labels["clean"] = str(folder / record["clean"])
    for number, path in enumerate(record.get("sources", []), 1):
        labels[f"source_{number}"] = str(folder / path)
    return record["id"], labels


def _every(entries: Sequence[Entry], step: int) -> list[Entry]:
    """Return every `step`-th utterance of each speaker."""
    count: Counter[str] = Counter()
    chosen = []
    for entry in entries:
        speaker = entry[1]["speaker"]
        count[speaker] += 1
        if count[speaker] % step == 0:
            chosen.append(entry)
    return chosen


def _draw(name: str, valid_every: int, test_every: int) -> str:
    """Return the split of an utterance or sentence, which depends on its name alone."""
    position = _hash(name)
    return "test" if position % test_every == 0 else "valid" if position % valid_every == 1 else "train"


def _fill(splits: dict[str, list[Entry]], root: str | os.PathLike) -> dict[str, list[Entry]]:
    """Return the splits, with one entry of train moved to each that drawing left empty, as it may in a small corpus."""
    if not splits["train"]:
        raise CorpusError(f"{root}: found nothing to train on; is this the folder of the corpus?")
    for name, entries in splits.items():
        if not entries:
            if len(splits["train"]) < 2:
                raise CorpusError(f"{root}: has too few utterances to hold one out for {name}")
            entries.append(splits["train"].pop())
    return splits


def _plain(text: str) -> str:
    """Return a text in lower case, with letters, digits, apostrophes and single spaces only."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("’", "'")).split())


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
