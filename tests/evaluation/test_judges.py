"""DNSMOS, the similarity of voices and word errors by the packages themselves; Whisper is asked only if it is named."""

import json
import os
import sys

import pytest
import torch

from wavcube_plugins import cli
from wavcube_plugins.audio import read_audio, write_audio
from wavcube_plugins.evaluation.judges import (
    DNSMOS,
    UTMOS,
    VoiceSimilarity,
    WordErrors,
    installed_judges,
    words,
)
from wavcube_plugins.evaluation.metrics import MetricError
from wavcube_plugins.synthetic.bundled import bundled_speech

RATE = 16000

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def speech():
    """Recordings (T,) by two speakers, two of each."""
    found = {}
    for utterance in bundled_speech():
        found.setdefault(utterance.speaker, []).append(utterance.path)
    return [[read_audio(path, RATE) for path in paths[:2]] for paths in (found["adam"], found["beth"])]


def test_dnsmos_hears_noise(speech):
    wave, judge = speech[0][0], DNSMOS()
    clean = judge(wave, wave, RATE)
    noisy = judge(wave, wave + wave.std() * torch.randn(len(wave)), RATE)
    assert 1 <= noisy < clean - 0.5 <= 4.5
    # Only the estimate is judged, at any rate.
    assert judge(torch.zeros(100), wave, RATE) == clean
    with pytest.raises(MetricError, match="the estimate is silent"):
        judge(wave, torch.zeros(RATE), RATE)


def test_voices_are_told_apart(speech):
    judge = VoiceSimilarity()
    (adam, adam_again), (beth, _) = speech
    assert judge(adam, adam, RATE) == pytest.approx(1, abs=1e-4)
    assert judge(adam, adam_again, RATE) > judge(adam, beth, RATE) + 0.1
    with pytest.raises(MetricError, match="no voice in the estimate"):
        judge(adam, torch.zeros(RATE), RATE)


class Whisper:
    """Hears the words whose numbers are the samples."""

    def __init__(self, source, **options):
        if source != "here":
            raise RuntimeError(f"cannot find {source}")

    def transcribe(self, audio, language, **options):
        class Part:
            text = " ".join(f"Word-{round(float(number))}," for number in audio if number)

        return [Part()], None


def test_words_are_counted_against_those_of_the_reference(monkeypatch):
    import faster_whisper

    monkeypatch.setattr(faster_whisper, "WhisperModel", Whisper)
    judge = WordErrors("here")
    assert judge(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), RATE) == 0
    # "word 1 word 2" against "word 1 word 3 word 4"
    assert judge(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0, 4.0]), RATE) == 3 / 4
    with pytest.raises(MetricError, match="hears no word in the reference"):
        judge(torch.zeros(9), torch.ones(9), RATE)
    with pytest.raises(MetricError, match=r"WER needs there, a folder or hub name .* cannot find there"):
        WordErrors("there")(torch.ones(9), torch.ones(9), RATE)


def test_words_have_no_punctuation():
    assert words("\u201cIt\u2019s twenty-one,\u201d he SAID.") == ["it's", "twenty", "one", "he", "said"]


@pytest.mark.skipif("WAVCUBE_WHISPER" not in os.environ, reason="WAVCUBE_WHISPER names no folder of a Whisper")
def test_a_real_whisper_hears_what_is_said():
    utterance = next(one for one in bundled_speech() if one.speaker == "adam")
    judge = WordErrors(os.environ["WAVCUBE_WHISPER"])
    wave = read_audio(utterance.path, RATE)
    assert judge(wave, wave, RATE) == 0
    assert len(set(words(judge.hear(wave, RATE))) & set(words(utterance.text))) >= 4


def test_nothing_is_asked_that_is_not_installed_or_not_named(monkeypatch):
    assert installed_judges().keys() == {"dnsmos", "voice"} and "wer" in installed_judges("base")
    monkeypatch.setattr("wavcube_plugins.evaluation.judges.find_spec", lambda name: None)
    assert installed_judges() == {}


@pytest.mark.parametrize(
    ("package", "judge", "name"),
    [("speechmos", DNSMOS(), "speechmos"), ("resemblyzer", VoiceSimilarity(), "Resemblyzer"),
     ("faster_whisper", WordErrors("here"), "faster-whisper")],
)  # fmt: skip
def test_a_missing_judge_is_one_sentence(monkeypatch, package, judge, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {name}; from a clone: pip install '\.\[eval\]'"):
        judge(torch.ones(RATE), torch.ones(RATE), RATE)


def test_a_model_that_cannot_be_downloaded_says_so(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load", fail)
    with pytest.raises(MetricError, match=r"UTMOS needs .*, which could not be loaded: no route to host"):
        UTMOS()(torch.ones(RATE), torch.ones(RATE), RATE)


def test_compare_prints_the_judges(speech, tmp_path, capsys, monkeypatch):
    for name, wave in (("a.wav", speech[0][0]), ("b.wav", speech[1][0])):
        write_audio(tmp_path / name, wave, RATE)
    command = ["compare", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "-o", str(tmp_path / "c.png")]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "DNSMOS" in printed and "voice similarity" in printed and "word errors" not in printed
    import faster_whisper

    class SlowTalk(Whisper):
        """Hears two words per second."""

        def transcribe(self, audio, language, **options):
            return super().transcribe(audio[:: RATE // 2], language, **options)

    monkeypatch.setattr(faster_whisper, "WhisperModel", SlowTalk)
    assert cli.main([*command, "--json", "--whisper", "here"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert 1 <= scores["dnsmos"] <= 5 and -1 <= scores["voice"] <= 1 and scores["wer"] >= 0
