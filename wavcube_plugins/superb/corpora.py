"""What each task needs on disk: the corpus is checked, and what s3prl wants beside it is made.

Each task has a function that takes a `Site` and notes there what is found, what is missing and what was made. Layouts
are read by `wavcube_plugins.data.corpora`. Nothing in a corpus is changed; made files go below the bench's folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wavcube_plugins.data.corpora import (
    CorpusError,
    Record,
    fluent_speech_commands,
    iemocap,
    libri2mix,
    librispeech,
    quesst14,
    snips,
    speech_commands,
    vcc2020,
    voicebank,
    voxceleb,
)
from wavcube_plugins.data.corpora.layout import find_root
from wavcube_plugins.data.kaldi import read_table
from wavcube_plugins.files import atomic_path
from wavcube_plugins.superb.bench import Bench
from wavcube_plugins.superb.site import Site
from wavcube_plugins.superb.tasks import Task
from wavcube_plugins.superb.workspace import s3prl_folder

# CMU's phones with stress marks, and the two marks of s3prl's phone set.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONES = ("SIL", "SPN", *sorted([f"{vowel}{stress}" for vowel in _VOWELS for stress in "012"] + _CONSONANTS))
CHARACTERS = (" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'")

_SS_DEV = 1000
_EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}


def survey(bench: Bench, task: Task, *, write: bool = False) -> Site:
    """Check a task's corpus, and make what s3prl needs beside it.

    Args:
        bench: The bench.
        task: One of its tasks.
        write: Make files; otherwise only say which would be made.
    """
    site = Site(bench, task, write)
    # Lists that were made from other corpora would be taken for those of these.
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
    if root is None:
        return None
    return site.attempt(lambda: find_root(root, "LibriSpeech", list(_LIBRISPEECH.values())))


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

        def table(name: str = name) -> list[str]:
            return _phone_table(root, name, words)

        site.make(site.folder / f"{part}.csv", f"files and transcriptions of {name}", table)


def _phone_table(root: Path, part: str, words: set[str]) -> list[str]:
    rows, unknown = ["wav_path,transcription"], set()
    for audio, text in _transcripts(root, part):
        unknown |= set(text.split()) - words
        rows.append(f"{audio},{text}")
    if unknown:
        shown = ", ".join(sorted(unknown)[:3])
        raise CorpusError(
            f"{root / part}: {len(unknown)} words are in no lexicon, {shown} among them; add them to a lexicon"
        )
    return rows


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

        def table(name: str = name) -> Iterator[str]:
            return _length_table(root, name, site.task.title)

        site.make(lengths / f"{name}.csv", f"lengths of {name}", table)


def _length_table(root: Path, part: str, title: str) -> Iterator[str]:
    files = [audio for audio, _ in _transcripts(root, part)]
    frames = _frames(files, title)
    order = sorted(range(len(files)), key=frames.__getitem__, reverse=True)
    yield ",file_path,length,label"
    for index, number in enumerate(order):
        yield f"{index},{files[number].relative_to(root).as_posix()},{frames[number]},"


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
    if root is not None:
        found = site.attempt(lambda: list(speech_commands.read(root)))
        if found is not None:
            noises = sum(one.labels["word"] == speech_commands.NOISE for one in found)
            if not noises:
                site.missing.append(
                    f"{root}/{speech_commands.NOISE}: no wav file, so that the class _silence_ is empty"
                )
            site.found.append(f"{root}: {len(found)} files, {noises} of noise")
    if test is not None:
        found = site.attempt(lambda: list(speech_commands.read(test, speech_commands.TEST_CLASSES)))
        if found is not None:
            site.found.append(f"{test}: {len(found)} files")


def _qbe(site: Site) -> None:
    root = site.corpus("quesst14", "quesst14Database.tgz of speech.fit.vutbr.cz/files")
    site.paths = {"downstream_expert.datarc.dataset_root": str(root)}
    if root is None:
        return
    found = site.attempt(lambda: list(quesst14.read(root)))
    if found is None:
        return
    english = [one.path.relative_to(root) for one in found if one.labels["language"] == "nnenglish"]
    site.files(root, english, "English queries and documents")
    for split in ("dev", "eval"):
        site.attempt(lambda split=split: quesst14.find_truth(root, split))


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
    found = site.attempt(lambda: list(voxceleb.read_identification(root, listing)))
    if found is None:
        return
    site.files(root, [one.path.relative_to(root) for one in found], "files of the split")
    # s3prl takes the class from the number in the name.
    wrong = [one.speaker for one in found if not _is_class(one.speaker or "")]
    if wrong:
        site.missing.append(f"{listing}: speakers must be id10001 to id11251, found {wrong[0]}")


def _is_class(speaker: str) -> bool:
    return bool(re.fullmatch(r"id1\d{4}", speaker)) and 0 <= int(speaker[2:]) - 10001 < 1251


def _asv(site: Site) -> None:
    # A set of its own where there is one, as in the mini SUPERB, where identification knows all speakers.
    own = "voxceleb1_verification"
    root = _voxceleb1(site, own if own in site.bench.corpora else "voxceleb1")
    listing = site.of_s3prl(
        "downstream/sv_voxceleb1/voxceleb1_test_v2.txt",
        "voxceleb1_trials",
        "the trials of VoxCeleb1-O",
        "name a clone with `s3prl`, or VoxCeleb1's veri_test2.txt as `voxceleb1_trials` of the bench file's `corpora`",
    )
    data = "downstream_expert.datarc."
    site.paths = {data + "file_path": str(root), data + "train_meta_data": None}
    # s3prl reads a dev list and, in its log, pairs the test list in any case: so dev is the test list, and never used.
    site.paths |= {data + "dev_meta_data": str(listing), data + "test_meta_data": str(listing)}
    if root is None or listing is None:
        return
    folder = root / "test/wav"  # s3prl looks nowhere else
    trials = site.attempt(lambda: voxceleb.read_trials(folder, listing))
    if trials is None:
        return
    paths = sorted({one.path.relative_to(folder) for trial in trials for one in (trial.one, trial.two)})
    site.files(folder, paths, "files of the trials")
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


def _spk2utt(folder: Path) -> Iterator[str]:
    speakers: dict[str, list[str]] = {}
    for utterance, speaker in read_table(folder / "utt2spk").items():
        speakers.setdefault(speaker, []).append(utterance)
    return (f"{speaker} {' '.join(utterances)}" for speaker, utterances in sorted(speakers.items()))


def _reco2dur(folder: Path, title: str) -> Iterator[str]:
    import soundfile

    recordings = read_table(folder / "wav.scp")
    files = [Path(path) for path in recordings.values()]
    frames = _frames(files, title)
    rate = soundfile.info(str(files[0])).samplerate
    return (f"{name} {count / rate:.6f}" for name, count in zip(recordings, frames, strict=True))


def _rttm(folder: Path) -> Iterator[str]:
    speakers = read_table(folder / "utt2spk")
    for utterance, segment in read_table(folder / "segments").items():
        recording, start, end = segment.split()
        length = float(end) - float(start)
        yield f"SPEAKER {recording} 1 {float(start):.3f} {length:.3f} <NA> <NA> {speakers[utterance]} <NA> <NA>"


# Emotions, intents, slots -------------------------------------------------------------------------------------------


def _er(site: Site) -> None:
    root = site.corpus("iemocap", "IEMOCAP with Session1 to Session5 (sail.usc.edu/iemocap)")
    data = "downstream_expert.datarc."
    site.paths = {data + "root": str(root), data + "meta_data": str(site.folder)}
    if root is None:
        return
    # The labels name utterances that some copies of the corpus lack.
    utterances = site.attempt(lambda: [one for one in iemocap.read(root) if one.path.is_file()])
    if utterances is None:
        return
    sessions = [f"Session{number}" for number in iemocap.SESSIONS]
    rows = {session: [_emotion(root, one) for one in utterances if one.split == session] for session in sessions}
    for session, found in rows.items():
        if not found:
            site.missing.append(f"{root / session}: no utterance with one of the four emotions")
    for session in sessions:
        for part in ("train", "test"):
            chosen = [session] if part == "test" else [other for other in sessions if other != session]

            def table(chosen: list[str] = chosen) -> str:
                return json.dumps({"labels": _EMOTIONS, "meta_data": [row for name in chosen for row in rows[name]]})

            site.make(site.folder / session / f"{part}_meta_data.json", f"{part} list of {session}'s fold", table)


def _emotion(root: Path, one: Record) -> dict[str, str]:
    # As s3prl's own lists have it, the speaker is the recording's, not who speaks.
    path = one.path.relative_to(root).as_posix()
    return {"path": path, "label": one.labels["emotion"], "speaker": one.id.split("_")[0]}


def _ic(site: Site) -> None:
    root = site.corpus("fluent_speech_commands", "fluent_speech_commands_dataset, with data/ and wavs/")
    site.paths = {"downstream_expert.datarc.file_path": str(root)}
    if root is None:
        return
    found = site.attempt(lambda: list(fluent_speech_commands.read(root)))
    if found is None:
        return
    values = {
        split: {item for one in found if one.split == split for item in one.labels.items()}
        for split in fluent_speech_commands.SPLITS
    }
    for split, own in values.items():
        for slot, value in sorted(own - values["train"])[:1]:
            site.missing.append(f"{root}/data: the {slot} {value!r} of {split} does not occur in train")
    site.files(root, [one.path.relative_to(root) for one in found], "audio files")


def _sf(site: Site) -> None:
    root = site.corpus("snips", "Audio SNIPS as s3prl's preparation leaves it: train, valid, test, all.iob.snips.txt")
    site.paths = {"downstream_expert.corpus.path": str(root), "downstream_expert.text.slots_file": f"{root}/slots.txt"}
    characters = site.make(site.folder / "characters.txt", "characters", lambda: CHARACTERS)
    site.paths["downstream_expert.text.vocab_file"] = str(characters)
    if root is None or not site.files(root, ("all.iob.snips.txt", "slots.txt"), "lists"):
        return
    found = site.attempt(lambda: list(snips.read(root)))
    if found is None:
        return
    for part in snips.SPLITS:
        texts = [one.text for one in found if one.split == part]
        known = sum(text is not None for text in texts)
        if not known:
            site.missing.append(f"{root / part}: none of {len(texts)} wav files has a text in all.iob.snips.txt")
        site.found.append(f"{root / part}: {known} files with texts, {len(texts) - known} without")


# Enhancement, separation, conversion --------------------------------------------------------------------------------


def _se(site: Site) -> None:
    root = site.corpus(
        "voicebank", "VoiceBank-DEMAND at 16 kHz: folders clean_… and noisy_… of trainset_28spk and testset"
    )
    loader = "downstream_expert.loaderrc."
    site.paths = {f"{loader}{part}_dir": str(site.folder / part) for part in ("train", "dev", "test")}
    if root is None:
        return
    found = site.attempt(lambda: list(voicebank.read(root)))
    if found is None:
        return
    if not site.files(root, [one.parallel["clean"].relative_to(root) for one in found], "clean recordings"):
        return
    parts: dict[str, list[Record]] = {"train": [], "dev": [], "test": []}
    for one in found:
        held_out = "dev" if one.speaker in voicebank.VALID_SPEAKERS else "train"
        parts["test" if one.split == "testset" else held_out].append(one)
    for part, chosen in parts.items():
        if not chosen:
            site.missing.append(f"{root}: no recordings for {part}")
        _wav_scp(site, part, "clean", {one.id: one.parallel["clean"] for one in chosen})
        _wav_scp(site, part, "noisy", {one.id: one.path for one in chosen})


def _ss(site: Site) -> None:
    root = site.corpus("libri2mix", "Libri2Mix, its folder wav16k/min with train-100, dev and test")
    loader = "downstream_expert.loaderrc."
    site.paths = {f"{loader}{part}_dir": str(site.folder / part) for part in ("train", "dev", "test")}
    if root is None:
        return
    for part, name in (("train", "train-100"), ("dev", "dev"), ("test", "test")):
        found = site.attempt(lambda name=name: list(libri2mix.read(root, [name])))
        if found is None:
            continue
        if part == "dev" and len(found) > _SS_DEV:  # s3prl validates on a thousand
            found = [found[index * len(found) // _SS_DEV] for index in range(_SS_DEV)]
        kinds = {"mix_clean": {one.id: one.path for one in found}}
        kinds |= {f"s{number}": {one.id: one.parallel[f"source_{number}"] for one in found} for number in (1, 2)}
        for kind, paths in kinds.items():
            what = "mixtures" if kind == "mix_clean" else f"recordings of {kind}"
            if site.files(root, [path.relative_to(root) for path in paths.values()], f"{what} of {part}"):
                _wav_scp(site, part, kind, paths)


def _wav_scp(site: Site, part: str, kind: str, paths: Mapping[str, Path]) -> None:
    site.make(
        site.folder / part / kind / "wav.scp",
        f"{len(paths)} files of {part}/{kind}",
        lambda: (f"{name} {path}" for name, path in paths.items()),
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
    wanted = _sentences(site)
    for name, sentences in wanted.items():
        site.make(lists / name, f"{len(sentences)} sentences", lambda sentences=sentences: sentences)
    if root is None:
        return
    targets = site.bench.variants.get("vc", list(site.task.variants))
    found = site.attempt(lambda: list(vcc2020.read(root, [*vcc2020.SOURCE_SPEAKERS, *targets])))
    if found is None:
        return
    spoken = {one.id for one in found}
    training = [number for name in ("E_train_list.txt", "E_dev_list.txt") for number in wanted[name]]
    for speaker in targets:
        here = sum(f"{speaker}/{number}" in spoken for number in training)
        if not here:
            site.missing.append(
                f"{root / speaker}: none of the {len(training)} sentences of the training lists is here"
            )
        site.found.append(f"{root / speaker}: {here} of {len(training)} sentences to train on")
        references = [f"{speaker}/{number}.wav" for number in wanted["eval_list.txt"]]
        site.files(root, references, f"references of {speaker}")
    sources = [f"{speaker}/{number}.wav" for number in wanted["eval_list.txt"] for speaker in vcc2020.SOURCE_SPEAKERS]
    site.files(root, sources, "sentences to convert")


def _sentences(site: Site) -> dict[str, Sequence[str]]:
    """Return the sentences of each of s3prl's lists: of 70 to train on, s3prl validates on the last ten."""
    wanted: dict[str, Sequence[str]] = {
        "E_train_list.txt": vcc2020.TRAINING_SENTENCES[:60],
        "E_dev_list.txt": vcc2020.TRAINING_SENTENCES[60:],
        "eval_list.txt": vcc2020.EVALUATION_SENTENCES,
    }
    clone = s3prl_folder(site.bench.s3prl) / "downstream/a2o-vc-vcc2020/data/lists"
    for name in wanted:
        given = site.bench.corpora.get("vcc2020_lists", clone) / name
        if given.is_file():
            wanted[name] = given.read_text(encoding="utf-8").split()
    return wanted


_SURVEYS: Mapping[str, Callable[[Site], None]] = {
    "pr": _pr, "asr": _asr, "ks": _ks, "qbe": _qbe, "sid": _sid, "asv": _asv, "sd": _sd, "er": _er, "ic": _ic,
    "sf": _sf, "se": _se, "ss": _ss, "vc": _vc,
}  # fmt: skip
