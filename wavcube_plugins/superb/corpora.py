"""What each task needs on disk: the layout of its corpus is checked, and what s3prl wants beside it is made.

Each task has a function that takes a `Site` and notes there what is found, what is missing and what was made. Nothing
in a corpus is changed; made files go below the bench's folder.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavcube_plugins.data.corpora import CorpusError, librispeech
from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.tasks import Task
from wavcube_plugins.superb.workspace import s3prl_folder

# CMU's phones with stress marks, and the two marks of s3prl's phone set.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONES = ("SIL", "SPN", *sorted([f"{vowel}{stress}" for vowel in _VOWELS for stress in "012"] + _CONSONANTS))
CHARACTERS = (" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'")

# The two talkers of VoiceBank's training set that the usual split keeps for validation.
_VOICEBANK_DEV = ("p226", "p287")
_SS_DEV = 1000
_SHOWN = 3

_KS_CLASSES = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_SOURCE_SPEAKERS = ("SEF1", "SEF2", "SEM1", "SEM2")


@dataclass
class Site:
    """What is known of one task's files.

    Args:
        bench: The bench.
        task: The task.
        write: Make what is missing; otherwise only say what would be made.
        found: Sentences on what is there.
        missing: Sentences on what is missing, each with what to do.
        made: Sentences on what was made, or would be.
        paths: Configuration keys (dotted) and their values.
    """

    bench: Bench
    task: Task
    write: bool = False
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    paths: dict[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return not self.missing

    @property
    def folder(self) -> Path:
        return self.bench.prepared(self.task)

    def corpus(self, name: str, what: str) -> Path | None:
        """Return a corpus, or None and a note that it is missing."""
        path = self.bench.corpora.get(name)
        if path is None:
            self.missing.append(f"`corpora` of the bench file has no {name!r}: {what}")
        elif not path.exists():
            self.missing.append(f"{name}: {path} does not exist: {what}")
            return None
        return path

    def folders(self, root: Path, names: Iterable[str]) -> bool:
        """Note which folders of a corpus are missing, and return whether all are there."""
        lost = [name for name in names if not (root / name).is_dir()]
        if lost:
            self.missing.append(f"{root}: the folder {', '.join(lost[:_SHOWN])} is missing" + _more(lost))
        return not lost

    def files(self, root: Path, names: Sequence[str | os.PathLike], what: str) -> bool:
        """Note which of many files are missing, and return whether all are there."""
        lost = [str(name) for name in names if not (root / name).is_file()]
        if lost:
            named = ", ".join(lost[:_SHOWN])
            self.missing.append(f"{root}: {len(lost)} of {len(names)} {what} are missing: {named}" + _more(lost))
        else:
            self.found.append(f"{root}: {len(names)} {what}")
        return not lost

    def make(self, path: Path, what: str, content: Callable[[], str | Iterable[str]]) -> Path:
        """Write a text file unless it is there, and note it.

        Args:
            path: The file.
            what: In words.
            content: Called if it must be made: the text, or its lines.
        """
        if path.is_file():
            self.found.append(f"{path}: {what}")
            return path
        if self.write and self.ready:
            try:
                text = content()
                text = text if isinstance(text, str) else "".join(f"{line}\n" for line in text)
            except (ValueError, OSError) as error:
                self.missing.append(f"{path} cannot be made: {error}")
                return path
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.ready:
            self.made.append(f"{path}: {what}")
        return path

    def of_s3prl(self, name: str, own: str, what: str, remedy: str) -> Path | None:
        """Return a list that s3prl's clone brings and its wheel does not, or the user's own of the bench file.

        Args:
            name: Its place in s3prl.
            own: Its name in the bench file's `corpora`.
            what: In words.
            remedy: What to do if it is nowhere.
        """
        given = self.bench.corpora.get(own)
        if given is not None:
            if given.is_file():
                self.found.append(f"{given}: {what}")
                return given
            self.missing.append(f"{own}: {given} does not exist: {what}")
            return None
        path = s3prl_folder(self.bench.s3prl) / name
        if path.is_file():
            self.found.append(f"{path}: {what}")
            return path
        self.missing.append(f"{what} is missing, s3prl's wheel has none: {remedy}")
        return None


def survey(bench: Bench, task: Task, *, write: bool = False) -> Site:
    """Check a task's corpus, and make what s3prl needs beside it.

    Args:
        bench: The bench.
        task: One of its tasks.
        write: Make files; otherwise only say which would be made.
    """
    site = Site(bench, task, write)
    # Lists made of other corpora would answer for these.
    stamp = site.folder / ".corpora.json"
    corpora = json.dumps({name: str(path) for name, path in sorted(bench.corpora.items())})
    if write and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == corpora):
        shutil.rmtree(site.folder, ignore_errors=True)
        with atomic_path(stamp) as temporary:
            temporary.write_text(corpora, encoding="utf-8")
    _SURVEYS[task.name](site)
    return site


# LibriSpeech --------------------------------------------------------------------------------------------------------

_LIBRISPEECH = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


def _librispeech(site: Site) -> Path | None:
    root = site.corpus("librispeech", "LibriSpeech with train-clean-100, dev-clean and test-clean (openslr.org/12)")
    return root if root is not None and site.folders(root, _LIBRISPEECH.values()) else None


def _pr(site: Site) -> None:
    corpus = "downstream_expert.corpus."
    ready = site.bench.corpora.get("libriphone")
    lexicons = _lexicons(site)
    given = site.bench.corpora.get("phones")
    phones = given or site.make(site.folder / "phones.txt", "the phone set", lambda: PHONES)
    site.paths = {
        corpus + "csv_dir": str(ready or site.folder),
        corpus + "lexicon": [str(path) for path in lexicons],
        "downstream_expert.text.vocab_file": str(phones),
    }
    if ready is not None:
        site.files(ready, [f"{part}.csv" for part in _LIBRISPEECH], "tables of files and transcriptions")
        return
    root = _librispeech(site)
    if root is None or not lexicons:
        return
    done = all((site.folder / f"{part}.csv").is_file() for part in _LIBRISPEECH)
    words = set() if done else _words_of(lexicons)
    for part, name in _LIBRISPEECH.items():

        def table(name: str = name) -> Iterable[str]:
            rows, unknown = ["wav_path,transcription"], set()
            for audio, text in _transcripts(root, name):
                unknown |= set(text.split()) - words
                rows.append(f"{audio},{text}")
            if unknown:
                shown = ", ".join(sorted(unknown)[:_SHOWN])
                raise ValueError(
                    f"{root / name}: {len(unknown)} words are in no lexicon, {shown} among them; add them to a lexicon"
                )
            return rows

        site.make(site.folder / f"{part}.csv", f"files and transcriptions of {name}", table)


def _lexicons(site: Site) -> list[Path]:
    given = site.bench.corpora.get("lexicon")
    if given is not None:
        if not given.is_file():
            site.missing.append(f"lexicon: {given} does not exist")
        return [given]
    folder = s3prl_folder(site.bench.s3prl) / "downstream/ctc/lexicon"
    names = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        site.missing.append(
            "a lexicon from words to phones is missing, s3prl's wheel has none: name a clone with `s3prl`, or a file "
            "of lines 'WORD PHONE PHONE …' as `lexicon` of the bench file's `corpora`"
        )
    return found


def _asr(site: Site) -> None:
    root = _librispeech(site)
    data = "downstream_expert.datarc."
    lengths = site.folder / "lengths"
    site.paths = {data + "libri_root": str(root), data + "bucket_file": str(lengths)}
    # One symbol and a count per line; the counts have no meaning here.
    symbols = ("|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    path = site.make(site.folder / "char.dict", "characters", lambda: (f"{symbol} 1" for symbol in symbols))
    site.paths[data + "dict_path"] = str(path)
    if root is None:
        return
    for name in _LIBRISPEECH.values():

        def table(name: str = name) -> Iterable[str]:
            files = [audio for audio, _ in _transcripts(root, name)]
            frames = _frames(files, site.task.title)
            order = sorted(range(len(files)), key=frames.__getitem__, reverse=True)
            yield ",file_path,length,label"
            for index, number in enumerate(order):
                yield f"{index},{files[number].relative_to(root).as_posix()},{frames[number]},"

        site.make(lengths / f"{name}.csv", f"lengths of {name}", table)


def _transcripts(root: Path, part: str) -> Iterator[tuple[Path, str]]:
    """Yield the audio files and texts of a part of LibriSpeech, in order."""
    for utterance in librispeech.read(root, [part]):
        if not utterance.path.is_file():
            raise CorpusError(f"{utterance.path}: has a transcript but is missing")
        yield utterance.path, utterance.text or ""


def _words_of(lexicons: Sequence[Path]) -> set[str]:
    lines = (line for path in lexicons for line in path.read_text(encoding="utf-8").splitlines())
    return {line.split()[0] for line in lines if line.strip()}


def _frames(files: Sequence[Path], title: str) -> list[int]:
    """Return the samples in each file, from the headers."""
    import soundfile
    from tqdm import tqdm

    with ThreadPoolExecutor(8) as pool:
        lengths = pool.map(lambda path: soundfile.info(str(path)).frames, files)
        return list(tqdm(lengths, total=len(files), desc=f"lengths, {title.lower()}", unit="file"))


# Words and queries --------------------------------------------------------------------------------------------------


def _ks(site: Site) -> None:
    data = "downstream_expert.datarc."
    archive = "speech_commands_{}v0.01.tar.gz of download.tensorflow.org/data"
    root = site.corpus("speech_commands", archive.format(""))
    test = site.corpus("speech_commands_test", archive.format("test_set_"))
    site.paths = {data + "speech_commands_root": str(root), data + "speech_commands_test_root": str(test)}
    if root is not None and site.folders(root, (*_KS_CLASSES, "_background_noise_")):
        count = sum(1 for _ in root.glob("*/*.wav"))
        noises = list((root / "_background_noise_").glob("*.wav"))
        if not noises:
            site.missing.append(f"{root}/_background_noise_: no wav file, so that the class _silence_ is empty")
        site.found.append(f"{root}: {count} files, {len(noises)} of noise")
    if test is not None and site.folders(test, (*_KS_CLASSES, "_unknown_", "_silence_")):
        site.found.append(f"{test}: {sum(1 for _ in test.glob('*/*.wav'))} files")


def _qbe(site: Site) -> None:
    root = site.corpus("quesst14", "quesst14Database.tgz of speech.fit.vutbr.cz/files")
    site.paths = {"downstream_expert.datarc.dataset_root": str(root)}
    if root is None:
        return
    lists = [f"scoring/language_key_{name}.lst" for name in ("utterances", "dev", "eval")]
    if not site.files(root, lists, "lists of languages"):
        return
    names = [
        re.sub(r"^.*?/", "", line.split()[0])
        for listing in lists
        for line in (root / listing).read_text(encoding="utf-8").splitlines()
        if line.split()[-1:] == ["nnenglish"]
    ]
    site.files(root, names, "English queries and documents")
    for split in ("dev", "eval"):
        if quesst_truth(root, split) is None:
            site.missing.append(f"{root}/scoring/groundtruth_quesst14_{split}: no .rttm file with the ground truth")


def quesst_truth(root: Path, split: str) -> Path | None:
    """Return QUESST's ground truth of a split, "dev" or "eval", or None."""
    found = sorted((root / "scoring" / f"groundtruth_quesst14_{split}").glob("*.rttm"))
    return found[0] if found else None


# Speakers -----------------------------------------------------------------------------------------------------------


def _voxceleb1(site: Site, name: str = "voxceleb1") -> Path | None:
    root = site.corpus(name, "VoxCeleb1 with dev/wav and test/wav (robots.ox.ac.uk/~vgg/data/voxceleb)")
    return root if root is not None and site.folders(root, ("dev/wav", "test/wav")) else None


def _sid(site: Site) -> None:
    root = _voxceleb1(site)
    listing = site.of_s3prl(
        "downstream/voxceleb1/veri_test_class.txt",
        "voxceleb1_split",
        "the split of VoxCeleb1 for identification",
        "name a clone with `s3prl`, or VoxCeleb1's iden_split.txt as `voxceleb1_split` of the bench file's `corpora`",
    )
    data = "downstream_expert.datarc."
    site.paths = {data + "file_path": str(root), data + "meta_data": str(listing)}
    if root is None or listing is None:
        return
    rows = [line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    places = [row[1] for row in rows]
    lost = [place for place in places if not any((root / part / "wav" / place).is_file() for part in _parts(root))]
    if lost:
        site.missing.append(
            f"{root}: {len(lost)} of {len(places)} files of the split are missing: {lost[0]}" + _more(lost)
        )
    else:
        site.found.append(f"{root}: {len(places)} files of the split")
    wrong = [
        place for place in places if not re.match(r"id(1\d{4})/", place) or not 0 <= int(place[2:7]) - 10001 < 1251
    ]
    if wrong:
        site.missing.append(f"{listing}: speakers must be id10001 to id11251, found {wrong[0]}")


def _parts(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.is_dir()]


def _asv(site: Site) -> None:
    # A set of its own where there is one, as in the mini SUPERB, where identification knows all speakers.
    own = "voxceleb1_verification"
    root = _voxceleb1(site, own if own in site.bench.corpora else "voxceleb1")
    trials = site.of_s3prl(
        "downstream/sv_voxceleb1/voxceleb1_test_v2.txt",
        "voxceleb1_trials",
        "the trials of VoxCeleb1-O",
        "name a clone with `s3prl`, or VoxCeleb1's veri_test2.txt as `voxceleb1_trials` of the bench file's `corpora`",
    )
    data = "downstream_expert.datarc."
    site.paths = {data + "file_path": str(root), data + "train_meta_data": None}
    # s3prl reads a dev list and, in its log, pairs the test list in any case: so dev is the test list, and never used.
    site.paths |= {data + "dev_meta_data": str(trials), data + "test_meta_data": str(trials)}
    if root is None or trials is None:
        return
    rows = [line.split() for line in trials.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [row for row in rows if len(row) != 3 or row[0] not in "01"]
    if wrong:
        site.missing.append(f"{trials}: expected lines '1 file file' and '0 file file', found {' '.join(wrong[0])!r}")
        return
    site.files(root / "test/wav", sorted({place for row in rows for place in row[1:]}), "files of the trials")
    table = asv_lengths(site.bench)
    if table.is_file():
        site.found.append(f"{table}: lengths without silence")
    elif site.ready:
        site.made.append(f"{table}: lengths without silence (made when it is run)")


def asv_lengths(bench: Bench) -> Path:
    """The file in which s3prl keeps the lengths of VoxCeleb1's training files without their silence."""
    return bench.code / "s3prl/downstream/sv_voxceleb1/.wav_lengths/Voxceleb1_length.pt"


def _sd(site: Site) -> None:
    what = "a folder with train, dev and test in Kaldi's form, as s3prl's LibriMix preparation makes them"
    root = site.corpus("libri2mix_diarization", what)
    loader = "downstream_expert.loaderrc."
    if root is None or not site.folders(root, ("train", "dev", "test")):
        return
    for part in ("train", "dev", "test"):
        source, folder = root / part, site.folder / part
        site.paths[f"{loader}{part}_dir"] = str(folder)
        if not site.files(source, ("wav.scp", "segments", "utt2spk"), "Kaldi files"):
            continue
        for name in ("wav.scp", "segments", "utt2spk"):
            site.make(folder / name, f"{name} of {part}", (source / name).read_text)
        site.make(folder / "spk2utt", f"utterances of the speakers of {part}", lambda source=source: _spk2utt(source))
        given = source / "reco2dur"
        site.make(
            folder / "reco2dur",
            f"durations of {part}",
            given.read_text if given.is_file() else lambda source=source: _reco2dur(source, site.task.title),
        )
    rttm = root / "test" / "rttm"
    site.make(
        site.folder / "test" / "rttm",
        "turns of the test set",
        rttm.read_text if rttm.is_file() else lambda: _rttm(root / "test"),
    )


def _table(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _spk2utt(folder: Path) -> Iterable[str]:
    speakers: dict[str, list[str]] = {}
    for utterance, speaker in _table(folder / "utt2spk"):
        speakers.setdefault(speaker, []).append(utterance)
    return (f"{speaker} {' '.join(utterances)}" for speaker, utterances in sorted(speakers.items()))


def _reco2dur(folder: Path, title: str) -> Iterable[str]:
    import soundfile

    rows = _table(folder / "wav.scp")
    files = [Path(row[1]) for row in rows]
    frames = _frames(files, title)
    rates = [soundfile.info(str(path)).samplerate for path in files[:1]]
    return (f"{row[0]} {count / rates[0]:.6f}" for row, count in zip(rows, frames, strict=True))


def _rttm(folder: Path) -> Iterable[str]:
    speakers = {row[0]: row[1] for row in _table(folder / "utt2spk")}
    for utterance, recording, start, end in _table(folder / "segments"):
        length = float(end) - float(start)
        yield f"SPEAKER {recording} 1 {float(start):.3f} {length:.3f} <NA> <NA> {speakers[utterance]} <NA> <NA>"


# Emotions, intents, slots -------------------------------------------------------------------------------------------


def _er(site: Site) -> None:
    root = site.corpus("iemocap", "IEMOCAP with Session1 to Session5 (sail.usc.edu/iemocap)")
    data = "downstream_expert.datarc."
    site.paths = {data + "root": str(root), data + "meta_data": str(site.folder)}
    sessions = [f"Session{number}" for number in range(1, 6)]
    kinds = ("dialog/EmoEvaluation", "sentences/wav")
    if root is None or not site.folders(root, [f"{session}/{kind}" for session in sessions for kind in kinds]):
        return
    done = all(
        (site.folder / session / f"{part}_meta_data.json").is_file()
        for session in sessions
        for part in ("train", "test")
    )
    utterances = {} if done else {session: _emotions(root, session) for session in sessions}
    for session, found in utterances.items():
        if not found:
            site.missing.append(f"{root / session}: no utterance with one of the four emotions")
    for session in sessions:
        for part in ("train", "test"):
            chosen = [session] if part == "test" else [other for other in sessions if other != session]

            def table(chosen: list[str] = chosen) -> str:
                rows = [row for name in chosen for row in utterances[name]]
                return json.dumps({"labels": {"neu": 0, "hap": 1, "ang": 2, "sad": 3}, "meta_data": rows})

            site.make(site.folder / session / f"{part}_meta_data.json", f"{part} list of {session}'s fold", table)


def _emotions(root: Path, session: str) -> list[dict[str, str]]:
    """Return a session's utterances that are neutral, happy (or excited), angry or sad."""
    audio = {path.stem: path.relative_to(root).as_posix() for path in (root / session / "sentences/wav").rglob("*.wav")}
    rows = []
    for listing in sorted((root / session / "dialog/EmoEvaluation").glob("*.txt")):
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            # [6.29 - 8.23]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
            parts = [part for part in line.split("\t") if part]
            if not line.startswith("[") or len(parts) < 3 or parts[1] not in audio:
                continue
            emotion = "hap" if parts[2] == "exc" else parts[2]
            if emotion in ("neu", "hap", "ang", "sad"):
                rows.append({"path": audio[parts[1]], "label": emotion, "speaker": parts[1].split("_")[0]})
    return rows


def _ic(site: Site) -> None:
    root = site.corpus("fluent_speech_commands", "fluent_speech_commands_dataset, with data/ and wavs/")
    site.paths = {"downstream_expert.datarc.file_path": str(root)}
    tables = [f"data/{part}_data.csv" for part in ("train", "valid", "test")]
    if root is None or not site.files(root, tables, "tables"):
        return
    paths, known = [], {}
    for table in tables:
        with open(root / table, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            lost = {"path", "action", "object", "location"} - set(rows.fieldnames or ())
            if lost:
                site.missing.append(f"{root / table}: the column {sorted(lost)[0]} is missing")
            else:
                found = list(rows)
                paths += [row["path"] for row in found]
                values = {(slot, row[slot]) for row in found for slot in ("action", "object", "location")}
                known = known or values
                for slot, value in sorted(values - known)[:1]:
                    site.missing.append(f"{root / table}: the {slot} {value!r} does not occur in {tables[0]}")
    site.files(root, paths, "audio files")


def _sf(site: Site) -> None:
    root = site.corpus("snips", "Audio SNIPS as s3prl's preparation leaves it: train, valid, test, all.iob.snips.txt")
    site.paths = {"downstream_expert.corpus.path": str(root), "downstream_expert.text.slots_file": f"{root}/slots.txt"}
    characters = site.make(site.folder / "characters.txt", "characters", lambda: CHARACTERS)
    site.paths["downstream_expert.text.vocab_file"] = str(characters)
    if root is None or not site.folders(root, ("train", "valid", "test")):
        return
    if not site.files(root, ("all.iob.snips.txt", "slots.txt"), "lists"):
        return
    lines = (root / "all.iob.snips.txt").read_text(encoding="utf-8").splitlines()
    texts = {line.split(" ", 1)[0] for line in lines}
    for part in ("train", "valid", "test"):
        files = list((root / part).rglob("*.wav"))
        known = sum(file.stem in texts for file in files)
        if not known:
            site.missing.append(f"{root / part}: none of {len(files)} wav files has a text in all.iob.snips.txt")
        site.found.append(f"{root / part}: {known} files with texts, {len(files) - known} without")


# Enhancement, separation, conversion --------------------------------------------------------------------------------


def _se(site: Site) -> None:
    root = site.corpus(
        "voicebank", "VoiceBank-DEMAND at 16 kHz: folders clean_… and noisy_… of trainset_28spk and testset"
    )
    loader = "downstream_expert.loaderrc."
    site.paths = {f"{loader}{part}_dir": str(site.folder / part) for part in ("train", "dev", "test")}
    if root is None:
        return
    folders = {}
    for kind in ("clean", "noisy"):
        for part, name in (("train", "trainset_28spk"), ("test", "testset")):
            names = [f"{kind}_{name}_wav_16k", f"{kind}_{name}_wav"]
            found = [root / one for one in names if (root / one).is_dir()]
            if not found:
                site.missing.append(f"{root}: the folder {names[0]} (or {names[1]}, at 16 kHz) is missing")
            folders[kind, part] = found[0] if found else None
    if None in folders.values():
        return
    for part in ("train", "dev", "test"):
        for kind in ("clean", "noisy"):
            files = sorted(folders[kind, "test" if part == "test" else "train"].glob("*.wav"))
            dev = [path for path in files if path.stem.split("_")[0] in _VOICEBANK_DEV]
            chosen = {"test": files, "dev": dev, "train": [path for path in files if path not in set(dev)]}[part]
            if not chosen:
                site.missing.append(f"{folders[kind, 'train']}: no file of {part}")
            site.make(
                site.folder / part / kind / "wav.scp",
                f"{len(chosen)} {kind} files of {part}",
                lambda chosen=chosen: (f"{path.stem} {path}" for path in chosen),
            )


def _ss(site: Site) -> None:
    root = site.corpus("libri2mix", "Libri2Mix, its folder wav16k/min with train-100, dev and test")
    loader = "downstream_expert.loaderrc."
    site.paths = {f"{loader}{part}_dir": str(site.folder / part) for part in ("train", "dev", "test")}
    names = {"train": "train-100", "dev": "dev", "test": "test"}
    kinds = ("mix_clean", "s1", "s2")
    if root is None or not site.folders(root, [f"{name}/{kind}" for name in names.values() for kind in kinds]):
        return
    for part, name in names.items():
        stems = sorted(path.stem for path in (root / name / "mix_clean").glob("*.wav"))
        if part == "dev" and len(stems) > _SS_DEV:  # s3prl validates on a thousand
            stems = [stems[index * len(stems) // _SS_DEV] for index in range(_SS_DEV)]
        for kind in kinds:
            if site.files(
                root / name / kind, [f"{stem}.wav" for stem in stems], "mixtures" if kind == "mix_clean" else kind
            ):
                site.make(
                    site.folder / part / kind / "wav.scp",
                    f"{len(stems)} files of {part}/{kind}",
                    lambda stems=stems, kind=kind, name=name: (
                        f"{stem} {root / name / kind / stem}.wav" for stem in stems
                    ),
                )


def _vc(site: Site) -> None:
    root = site.corpus(
        "vcc2020", "VCC2020's database, with SEF1 … SEM2 and TEF1 … TEM2 (github.com/nii-yamagishilab/VCC2020-database)"
    )
    data = "downstream_expert.datarc."
    lists = site.folder / "lists"
    site.paths = {
        data + "data_root": str(root), data + "lists_root": str(lists), data + "stats_root": str(site.folder / "stats"),
        "downstream_expert.trgspk": site.task.variants[0],
    }  # fmt: skip
    # The challenge's numbers: 70 sentences to train on, of which s3prl validates on the last ten, and 25 to convert.
    wanted = {
        "E_train_list.txt": [f"E{number}" for number in range(10001, 10061)],
        "E_dev_list.txt": [f"E{number}" for number in range(10061, 10071)],
        "eval_list.txt": [f"E{number}" for number in range(30001, 30026)],
    }
    clone = s3prl_folder(site.bench.s3prl) / "downstream/a2o-vc-vcc2020/data/lists"
    for name in wanted:
        given = site.bench.corpora.get("vcc2020_lists", clone) / name
        if given.is_file():
            wanted[name] = given.read_text(encoding="utf-8").split()
        site.make(lists / name, f"{len(wanted[name])} sentences", lambda name=name: wanted[name])
    targets = site.bench.variants.get("vc", list(site.task.variants))
    if root is None or not site.folders(root, (*_SOURCE_SPEAKERS, *targets)):
        return
    for speaker in targets:
        names = [
            f"{speaker}/{number}.wav" for name in ("E_train_list.txt", "E_dev_list.txt") for number in wanted[name]
        ]
        here = sum((root / name).is_file() for name in names)
        if not here:
            site.missing.append(f"{root / speaker}: none of the {len(names)} sentences of the training lists is here")
        site.found.append(f"{root / speaker}: {here} of {len(names)} sentences to train on")
        site.files(root, [f"{speaker}/{number}.wav" for number in wanted["eval_list.txt"]], f"references of {speaker}")
    sources = [f"{speaker}/{number}.wav" for number in wanted["eval_list.txt"] for speaker in _SOURCE_SPEAKERS]
    site.files(root, sources, "sentences to convert")


def _more(lost: Sequence[object]) -> str:
    return " …" if len(lost) > _SHOWN else ""


_SURVEYS: Mapping[str, Callable[[Site], None]] = {
    "pr": _pr, "asr": _asr, "ks": _ks, "qbe": _qbe, "sid": _sid, "asv": _asv, "sd": _sd, "er": _er, "ic": _ic,
    "sf": _sf, "se": _se, "ss": _ss, "vc": _vc,
}  # fmt: skip
