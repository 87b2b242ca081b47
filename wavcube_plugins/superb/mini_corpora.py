"""The corpora of the mini SUPERB, each in the layout of the real corpus."""

from __future__ import annotations

import csv
import hashlib
import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import soundfile

from wavcube_plugins.data.corpora.vcc2020 import SOURCE_SPEAKERS, TARGET_SPEAKERS
from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.mini import KEYWORDS, read_mini
from wavcube_plugins.synthetic.speech import PHONES, SILENCE

RATE = 16000
_VC_RATE = 24000


def _librispeech(folder: Path, source: Path) -> None:
    for split, name in (("train", "train-clean-100"), ("valid", "dev-clean"), ("test", "test-clean")):
        chapters: dict[int, list[str]] = {}
        for number, record in enumerate(read_mini(source, split)):
            speaker = 1000 + int(record["speaker"][-2:])
            utterance = f"{speaker}-1-{number:04d}"
            _copy(source / record["path"], folder / name / str(speaker) / "1" / f"{utterance}.wav")
            chapters.setdefault(speaker, []).append(f"{utterance} {record['text'].upper()}")
        for speaker, lines in chapters.items():
            write_text(folder / name / str(speaker) / "1" / f"{speaker}-1.trans.txt", _lines(lines))


def _libriphone(folder: Path, source: Path) -> None:
    """Write tables for phone recognition whose words are phones already, so that they are exact in every accent."""
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        rows = ["wav_path,transcription"]
        for record in read_mini(source, split):
            phones = " ".join(label for label, _, _ in record["phones"] if label != SILENCE)
            rows.append(f"{(source / record['path']).absolute()},{phones}")
        write_text(folder / f"{name}.csv", _lines(rows))
    phones = [phone for phone in PHONES if phone != SILENCE]
    write_text(folder / "phones.txt", _lines(phones))
    write_text(folder / "lexicon.txt", _lines(f"{phone} {phone}" for phone in phones))


def _speech_commands(folder: Path, source: Path) -> None:
    _keywords(folder, source, ("train", "valid"))


def _speech_commands_test(folder: Path, source: Path) -> None:
    _keywords(folder, source, ("test",))


def _keywords(folder: Path, source: Path, splits: Sequence[str]) -> None:
    """Name files so that the rule of Speech Commands, a hash of the speaker's name, puts them into the right split."""
    for keyword in KEYWORDS:
        if splits == ("test",) or not keyword.startswith("_"):
            (folder / keyword).mkdir(parents=True)
    for split in splits:
        for number, record in enumerate(read_mini(source, split)):
            keyword = record["keyword"]
            wave, _ = soundfile.read(source / record["path"], dtype="float32")
            # Every file is a second long, as in the corpus.
            wave = np.resize(np.pad(wave, (0, max(0, RATE - len(wave)))), RATE)
            if split == "test":
                place = folder / keyword / f"{number:05d}.wav"
            elif keyword == "_silence_":
                place = folder / "_background_noise_" / f"noise_{split}_{number:05d}.wav"
            else:
                name = _hashed_name(f"{split}{number:05d}", split)
                place = folder / ("seven" if keyword == "_unknown_" else keyword) / f"{name}_nohash_0.wav"
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, wave, RATE)


def _hashed_name(stem: str, split: str) -> str:
    """Return a name that begins with `stem` and that the rule of Speech Commands puts into train or valid."""
    most = 2**27 - 1
    for number in itertools.count():
        digest = int(hashlib.sha1(f"{stem}x{number}".encode()).hexdigest(), 16)
        percent = digest % (most + 1) * (100.0 / most)
        if (percent < 10) if split == "valid" else (percent >= 20):
            return f"{stem}x{number}"
    raise AssertionError("itertools.count never ends")


def _quesst14(folder: Path, source: Path) -> None:
    """Make queries of words cut out of training sentences, and documents of the sentences of valid and test."""
    generator = random.Random(0)
    records = [record for split in ("valid", "test") for record in read_mini(source, split)]
    documents = [(record, f"Audio/{record['id']}.wav") for record in records]
    for record, place in documents:
        _copy(source / record["path"], folder / place)
    write_text(
        folder / "scoring/language_key_utterances.lst", _lines(f"quesst14/{place} nnenglish" for _, place in documents)
    )
    texts = [set(record["text"].split()) for record, _ in documents]
    spoken: dict[str, list[tuple[dict, float, float]]] = {}
    for record in read_mini(source, "train"):
        for word, start, end in record["words"]:
            if len(word) > 4 and end - start > 0.2 and any(word in text for text in texts):
                spoken.setdefault(word, []).append((record, start, end))
    chosen = sorted(spoken)
    generator.shuffle(chosen)
    for index, split in enumerate(("dev", "eval")):
        words = chosen[index::2][:30]
        listing, truth = [], []
        for number, word in enumerate(words):
            record, start, end = generator.choice(spoken[word])
            wave, _ = soundfile.read(source / record["path"], dtype="float32")
            name = f"quesst14_{split}_{number:04d}"
            place = folder / f"{split}_queries" / f"{name}.wav"
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, wave[int(start * RATE) : int(end * RATE)], RATE)
            listing.append(f"quesst14/{split}_queries/{name}.wav nnenglish")
            truth += [
                f"LEXEME {document['id']} 1 0.00 {document['duration']:.2f} {name} lex <NA> 1.0"
                for (document, _), text in zip(documents, texts, strict=True)
                if word in text
            ]
        write_text(folder / f"scoring/language_key_{split}.lst", _lines(listing))
        write_text(folder / f"scoring/groundtruth_quesst14_{split}/quesst14_{split}.rttm", _lines(truth))


def _voxceleb1(folder: Path, source: Path) -> None:
    """Lay out identification: a split over the speakers of `read`, in dev/wav and test/wav."""
    lines = []
    for split, number in (("train", 1), ("valid", 2), ("test", 3)):
        for record in read_mini(source, split):
            place = f"id{10001 + int(record['speaker'][-2:])}/{record['speaker']}/{record['id']}.wav"
            _copy(source / record["path"], folder / "dev/wav" / place)
            lines.append(f"{number} {place}")
    (folder / "test/wav").mkdir(parents=True)
    write_text(folder / "iden_split.txt", _lines(lines))


def _voxceleb1_verification(folder: Path, source: Path) -> None:
    """Lay out verification: training speakers in dev/wav, others in test/wav; trials are within a gender."""
    generator = random.Random(0)
    people: dict[str, int] = {}
    tested: dict[str, list[str]] = {}
    genders = {}
    for split, part in (("train", "dev"), ("test", "test")):
        for record in read_mini(source, split):
            number = people.setdefault(record["speaker"], len(people))
            place = f"id{10001 + number}/{record['speaker']}/{record['id']}.wav"
            _copy(source / record["path"], folder / part / "wav" / place)
            if split == "test":
                tested.setdefault(record["speaker"], []).append(place)
                genders[record["speaker"]] = record["gender"]
    trials = []
    for speaker, places in tested.items():
        rivals = [other for other in tested if other != speaker and genders[other] == genders[speaker]]
        others = [place for other in rivals for place in tested[other]]
        for one, another in itertools.combinations(places, 2):
            trials.append(f"1 {one} {another}")
            if others:
                trials.append(f"0 {one} {generator.choice(others)}")
    write_text(folder / "trials.txt", _lines(trials))


def _libri2mix_diarization(folder: Path, source: Path) -> None:
    for split, part in (("train", "train"), ("valid", "dev"), ("test", "test")):
        tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk", "reco2dur")}
        for record in read_mini(source, split):
            name = record["id"]
            tables["wav.scp"].append(f"{name} {(source / record['path']).absolute()}")
            tables["reco2dur"].append(f"{name} {record['duration']:.6f}")
            for index, (speaker, start, end) in enumerate(record["turns"]):
                utterance = f"{speaker}_{name}_{index}"
                tables["segments"].append(f"{utterance} {name} {start:.3f} {end:.3f}")
                tables["utt2spk"].append(f"{utterance} {speaker}")
        for name, lines in tables.items():
            write_text(folder / part / name, _lines(lines))


def _libri2mix(folder: Path, source: Path) -> None:
    for split, part in (("train", "train-100"), ("valid", "dev"), ("test", "test")):
        for record in read_mini(source, split):
            for path, kind in zip((record["path"], *record["sources"]), ("mix_clean", "s1", "s2"), strict=True):
                _copy(source / path, folder / part / kind / f"{record['id']}.wav")


def _voicebank(folder: Path, source: Path) -> None:
    for split, part in (("train", "trainset_28spk"), ("valid", "trainset_28spk"), ("test", "testset")):
        for number, record in enumerate(read_mini(source, split)):
            # The usual split validates on the talkers p226 and p287.
            talker = {"train": "p001", "valid": "p226", "test": "p002"}[split]
            for path, kind in ((record["path"], "noisy"), (record["clean"], "clean")):
                _copy(source / path, folder / f"{kind}_{part}_wav_16k" / f"{talker}_{number:03d}.wav")


def _iemocap(folder: Path, source: Path) -> None:
    for record in read_mini(source, "train"):
        session = f"Session{record['session']}"
        dialogue = f"{record['speaker']}_impro01"
        name = f"{dialogue}_{record['id'].rpartition('-')[2]}"
        _copy(source / record["path"], folder / session / "sentences/wav" / dialogue / f"{name}.wav")
        listing = folder / session / "dialog/EmoEvaluation" / f"{dialogue}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        with open(listing, "a", encoding="utf-8") as file:
            file.write(f"[0.0000 - {record['duration']:.4f}]\t{name}\t{record['emotion']}\t[2.5000, 2.5000, 2.5000]\n")


def _fluent_speech_commands(folder: Path, source: Path) -> None:
    known = [record["intent"] for record in read_mini(source, "train")]
    for split in ("train", "valid", "test"):
        rows = []
        for record in read_mini(source, split):
            # s3prl knows the intents of the training set alone; a small one may lack a few.
            if any(all(intent[slot] != value for intent in known) for slot, value in record["intent"].items()):
                continue
            place = f"wavs/speakers/{record['speaker']}/{record['id']}.wav"
            _copy(source / record["path"], folder / place)
            rows.append(
                {"path": place, "speakerId": record["speaker"], "transcription": record["text"], **record["intent"]}
            )
        (folder / "data").mkdir(exist_ok=True)
        with open(folder / "data" / f"{split}_data.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _snips(folder: Path, source: Path) -> None:
    talkers = {"train": "Ivy", "valid": "Amy", "test": "Emma"}
    lines, slots = [], set()
    for split, talker in talkers.items():
        for number, record in enumerate(read_mini(source, split)):
            name = f"{talker}-{split}-{number:04d}"
            _copy(source / record["path"], folder / split / f"{name}.wav")
            words = record["text"].upper().split()
            marks = ["O"] * len(words)
            for slot, value in record["slots"]:
                slots.add(slot)
                wanted = value.upper().split()
                for start in range(len(words) - len(wanted) + 1):
                    if words[start : start + len(wanted)] == wanted and set(marks[start : start + len(wanted)]) == {
                        "O"
                    }:
                        marks[start : start + len(wanted)] = [slot] * len(wanted)
                        break
            lines.append(f"{name} BOS {' '.join(words)} EOS\tO {' '.join(marks)} O")
    write_text(folder / "all.iob.snips.txt", _lines(lines))
    write_text(folder / "slots.txt", "\n".join(["O", *sorted(slots)]))


def _vcc2020(folder: Path, source: Path) -> None:
    """Make two women and two men the targets and four others the sources; the targets record the references too."""
    from wavcube_plugins.synthetic.espeak import EspeakSynthesiser, Voice
    from wavcube_plugins.synthetic.mini import draw_sentence, make_speakers
    from wavcube_plugins.synthetic.speech import SynthesisError

    counts = {"E_train_list.txt": 30, "E_dev_list.txt": 3, "eval_list.txt": 6}
    if len(read_mini(source, "train")) < 100:
        counts = {"E_train_list.txt": 4, "E_dev_list.txt": 1, "eval_list.txt": 1}
    first = {"E_train_list.txt": 10001, "E_dev_list.txt": 10061, "eval_list.txt": 30001}
    numbers = {name: [f"E{first[name] + index}" for index in range(count)] for name, count in counts.items()}
    for name, found in numbers.items():
        write_text(folder / "lists" / name, _lines(found))
    people = make_speakers(8, 20, "vcc")
    women, men = (iter([one for one in people if one.gender == gender]) for gender in "fm")
    names = (*SOURCE_SPEAKERS, *TARGET_SPEAKERS)
    voices = {name: cast(Voice, next(women if name[2] == "F" else men).voice) for name in names}
    generator = random.Random(0)
    prompts = []
    with EspeakSynthesiser(sample_rate=_VC_RATE) as synthesiser:
        for name, found in numbers.items():
            speakers = names if name == "eval_list.txt" else TARGET_SPEAKERS
            for number in found:
                while True:
                    text = draw_sentence(generator)
                    try:
                        said = {who: synthesiser.speak(text, voices[who]).waveform.numpy() for who in speakers}
                        break
                    except SynthesisError:
                        continue  # an accent has a sound that the phone set does not name
                prompts.append(f"{number[1:]} {text}")
                for who, wave in said.items():
                    place = folder / who / f"{number}.wav"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    soundfile.write(place, 0.5 * wave / np.abs(wave).max(), _VC_RATE)
    write_text(folder / "prompts/Eng_transcriptions.txt", _lines(prompts))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _lines(lines: Iterable[object]) -> str:
    return "".join(f"{line}\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# By corpus: the set of speech it is made of, and the function that lays it out in a folder.
BUILDERS: Mapping[str, tuple[str, Callable[[Path, Path], None]]] = {
    "librispeech": ("read", _librispeech),
    "libriphone": ("read", _libriphone),
    "speech_commands": ("keywords", _speech_commands),
    "speech_commands_test": ("keywords", _speech_commands_test),
    "quesst14": ("read", _quesst14),
    "voxceleb1": ("read", _voxceleb1),
    "voxceleb1_verification": ("verification", _voxceleb1_verification),
    "libri2mix_diarization": ("mixture", _libri2mix_diarization),
    "libri2mix": ("mixture", _libri2mix),
    "voicebank": ("noisy", _voicebank),
    "iemocap": ("emotion", _iemocap),
    "fluent_speech_commands": ("commands", _fluent_speech_commands),
    "snips": ("commands", _snips),
    "vcc2020": ("read", _vcc2020),
}
# Files that a bench file names beside the corpora.
LISTS = {
    "lexicon": "libriphone/lexicon.txt",
    "phones": "libriphone/phones.txt",
    "voxceleb1_split": "voxceleb1/iden_split.txt",
    "voxceleb1_trials": "voxceleb1_verification/trials.txt",
    "vcc2020_lists": "vcc2020/lists",
}
