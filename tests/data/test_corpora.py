"""The readers of the corpora, on tiny corpora in the published layouts."""

import importlib
import pkgutil
import shutil
import subprocess
import sys

import pytest
from helpers.corpora import LAYOUTS, sound, write

from wavcube_plugins.data import corpora
from wavcube_plugins.data.corpora import CorpusError, voxceleb
from wavcube_plugins.data.corpora.quesst14 import find_truth

NAMES = sorted(module.name for module in pkgutil.iter_modules(corpora.__path__) if module.name != "layout")
# What a reader needs beside the folder to read the whole tiny corpus.
ARGUMENTS = {
    "librispeech": (["train-clean-100", "dev-clean"],),
    "libritts": (["train-clean-100", "dev-clean"],),
    "libri2mix": (["train-100", "dev", "test"],),
}


def reader(name):
    return importlib.import_module(f"wavcube_plugins.data.corpora.{name}").read


@pytest.fixture
def read(tmp_path):
    """Builds a tiny corpus and reads it; returns the utterances by id."""

    def build_and_read(name, *arguments):
        root = tmp_path / name
        if not root.exists():
            LAYOUTS[name](root)
        found = list(reader(name)(root, *(arguments or ARGUMENTS.get(name, ()))))
        assert len({(one.split, one.id) for one in found}) == len(found)
        return {one.id: one for one in found}

    return build_and_read


def test_every_reader_has_a_layout_to_be_tested_on():
    assert set(LAYOUTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recording_exists_and_lies_in_the_corpus(read, name, tmp_path):
    found = read(name)
    assert found
    for one in found.values():
        for path in (one.path, *one.parallel.values()):
            assert path.is_file() and path.is_relative_to(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_folder_is_named_in_one_sentence(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no such folder; expected") as raised:
        reader(name)(tmp_path / "missing", *ARGUMENTS.get(name, ()))
    assert str(raised.value).startswith(str(tmp_path / "missing"))
    if name not in ("speech", "voxceleb"):  # in which any folder will do
        with pytest.raises(CorpusError) as raised:
            reader(name)(tmp_path / "empty", *ARGUMENTS.get(name, ()))
        assert str(raised.value).startswith(str(tmp_path / "empty")) and "\n" not in str(raised.value)


def test_librispeech(read, tmp_path):
    one = read("librispeech")["19-198-0001"]
    assert (one.text, one.speaker, one.split) == ("IT'S LINE 1", "19", "train-clean-100")
    # Many copies have WAV files; what has neither keeps the published suffix, to be named when it is opened.
    chapter = tmp_path / "librispeech/dev-clean/22/198"
    (chapter / "22-198-0000.flac").rename(chapter / "22-198-0000.wav")
    (chapter / "22-198-0001.flac").unlink()
    found = read("librispeech", ["dev-clean"])
    assert [one.path.name for one in found.values()] == ["22-198-0000.wav", "22-198-0001.flac"]
    write(chapter / "22-198.trans.txt", "22-198-0000 WELL\r\n22-198-0001 \n")
    with pytest.raises(CorpusError, match=r"22-198\.trans\.txt, line 2: 22-198-0001 has no text"):
        read("librispeech", ["dev-clean"])
    (chapter / "22-198.trans.txt").write_bytes(b"22-198-0000 \xff\n")
    with pytest.raises(CorpusError, match=r"22-198\.trans\.txt: not UTF-8 text"):
        read("librispeech", ["dev-clean"])
    shutil.rmtree(chapter)
    with pytest.raises(CorpusError, match=r"dev-clean: found no transcripts such as 19/198/19-198\.trans\.txt"):
        read("librispeech", ["dev-clean"])


@pytest.mark.parametrize("name", ["librispeech", "libritts"])
def test_the_folder_above_the_parts_is_accepted(name, tmp_path):
    above = tmp_path / "above"
    LAYOUTS[name](above / {"librispeech": "LibriSpeech", "libritts": "LibriTTS"}[name])
    assert list(reader(name)(above, ["dev-clean"]))
    with pytest.raises(CorpusError, match="no folder dev-other in it; unpack Libri"):
        reader(name)(above, ["dev-clean", "dev-other"])


def test_libritts(read, tmp_path):
    found = read("libritts", ["dev-clean"])
    assert {name: one.text for name, one in found.items()} == {
        "103_1240_000000_000000": "Hello there.",  # the second text is empty
        "103_1240_000002_000000": "Good bye.",
    }
    text = tmp_path / "libritts/dev-clean/103/1240/103_1240_000002_000000.normalized.txt"
    text.unlink()
    with pytest.raises(CorpusError, match=r"missing beside 103_\w+\.wav; unpack LibriTTS dev-clean again"):
        read("libritts", ["dev-clean"])


def test_voxceleb(read, tmp_path):
    assert len(read("voxceleb")) == 12
    root = tmp_path / "voxceleb"
    splits = [one.split for one in voxceleb.read_identification(root)]
    assert splits == ["train", "valid", "test"] * 4
    same, different = voxceleb.read_trials(root)
    assert same.same and same.one.id == "id10004--abcd--00001" and not different.same
    # The two archives unpacked each into a folder of its own.
    (root / "test/wav").mkdir(parents=True)
    (root / "wav/id10004").rename(root / "test/wav/id10004")
    (root / "dev").mkdir()
    (root / "wav").rename(root / "dev/wav")
    assert len(read("voxceleb")) == 12
    assert all(one.path.is_file() for one in voxceleb.read_identification(root))
    write(root / "veri_test.txt", "1 a/b/c.wav a/b/d.wav\n2 a/b/c.wav a/b/d.wav\n")
    with pytest.raises(CorpusError, match=r"veri_test\.txt, line 2: expected '1 id10270"):
        voxceleb.read_trials(root)


def test_iemocap(read, tmp_path):
    one = read("iemocap")["Ses02F_impro01_M001"]
    assert (one.speaker, one.labels, one.split) == ("Ses02M", {"emotion": "hap", "session": 2}, "Session2")
    assert len(read("iemocap", [1, 3])) == 10
    assert {one.labels["emotion"] for one in read("iemocap", [1], {"fru": "frustrated"}).values()} == {"frustrated"}
    listing = tmp_path / "iemocap/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    before = len(read("iemocap", [1]))
    listing.write_bytes(listing.read_bytes() + b"\nC-E1:\tNeutral;\t(caf\xe9)\n")  # a comment in Latin 1
    write(listing.with_name("._Ses01F_impro01.txt"), listing.read_text(encoding="latin1"))
    assert len(read("iemocap", [1])) == before


def test_slurp(read):
    found = read("slurp", ["test", "train_synthetic"])
    assert [one.split for one in found.values()] == ["test"] * 2 + ["train_synthetic"] * 2
    one = found["audio--test-0"]
    assert one.text == "Wake me at Nine a.m."
    assert one.labels == {"scenario": "alarm", "action": "set", "slots": [["time", "Nine a.m."]]}


def test_voicebank_prefers_folders_at_16_khz(read, tmp_path):
    assert read("voicebank")["p232_001"].parallel["clean"].parent.name == "clean_testset_wav"
    for kind in ("noisy", "clean"):
        sound(tmp_path / "voicebank" / f"{kind}_testset_wav_16k" / "p232_002.wav")
    one = read("voicebank", ["testset"])["p232_002"]
    assert (one.path.parent.name, one.parallel["clean"].parent.name) == (
        "noisy_testset_wav_16k",
        "clean_testset_wav_16k",
    )


def test_libri2mix_is_found_from_three_folders(tmp_path):
    LAYOUTS["libri2mix"](tmp_path / "Libri2Mix")
    for root in (tmp_path, tmp_path / "Libri2Mix", tmp_path / "Libri2Mix/wav16k/min"):
        (one,) = reader("libri2mix")(root, ["dev"], mixtures="mix_both")
        assert one.path == tmp_path / "Libri2Mix/wav16k/min/dev/mix_both/1-2-3_4-5-6.wav"
        assert [path.parent.name for path in one.parallel.values()] == ["s1", "s2"]


def test_vctk(read, tmp_path):
    found = read("vctk")
    assert len(found) == 117 and found["p226_004"].text == "Please call Stella."  # one has no transcript
    assert found["p226_004"].labels == {"number": "004"}
    old = tmp_path / "vctk/wav48_silence_trimmed"
    shutil.rmtree(old)
    sound(tmp_path / "vctk/wav48/p225/p225_001.wav")
    assert [one.path.suffix for one in read("vctk").values()] == [".wav"]


def test_speech_commands(read, tmp_path):
    found = read("speech_commands")
    assert found["yes/0a7c2a8d_nohash_0"].speaker == "0a7c2a8d" and len(found) == 12
    assert found["_background_noise_/white_noise"].speaker is None
    with pytest.raises(CorpusError, match="_unknown_: no such folder; expected a class of Speech Commands"):
        read("speech_commands", ["yes", "_unknown_"])


def test_quesst14(read, tmp_path):
    found = read("quesst14")
    assert [one.split for one in found.values()] == ["utterances"] * 2 + ["dev"] * 2 + ["eval"] * 2
    assert found["quesst14_dev_0"].labels == {"language": "nnenglish"}
    assert find_truth(tmp_path / "quesst14", "eval").name == "truth.rttm"
    write(tmp_path / "quesst14/scoring/language_key_dev.lst", "quesst14/x.wav\n")
    with pytest.raises(CorpusError, match=r"language_key_dev\.lst, line 1: expected 'quesst14/Audio/"):
        read("quesst14")


def test_fluent_speech_commands(read, tmp_path):
    one = read("fluent_speech_commands")["valid-1"]
    assert (one.split, one.speaker, one.text) == ("valid", "abc", "Lights on, please")
    assert one.labels == {"action": "activate", "object": "lights", "location": "none"}
    table = tmp_path / "fluent_speech_commands/data/test_data.csv"
    write(table, "path,action,object\nx.wav,a,b\n")
    with pytest.raises(CorpusError, match=r"test_data\.csv: the column location is missing"):
        read("fluent_speech_commands")
    write(table, "path,action,object,location\nx.wav,a\n")
    with pytest.raises(CorpusError, match=r"test_data\.csv, line 2: has fewer values than columns"):
        read("fluent_speech_commands")


def test_snips(read):
    found = read("snips")
    assert (found["Ivy-test-0"].text, found["Ivy-test-0"].labels) == ("PLAY SONGS", {"marks": ["O", "B-music_item"]})
    assert found["Ivy-test-1"].text is None and len(found) == 6


def test_vcc2020(read):
    found = read("vcc2020", ["SEF1", "TEM2"])
    assert list(found) == ["SEF1/E10001", "SEF1/E30001", "TEM2/E10001", "TEM2/E30001"]


def test_the_readers_need_neither_torch_nor_a_toolkit():
    names = ", ".join(name for name in NAMES if name != "speech")  # which knows the suffixes of audio files
    code = f"import sys; from wavcube_plugins.data.corpora import {names}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "soundfile", "espnet2", "speechbrain", "s3prl"} & set(loaded)
