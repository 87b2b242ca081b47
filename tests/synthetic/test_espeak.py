"""Synthesised speech: exact labels, the same samples every time, errors that say what to do."""

import ctypes
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from wavcube_plugins.synthetic import espeak as synthesis
from wavcube_plugins.synthetic.espeak import ACCENTS, EspeakSynthesiser, Voice
from wavcube_plugins.synthetic.speech import PHONES, SynthesisError

TEXT = "Two big dogs barked, and the cat ran past the gate."


@pytest.fixture(scope="module")
def synthesiser():
    with EspeakSynthesiser() as synthesiser:
        yield synthesiser


@pytest.fixture(scope="module")
def speech(synthesiser):
    return synthesiser.speak(TEXT)


def labels(speech):
    return [phone.label for phone in speech.phones if phone.label != "SIL"]


def fundamental(speech):
    """The pitch of a vowel in Hz: where its autocorrelation is largest."""
    middle = speech.waveform[2000:4000]
    correlation = torch.nn.functional.conv1d(middle[None, None], middle[None, None], padding=1000)[0, 0, 1000:]
    return speech.sample_rate / (80 + int(correlation[80:260].argmax()))


@pytest.mark.parametrize("accent", ACCENTS)
def test_phones_cover_the_waveform_without_gaps(synthesiser, accent):
    speech = synthesiser.speak(TEXT, Voice(accent))
    assert speech.phones[0].start == 0
    assert speech.phones[-1].end == pytest.approx(speech.seconds, abs=1e-9)
    for phone, following in zip(speech.phones, speech.phones[1:], strict=False):
        assert phone.start < phone.end == following.start
    assert {phone.label for phone in speech.phones} <= set(PHONES)
    assert not any(a.label == b.label == "SIL" for a, b in zip(speech.phones, speech.phones[1:], strict=False))


def test_the_phone_set_is_arpabets_and_silence():
    assert len(PHONES) == len(set(PHONES)) == 40


def test_the_labels_are_those_of_the_words(speech):
    expected = "T UW B IH G D AA G Z B AA R K T AE N D DH AH K AE T R AE N P AE S T DH AH G EY T"
    assert labels(speech) == expected.split()
    assert [word.label for word in speech.words] == TEXT.replace(",", "").replace(".", "").split()


def test_labels_lie_where_the_sounds_are(synthesiser):
    # Hissing is loud above 4 kHz, vowels below 1 kHz, pauses nowhere.
    speech = synthesiser.speak("See saws. So sure.")
    window = torch.hann_window(400)
    spectrum = torch.stft(speech.waveform, 400, 40, window=window, return_complex=True).abs() ** 2
    checked = set()
    for phone in speech.phones:
        middle = spectrum[:, int((phone.start + phone.end) / 2 * speech.sample_rate / 40)]
        low, high = float(middle[:25].sum()), float(middle[100:].sum())
        if phone.label == "S":
            assert high > 3 * low
        elif phone.label in ("IY", "AO", "OW"):
            assert low > 3 * high
        elif phone.label == "SIL" and phone.end - phone.start > 0.1:
            assert low + high < 1e-3
        checked.add(phone.label)
    assert {"S", "IY", "SIL"} <= checked


def test_a_stop_begins_with_its_closure(synthesiser):
    speech = synthesiser.speak("A cap, a cat, attack.")
    for phone in speech.phones:
        if phone.label in ("P", "T", "K"):
            start = int(phone.start * speech.sample_rate)
            assert speech.waveform[start + 16 : start + 160].abs().max() < 0.01


def test_words_lie_within_the_waveform_in_order(speech):
    assert speech.words[0].start < 0.1
    for word, following in zip(speech.words, speech.words[1:], strict=False):
        assert word.start < word.end <= following.start + 1e-9
    assert speech.words[-1].end < speech.seconds


def test_accents_say_it_their_own_way(synthesiser):
    assert labels(synthesiser.speak("water", "en-us"))[-1] == "ER"
    assert labels(synthesiser.speak("water", "en-gb"))[-1] == "AH"
    assert labels(synthesiser.speak("cup", "en-gb-x-gbclan")) == ["K", "UH", "P"]
    assert labels(synthesiser.speak("bath", "en-gb-x-rp")) == ["B", "AA", "TH"]
    assert labels(synthesiser.speak("bath", "en-us")) == ["B", "AE", "TH"]


def test_nothing_of_what_was_said_before_remains(synthesiser, speech):
    synthesiser.speak("Something else entirely.", Voice("en-gb", "f4", rate=120))
    again = synthesiser.speak(TEXT)
    assert torch.equal(again.waveform, speech.waveform)
    assert again.phones == speech.phones
    with EspeakSynthesiser() as other:
        assert torch.equal(other.speak(TEXT).waveform, speech.waveform)


def test_another_user_of_the_library_changes_nothing(speech):
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    assert library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000) > 0
    with EspeakSynthesiser() as synthesiser:
        assert torch.equal(synthesiser.speak(TEXT).waveform, speech.waveform)


def test_threads_and_pickles(synthesiser, speech):
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: synthesiser.speak(TEXT).waveform, range(8)))
    assert all(torch.equal(waveform, speech.waveform) for waveform in said)
    with pickle.loads(pickle.dumps(synthesiser)) as copy:
        assert torch.equal(copy.speak(TEXT).waveform, speech.waveform)


def test_rate_pitch_and_volume_are_heard(synthesiser):
    slow, fast = (synthesiser.speak(TEXT, Voice(rate=rate)) for rate in (110, 220))
    assert slow.seconds > 1.5 * fast.seconds
    loud, quiet = (synthesiser.speak(TEXT, Voice(volume=volume)).waveform.std() for volume in (100, 40))
    assert loud > 1.8 * quiet
    low, high = (fundamental(synthesiser.speak("ooh", Voice(pitch=pitch))) for pitch in (20, 80))
    assert high > 1.4 * low
    assert not torch.equal(
        synthesiser.speak(TEXT, "en-us+f3").waveform[:8000], synthesiser.speak(TEXT, "en-us+m3").waveform[:8000]
    )


def test_waveforms_have_the_wanted_rate(speech):
    assert speech.waveform.dtype == torch.float32 and speech.waveform.ndim == 1
    assert speech.waveform.abs().max() <= 1
    with EspeakSynthesiser(sample_rate=8000) as low:
        assert len(low.speak(TEXT).waveform) == pytest.approx(len(speech.waveform) / 2, abs=1)


def test_voices_are_listed_and_drawn(synthesiser):
    names = synthesis.variants()
    assert {"f3", "m1", "Andy"} <= set(names)
    assert set(synthesis.natural_variants()) < set(names) and "whisper" not in synthesis.natural_variants()
    drawn = [synthesis.draw_voice(random.Random(seed)) for seed in range(20)]
    assert len(set(drawn)) == 20
    assert drawn[3] == synthesis.draw_voice(random.Random(3))
    assert labels(synthesiser.speak("Good morning.", drawn[3]))


def test_pronunciations(synthesiser):
    assert synthesiser.pronounce("gate") == ("G", "EY", "T")
    lexicon = synthesiser.lexicon(["judge", "cheese", "judge"])
    assert lexicon == {"cheese": ("CH", "IY", "Z"), "judge": ("JH", "AH", "JH")}


def test_every_word_of_the_package_has_phones(synthesiser):
    from wavcube_plugins.synthetic.bundled import bundled_speech

    text = " ".join(utterance.text for utterance in bundled_speech()[::4])
    for accent in ACCENTS:
        assert labels(synthesiser.speak(text, Voice(accent, rate=400)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.speak("  … !"), "nothing to say"),
        (lambda s: s.speak("hello", "en-us+nobody"), "unknown variant 'nobody'"),
        (lambda s: s.speak("hello", "fr-fr"), "unknown accent 'fr-fr'"),
        (lambda s: Voice(rate=1000), "rate must be a whole number in 80 … 450, got 1000"),
        (lambda s: Voice(pitch=0.5), "pitch must be a whole number"),
        (lambda s: EspeakSynthesiser(sample_rate=0), "sample_rate must be positive"),
    ],
)
def test_bad_requests_say_what_is_wrong(synthesiser, make, message):
    with pytest.raises(ValueError, match=message):
        make(synthesiser)


def test_an_unknown_phone_is_an_error(synthesiser, monkeypatch):
    monkeypatch.delitem(synthesis._MNEMONICS, "Z")
    with pytest.raises(SynthesisError, match="'Z' of the accent en-us has no name"):
        synthesiser.speak("vision")


def test_a_closed_synthesiser_says_so():
    synthesiser = EspeakSynthesiser()
    synthesiser.close()
    with pytest.raises(SynthesisError, match="closed"):
        synthesiser.speak("hello")


def test_a_missing_wheel_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    synthesis._wheel.cache_clear()
    with pytest.raises(ImportError, match=r"pip install '\.\[synthesis\]'"):
        EspeakSynthesiser()


def test_a_long_path_to_the_data_is_no_obstacle(tmp_path, monkeypatch, speech):
    # The library silently falls back to another place if the path has more than 160 characters.
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    (deep / "data").symlink_to(synthesis._data_folder(), target_is_directory=True)
    monkeypatch.setattr(synthesis, "_data_folder", lambda: deep / "data")
    with EspeakSynthesiser() as synthesiser:
        assert torch.equal(synthesiser.speak(TEXT).waveform, speech.waveform)


def test_an_l_behind_a_vowel_is_a_phone_of_its_own(synthesiser):
    # espeak-ng marks it where it ends, so that it would last no time.
    for accent in ACCENTS:
        speech = synthesiser.speak("The old milk is pale and full.", Voice(accent))
        ls = [phone for phone in speech.phones if phone.label == "L"]
        assert len(ls) == 4 and all(0.015 <= phone.end - phone.start < 0.2 for phone in ls)
        assert all(before.end == after.start for before, after in pairwise(speech.phones))
