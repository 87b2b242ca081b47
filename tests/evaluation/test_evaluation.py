"""Metrics against values that are known, and pictures that are really drawn."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from wavcube_plugins.audio import read_audio
from wavcube_plugins.evaluation import (
    MetricError,
    compare,
    log_mel,
    mel_distance,
    metrics,
    pesq,
    plots,
    save_comparison,
    save_curves,
    si_sdr,
    stoi,
)
from wavcube_plugins.synthetic.bundled import bundled_speech

RATE = 16000


@pytest.fixture(scope="module")
def speech():
    return read_audio(bundled_speech()[0].path)


@pytest.fixture
def noisy(speech):
    def add(decibels):
        noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(0))
        return speech + noise * speech.std() / noise.std() * 10 ** (-decibels / 20)

    return add


def test_a_copy_is_perfect(speech):
    comparison = compare(speech, speech.clone(), RATE)
    assert comparison.stoi == pytest.approx(1, abs=1e-6)
    assert comparison.pesq == pytest.approx(4.644, abs=1e-3)
    assert comparison.si_sdr == math.inf
    assert comparison.mel_distance == 0
    assert comparison.notes == ()
    assert comparison.seconds == pytest.approx(len(speech) / RATE)


@pytest.mark.parametrize("decibels", [0, 10, 30])
def test_si_sdr_is_the_signal_to_noise_ratio(speech, noisy, decibels):
    # Noise and speech are not quite orthogonal, hence the tolerance.
    assert si_sdr(speech, noisy(decibels), RATE) == pytest.approx(decibels, abs=0.3)


def test_si_sdr_does_not_depend_on_the_scale_or_a_constant(speech, noisy):
    plain = si_sdr(speech, noisy(10), RATE)
    assert si_sdr(speech, -0.1 * noisy(10) + 0.02, RATE) == pytest.approx(plain, abs=1e-3)


def test_si_sdr_of_known_vectors():
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    noise = np.array([1.0, 1.0, -1.0, -1.0])
    assert si_sdr(reference, reference + noise, RATE) == pytest.approx(0)
    assert si_sdr(reference, reference + 0.1 * noise, RATE) == pytest.approx(20)
    assert si_sdr(reference, noise, RATE) == -math.inf


def test_a_shift_is_a_distortion(speech):
    # Nothing is aligned: half a millisecond ruins SI-SDR and hardly touches the others.
    shifted = torch.roll(speech, 8)
    comparison = compare(speech, shifted, RATE)
    assert comparison.si_sdr < 10
    assert comparison.stoi > 0.95
    assert comparison.mel_distance < 0.5


def test_more_noise_is_worse_by_every_metric(speech, noisy):
    for metric in (stoi, pesq, si_sdr):
        assert metric(speech, noisy(20), RATE) > metric(speech, noisy(0), RATE)
    assert mel_distance(speech, noisy(20), RATE) < mel_distance(speech, noisy(0), RATE)


def test_stoi_and_pesq_are_their_packages(speech, noisy):
    import pesq as pesq_package
    import pystoi

    degraded = noisy(5)
    assert stoi(speech, degraded, RATE) == pytest.approx(pystoi.stoi(speech.numpy(), degraded.numpy(), RATE), abs=1e-3)
    assert pesq(speech, degraded, RATE) == pytest.approx(
        pesq_package.pesq(RATE, speech.numpy(), degraded.numpy(), "wb"), abs=1e-3
    )


def test_mel_distance_is_in_nepers(speech):
    # Half the amplitude is ln 2 less in every band that is above the floor.
    loud = speech + 0.01 * torch.randn(len(speech))
    assert mel_distance(loud, loud / 2, RATE) == pytest.approx(math.log(2), abs=1e-3)


def test_log_mel_has_the_shape_of_the_training_loss():
    spectrogram = log_mel(torch.zeros(2, 2560), RATE)
    assert spectrogram.shape == (2, 100, 11)
    assert torch.all(spectrogram == math.log(1e-7))
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(RATE) / RATE)
    band = int(log_mel(tone, RATE).mean(dim=-1).argmax())
    assert band == round(plots._mel_position(1000, RATE))


def test_the_longer_waveform_is_cut_and_a_note_says_so(speech):
    comparison = compare(speech, torch.cat((speech, torch.ones(100))), RATE)
    assert comparison.si_sdr == math.inf
    assert comparison.notes == (f"the lengths differ by 100 samples; the first {len(speech)} were compared",)


def test_silence_has_no_scores_but_no_accidents_either(speech):
    silence = torch.zeros(len(speech))
    for reference, estimate in ((silence, silence), (silence, speech), (speech, silence)):
        comparison = compare(reference, estimate, RATE)
        assert math.isnan(comparison.pesq) and math.isnan(comparison.si_sdr)
        assert math.isfinite(comparison.mel_distance)
        assert any("SI-SDR" in note and "silent" in note for note in comparison.notes)
        json.dumps(comparison.to_dict(), allow_nan=False)
    with pytest.raises(MetricError, match="the reference is silent"):
        stoi(silence, speech, RATE)
    assert stoi(speech, silence, RATE) == pytest.approx(0, abs=1e-6)


def test_too_short_is_not_a_number_with_a_reason(speech):
    comparison = compare(speech[8000:11000], speech[8000:11000], RATE)
    assert math.isnan(comparison.stoi) and math.isnan(comparison.pesq)
    assert comparison.si_sdr == math.inf and comparison.mel_distance == 0
    assert any("STOI: needs at least 0.4 s" in note for note in comparison.notes)
    assert any("PESQ: needs at least 0.25 s, got 0.188 s" in note for note in comparison.notes)
    assert compare(speech[:1], speech[:1], RATE).mel_distance == 0


def test_long_audio_does_not_overrun_pesq():
    # More than fifty bursts in one call end the process; a minute of syllables has more.
    script = (
        "import numpy as np\nfrom wavcube_plugins.evaluation import pesq\n"
        "time = np.arange(16000 * 60) / 16000\nrng = np.random.default_rng(0)\n"
        "clean = rng.standard_normal(len(time)) * 0.2 * (time % 0.6 < 0.3)\n"
        "print(pesq(clean, clean + 0.001 * rng.standard_normal(len(time)), 16000))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 1 < float(result.stdout) < 4.65


def test_long_audio_is_measured_in_parts(speech, noisy, monkeypatch):
    degraded = noisy(5)
    half = len(speech) // 2
    whole = stoi(speech, degraded, RATE)
    halves = [stoi(speech[part], degraded[part], RATE) for part in (slice(None, half), slice(half, None))]
    monkeypatch.setattr(metrics, "_STOI_SECONDS", len(speech) / RATE)
    assert stoi(speech, degraded, RATE) == whole
    monkeypatch.setattr(metrics, "_STOI_SECONDS", len(speech) / RATE - 0.1)
    assert stoi(speech, degraded, RATE) == pytest.approx(np.mean(halves), abs=1e-3)
    # A part without speech does not count.
    pause = torch.zeros(len(speech))
    monkeypatch.setattr(metrics, "_STOI_SECONDS", len(speech) / RATE)
    padded = [torch.cat((signal, pause)) for signal in (speech, degraded)]
    assert stoi(*padded, RATE) == pytest.approx(whole, abs=1e-3)


def test_other_sample_rates(speech, noisy):
    from wavcube_plugins.audio import resample

    pair = [resample(signal, RATE, 24000) for signal in (speech, noisy(10))]
    high = compare(*pair, 24000)
    plain = compare(speech, noisy(10), RATE)
    assert high.stoi == pytest.approx(plain.stoi, abs=0.01)
    assert high.pesq == pytest.approx(plain.pesq, abs=0.05)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(1, 16000), "mono waveform"),
        (torch.zeros(0), "mono waveform"),
        (torch.full((16000,), math.nan), "NaN or infinite"),
        (torch.zeros(16000, dtype=torch.int16), "floating point"),
    ],
)
def test_bad_waveforms_are_refused(reference, message):
    for metric in (stoi, pesq, si_sdr, mel_distance, compare):
        with pytest.raises(ValueError, match=message):
            metric(reference, torch.zeros(16000), RATE)


@pytest.mark.parametrize(("package", "metric"), [("pystoi", stoi), ("pesq", pesq)])
def test_a_missing_package_is_one_sentence(monkeypatch, speech, package, metric):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}; from a clone: pip install '\.\[eval\]'"):
        metric(speech, speech, RATE)


def test_pictures_without_matplotlib_are_one_sentence(monkeypatch, tmp_path, speech):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[eval\]'"):
        save_comparison(tmp_path / "picture.png", speech, speech, RATE)


def test_the_comparison_picture(tmp_path, speech, noisy):
    path = save_comparison(
        tmp_path / "new" / "picture.png",
        speech,
        noisy(0)[:-3000],
        RATE,
        title="A title",
        comparison=compare(speech, noisy(0), RATE),
    )
    pixels = read_png(path)
    assert pixels.shape[:2] == (924, 1400)
    # Both spectrograms and both waveforms are there, and they differ.
    upper, lower = pixels[200:420, 150:1100], pixels[610:830, 150:1100]
    assert upper.std() > 0.1 and lower.std() > 0.1
    assert np.abs(upper - lower).mean() > 0.05
    assert list(tmp_path.rglob("*.tmp*")) == []


def test_pictures_of_odd_waveforms(tmp_path, speech):
    silence = torch.zeros(len(speech))
    for number, (reference, estimate, rate) in enumerate(
        ((silence, silence, RATE), (speech[:1], speech[:1], RATE), (speech, silence, 48000), (speech, speech, 8000))
    ):
        assert save_comparison(tmp_path / f"{number}.png", reference, estimate, rate).stat().st_size > 10_000
    assert save_comparison(tmp_path / "vector.svg", speech, speech, RATE).read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="mono waveform"):
        save_comparison(tmp_path / "bad.png", speech[None], speech, RATE)
    odd = "$100 \\or $200 \udcff.wav"  # neither mathematics nor UTF-8
    assert save_comparison(tmp_path / "odd.png", speech, speech, RATE, title=odd, names=(odd, odd)).is_file()


def test_learning_curves(tmp_path):
    path = save_curves(
        tmp_path / "curves.png", {"wavcube": [(10, 0.2), (20, 0.6)], "fbank": []}, ylabel="accuracy", title="Speakers"
    )
    assert read_png(path).std() > 0.02
    assert save_curves(tmp_path / "empty.png", {}).stat().st_size > 1000


def test_pictures_import_matplotlib_late_and_pyplot_never(tmp_path):
    script = (
        "import sys, torch\n"
        "from wavcube_plugins.evaluation import save_comparison\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"save_comparison({str(tmp_path / 'p.png')!r}, torch.zeros(800), torch.zeros(800), 16000)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_metrics_as_one_line(speech):
    line = plots.describe(compare(speech, speech, RATE))
    assert line.split() == "STOI 1.000 PESQ-WB 4.64 SI-SDR inf dB log-mel distance 0.000".split()
    assert "PESQ-WB not defined" in plots.describe(metrics.Comparison(1.0, math.nan, 0.0, 0.0, 1.0))


def read_png(path):
    from matplotlib.image import imread

    return imread(path)
