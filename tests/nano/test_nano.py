"""The corpus of synthesised speech and the encoder trained on it: same every time, resumable, exactly labelled."""

import importlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from helpers.paths import ROOT
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file

from wavcube_plugins.config import WavLMConfig
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.nano.batches import log_spectrum, low_spectrum
from wavcube_plugins.synthetic.speech import PHONES

pytestmark = pytest.mark.slow

SCRIPTS = ROOT / "speechbrain_hparams" / "pretrain" / "nano"
COUNTS = {"valid": 3, "test": 4, "train": 10}


@pytest.fixture(scope="module")
def corpus():
    """The module `nano.corpus`."""
    return importlib.import_module("wavcube_plugins.nano.corpus")


@pytest.fixture(scope="module")
def teacher(corpus):
    """The module `nano.teacher`."""
    return importlib.import_module("wavcube_plugins.nano.teacher")


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A small corpus by espeak-ng alone."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus.make_corpus(folder, COUNTS, seed=3, pico=False)
    return folder


def manifest(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifests_describe_the_files(folder):
    for split, count in COUNTS.items():
        records = manifest(folder, split)
        assert len({record["id"] for record in records}) == count
        for record in records:
            samples, rate = soundfile.read(folder / record["path"])
            assert rate == 16000 and samples.ndim == 1
            assert len(samples) / rate == record["duration"]
            assert 10 ** (-12.1 / 20) < np.abs(samples).max() < 10 ** (-0.9 / 20)
            assert (split == "train") or record["augmentation"] == []


def test_phones_cover_the_utterance_without_gaps(folder):
    for split in COUNTS:
        for record in manifest(folder, split):
            labels, starts, ends = zip(*record["phones"], strict=True)
            assert set(labels) <= set(PHONES)
            assert starts[0] == 0 and starts[1:] == ends[:-1]
            assert all(start < end for start, end in zip(starts, ends, strict=True))
            assert ends[-1] == pytest.approx(record["duration"], abs=1e-4)


def test_clean_speech_is_quiet_where_its_labels_say_so(folder):
    for record in manifest(folder, "test"):
        samples, rate = soundfile.read(folder / record["path"])
        silent = np.zeros(len(samples), dtype=bool)
        for label, start, end in record["phones"]:
            if label == "SIL":
                silent[int(start * rate) + 80 : int(end * rate) - 80] = True
        assert silent.any()
        assert np.mean(samples[silent] ** 2) < 1e-3 * np.mean(samples[~silent] ** 2)


def test_half_of_the_test_set_is_by_new_speakers(folder):
    known = {record["speaker"] for record in manifest(folder, "train")}
    tested = [record["speaker"] for record in manifest(folder, "test")]
    assert sum("-test-" in speaker for speaker in tested) == len(tested) / 2
    assert not any("-test-" in speaker for speaker in known)


def test_a_deleted_file_comes_back_the_same_and_nothing_else_is_touched(corpus, folder):
    before = contents(folder)
    gone = [folder / "train" / "train-000004.flac", folder / "test" / "test-000001.json", folder / "valid.jsonl"]
    times = {path: (folder / path).stat().st_mtime_ns for path in before if path.suffix == ".flac"}
    for path in gone:
        path.unlink()
    corpus.make_corpus(folder, COUNTS, seed=3, pico=False)
    assert contents(folder) == before
    touched = {path for path, time in times.items() if (folder / path).stat().st_mtime_ns != time}
    assert touched == {Path("train/train-000004.flac"), Path("test/test-000001.flac")}


def test_other_processes_make_the_same_corpus(corpus, folder, tmp_path):
    options = ["--hours", "0.002", "--workers", "1", "--seed", "3", "--valid", "1", "--test", "1"]
    hide = "import sys; sys.modules['ttspico'] = None; import runpy; "
    hide += "runpy.run_module('wavcube_plugins.nano.corpus', run_name='__main__', alter_sys=True)"
    # The workers of a hidden Pico are told so, as they import the script anew.
    command = [sys.executable, "-c", hide, str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=SCRIPTS, check=True)
    assert done.stderr.startswith("SVOX Pico's natural voices are missing (pip install ttspico)")
    for split, count in (("valid", 1), ("test", 1), ("train", 3)):
        assert manifest(tmp_path, split) == manifest(folder, split)[:count]
        name = manifest(folder, split)[0]["path"]
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_another_seed_is_refused_in_one_sentence(corpus, folder, capsys):
    assert corpus.main([str(folder), "--seed", "4", "--workers", "0"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("corpus.py: error:") and "choose another folder" in error


@pytest.mark.parametrize("arguments", [["--hours", "0"], ["--hours", "nan"], ["--workers", "-1"], ["--seed", "x"]])
def test_bad_arguments_are_refused(corpus, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as error:
        corpus.main([str(tmp_path / "out"), *arguments])
    assert error.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(corpus, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit) as error:
        corpus.main([str(tmp_path / "out")])
    assert error.value.code == 2


def test_splits_share_no_sentence_with_each_other_or_the_demo(corpus):
    generator = random.Random(0)
    drawn = {split: {corpus.draw_text(generator, split) for _ in range(40)} for split in COUNTS}
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["valid"]
    assert not drawn["test"] & drawn["valid"]
    assert all(text.isascii() and text[0].isupper() and text[-1] in ".?!" for texts in drawn.values() for text in texts)
    sentences = importlib.import_module("wavcube_plugins.nano.sentences")
    assert all(len(sentences.draw_sentence(generator).split()) <= 22 for _ in range(300))


@pytest.mark.parametrize(
    "augmentation",
    [
        {"equaliser": [8, -8, 3, 0, -5]},
        {"breath": (2000, 0.0)},
        {"room": (0.4, 6)},
        {"gain": 4},
        *({"noise": (kind, 20)} for kind in ("white", "pink", "brown", "hum")),
    ],
    ids=lambda augmentation: str(*augmentation),
)
def test_augmentation_changes_the_sound_but_not_its_place(corpus, augmentation):
    speech = np.zeros(16000)
    speech[6000:10000] = np.sin(np.arange(4000) * 0.3) + np.sin(np.arange(4000) * 1.7)
    changed = corpus.augment(speech, augmentation, np.random.default_rng(0))
    assert changed.shape == speech.shape and np.isfinite(changed).all()
    assert np.abs(changed - speech).max() > 0.01
    # Nothing is ahead of the sound, and most of what is added is with it.
    energy = changed**2
    if "noise" not in augmentation:
        assert energy[:5400].sum() < 1e-6 * energy.sum() < energy[6000:10000].sum()
    if "noise" in augmentation:
        ratio = 10 * np.log10(np.mean(speech**2) / np.mean((changed - speech) ** 2))
        assert ratio == pytest.approx(20, abs=0.01)


def test_nothing_drawn_changes_nothing(corpus):
    speech = np.random.default_rng(0).standard_normal(5000)
    np.testing.assert_array_equal(corpus.augment(speech, {}, np.random.default_rng(0)), speech)
    np.testing.assert_allclose(corpus._istft(corpus._stft(speech), 5000), speech, atol=1e-12)


def test_labels_follow_the_speed(corpus):
    studio = corpus.Studio(0, pico=False)
    speaker = studio.speakers["train"][0]
    _, normal = studio._say("A dog barked.", speaker, 1.0)
    waveform, slow = studio._say("A dog barked.", speaker, 0.8)
    assert len(waveform) == pytest.approx(slow["phones"][-1][2] * 16000, abs=1)
    for (label, start, end), (same, *times) in zip(normal["phones"], slow["phones"], strict=True):
        assert label == same and times == pytest.approx([start / 0.8, end / 0.8], abs=2e-4)


def test_pico_speaks_too(corpus, tmp_path):
    pytest.importorskip("ttspico")
    corpus.make_corpus(tmp_path, {"train": 16}, seed=0, pico=True)
    records = manifest(tmp_path, "train")
    kinds = [("phones" in record, "pronunciation" in record) for record in records]
    assert kinds[::2] == [(True, False)] * 8
    assert (False, True) in kinds[1::2] and (True, True) not in kinds
    assert all(set(record.get("pronunciation", ())) <= set(PHONES) - {"SIL"} for record in records)


def test_the_spectrum_lies_on_the_encoders_frames(teacher):
    config = WavLMConfig()
    waveform = torch.zeros(1, 16000)
    waveform[0, 3200 + 200] = 1.0  # the centre of frame 10
    spectrum = log_spectrum(waveform, config)
    assert spectrum.shape == (1, 49, 80)
    assert int(spectrum[0].mean(-1).argmax()) == 10
    tone = torch.sin(torch.arange(16000) * 2 * math.pi * 4000 / 16000)[None]
    bands = torchaudio.functional.melscale_fbanks(513, 0.0, 8000.0, 80, 16000)
    assert int(log_spectrum(tone, config)[0, 20].argmax()) == int(bands[256].argmax())


def test_low_spectra_keep_phases_below_1_khz(teacher):
    config = WavLMConfig()
    time = torch.arange(16000) / 16000
    # A whole number of periods in 20 ms: the phase is the same in all frames, and moves with the wave's.
    waves = torch.stack([torch.cos(2 * math.pi * 500 * time + phase) for phase in (0, 1, 1 + math.pi)])
    low = low_spectrum(torch.cat([waves, torch.cos(2 * math.pi * 2000 * time)[None]]), config)
    assert low.shape == (4, 49, 2 * 31)
    real, imaginary = low.chunk(2, dim=-1)
    spectrum = torch.complex(real, imaginary)
    peak = 500 * 512 // 16000 - 2
    assert int(spectrum[0, 7].abs().argmax()) == peak
    assert torch.allclose(low[0], low[0, :1].expand(49, -1), atol=0.02)
    assert (spectrum[1, 7, peak] / spectrum[0, 7, peak]).angle().item() == pytest.approx(1, abs=1e-2)
    assert torch.allclose(low[1], -low[2], atol=0.02)
    assert spectrum[3].abs().max() < 0.1 * spectrum[0].abs().max()


def test_a_frame_has_the_phone_at_its_centre(teacher):
    reader = teacher.Reader(".", WavLMConfig())
    record = {"phones": [["SIL", 0.0, 0.0125], ["AA", 0.0125, 0.05], ["B", 0.05, 0.0726]]}
    # Centres at 12.5, 32.5, 52.5 and 72.5 ms.
    assert [PHONES[index] for index in reader.labels(record, 0, 1360)] == ["AA", "AA", "B", "B"]
    assert [PHONES[index] for index in reader.labels(record, 320, 720)] == ["AA", "B"]


@pytest.fixture
def options(folder, tmp_path):
    """Settings for a few steps of training, with half of the labels as pronunciations."""
    data = tmp_path / "corpus"
    data.mkdir()
    for split in COUNTS:
        (data / split).symlink_to(folder / split)
        records = manifest(folder, split)
        for record in records[::2]:
            record["pronunciation"] = [label for label, _, _ in record.pop("phones") if label != "SIL"]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {
        **{"corpus": str(data), "output_folder": str(tmp_path / "out"), "preset": "tiny"},
        **{"steps": 4, "steps_per_epoch": 2, "batch_crops": 2, "crop_seconds": 0.5, "whole_seconds": 6.0},
        **{"whole_after": 0.2, "whole_share": 0.5, "speaker_layer": 2, "phase_weight": 0.5, "precision": "fp32"},
    }


def run(teacher, options):
    with open(SCRIPTS / "teacher.yaml", encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, options)
    run_opts = {"device": "cpu", "noprogressbar": True, "ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    return teacher.train(hparams, run_opts)


def test_training_resumes_exactly_and_exports(teacher, options, tmp_path, monkeypatch):
    results = run(teacher, options)
    assert {"valid_frame_accuracy", "test_seen_phone_error_pico", "test_unseen_frame_accuracy"} <= set(results)
    folder = Path(options["output_folder"]) / "export"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    assert config["format"] == "wavlm-1" and config["metadata"]["steps"] == "4"
    assert all(isinstance(value, str) for value in config["metadata"].values())
    encoder = WavLM(WavLMConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config["config"].items()}))
    encoder.load_state_dict(weights)
    assert torch.isfinite(encoder(torch.randn(1, 4000))).all()

    # Killed within the second epoch, after the third step.
    options["output_folder"] = str(tmp_path / "again")
    step = teacher.TeacherBrain.on_fit_batch_start

    def interrupted(self, batch, should_step):
        if self.optimizer_step == 3:
            raise KeyboardInterrupt
        step(self, batch, should_step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher.TeacherBrain, "on_fit_batch_start", interrupted)
        run(teacher, options)
    assert run(teacher, options) == results
    again = load_file(tmp_path / "again" / "export" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert json.loads((tmp_path / "again" / "export" / "config.json").read_text(encoding="utf-8")) == config


def test_batches_depend_on_the_step_alone(teacher, options):
    with open(SCRIPTS / "teacher.yaml", encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, options | {"steps": 20, "steps_per_epoch": 10})
    reader = teacher.Reader(options["corpus"], WavLMConfig())
    records = teacher.read_manifest(options["corpus"], "train")
    first, second = (teacher.TrainBatches([(reader, records)], hparams) for _ in range(2))
    second.epoch = 2
    # The speech of step 5 is the same, whatever was asked for before it.
    expected = first[5]
    second[3]
    second.epoch = 1
    again = second[5]
    assert torch.equal(expected["waveforms"], again["waveforms"])
    # The last epoch is shorter than the others where the steps end within it.
    second.epoch = 3
    assert len(first) == 10 and len(second) == 0
    shorter = teacher.TrainBatches([(reader, records)], hparams | {"steps": 13})
    shorter.epoch = 2
    assert len(shorter) == 3
    kinds = {"labels" in first[index] for index in range(10)}
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere", "--output_folder", "out"], "train.jsonl: no such file; make the corpus"),
        (["--output_folder", "out"], "both --corpus and --output_folder must be given"),
        (["--corpus", "broken", "--output_folder", "out"], "line 1: an utterance has an id"),
        (["--corpus", "broken", "--output_folder", "out", "--step", "3"], "has no such option"),
    ],
)
def test_a_missing_corpus_is_one_sentence(teacher, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"id": "a"}\n')
    assert teacher.main([str(SCRIPTS / "teacher.yaml"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "out" / "export").exists()
