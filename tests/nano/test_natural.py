"""Corpora spoken by Kokoro: made by a small graph with its interface, and taken over as another program made them."""

import json

import numpy as np
import pytest
import soundfile
from helpers.kokoro import build_folder

from wavcube_plugins.errors import InputError
from wavcube_plugins.nano import corpus
from wavcube_plugins.nano.batches import read_manifest
from wavcube_plugins.nano.natural import make_natural_speakers, read_sentences
from wavcube_plugins.nano.texts import owner

COUNTS = {"train": 5, "valid": 2, "test": 4}
NAMES = [f"{accent}{sex}_{name}" for accent in "ab" for sex in "fm" for name in ("one", "two", "six")]


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    pitches = {name: 150.0 + 30 * index for index, name in enumerate(NAMES)}
    return build_folder(tmp_path_factory.mktemp("kokoro"), **pitches)


@pytest.fixture(scope="module")
def folder(voices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("natural")
    corpus.make_natural_corpus(folder, COUNTS, seed=3, voices=str(voices))
    return folder


def lines(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_manifests_describe_the_files(folder):
    for split, count in COUNTS.items():
        records = read_manifest(folder, split)
        assert len({record["id"] for record in records}) == count
        for record in records:
            wave, rate = soundfile.read(folder / record["path"])
            assert rate == 16000 and len(wave) / rate == pytest.approx(record["duration"])
            assert record["phones"][0][1] == 0 and record["phones"][-1][2] == pytest.approx(
                record["duration"], abs=1e-3
            )


def test_no_voice_of_the_test_is_heard_in_training(folder):
    speakers = make_natural_speakers(tuple(NAMES), 3)
    parts = {g: {p.partition(":")[0] for n in names for p in n.split("+")} for g, names in speakers.items()}
    assert not parts["train"] & parts["test"] and parts["train"] | parts["test"] == set(NAMES)
    assert any("+" in name for name in speakers["train"])
    # A blend has one sex.
    assert all(len({part[1] for part in name.split("+")}) == 1 for name in speakers["train"])
    heard = {record["speaker"] for record in lines(folder, "train") + lines(folder, "valid")}
    assert heard <= set(speakers["train"])
    assert {record["speaker"] for record in lines(folder, "test")[1::2]} <= set(speakers["test"])


def test_a_deleted_file_comes_back_the_same(folder, voices):
    path = folder / lines(folder, "train")[2]["path"]
    before, times = path.read_bytes(), {p: p.stat().st_mtime_ns for p in (folder / "train").glob("*.flac")}
    path.unlink()
    corpus.make_natural_corpus(folder, COUNTS, seed=3, voices=str(voices))
    assert path.read_bytes() == before
    assert {p for p in times if p.stat().st_mtime_ns != times[p]} == {path}
    with pytest.raises(InputError, match="choose another folder"):
        corpus.make_natural_corpus(folder, COUNTS, seed=4, voices=str(voices))


def test_sentences_of_a_file_are_each_of_one_split(tmp_path, voices):
    # Numbers from 1 to 60 are enough for three splits.
    sentences = [f"The number of this sentence is {index}, as far as anybody knows." for index in range(1, 61)]
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(sentences) + "\n\n")
    divided = read_sentences(path)
    assert sorted(line for some in divided.values() for line in some) == sorted(sentences)
    assert all(owner(line) == split for split, some in divided.items() for line in some)
    corpus.make_natural_corpus(tmp_path / "out", COUNTS, seed=0, voices=str(voices), sentences=str(path))
    for split in COUNTS:
        said = " ".join(record["text"] for record in lines(tmp_path / "out", split))
        assert said and not any(line in said for other in COUNTS if other != split for line in divided[other])
    path.write_text("Only one sentence.")
    with pytest.raises(InputError, match="too few sentences"):
        read_sentences(path)


def test_a_corpus_is_taken_over_where_it_lies(tmp_path, capsys):
    source = tmp_path / "made"
    for split in COUNTS:
        (source / split).mkdir(parents=True)
        soundfile.write(source / split / "1.flac", np.zeros(16000), 16000)
    record = {"speaker": "af_one", "seconds": 1.0, "text": "I", "phones": [["sil", 0.0, 0.4], ["I", 0.4, 1.0]]}
    records = [record | {"id": f"{split}1", "path": f"{split}/1.flac", "split": split} for split in COUNTS]
    (source / "manifest.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    assert corpus.main([str(tmp_path / "taken"), "--take", str(source)]) == 0
    (taken,) = read_manifest(tmp_path / "taken", "valid")
    assert taken["phones"] == [["SIL", 0.0, 0.4], ["AY", 0.4, 1.0]] and taken["duration"] == 1.0
    assert soundfile.info(tmp_path / "taken" / taken["path"]).frames == 16000
    assert len(read_manifest(tmp_path / "taken", "train")) == 1
    assert corpus.main([str(tmp_path / "less"), "--take", str(source), "--hours", "0.0001"]) == 0
    assert not read_manifest(tmp_path / "less", "train") and read_manifest(tmp_path / "less", "test")
    (source / "manifest.jsonl").write_text('{"id": "1"}\n')
    assert corpus.main([str(tmp_path / "taken"), "--take", str(source)]) == 2
    assert "line 1: not an utterance of a corpus spoken by Kokoro" in capsys.readouterr().err
    assert corpus.main([str(tmp_path / "taken"), "--take", str(tmp_path)]) == 2
    assert "a corpus to take over has a manifest.jsonl" in capsys.readouterr().err


def test_kokoro_without_weights_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WAVCUBE_KOKORO", raising=False)
    assert corpus.main([str(tmp_path / "out"), "--engine", "kokoro", "--hours", "0.01"]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("corpus.py: error: Kokoro needs its weights: name a folder")
    assert not (tmp_path / "out").exists()
