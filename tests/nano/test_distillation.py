"""The teacher learns what a Whisper encoder hears: targets frame by frame, several corpora, disturbed input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.kokoro import build_folder
from helpers.paths import ROOT
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from wavcube_plugins import load_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.nano import teacher
from wavcube_plugins.nano.batches import IGNORED, Reader, TrainBatches, read_manifest
from wavcube_plugins.nano.whisper import Targets, WhisperStates

CONFIG = WhisperConfig(
    **{"d_model": 64, "encoder_layers": 3, "encoder_attention_heads": 1, "encoder_ffn_dim": 96},
    **{"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 32, "num_mel_bins": 80, "vocab_size": 60},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None},
    begin_suppress_tokens=None,
)
SETTINGS = ROOT / "speechbrain_hparams" / "pretrain" / "nano" / "teacher.yaml"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a small Whisper as transformers saves it, and the weights of its encoder alone."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    model = WhisperModel(CONFIG)
    model.save_pretrained(folder / "hub")
    save_file(model.encoder.state_dict(), folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two small corpora of noisy tones, the second without times."""
    random = np.random.default_rng(0)
    for name, times in (("one", True), ("two", False)):
        folder = tmp_path_factory.getbasetemp() / "distillation" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 6), ("valid", 2), ("test", 2)):
            lines = []
            for index in range(count):
                seconds = 1.0 + 0.2 * index
                wave = 0.2 * np.sin(np.arange(int(seconds * 16000)) * 0.05 * (index + 1))
                path = f"{split}-{index}.wav"
                soundfile.write(folder / path, wave + random.normal(0, 0.02, len(wave)), 16000)
                labels = {"phones": [["AA", 0.0, 0.5], ["SIL", 0.5, seconds]]} if times else {"pronunciation": ["AA"]}
                record = {"id": f"{name}-{split}-{index}", "path": path, "duration": seconds, "speaker": f"{index % 2}"}
                lines.append(json.dumps(record | labels))
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


def settings(corpora, weights, output, **changes):
    named = [str(corpora / "one"), str(corpora / "two")]
    own = {
        **{"corpus": named, "corpus_weights": [3, 1], "output_folder": str(output), "preset": "tiny"},
        **{"whisper": str(weights / "encoder.safetensors"), "whisper_layers": [1, 3], "disturb": True},
        **{"keep_audio": True, "steps": 4, "steps_per_epoch": 2, "batch_crops": 4, "crop_seconds": 0.5},
        **{"whole_share": 0.0, "speaker_layer": 2, "precision": "fp32"},
    }
    with open(SETTINGS, encoding="utf-8") as file:
        return load_hyperpyyaml(file, own | changes)


def train(hparams):
    options = {"device": "cpu", "noprogressbar": True, "ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    return teacher.train(hparams, options)


def test_states_are_those_of_transformers_for_whole_30_seconds(weights):
    audio = 0.1 * torch.randn(30 * 16000)
    extract = WhisperFeatureExtractor(feature_size=80)
    features = extract(audio.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    encoder = WhisperEncoder(CONFIG).eval()
    encoder.load_state_dict(load_file(weights / "encoder.safetensors"))
    with torch.no_grad():
        states = encoder(features, output_hidden_states=True).hidden_states
    for source in (weights / "encoder.safetensors", weights / "hub"):
        found = WhisperStates.load(source, [1, 2])(audio)
        assert found.shape == (1500, 2, 64)
        assert torch.allclose(found[:, 0], states[1][0], atol=1e-4)
        assert torch.allclose(found[:, 1], states[2][0], atol=1e-4)


@pytest.mark.parametrize("samples", [16000, 16001, 8000, 400])
def test_shorter_audio_needs_no_padding(weights, samples):
    whisper = WhisperStates.load(weights / "encoder.safetensors", [3])
    assert whisper(0.1 * torch.randn(samples)).shape == (-(-(samples // 160) // 2), 1, 64)
    with pytest.raises(InputError, match="at most 30 s"):
        whisper(torch.randn(31 * 16000))


def test_what_is_no_whisper_is_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for source, message in (
        (tmp_path / "other.safetensors", "not the weights of a Whisper encoder"),
        (tmp_path / "cut.safetensors", "not readable as safetensors"),
        (tmp_path, "neither a folder nor a hub name"),
    ):
        with pytest.raises(InputError, match=message):
            WhisperStates.load(source, [1])
    with pytest.raises(InputError, match="layers must lie in 1 … 3"):
        WhisperStates.load(weights / "encoder.safetensors", [4])


def test_frames_of_whisper_lie_on_those_of_the_encoder(weights, tmp_path):
    # A click moves from frame to frame of both encoders alike: each sees it where it is.
    config = WavCubeConfig.preset("tiny").wavlm
    whisper, targets = WhisperStates.load(weights / "encoder.safetensors", [1]), Targets(tmp_path)
    # Without attention a state depends on its own place alone.
    for layer in whisper.encoder.layers:
        layer.self_attn.out_proj.weight.data.zero_()
        layer.self_attn.out_proj.bias.data.zero_()
    quiet = np.random.default_rng(0).normal(0, 1e-3, 16000).astype(np.float32)
    targets.write("quiet", quiet, whisper, config.receptive_field // 2)
    base = targets.read("quiet", 0, 100)
    for frame in (10, 25, 40):
        centre = frame * config.hop_length + config.receptive_field // 2
        clicked = quiet.copy()
        clicked[centre] = 0.05
        targets.write("click", clicked, whisper, config.receptive_field // 2)
        changes = (targets.read("click", 0, 100) - base).square().sum((1, 2))
        assert abs(int(changes.argmax()) - frame) <= 0
        # A part is read as it lies in the whole.
        assert torch.equal(targets.read("click", frame, 3), targets.read("click", 0, 100)[frame : frame + 3])


def test_batches_draw_from_the_corpora_by_weight(corpora, weights, tmp_path):
    hparams = settings(corpora, weights, tmp_path, steps=500, masked_share=0.0)
    config = WavCubeConfig.preset("tiny").wavlm
    splits = [(Reader(corpora / name, config), read_manifest(corpora / name, "train")) for name in ("one", "two")]
    teacher.make_targets(splits, hparams["whisper"], hparams["whisper_layers"])
    batches = TrainBatches(splits, hparams)
    drawn = [batches._draw(position) for position in range(2000)]
    assert [number for number, _ in drawn].count(1) == 500
    batch = batches[0]
    frames = batch["labels"].shape[1]
    assert batch["targets"].shape == (4, frames, 2, 64)
    untimed = torch.tensor([number == 1 for number, _ in drawn[:4]])
    assert torch.equal((batch["labels"] == IGNORED).all(1), untimed)
    # All targets are of the clean audio: the disturbance changes nothing but the waveforms.
    clean = TrainBatches(splits, hparams | {"disturb": False})[0]
    assert not torch.equal(clean["waveforms"], batch["waveforms"])
    assert all(torch.equal(clean[key], batch[key]) for key in ("targets", "labels", "spectrum", "phases"))
    # Whisper's targets are those of the crop's own place.
    number, record = drawn[0]
    whole = splits[number][0].targets.read(record["id"], 0, 1000)
    rows = [
        start
        for start in range(len(whole) - frames + 1)
        if torch.equal(whole[start : start + frames], batch["targets"][0])
    ]
    assert len(rows) == 1
    audio = splits[number][0].waveform(record, rows[0] * 320, 8000)
    expected = torch.from_numpy(audio - audio.mean()) / audio.std()
    assert torch.corrcoef(torch.stack([expected, clean["waveforms"][0]]))[0, 1] > 0.9


def test_distillation_learns_resumes_and_exports(corpora, weights, tmp_path, monkeypatch):
    options = {"steps": 30, "steps_per_epoch": 15, "lr": 3e-3, "masked_share": 0.0}
    hparams = settings(corpora, weights, tmp_path / "whole", **options)
    results = train(hparams)
    log = (tmp_path / "whole" / "train_log.txt").read_text().splitlines()
    losses = [float(line.split("train whisper: ")[1].split(" ")[0]) for line in log if "train whisper" in line]
    assert losses[-1] < 0.9 * losses[0]
    # Interrupted within an epoch, and read by another process, it ends with the same weights.
    again = settings(corpora, weights, tmp_path / "again", num_workers=1, **options)
    step = teacher.TeacherBrain.on_fit_batch_start

    def interrupted(self, batch, should_step):
        if self.optimizer_step == 20:
            raise KeyboardInterrupt
        step(self, batch, should_step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher.TeacherBrain, "on_fit_batch_start", interrupted)
        train(again)
    again = settings(corpora, weights, tmp_path / "again", num_workers=1, **options)
    assert train(again) == results
    first, second = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_may_start_from_an_encoder(corpora, weights, tmp_path):
    first = settings(corpora, weights, tmp_path / "first")
    train(first)
    export = Path(first["output_folder"]) / "export"
    second = settings(corpora, weights, tmp_path / "second", start=str(export), lr=0.0)
    train(second)
    before, after = (load_file(folder / "model.safetensors") for folder in (export, tmp_path / "second" / "export"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.integration
def test_everything_that_makes_nano_goes_through(tmp_path):
    # Kokoro's voices hum, and Whisper is a small one; everything else is as it is when nano is made.
    voices = build_folder(tmp_path / "kokoro", af_a=200.0, bf_b=250.0, am_c=120.0, bm_d=100.0, af_e=220.0, am_f=140.0)
    large = WhisperConfig(**{**CONFIG.to_dict(), "encoder_layers": 6})
    WhisperModel(large).save_pretrained(tmp_path / "whisper")
    own = {"VOICES": voices, "WHISPER": tmp_path / "whisper", "QUICK": 1, "HOURS": 0.02, "ROBOT_HOURS": 0.02}
    own |= {"PYTHON": sys.executable, "PRECISION": "fp32", "OMP_NUM_THREADS": 1}
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    command = ["bash", str(SETTINGS.with_name("run.sh")), str(tmp_path / "work")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    export = tmp_path / "work" / "nano"
    card = (export / "README.md").read_text()
    assert "Kokoro-82M" in card and "frame accuracy" in card
    assert (export / "model.safetensors").stat().st_size < 20e6
    model = load_model(export)
    assert model.trained and model.metadata["stage"] == "2"
    teacher_weights = load_file(export / "teacher" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in teacher_weights.values())
    # A second start has nothing left to do but to measure and export.
    before = (export / "model.safetensors").read_bytes()
    assert subprocess.run(command, env=environment, capture_output=True, timeout=800).returncode == 0
    assert (export / "model.safetensors").read_bytes() == before
