"""Kokoro behind the engines' interface: by a small graph with the same inputs and outputs, and by the real one."""

import json
import os
import pickle

import pytest
import torch
from helpers.kokoro import FRAMES, LETTERS, build, build_folder

from wavcube_plugins.errors import InputError
from wavcube_plugins.synthetic.kokoro import KokoroSynthesiser, KokoroVoice
from wavcube_plugins.synthetic.speech import PHONES, SILENCE, open_engine

TEXT = "A dog barked, and the water froze."
REAL = pytest.mark.skipif("WAVCUBE_KOKORO" not in os.environ, reason="WAVCUBE_KOKORO names no folder of real weights")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("kokoro"), af_low=300.0, bm_high=900.0)


@pytest.fixture(scope="module")
def kokoro(folder):
    return KokoroSynthesiser(folder)


def pitch(speech):
    spectrum = torch.fft.rfft(speech.waveform[:16000]).abs()
    return float(spectrum.argmax()) * 16000 / len(speech.waveform[:16000])


def test_phones_cover_the_waveform_and_have_names(kokoro):
    speech = kokoro.speak(TEXT, "af_low")
    letters = [c for c in kokoro.letters(TEXT) if c in LETTERS]
    assert len(speech.waveform) == pytest.approx((len(letters) + 2) * FRAMES * 600 / 24000 * 16000, abs=2)
    assert speech.phones[0].start == 0 and speech.phones[-1].end == speech.seconds
    assert all(a.end == b.start and a.end > a.start for a, b in zip(speech.phones, speech.phones[1:], strict=False))
    assert {phone.label for phone in speech.phones} <= set(PHONES)
    labels = [phone.label for phone in speech.phones if phone.label != SILENCE]
    assert labels == "AH D AA G B AA R K T AE N D DH AH W AO T AH R F R OW Z".split()
    assert [word.label for word in speech.words] == ["A", "dog", "barked", "and", "the", "water", "froze"]
    assert all(a.end <= b.start for a, b in zip(speech.words, speech.words[1:], strict=False))


def test_stress_and_length_go_to_their_phones(kokoro):
    # d ˈ ɔ ː ɡ: the vowel has three tokens' time in British English, the consonants one each.
    phones = kokoro.speak("dawg", "bm_high").phones
    seconds = {phone.label: phone.end - phone.start for phone in phones}
    assert seconds["AO"] == pytest.approx(3 * FRAMES * 0.025, abs=1e-6)
    assert seconds["G"] == pytest.approx(FRAMES * 0.025, abs=1e-6)


def test_british_voices_speak_british_english(kokoro):
    assert kokoro.letters("I go home.") == "I ɡˌO hˈOm."
    assert kokoro.letters("I go home.", british=True) == "I ɡˌQ hˈQm."
    assert kokoro.letters("The judge caught a cheap taxi.") == "ðə ʤˈʌʤ kˈɔt ə ʧˈip tˈæksi."


def test_voices_blend_and_speed_shortens(kokoro):
    assert kokoro.voices() == ("af_low", "bm_high")
    assert pitch(kokoro.speak(TEXT, "af_low")) == pytest.approx(300, abs=2)
    assert pitch(kokoro.speak(TEXT, "af_low:0.5+bm_high:1.5")) == pytest.approx(750, abs=2)
    fast = kokoro.speak(TEXT, "af_low@2")
    assert fast.seconds == pytest.approx(kokoro.speak(TEXT, "af_low").seconds / 2, rel=0.01)


def test_durations_are_taken_from_a_graph_that_does_not_give_them(kokoro, folder, tmp_path):
    plain = tmp_path / "plain"
    (plain / "onnx").mkdir(parents=True)
    build(plain / "onnx" / "model_quantized.onnx", durations=False)
    (plain / "voices").symlink_to(folder / "voices")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (plain / "tokenizer.json").write_text(json.dumps({"model": vocabulary}))
    assert KokoroSynthesiser(plain).speak(TEXT, "af_low").phones == kokoro.speak(TEXT, "af_low").phones


def test_long_texts_are_said_in_pieces(folder, kokoro):
    text = " ".join([TEXT] * 30)
    speech = kokoro.speak(text, "af_low")
    once = [phone.label for phone in kokoro.speak(TEXT, "af_low").phones if phone.label != SILENCE]
    assert [phone.label for phone in speech.phones if phone.label != SILENCE] == once * 30
    assert all(a.end == b.start for a, b in zip(speech.phones, speech.phones[1:], strict=False))
    assert speech.phones[-1].end == speech.seconds
    # The table of styles has a row for every length that is said.
    assert len(kokoro.letters(text)) > 2 * 505


def test_it_may_be_sent_to_another_process(kokoro):
    copy = pickle.loads(pickle.dumps(kokoro))
    assert torch.equal(copy.speak(TEXT, "af_low").waveform, kokoro.speak(TEXT, "af_low").waveform)


def test_engines_are_opened_by_name(folder, monkeypatch):
    spoken = open_engine("kokoro", voices=str(folder), sample_rate=8000).speak(TEXT, "af_low")
    assert spoken.sample_rate == 8000 and len(spoken.waveform) == pytest.approx(spoken.phones[-1].end * 8000)
    espeak = open_engine("espeak")
    assert espeak.speak("yes", espeak.voices()[0]).phones[0].end > 0
    with pytest.raises(InputError, match="unknown engine 'flite'; choose espeak or kokoro"):
        open_engine("flite")
    monkeypatch.setenv("WAVCUBE_KOKORO", str(folder))
    assert open_engine("kokoro").voices() == ("af_low", "bm_high")


def test_what_is_missing_is_one_sentence(folder, kokoro, tmp_path, monkeypatch):
    monkeypatch.delenv("WAVCUBE_KOKORO", raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing may be downloaded unasked"))
    with pytest.raises(InputError, match=r"^Kokoro needs its weights: name a folder with model\.onnx"):
        KokoroSynthesiser()
    with pytest.raises(InputError, match=r"no such folder\. Kokoro needs its weights"):
        KokoroSynthesiser(tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    with pytest.raises(InputError, match=r"has no model\.onnx\. Kokoro needs"):
        KokoroSynthesiser(tmp_path / "half")
    build(tmp_path / "half" / "model.onnx")
    with pytest.raises(InputError, match=r"has no voices\. Kokoro needs"):
        KokoroSynthesiser(tmp_path / "half")
    with pytest.raises(InputError, match="no voice 'af_none'"):
        kokoro.speak(TEXT, "af_none")
    with pytest.raises(InputError, match="nothing to say"):
        kokoro.speak("…", "af_low")


@pytest.mark.parametrize("name", ["af_low:x", "af_low@fast", "", "af_low:-1", "af_low@9"])
def test_bad_voices_are_refused(name, kokoro):
    with pytest.raises(InputError):
        kokoro.speak(TEXT, name)
    assert KokoroVoice.parse("a:0.25+b@1.5") == KokoroVoice((("a", 0.25), ("b", 1.0)), 1.5)


def test_without_onnxruntime_it_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime; from a clone: pip install '\.\[natural\]'"):
        KokoroSynthesiser(folder)


@REAL
def test_the_real_voices_are_quiet_where_their_labels_say_so():
    speech = KokoroSynthesiser().speak(TEXT, "af_heart")
    labels = [phone.label for phone in speech.phones if phone.label != SILENCE]
    assert labels == "AH D AA G B AA R K T AE N D DH AH W AO T AH R F R OW Z".split()
    energy = {True: [], False: []}
    for phone in speech.phones:
        part = speech.waveform[int(phone.start * 16000) : int(phone.end * 16000)]
        energy[phone.label == SILENCE].append(float(part.square().mean()))
    assert sum(energy[True]) / len(energy[True]) < 0.01 * sum(energy[False]) / len(energy[False])
