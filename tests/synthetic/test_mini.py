"""Mini data: labels that fit the audio, splits that do not mix, and sets that are the same every time."""

import numpy as np
import pytest
import soundfile
from helpers.kokoro import build_folder

from wavcube_plugins.synthetic.mini import EMOTIONS, KEYWORDS, TASKS, draw_command, make_mini, read_mini

SIZES = {"train": 24, "valid": 4, "test": 6}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    for task in TASKS:
        make_mini(folder / task, task, SIZES, progress=False)
    return folder


def read(path):
    samples, rate = soundfile.read(path, dtype="float64")
    assert rate == 16000
    return samples


@pytest.mark.parametrize("task", TASKS)
def test_labels_lie_within_the_audio_and_belong_to_the_text(sets, task):
    for split, count in SIZES.items():
        records = read_mini(sets / task, split)
        assert len(records) == len({record["id"] for record in records}) == count
        for record in records:
            samples = read(sets / task / record["path"])
            assert len(samples) / 16000 == pytest.approx(record["duration"])
            assert np.isfinite(samples).all() and 0.001 < np.abs(samples).max() < 1
            assert [word for word, _, _ in record["words"]] == record["text"].split()
            ends = [end for _, _, end in record["phones"]]
            assert ends == sorted(ends) and ends[-1] <= record["duration"] + 1e-4


def test_speech_is_loud_where_words_are_and_quiet_where_they_are_not(sets):
    for record in read_mini(sets / "read", "train"):
        samples = read(sets / "read" / record["path"])
        inside = np.zeros(len(samples), bool)
        for _, start, end in record["words"]:
            inside[int(start * 16000) : int(end * 16000)] = True
        assert np.square(samples[inside]).mean() > 100 * np.square(samples[~inside]).mean()


def test_read_shares_its_speakers_and_verification_does_not(sets):
    def speakers(task, split):
        return {record["speaker"] for record in read_mini(sets / task, split)}

    assert speakers("read", "test") <= speakers("read", "train")
    groups = [speakers("verification", split) for split in SIZES]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_keywords_and_emotions_are_balanced_over_speakers(sets):
    assert {record["keyword"] for record in read_mini(sets / "keywords", "train")} == set(KEYWORDS)
    records = read_mini(sets / "emotion", "train")
    assert {record["session"] for record in records} == {1, 2, 3, 4, 5}
    assert {record["emotion"] for record in records} <= set(EMOTIONS)
    by_emotion = {}
    for record in records:
        by_emotion.setdefault(record["emotion"], set()).add(record["speaker"])
    assert len(by_emotion["neu"]) == len(by_emotion["hap"]) == 10


def test_emotions_differ_in_rate_and_level(sets, tmp_path):
    make_mini(tmp_path, "emotion", {"train": 40}, progress=False)
    pace, level = {}, {}
    for record in read_mini(tmp_path, "train"):
        spoken = sum(end - start for _, start, end in record["words"])
        pace.setdefault(record["emotion"], []).append(len(record["phones"]) / spoken)
        level.setdefault(record["emotion"], []).append(read(tmp_path / record["path"]).std())
    assert np.mean(pace["ang"]) > np.mean(pace["neu"]) > np.mean(pace["sad"])
    assert np.mean(level["ang"]) > np.mean(level["neu"]) > np.mean(level["sad"])


def test_a_mixture_is_the_sum_of_its_sources(sets):
    for record in read_mini(sets / "mixture", "train"):
        parts = [read(sets / "mixture" / path) for path in record["sources"]]
        assert np.abs(read(sets / "mixture" / record["path"]) - sum(parts)).max() < 2e-4
        assert record["speakers"][0] != record["speakers"][1]
        for part, (_, start, end) in zip(parts, record["turns"], strict=True):
            outside = np.concatenate([part[: int(start * 16000)], part[int(end * 16000) + 1600 :]])
            assert np.square(outside).sum() < 0.02 * np.square(part).sum()


def test_noise_has_the_level_that_is_said(sets):
    for record in read_mini(sets / "noisy", "test"):
        clean = read(sets / "noisy" / record["clean"])
        noise = read(sets / "noisy" / record["path"]) - clean
        assert 10 * np.log10(np.square(clean).sum() / np.square(noise).sum()) == pytest.approx(record["snr"], abs=0.1)


def test_slots_are_words_of_the_command():
    import random

    generator = random.Random(0)
    intents = set()
    for _ in range(300):
        text, labels = draw_command(generator)
        intents.add(tuple(labels["intent"].values()))
        assert all(value in text.split() for _, value in labels["slots"]) and labels["slots"]
    assert len(intents) > 20


def test_the_same_set_every_time_and_larger_sets_begin_with_smaller_ones(sets, tmp_path):
    make_mini(tmp_path, "read", {"train": 3}, progress=False)
    first = tmp_path / read_mini(tmp_path, "train")[0]["path"]
    stamp = first.stat().st_mtime_ns
    make_mini(tmp_path, "read", {"train": 30}, progress=False)
    assert first.stat().st_mtime_ns == stamp  # only what was missing is made
    again = read_mini(tmp_path, "train")
    assert again[:24] == read_mini(sets / "read", "train")
    for record in again[:3]:
        assert (tmp_path / record["path"]).read_bytes() == (sets / "read" / record["path"]).read_bytes()
    stamp = (tmp_path / again[0]["path"]).stat().st_mtime_ns
    make_mini(tmp_path, "read", {"train": 30}, progress=False)
    assert (tmp_path / again[0]["path"]).stat().st_mtime_ns == stamp  # nothing is made twice
    make_mini(tmp_path, "read", {"train": 24}, progress=False)
    assert read_mini(tmp_path, "train") == again[:24]
    make_mini(tmp_path / "other", "read", {"train": 3}, seed=1, progress=False)
    assert [record["text"] for record in read_mini(tmp_path / "other", "train")] != [
        record["text"] for record in again[:3]
    ]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (("sing",), "unknown mini task 'sing'"),
        (("read", {"dev": 3}), "unknown split 'dev'"),
        (("read", {"train": 0}), "at least one utterance, got 0"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path, arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        make_mini(tmp_path / "set", *arguments)
    assert not (tmp_path / "set").exists()


def test_other_misuse_is_said(sets, tmp_path):
    with pytest.raises(ValueError, match="holds another set"):
        make_mini(sets / "read", "noisy", SIZES)
    with pytest.raises(ValueError, match="two speakers"):
        make_mini(tmp_path / "one", "read", speakers=1)
    with pytest.raises(FileNotFoundError, match="make_mini"):
        read_mini(tmp_path, "train")


def test_kokoro_speaks_mini_sets_too(tmp_path):
    voices = build_folder(tmp_path / "kokoro", af_one=200.0, bf_two=250.0, am_one=120.0, bm_two=100.0, zf_six=300.0)
    options = {"speakers": 4, "progress": False, "engine": "kokoro", "voices": str(voices)}
    make_mini(tmp_path / "read", "read", {"train": 5}, **options)
    records = read_mini(tmp_path / "read", "train")
    assert [record["gender"] for record in records] == ["f", "m", "f", "m", "f"]
    for record in records:
        wave, rate = soundfile.read(tmp_path / "read" / record["path"])
        assert rate == 16000 and len(wave) / rate == pytest.approx(record["duration"])
        assert [word for word, _, _ in record["words"]] == record["text"].split()
        assert record["phones"][-1][2] == pytest.approx(record["duration"], abs=1e-4)
        # Everybody hums as their own voices do: a blend of two English ones of one sex.
        pitch = np.abs(np.fft.rfft(wave[:16000])).argmax() * rate / 16000
        assert (200 <= pitch <= 250) if record["gender"] == "f" else (100 <= pitch <= 120)
    with pytest.raises(ValueError, match="another set of speech"):
        make_mini(tmp_path / "read", "read", {"train": 5}, speakers=4, progress=False)
    with pytest.raises(ValueError, match="only espeak-ng speaks with emotions"):
        make_mini(tmp_path / "emotion", "emotion", {"train": 5}, **options)
