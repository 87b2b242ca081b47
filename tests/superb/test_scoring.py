"""The scores that s3prl leaves to other tools."""

import numpy as np
import pytest

from wavcube_plugins.superb import conversion, scoring


def test_diarization_errors_by_hand():
    reference = [("a", 0.0, 4.0), ("b", 3.0, 6.0)]
    assert scoring.diarization_errors(reference, [("x", 3.0, 6.0), ("y", 0.0, 4.0)]) == (0.0, 7.0)
    # Missed: b's 3 s. False alarm: 6 to 8. Names do not matter.
    assert scoring.diarization_errors(reference, [("x", 0.0, 4.0), ("x", 6.0, 8.0)]) == (5.0, 7.0)
    # One talker for everything: 4 s are a's, 2 s of b are confused, 1 s of overlap is missed.
    assert scoring.diarization_errors(reference, [("x", 0.0, 6.0)]) == (3.0, 7.0)
    assert scoring.diarization_errors([], []) == (0.0, 0.0)


def test_the_least_diarization_error_sweeps_thresholds_and_filters():
    frames = np.zeros((100, 2))
    frames[:50, 0] = 0.62
    frames[50:, 1] = 0.62
    frames[20, 1] = 0.99  # a click, which the filter of eleven frames removes
    reference = {"r": [("a", 0.0, 0.5), ("b", 0.5, 1.0)]}
    assert scoring.least_diarization_error({"r": frames}, reference, 0.01) == (pytest.approx(0), 0.3, 11)
    with pytest.raises(ValueError, match="1 of 1 recordings have no prediction, r among them"):
        scoring.least_diarization_error({}, reference, 0.01)


def test_term_weighted_value_by_hand():
    beta = 1 / 100 * (1 / 0.0008 - 1)
    documents = [f"d{number}" for number in range(5)]
    scores = {
        "q1": dict(zip(documents, [5, 4, 1, 0, 0], strict=True)),
        "q2": dict(zip(documents, [0, 5, 0, 4, 0], strict=True)),
    }
    truth = {"q1": {"d0", "d1"}, "q2": {"d1"}}
    # Down to 5 both first hits are found; the second hit of q1 costs a false alarm of q2.
    best = max(1 - (0.5 + 0) / 2, 1 - (0 + beta / 4) / 2)
    assert scoring.maximum_term_weighted_value(scores, truth) == pytest.approx(best)
    assert scoring.maximum_term_weighted_value({"q1": {"d0": 0.0, "d1": 1.0}}, {"q1": {"d0"}}) == 0
    with pytest.raises(ValueError, match="no query occurs"):
        scoring.maximum_term_weighted_value(scores, {})


def test_mel_cepstra_are_those_of_sptk():
    """Golden values of pysptk 1.0.1's sp2mc for these spectra."""
    spectra = np.exp(np.random.default_rng(0).normal(size=(3, 513)))
    found = scoring.mel_cepstrum(spectra)
    assert found.shape == (3, 40)
    golden = [0.00314226, 0.03788102, -0.01755635, -0.0694125, -0.0408133]
    np.testing.assert_allclose(found[0, :5], golden, atol=1e-7)


def test_mel_cepstral_distortion_grows_with_the_difference():
    time_axis = np.arange(24000) / 24000
    voice = sum(np.sin(2 * np.pi * 120 * k * time_axis) / k for k in range(1, 40)) * 0.1
    darker = sum(np.sin(2 * np.pi * 120 * k * time_axis) / k**2 for k in range(1, 40)) * 0.1
    assert scoring.mel_cepstral_distortion(voice, voice, 24000) == 0
    assert scoring.mel_cepstral_distortion(voice, darker, 24000) > 3
    with pytest.raises(ValueError, match="the converted speech is silent"):
        scoring.mel_cepstral_distortion(voice, 0 * voice, 24000)


def test_judges_count_words_and_accepted_speakers(tmp_path, monkeypatch):
    for name in ("out/SEF1_E30001.wav", "out/SEM1_E30002.wav", "out/notes.wav", "TEF1/E30001.wav", "TEF1/E30002.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    said = {"SEF1_E30001": "hello there", "SEM1_E30002": "good-bye"}
    vectors = {"SEF1_E30001": [1, 0], "SEM1_E30002": [0, 1]}
    monkeypatch.setattr(conversion, "_recogniser", lambda: lambda path: said[path.stem])
    monkeypatch.setattr(conversion, "_encoder", lambda: lambda path: np.array(vectors.get(path.stem, [1, 0])))
    judges = conversion.Judges({"30001": "Hello, there!", "30002": "Well, goodbye."}, 0.5)
    assert judges.measure(tmp_path / "out", tmp_path / "TEF1") == {"wer": 25.0, "asv": 50.0}
    assert conversion.equal_error_threshold(np.array([0.9, 0.8, 0.4]), np.array([0.5, 0.2, 0.1])) == 0.5
