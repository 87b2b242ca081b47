"""Manifests of the standard corpora, from tiny corpora in the published layouts."""

import json
import subprocess
import sys

import pytest
from helpers.corpora import LAYOUTS, libri2mix, sound, write
from helpers.paths import ROOT

from wavcube_plugins.audio import AudioError
from wavcube_plugins.data.corpora import CorpusError
from wavcube_plugins.speechbrain import corpora
from wavcube_plugins.speechbrain.corpora import CORPORA
from wavcube_plugins.speechbrain.manifests import AUDIO_KEYS, PREPARED_NAME

SCRIPT = ROOT / "speechbrain_hparams" / "prepare.py"


@pytest.fixture
def made(tmp_path):
    """Makes a corpus and prepares it; returns the manifests by name."""

    def make(name, **options):
        root = tmp_path / name
        if not root.is_dir():
            LAYOUTS[name](root)
        CORPORA[name](root, tmp_path / "manifests", **options)
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "manifests").glob("*.json")}

    return make


@pytest.mark.parametrize("name", CORPORA)
def test_paths_lie_below_the_root_and_exist(made, name, tmp_path):
    manifests = made(name)
    assert {"train", "valid"} <= set(manifests)
    for split, manifest in manifests.items():
        if split in ("prepared", "trials"):
            continue
        assert manifest
        for entry in manifest.values():
            assert entry["duration"] > 0
            for key in AUDIO_KEYS:
                if key in entry:
                    assert entry[key].startswith("{data_root}/")
                    assert (tmp_path / name / entry[key].removeprefix("{data_root}/")).is_file()
    paths = [
        [entry["wav"] for entry in manifest.values()]
        for split, manifest in manifests.items()
        if split not in ("prepared", "trials")
    ]
    assert len(set().union(*paths)) == sum(map(len, paths))  # nothing in two splits


def test_librispeech(made):
    manifests = made("librispeech", train=["train-clean-100", "train-clean-360"])
    assert set(manifests) == {"train", "valid", "test-clean", "test-other", "prepared"}
    assert len(manifests["train"]) == 4
    entry = manifests["train"]["19-198-0001"]
    assert entry == {
        "wav": "{data_root}/train-clean-100/19/198/19-198-0001.flac",
        "text": "it's line 1",
        "speaker": "19",
        "duration": 0.1,
    }


def test_voxceleb(made):
    manifests = made("voxceleb")
    assert [len(manifests[split]) for split in ("train", "valid", "test")] == [4, 4, 4]
    assert manifests["train"]["id10001--abcd--00001"]["speaker"] == "id10001"
    manifests = made("voxceleb", task="verification")
    trained = {entry["speaker"] for split in ("train", "valid") for entry in manifests[split].values()}
    assert trained == {"id10001", "id10002"} and len(manifests["test"]) == 3
    first, second = manifests["trials"]
    assert first == [1, "id10004--abcd--00001", "id10004--abcd--00002"] and second[0] == 0


def test_iemocap(made):
    manifests = made("iemocap", test_session=2)
    assert len(manifests["test"]) == 5 and {entry["session"] for entry in manifests["test"].values()} == {2}
    rest = [entry for split in ("train", "valid") for entry in manifests[split].values()]
    assert len(rest) == 20 and {entry["session"] for entry in rest} == {1, 3, 4, 5}
    assert sorted(entry["emotion"] for entry in manifests["test"].values()) == ["ang", "hap", "hap", "neu", "sad"]
    assert manifests["test"]["Ses02F_impro01_M001"]["speaker"] == "Ses02M"


def test_slurp(made):
    manifests = made("slurp")
    assert len(manifests["train"]) == 4 and len(manifests["valid"]) == len(manifests["test"]) == 2
    entry = manifests["test"]["audio--test-0"]
    assert entry["text"] == "wake me at nine a m" and entry["slots"] == [["time", "nine a m"]]
    assert entry["intent"] == {"scenario": "alarm", "action": "set"}
    assert len(made("slurp", synthetic=False)["train"]) == 2


def test_voicebank(made, tmp_path):
    manifests = made("voicebank")
    assert set(manifests["train"]) == {"p228_001"} and set(manifests["valid"]) == {"p226_001", "p287_001"}
    assert manifests["test"]["p232_001"]["clean"] == "{data_root}/clean_testset_wav/p232_001.wav"
    with pytest.raises(AudioError, match="48000 Hz, but the model takes 16000 Hz; --resample True converts it"):
        made("voicebank", resample=False)
    for kind in ("noisy", "clean"):
        sound(tmp_path / "voicebank" / f"{kind}_testset_wav_16k" / "p232_001.wav")
        sound(tmp_path / "voicebank" / f"{kind}_trainset_28spk_wav_16k" / "p226_001.wav")
        sound(tmp_path / "voicebank" / f"{kind}_trainset_28spk_wav_16k" / "p228_001.wav")
    assert "_16k" in made("voicebank", resample=False)["test"]["p232_001"]["wav"]


def test_libri2mix(made):
    entry = made("libri2mix", mixtures="mix_both")["train"]["1-2-3_4-5-6"]
    assert entry["wav"].endswith("train-100/mix_both/1-2-3_4-5-6.wav")
    assert entry["source_1"].endswith("train-100/s1/1-2-3_4-5-6.wav")
    assert entry["source_2"].endswith("train-100/s2/1-2-3_4-5-6.wav")


def test_vctk(made):
    manifests = made("vctk")
    numbers = {split: {name.split("_")[1] for name in manifests[split]} for split in ("train", "valid", "test")}
    assert not numbers["train"] & numbers["test"] and not numbers["train"] & numbers["valid"]
    assert sum(len(manifests[split]) for split in numbers) == 117  # one has no transcript
    assert (
        manifests["train"]["p225_001" if "p225_001" in manifests["train"] else "p225_002"]["text"]
        == "please call stella"
    )


def test_what_was_prepared_is_kept(made, tmp_path, monkeypatch):
    made("libri2mix")
    before = (tmp_path / "manifests" / "train.json").stat().st_mtime_ns
    monkeypatch.setattr(corpora, "write_manifests", lambda *_, **__: pytest.fail("prepared again"))
    made("libri2mix")
    assert (tmp_path / "manifests" / "train.json").stat().st_mtime_ns == before
    monkeypatch.undo()
    assert made("libri2mix", mixtures="mix_both")["train"]["1-2-3_4-5-6"]["wav"].count("mix_both") == 1
    (tmp_path / "manifests" / "test.json").unlink()
    assert "test" in made("libri2mix", mixtures="mix_both")


def test_an_interrupted_preparation_is_told_from_manifests_of_ones_own(made, tmp_path):
    LAYOUTS["libri2mix"](tmp_path / "libri2mix")
    stamp = tmp_path / "manifests" / PREPARED_NAME
    for options in ({}, {"mixtures": "mix_both"}):  # at first, and when it is made anew
        broken = tmp_path / "libri2mix/wav16k/min/dev/s1/1-2-3_4-5-6.wav"
        broken.write_text("no audio")
        with pytest.raises(AudioError, match="dev/s1"):
            made("libri2mix", **options)
        assert stamp.with_name("train.json").is_file() and json.loads(stamp.read_text()) == {}
        sound(broken)
        made("libri2mix", **options)
        assert json.loads(stamp.read_text())


@pytest.mark.parametrize("name", CORPORA)
def test_a_wrong_folder_is_named_in_one_sentence(name, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(CorpusError) as raised:
            CORPORA[name](folder, tmp_path / "manifests")
        assert str(raised.value).startswith(str(folder)) and "\n" not in str(raised.value)
    assert not list((tmp_path / "manifests").glob("*.json")) if (tmp_path / "manifests").exists() else True


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("voxceleb", "iden_split.txt", "1 id1/a/1.wav\nnonsense\n", r"iden_split\.txt, line 2: expected '1 id10001"),
        ("voxceleb", "iden_split.txt", "1 id1/a/1.wav\n2 x/y/z.wav\n3 x/y/w.wav", r"id1/a/1\.wav: no such file"),
        ("slurp", "dataset/slurp/test.jsonl", "{}\n", r"test\.jsonl, line 1: not a line of SLURP"),
        ("librispeech", "dev-clean/22/198/22-198.trans.txt", "22-198-0009 GONE\n", r"22-198-0009\.flac: no such file"),
        ("libri2mix", "wav16k/min/dev/s2/1-2-3_4-5-6.wav", "noise", r"s2/1-2-3_4-5-6\.wav: not readable as audio"),
    ],
)
def test_broken_content_is_named_in_one_sentence(made, tmp_path, name, file, text, message):
    LAYOUTS[name](tmp_path / name)
    write(tmp_path / name / file, text)
    with pytest.raises((CorpusError, AudioError), match=message) as raised:
        made(name)
    assert "\n" not in str(raised.value)


def test_the_command(tmp_path):
    libri2mix(tmp_path / "corpus")
    run = [sys.executable, str(SCRIPT), "libri2mix", str(tmp_path / "corpus"), str(tmp_path / "out")]
    result = subprocess.run([*run, "--mixtures", "mix_both"], capture_output=True, text=True, check=True)
    assert "test.json" in result.stdout
    assert "mix_both" in (tmp_path / "out" / "test.json").read_text()
    for more, message in (
        (["--mixtures", "mix"], "mix: no such folder"),
        (["--nonsense", "1"], "no option 'nonsense'"),
    ):
        result = subprocess.run([*run, *more], capture_output=True, text=True)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
