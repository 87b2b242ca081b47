"""Manifests of the standard corpora, in SpeechBrain's convention: JSON files of {id: {"wav", "duration", labels …}}.

Each `prepare_*` function takes the folder of a corpus as it is published and the folder to write to, and is what the
key `prepare` of a hyperparameter file names (`!name:wavcube_plugins.speechbrain.corpora.prepare_librispeech`). Paths
below the corpus begin with `{data_root}`, durations are in seconds. What was prepared with the same options is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice
from pathlib import Path

from tqdm import tqdm

from wavcube_plugins.audio import AudioError, find_audio, read_info
from wavcube_plugins.data.corpora import CorpusError, librispeech
from wavcube_plugins.data.extraction import progress_interval
from wavcube_plugins.data.speech import check_rate
from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.mini import make_mini, read_mini

ROOT = "{data_root}"
# Keys of a manifest that hold paths of audio.
AUDIO_KEYS = ("wav", "clean", "source_1", "source_2")
TRIALS_NAME = "trials.json"
# Lies beside manifests that were made here, and says of what.
PREPARED_NAME = "prepared.json"

_THREADS, _PORTION = 8, 512


def write_manifests(
    splits: Mapping[str, Iterable[tuple[str, dict]]],
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    sample_rate: int = 16000,
    resample: bool = False,
    progress: bool = True,
) -> None:
    """Write one manifest per split, after a look at the header of every file.

    Args:
        splits: Entries (id, labels) of each; the labels hold paths under one or several of `AUDIO_KEYS`.
        data_folder: Root that paths are written relative to.
        save_folder: Folder of the manifests.
        sample_rate: What the model takes, in Hz.
        resample: Accept other rates, which are converted when the files are read.
        progress: Show a progress bar.

    Raises:
        CorpusError: a split without entries, or an id that comes twice.
        AudioError: a file that is missing, broken, or of another sample rate; the message names it.
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)

    def look(entry: tuple[str, dict]) -> tuple[str, dict]:
        name, labels = entry
        infos = {key: read_info(labels[key]) for key in AUDIO_KEYS if key in labels}
        if not resample:
            for key, info in infos.items():
                check_rate(labels[key], info.sample_rate, sample_rate, "--resample True")
        for key, info in infos.items():
            if not info.num_frames:
                raise AudioError(f"{labels[key]}: has no samples")
        paths = {key: _rooted(labels[key], data_folder) for key in infos}
        return name, {**labels, **paths, "duration": round(infos["wav"].seconds, 6)}

    with ThreadPoolExecutor(_THREADS) as threads:
        for split, entries in splits.items():
            manifest: dict[str, dict] = {}
            bar = tqdm(desc=f"preparing {split}", unit="file", disable=not progress, mininterval=progress_interval())
            with bar:
                for portion in _portions(entries):
                    for name, labels in threads.map(look, portion):
                        if name in manifest:
                            raise CorpusError(f"{data_folder}: the id {name!r} comes twice in {split}")
                        manifest[name] = labels
                        bar.update()
            if not manifest:
                raise CorpusError(f"{data_folder}: found nothing for {split}; is this the folder of the corpus?")
            # Until `mark_prepared` it says nothing but that these are not somebody's own.
            write_json(save_folder / PREPARED_NAME, {})
            write_json(save_folder / f"{split}.json", manifest)


def write_json(path: Path, content) -> None:
    """Write a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def prepared(data_folder: str | os.PathLike, save_folder: str | os.PathLike, names: Sequence[str], **options) -> bool:
    """Whether manifests of these names were made from the same corpus with the same options."""
    path = Path(save_folder) / PREPARED_NAME
    wanted = json.loads(json.dumps({"data_folder": os.path.abspath(data_folder), "files": list(names), **options}))
    complete = all((Path(save_folder) / name).is_file() for name in names)
    if complete and path.is_file() and json.loads(path.read_text()) == wanted:
        return True
    if path.is_file():
        write_json(path, {})  # until `mark_prepared`, so that a stop in between is seen
    return False


def mark_prepared(data_folder, save_folder, names: Sequence[str], **options) -> None:
    """Note what `prepared` asks for."""
    write_json(
        Path(save_folder) / PREPARED_NAME,
        {"data_folder": os.path.abspath(data_folder), "files": list(names), **options},
    )


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
    make_mini(data_folder, task, sizes, speakers=speakers, seed=seed, progress=progress)
    if prepared(data_folder, save_folder, names, **options):
        return
    folder = Path(data_folder)
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


def prepare_librispeech(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    train: Sequence[str] = ("train-clean-100", "train-clean-360", "train-other-500"),
    valid: Sequence[str] = ("dev-clean",),
    test: Sequence[str] = ("test-clean", "test-other"),
    resample: bool = False,
) -> None:
    """LibriSpeech: `train-clean-100/19/198/19-198-0000.flac` and so on; each test set gets a manifest of its own.

    Labels: text (small letters), speaker.
    """
    root = _folder(data_folder, "LibriSpeech")
    groups = {"train": list(train), "valid": list(valid), **{name: [name] for name in test}}
    options = {"corpus": "librispeech", "groups": groups, "resample": resample}
    names = [f"{name}.json" for name in groups]
    if prepared(root, save_folder, names, **options):
        return

    def entries(parts: Sequence[str]) -> Iterator[tuple[str, dict]]:
        for utterance in librispeech.read(root, parts):
            text = (utterance.text or "").lower()
            yield utterance.id, {"wav": str(utterance.path), "text": text, "speaker": utterance.speaker}

    splits = {name: entries(parts) for name, parts in groups.items()}
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_voxceleb(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    task: str = "identification",
    split_file: str | None = None,
    valid_every: int = 50,
    resample: bool = False,
) -> None:
    """VoxCeleb1: `wav/id10001/1zcIwhmdeo4/00001.wav` and so on (or without the folder `wav`).

    Args:
        data_folder: The corpus.
        save_folder: Where manifests go.
        task: `identification` takes the published split of all speakers' utterances, `verification` trains on the
            speakers that the trials do not have, and writes the trials.
        split_file: `iden_split.txt` or `veri_test.txt`, by default in the folder of the corpus.
        valid_every: For verification, one of so many training utterances is held out.
        resample: As in `write_manifests`.

    Labels: speaker.
    """
    root = _folder(data_folder, "VoxCeleb")
    audio = root / "wav" if (root / "wav").is_dir() else root
    if task not in ("identification", "verification"):
        raise CorpusError(f"the task of VoxCeleb must be identification or verification, got {task!r}")
    path = Path(split_file) if split_file else root / ("iden_split.txt" if task[0] == "i" else "veri_test.txt")
    _expect(path, f"the list for {task} that VoxCeleb publishes", folder=False)
    options = {"corpus": "voxceleb", "task": task, "split_file": str(path), "every": valid_every, "resample": resample}
    names = ["train.json", "valid.json", "test.json"] + ([TRIALS_NAME] if task == "verification" else [])
    if prepared(root, save_folder, names, **options):
        return

    def entry(relative: str) -> tuple[str, dict]:
        name = relative.removesuffix(".wav").replace("/", "--")
        return name, {"wav": str(audio / relative), "speaker": relative.split("/")[0]}

    if task == "identification":
        parts = {"1": "train", "2": "valid", "3": "test"}
        splits: dict[str, list] = {name: [] for name in parts.values()}
        for number, fields in enumerate(map(str.split, _lines(path)), 1):
            if len(fields) != 2 or fields[0] not in parts:
                raise CorpusError(f"{path}, line {number}: expected '1 id10001/1zcIwhmdeo4/00001.wav'")
            splits[parts[fields[0]]].append(entry(fields[1]))
        trials = []
    else:
        trials = []
        for number, fields in enumerate(map(str.split, _lines(path)), 1):
            if len(fields) != 3 or fields[0] not in ("0", "1"):
                raise CorpusError(f"{path}, line {number}: expected '1 id10270/x/00001.wav id10270/y/00002.wav'")
            trials.append((int(fields[0]), entry(fields[1]), entry(fields[2])))
        test = dict(one for _, *pair in trials for one in pair)
        secret = {labels["speaker"] for labels in test.values()}
        found = sorted(audio.glob("id*/*/*.wav"))
        known = [entry(one.relative_to(audio).as_posix()) for one in found if one.parts[-3] not in secret]
        heard = {name for name, _ in known if _hash(name) % valid_every == 0}
        splits = {
            "train": [one for one in known if one[0] not in heard],
            "valid": [one for one in known if one[0] in heard],
            "test": list(test.items()),
        }
        _several(splits, root)
    write_manifests(splits, root, save_folder, resample=resample)
    if trials:
        write_json(Path(save_folder) / TRIALS_NAME, [[same, one[0], two[0]] for same, one, two in trials])
    mark_prepared(root, save_folder, names, **options)


def prepare_iemocap(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    test_session: int = 5,
    valid_every: int = 10,
    resample: bool = False,
) -> None:
    """IEMOCAP: `Session1/sentences/wav/…` and `Session1/dialog/EmoEvaluation/*.txt`.

    Four classes, as usual: neu, ang, sad, and hap with the excited ones; one session is for the test, and one of
    `valid_every` of the other utterances for validation.

    Labels: emotion, speaker, session.
    """
    root = _folder(data_folder, "IEMOCAP")
    if test_session not in range(1, 6):
        raise CorpusError(f"test_session must be one of 1 … 5, got {test_session!r}")
    options = {"corpus": "iemocap", "test": test_session, "every": valid_every, "resample": resample}
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return
    classes = {"neu": "neu", "ang": "ang", "sad": "sad", "hap": "hap", "exc": "hap"}
    line_form = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")
    splits: dict[str, list] = {"train": [], "valid": [], "test": []}
    for session in range(1, 6):
        folder = _expect(root / f"Session{session}" / "dialog" / "EmoEvaluation", "the emotion labels")
        for path in sorted(folder.glob("Ses*.txt")):
            for line in _lines(path):
                found = line_form.match(line)
                if not found or found[2] not in classes:
                    continue
                name, emotion = found[1], classes[found[2]]
                # Ses01F_impro01_M003: the dialogue, and in its last part who speaks.
                audio = root / f"Session{session}" / "sentences" / "wav" / name.rpartition("_")[0] / f"{name}.wav"
                speaker = f"Ses{session:02d}{name.rpartition('_')[2][0]}"
                labels = {"wav": str(audio), "emotion": emotion, "speaker": speaker, "session": session}
                held_out = "valid" if _hash(name) % valid_every == 0 else "train"
                splits["test" if session == test_session else held_out].append((name, labels))
    _several(splits, root)
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_slurp(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    synthetic: bool = True,
    resample: bool = False,
) -> None:
    """SLURP: `dataset/slurp/{train,devel,test,train_synthetic}.jsonl` with `audio/slurp_real` and `audio/slurp_synth`.

    The audio may also lie beside `dataset`. One entry per recording.

    Labels: text, intent {"scenario", "action"}, slots [[type, words], ...].
    """
    root = _folder(data_folder, "SLURP")
    options = {"corpus": "slurp", "synthetic": synthetic, "resample": resample}
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return
    lists = _expect(root / "dataset" / "slurp", "SLURP's lists train.jsonl, devel.jsonl and test.jsonl")

    def place(kind: str) -> Path:
        return root / "audio" / kind if (root / "audio" / kind).is_dir() else root / kind

    def entries(files: Mapping[str, str]) -> Iterator[tuple[str, dict]]:
        for name, kind in files.items():
            path = _expect(lists / f"{name}.jsonl", "a list of SLURP", folder=False)
            for number, line in enumerate(_lines(path), 1):
                try:
                    item = json.loads(line)
                    words = [token["surface"] for token in item["tokens"]]
                    slots = [
                        [entity["type"], " ".join(words[index] for index in entity["span"]).lower()]
                        for entity in item["entities"]
                    ]
                    labels = {
                        "text": _plain(item["sentence"]),
                        "intent": {"scenario": item["scenario"], "action": item["action"]},
                        "slots": [[kind_of, _plain(value)] for kind_of, value in slots],
                    }
                    recordings = [recording["file"] for recording in item["recordings"]]
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    raise CorpusError(f"{path}, line {number}: not a line of SLURP ({error!r})") from error
                for file in recordings:
                    yield Path(file).stem, {"wav": str(place(kind) / file), **labels}

    train = {"train": "slurp_real"} | ({"train_synthetic": "slurp_synth"} if synthetic else {})
    splits = {
        "train": entries(train),
        "valid": entries({"devel": "slurp_real"}),
        "test": entries({"test": "slurp_real"}),
    }
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_voicebank(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    valid_speakers: Sequence[str] = ("p226", "p287"),
    resample: bool = True,
) -> None:
    """Voicebank-DEMAND: the folders `noisy_trainset_28spk_wav`, `clean_testset_wav` and so on.

    Those that were brought to 16 kHz before, `noisy_trainset_28spk_wav_16k` in SpeechBrain's naming, are taken first.

    Labels: clean (path), speaker.
    """
    root = _folder(data_folder, "Voicebank-DEMAND")
    options = {"corpus": "voicebank", "valid": list(valid_speakers), "resample": resample}
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return

    def place(name: str) -> Path:
        short = root / f"{name}_16k"
        return short if short.is_dir() else _expect(root / name, "a folder of Voicebank-DEMAND")

    def entries(part: str) -> Iterator[tuple[str, dict]]:
        noisy, clean = place(f"noisy_{part}_wav"), place(f"clean_{part}_wav")
        for path in sorted(noisy.glob("*.wav")):
            yield path.stem, {"wav": str(path), "clean": str(clean / path.name), "speaker": path.stem.split("_")[0]}

    both = list(entries("trainset_28spk"))
    held_out = {name for name, labels in both if labels["speaker"] in valid_speakers}
    splits = {
        "train": [entry for entry in both if entry[0] not in held_out],
        "valid": [entry for entry in both if entry[0] in held_out],
        "test": entries("testset"),
    }
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_libri2mix(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    train: Sequence[str] = ("train-100",),
    version: str = "wav16k/min",
    mixtures: str = "mix_clean",
    resample: bool = False,
) -> None:
    """Libri2Mix, as the published scripts make it: `wav16k/min/train-100/{mix_clean,s1,s2}/…`.

    Labels: source_1 and source_2 (paths).
    """
    root = _folder(data_folder, "Libri2Mix")
    base = root / "Libri2Mix" if (root / "Libri2Mix").is_dir() else root
    options = {"corpus": "libri2mix", "train": list(train), "version": version, "mixtures": mixtures}
    options["resample"] = resample
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return

    def entries(parts: Sequence[str]) -> Iterator[tuple[str, dict]]:
        for part in parts:
            folder = _expect(base / version / part, "a part of Libri2Mix")
            for path in sorted(_expect(folder / mixtures, "the mixtures").glob("*.wav")):
                sources = {f"source_{number}": str(folder / f"s{number}" / path.name) for number in (1, 2)}
                yield path.stem, {"wav": str(path), **sources}

    splits = {"train": entries(train), "valid": entries(["dev"]), "test": entries(["test"])}
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_vctk(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    microphone: str = "mic1",
    valid_every: int = 40,
    test_every: int = 20,
    resample: bool = True,
) -> None:
    """VCTK 0.92, `wav48_silence_trimmed/p225/p225_001_mic1.flac` with `txt/p225/p225_001.txt`, or 0.80, `wav48/p225/…`.

    Utterances are held out by their number, so that all speakers are in all splits and none says in training what it
    says in the test. Those without a transcript are left out.

    Labels: speaker, text.
    """
    root = _folder(data_folder, "VCTK")
    options = {"corpus": "vctk", "microphone": microphone, "every": [valid_every, test_every], "resample": resample}
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return
    trimmed = root / "wav48_silence_trimmed"
    audio = trimmed if trimmed.is_dir() else _expect(root / "wav48", "VCTK's audio (or wav48_silence_trimmed)")
    pattern = f"p*/*_{microphone}.flac" if trimmed.is_dir() else "p*/*.wav"
    splits: dict[str, list] = {"train": [], "valid": [], "test": []}
    for path in sorted(audio.glob(pattern)):
        speaker, number = path.stem.split("_")[:2]
        text = root / "txt" / speaker / f"{speaker}_{number}.txt"
        if not text.is_file():
            continue
        position = _hash(number)
        split = "test" if position % test_every == 0 else "valid" if position % valid_every == 1 else "train"
        labels = {"wav": str(path), "speaker": speaker, "text": _plain(text.read_text(encoding="utf-8"))}
        splits[split].append((f"{speaker}_{number}", labels))
    _several(splits, root)
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


def prepare_speech(
    data_folder: str | os.PathLike,
    save_folder: str | os.PathLike,
    *,
    valid_every: int = 50,
    test_every: int = 25,
    resample: bool = True,
) -> None:
    """A folder of speech of any kind: every audio file below it, without labels."""
    root = _folder(data_folder, "your speech")
    options = {"corpus": "speech", "every": [valid_every, test_every], "resample": resample}
    names = ["train.json", "valid.json", "test.json"]
    if prepared(root, save_folder, names, **options):
        return
    splits: dict[str, list] = {"train": [], "valid": [], "test": []}
    for path in find_audio(root):
        name = path.relative_to(root).with_suffix("").as_posix().replace("/", "--")
        position = _hash(name)
        split = "test" if position % test_every == 0 else "valid" if position % valid_every == 1 else "train"
        splits[split].append((name, {"wav": str(path)}))
    _several(splits, root)
    write_manifests(splits, root, save_folder, resample=resample)
    mark_prepared(root, save_folder, names, **options)


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


def _mini_entry(folder: Path, record: dict) -> tuple[str, dict]:
    labels = {key: value for key, value in record.items() if key not in ("id", "path", "sources", "phones", "words")}
    labels["wav"] = str(folder / record["path"])
    if "clean" in record:
        labels["clean"] = str(folder / record["clean"])
    for number, path in enumerate(record.get("sources", []), 1):
        labels[f"source_{number}"] = str(folder / path)
    return record["id"], labels


def _every(entries: Sequence[tuple[str, dict]], step: int) -> list[tuple[str, dict]]:
    """Every so many utterances of each speaker."""
    count: Counter[str] = Counter()
    chosen = []
    for entry in entries:
        speaker = entry[1]["speaker"]
        count[speaker] += 1
        if count[speaker] % step == 0:
            chosen.append(entry)
    return chosen


def _several(splits: dict[str, list], root: Path) -> None:
    """See to it that a small corpus, of which the drawing left nothing, has something to validate on."""
    if not splits["train"]:
        raise CorpusError(f"{root}: found nothing to train on; is this the folder of the corpus?")
    for name, entries in splits.items():
        if not entries:
            if len(splits["train"]) < 2:
                raise CorpusError(f"{root}: found too little to hold something out for {name}")
            entries.append(splits["train"].pop())


def _rooted(path: str, data_folder: Path) -> str:
    path, root = os.path.abspath(path), os.path.abspath(data_folder)
    return f"{ROOT}{path[len(root) :]}" if path.startswith(root + os.sep) else path


def _portions(entries: Iterable) -> Iterator[list]:
    entries = iter(entries)
    while portion := list(islice(entries, _PORTION)):
        yield portion


def _folder(path: str | os.PathLike, what: str) -> Path:
    if not Path(path).is_dir():
        raise CorpusError(f"{path}: no such folder; expected that of {what}")
    return Path(path)


def _expect(path: Path, what: str, folder: bool = True) -> Path:
    if not (path.is_dir() if folder else path.is_file()):
        raise CorpusError(f"{path}: no such {'folder' if folder else 'file'}; expected {what}")
    return path


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file if line.strip())
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: is not text in UTF-8") from error


def _plain(text: str) -> str:
    """Small letters, apostrophes and single spaces."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("’", "'")).split())


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
