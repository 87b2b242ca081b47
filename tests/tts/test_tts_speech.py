"""Speech from the TTS model, heard by the project's own phone recogniser; and the recogniser itself."""

import importlib.util
import json
import sys

import pytest
import torch
from helpers.paths import ROOT

from wavcube_plugins import load_model
from wavcube_plugins.audio import read_audio
from wavcube_plugins.evaluation import stoi
from wavcube_plugins.evaluation.recogniser import load_recogniser
from wavcube_plugins.models.mel import mel_spectrogram, mel_to_waveform
from wavcube_plugins.synthetic.espeak import EspeakSynthesiser
from wavcube_plugins.synthetic.mini import make_mini, read_mini
from wavcube_plugins.tts import FlowConfig, FlowMatching, LatentNorm

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
STEPS = 200


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("recogniser")


@pytest.fixture(scope="module")
def recogniser(cache):
    """A smaller one than the default, made in a minute."""
    return load_recogniser(cache, utterances=60, epochs=30, progress=False)


@pytest.fixture(scope="module")
def waveform(tmp_path_factory):
    """A sentence that the recogniser has not been trained on."""
    folder = tmp_path_factory.mktemp("speech")
    make_mini(folder, "read", {"train": 1}, seed=11, progress=False)
    return read_audio(folder / read_mini(folder, "train")[0]["path"])


def phones(record):
    return [label for label, _, _ in record["phones"]]


# The recogniser ----------------------------------------------------------------------------------------------------


def test_the_recogniser_hears_speech_latents_and_mel(recogniser):
    rates = recogniser.error_rates
    assert rates.keys() == {"speech", "latent", "mel"}
    assert rates["speech"] < 0.15 and rates["latent"] < 0.3 and rates["mel"] < 0.3


def test_it_hears_a_voice_it_was_not_trained_on_and_no_words_in_noise(recogniser):
    with EspeakSynthesiser() as synthesiser:
        speech = synthesiser.speak("the small dog bought a red boat", "en-us+m4")
    said = [segment.label for segment in speech.phones]
    assert recogniser.error_rate([(speech.waveform, said)]) < 0.5
    assert recogniser.error_rate([(0.1 * torch.randn(32000), said)]) > 0.7
    with pytest.raises(ValueError, match="no phones to score on"):
        recogniser.error_rate([(speech.waveform, ["SIL"])])
    with pytest.raises(ValueError, match="NaN or infinite"):
        recogniser(torch.full((1000,), float("nan")))


def test_it_is_trained_once(recogniser, cache, waveform, monkeypatch):
    monkeypatch.setattr("wavcube_plugins.evaluation.recogniser._train", None)
    again = load_recogniser(cache, utterances=60, epochs=30)
    assert again.error_rates == recogniser.error_rates
    assert again(waveform) == recogniser(waveform)
    with pytest.raises(TypeError):
        load_recogniser(cache, utterances=61, epochs=30)


def test_mel_goes_to_audio_and_back(waveform):
    mel = mel_spectrogram(waveform)
    assert mel.shape == (-(-len(waveform) // 320), 100)
    again = mel_to_waveform(mel)
    assert len(again) == 320 * len(mel)
    assert torch.equal(again, mel_to_waveform(mel))
    assert stoi(waveform, again, 16000) > 0.9


# Synthesis ---------------------------------------------------------------------------------------------------------


def test_a_few_sentences_are_learnt_to_be_understood(recogniser, tmp_path):
    """The whole way: latents, normalisation, training, sampling, decoder, recogniser."""
    # The recogniser knows the voice, but not the sentences.
    make_mini(tmp_path, "read", {"valid": 48}, progress=False)
    records = read_mini(tmp_path, "valid")
    records = sorted((record for record in records if record["speaker"] == "spk00"), key=lambda one: one["duration"])[
        :4
    ]
    model = load_model("nano")
    with torch.no_grad():
        latents = [model.encode(read_audio(tmp_path / record["path"])[None])[0][0] for record in records]
    norm = LatentNorm(model.latent_dim).fit(latents)
    tokens = [torch.tensor([CHARACTERS.index(character) for character in record["text"]]) for record in records]

    def stack(items):
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True), torch.tensor([len(item) for item in items])

    latent, frames = stack(latents)
    batch = (norm(latent, frames), frames, *stack(tokens))
    torch.manual_seed(0)
    flow = FlowMatching(FlowConfig.preset("tiny"), len(CHARACTERS), model.latent_dim)
    optimizer = torch.optim.AdamW(flow.network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    # Each sentence three times in a batch, with draws of its own.
    repeated = [torch.cat([part] * 3) for part in batch]
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = flow(*repeated).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    flow.eval()
    with torch.no_grad():
        loss = float(flow(*batch).loss)
    sampled, _ = flow.sample(*batch[2:], frames, steps=16, seeds=0)
    with torch.no_grad():
        waveforms, lengths = model.decode(norm.inverse(sampled, frames), frames)
    spoken = [waveform[:length] for waveform, length in zip(waveforms, lengths, strict=True)]
    error = recogniser.error_rate(zip(spoken, map(phones, records), strict=True))
    others = recogniser.error_rate(zip(spoken, map(phones, records[1:] + records[:1]), strict=True))
    print(f"phone error {error:.3f}, against other sentences {others:.3f}, loss {loss:.3f}")
    assert loss < 0.6
    assert error < 0.3
    # It says what it is told, not just anything it knows.
    assert others > 0.6


def test_the_comparison_with_mel_runs_and_goes_on(recogniser, tmp_path):
    path = ROOT / "benchmarks" / "tts_latent_vs_mel.py"
    spec = importlib.util.spec_from_file_location("tts_latent_vs_mel", path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    sizes = {"train": 4, "valid": 2, "test": 1, "speakers": 2, "every": 2, "sampling_steps": 2, "seeds": (0,)}
    first = script.run(script.Settings(steps=4, **sizes), tmp_path, recogniser)
    assert {name: [point[0] for point in found["seeds"][0]] for name, found in first.items()} == {
        "latent": [2, 4],
        "mel": [2, 4],
    }
    assert all(0 < loss < 3 and error >= 0 for found in first.values() for _, loss, error in found["seeds"][0])
    assert all(found["copy"] < 0.5 for found in first.values())
    assert {file.name for file in tmp_path.glob("*.png")} == {"loss.png", "phone_error.png"}
    assert json.loads((tmp_path / "curves.json").read_text())["mel"]["copy"] == first["mel"]["copy"]
    # Everything is done: the same numbers, from disk.
    assert script.run(script.Settings(steps=4, **sizes), tmp_path, recogniser) == first
    with pytest.raises(SystemExit, match="belongs to other settings"):
        script.run(script.Settings(steps=6, **sizes), tmp_path, recogniser)
