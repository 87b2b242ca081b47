"""From text and a prompt to speech without any toolkit: planning, prompts, batches and joining."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from helpers.paths import ROOT

from wavcube_plugins import load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.tts import FlowConfig, FlowMatching, LatentNorm, Sampling, Synthesiser

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHABET = " abcdefghijklmnopqrstuvwxyz'."
SENTENCE = "the old man at the river sold a boat to her brother and bought a small red house."


def tokenise(text):
    for character in text:
        if character not in ALPHABET:
            raise InputError(f"no token for {character!r}")
    return [ALPHABET.index(character) for character in text]


class Tone:
    """A codec of 8 kHz and 40 frames per second whose latent has four channels; it decodes to a constant."""

    sample_rate, frame_rate = 8000, 40.0

    def encode(self, waveforms, lengths=None):
        frames = waveforms.unfold(1, 200, 200)
        return frames.mean(2, keepdim=True).expand(-1, -1, 4), torch.full((len(waveforms),), frames.shape[1])

    def decode(self, latent, lengths=None):
        return latent.mean(2).repeat_interleave(200, 1), torch.full((len(latent),), 200 * latent.shape[1])


def make(codec=None, channels=4, **settings):
    torch.manual_seed(0)
    config = dataclasses.replace(
        FlowConfig.preset("tiny"), dim=32, num_layers=1, num_heads=1, text_dim=16, time_dim=16, text_layers=1
    )
    flow = FlowMatching(config, len(ALPHABET), channels)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    # Two frames per character.
    flow.frames_seen += 200
    flow.tokens_seen += 100
    return Synthesiser(flow.eval(), Tone() if codec is None else codec, tokenise, **settings)


@pytest.fixture
def prompt():
    return {"prompt_speech": torch.randn(16000), "prompt_text": "her brother has a green coat"}  # 2 s, 28 bytes


def test_the_rates_are_those_of_the_codec(prompt):
    speech = make()("a small red house", **prompt, sampling=Sampling(steps=2))
    assert len(speech.latent) == int(80 / 28 * 17) and len(speech.waveform) == 200 * len(speech.latent)
    plain = make()("a small red house", sampling=Sampling(steps=2))
    assert len(plain.latent) == 2 * 17


def test_the_real_model_is_a_codec():
    model = load_model("nano")
    norm = LatentNorm(model.latent_dim).fit([3 + 2 * torch.randn(500, model.latent_dim)])
    synthesiser = make(model, model.latent_dim, norm=norm, sampling=Sampling(steps=2))
    voice = torch.randn(16000)
    speech = synthesiser("a small red house", voice, "a green coat", seed=0)
    assert len(speech.waveform) == 320 * len(speech.latent) and torch.isfinite(speech.waveform).all()
    torch.testing.assert_close(speech.latent, norm.inverse(speech.normalised[None])[0])
    with torch.no_grad():
        latent = model.encode(voice[None])[0][0]
    torch.testing.assert_close(synthesiser.prompt(voice, "a green coat").latent, norm(latent[None])[0])
    # A prompt as latents gives the same.
    again = synthesiser("a small red house", latent, "a green coat", seed=0)
    torch.testing.assert_close(again.waveform, speech.waveform, atol=1e-4, rtol=1e-3)


def test_a_seed_fixes_each_item_whatever_the_batch(prompt):
    synthesiser = make(sampling=Sampling(steps=3))
    texts = ["a red boat", SENTENCE, "up"]
    voices = [prompt["prompt_speech"], None, prompt["prompt_speech"]]
    transcripts = [prompt["prompt_text"], None, prompt["prompt_text"]]
    for batch_size in (1, 3):
        together = synthesiser.many(texts, voices, transcripts, seed=5, batch_size=batch_size)
        for text, voice, transcript, speech in zip(texts, voices, transcripts, together, strict=True):
            alone = synthesiser(text, voice, transcript, seed=5)
            torch.testing.assert_close(speech.waveform, alone.waveform, atol=1e-4, rtol=1e-3)
    other = synthesiser(texts[0], voices[0], transcripts[0], seed=6)
    assert (other.normalised - together[0].normalised).abs().max() > 0.1


def test_a_long_text_is_split_and_cross_faded(prompt):
    synthesiser = make(sampling=Sampling(steps=1))
    text = " ".join([SENTENCE] * 6)
    pieces = synthesiser.plan(text, synthesiser.prompt(**{"speech": prompt["prompt_speech"], "text": "a green coat"}))
    assert len(pieces) > 1 and all(piece.frames <= 22 * 40 for piece in pieces)
    speech = synthesiser(text, prompt["prompt_speech"], "a green coat")
    new = sum(piece.frames - len(piece.prompt) for piece in pieces)
    assert len(speech.latent) == new
    assert len(speech.waveform) == 200 * new - round(0.15 * 8000) * (len(pieces) - 1)


def test_a_long_prompt_is_cut_with_its_transcript(prompt, caplog):
    found = make().prompt(torch.randn(8000 * 24), " ".join(["her brother has a coat"] * 10))
    assert len(found.latent) == 12 * 40 and "was cut to 12 s" in caplog.text
    assert found.text == " ".join(["her brother has a coat"] * 5)


def test_without_a_decoder_the_result_is_the_latent(prompt):
    assert make(decode=False)("a red boat", **prompt, sampling=Sampling(steps=1)).waveform is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": " "}, "the text is empty"),
        ({"text": "a café"}, "no token for 'é'"),
        ({"text": "a boat", "prompt_text": "a coat"}, "prompt_text is given without prompt_speech"),
        ({"text": "a boat", "prompt_speech": torch.zeros(8000)}, "the prompt's transcript is missing"),
        ({"text": "a boat", "prompt_speech": torch.zeros(800), "prompt_text": "a"}, "lasts 0.10 s; it must last 0.3"),
        ({"text": "a boat", "prompt_speech": torch.zeros(8000).int(), "prompt_text": "a"}, "floating point"),
        ({"text": "a boat", "prompt_speech": torch.zeros(1, 2, 8), "prompt_text": "a"}, r"got \(1, 2, 8\)"),
        (
            {"text": SENTENCE, "prompt_speech": torch.zeros(4000), "prompt_text": SENTENCE},
            "20 frames are too few for the 81 tokens",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        make()(**call)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps"), ({"sway": 2.0}, "sway"), ({"guidance": -1.0}, "guidance"), ({"speed": 0.0}, "speed")],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message} must"):
        Sampling(**settings)


def test_speech_is_synthesised_where_there_is_no_toolkit():
    script = """
import sys
for name in ("espnet2", "espnet", "s3prl", "speechbrain", "soundfile"):
    sys.modules[name] = None
import torch
from wavcube_plugins import WavCubeConfig
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.tts import FlowConfig, FlowMatching, Sampling, Synthesiser
model = WavCube(WavCubeConfig.preset("tiny")).eval()
flow = FlowMatching(FlowConfig.preset("tiny"), 256, model.latent_dim).eval()
synthesiser = Synthesiser(flow, model, lambda text: list(text.encode()), sampling=Sampling(steps=2))
speech = synthesiser("a red boat", torch.randn(16000), "a coat", seed=0)
assert speech.waveform.shape == (320 * len(speech.latent),) and torch.isfinite(speech.waveform).all()
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
