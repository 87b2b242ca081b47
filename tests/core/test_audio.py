"""Reading, writing, resampling and checking of waveforms."""

import math
import os
import struct
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from wavcube_plugins import audio
from wavcube_plugins.audio import AudioError, AudioWarning
from wavcube_plugins.files import atomic_path


def tone(seconds=1.0, rate=16000, frequency=440.0):
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)).double() / rate).float()


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone().numpy(), 16000, "FLOAT")
    return path


@pytest.mark.parametrize(
    ("suffix", "tolerance"),
    [
        *((suffix, 1e-4) for suffix in (".wav", ".flac", ".aiff", ".aif", ".au", ".w64", ".WAV")),
        # Lossy: the tone stays, its samples do not.
        *((suffix, 0.1) for suffix in (".ogg", ".opus", ".mp3")),
    ],
)
def test_what_is_written_is_read_again(tmp_path, suffix, tolerance):
    path = tmp_path / f"tone{suffix}"
    audio.write_audio(path, tone())
    waveform = audio.read_audio(path)
    assert waveform.dtype == torch.float32
    # MP3 pads, as its blocks are fixed.
    assert waveform.shape == (16000,) or suffix == ".mp3"
    assert (waveform[4000:12000] - tone()[4000:12000]).abs().max() < tolerance


def test_long_lossy_files_are_written(tmp_path):
    # In one piece libsndfile's Vorbis encoder overflows its stack here.
    path = tmp_path / "long.ogg"
    audio.write_audio(path, torch.zeros(16000 * 240))
    assert audio.read_info(path) == audio.AudioInfo(16000, 16000 * 240, 1)
    assert audio.read_info(path).seconds == 240


def test_loud_samples_are_clipped(tmp_path):
    audio.write_audio(tmp_path / "loud.wav", 4 * tone())
    waveform = audio.read_audio(tmp_path / "loud.wav")
    assert waveform.max() > 0.999 and waveform.min() == -1.0


@pytest.mark.parametrize(
    ("name", "waveform", "reason"),
    [
        ("tone.xyz", tone(), "cannot write audio as '.xyz'"),
        ("tone", tone(), "a file without suffix"),
        ("tone.raw", tone(), "cannot write audio as '.raw'"),
        ("tone.wav", tone()[None], r"shape \(samples,\), got \(1, 16000\)"),
        ("tone.wav", torch.full((100,), float("nan")), "NaN"),
        ("tone.wav", torch.tensor([0.0, -float("inf")]), "infinite"),
        ("tone.wav", torch.zeros(100, dtype=torch.int16), "floating point .* got torch.int16; divide integers first"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, waveform, reason):
    with pytest.raises(AudioError, match=reason):
        audio.write_audio(tmp_path / name, waveform)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_the_format_lacks_leaves_no_file(tmp_path):
    with pytest.raises(AudioError, match="cannot be written"):
        audio.write_audio(tmp_path / "tone.opus", tone(), 22050)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path, wav):
    before = wav.read_bytes()
    with pytest.raises(AudioError):
        audio.write_audio(wav, torch.full((100,), float("nan")))
    assert wav.read_bytes() == before


def test_two_threads_may_write_one_file(tmp_path):
    both = threading.Barrier(2, timeout=10)
    errors = []

    def write(content):
        try:
            with atomic_path(tmp_path / "a.txt") as temporary:
                temporary.write_text(content)
                both.wait()
                assert temporary.read_text() == content and temporary.suffix == ".txt"
                both.wait()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 15999, 22254, 44101])
def test_a_resampled_tone_is_the_tone(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate=rate).numpy(), rate, "FLOAT")
    waveform = audio.read_audio(path)
    assert len(waveform) == 16000
    assert (waveform - tone())[500:-500].abs().max() < 2e-3


def test_resampling_removes_what_would_alias(tmp_path):
    high = tone(rate=44100, frequency=12000.0)
    assert audio.resample(high, 44100, 16000)[500:-500].abs().max() < 1e-3
    high = tone(rate=44101, frequency=12000.0)
    assert audio.resample(high, 44101, 16000)[500:-500].abs().max() < 1e-3


@pytest.mark.parametrize(("source", "target"), [(441, 160), (8, 16), (3, 1), (160, 441)])
def test_direct_resampling_is_torchaudios(source, target):
    waveform = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0))
    reach = math.ceil(32 * source / (min(source, target) * 0.99))
    expected = torchaudio.functional.resample(waveform, source, target, lowpass_filter_width=32)
    result = audio._resample_directly(waveform, source, target, reach)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_channels_are_averaged_and_it_says_so(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, torch.stack([tone(), -0.5 * tone()], dim=1).numpy(), 16000, "FLOAT")
    with pytest.warns(AudioWarning, match=r"stereo\.wav: 2 channels, mixed"):
        waveform = audio.read_audio(path)
    torch.testing.assert_close(waveform, 0.25 * tone())


def test_mono_and_silent_files_warn_of_nothing(tmp_path, wav):
    soundfile.write(tmp_path / "silent.wav", np.zeros(800), 16000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not audio.read_audio(tmp_path / "silent.wav").any()
        torch.testing.assert_close(audio.read_audio(wav), tone())


def test_parts_of_a_file(wav):
    whole = audio.read_audio(wav)
    assert torch.equal(audio.read_audio(wav, start=100, num_frames=50), whole[100:150])
    assert torch.equal(audio.read_audio(wav, start=15000), whole[15000:])
    assert torch.equal(audio.read_audio(wav, start=15990, num_frames=100), whole[15990:])
    with pytest.raises(AudioError, match=r"ends at sample 16000, before the wanted start at 16000"):
        audio.read_audio(wav, start=16000)


def test_files_longer_than_a_block_are_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "noise.flac"
    noise = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) - 0.5
    audio.write_audio(path, noise)
    whole = audio.read_audio(path)
    monkeypatch.setattr(audio, "_BLOCK", 999)
    assert torch.equal(audio.read_audio(path), whole)
    assert torch.equal(audio.read_audio(path, start=500, num_frames=5000), whole[500:5500])


def test_long_files_stand_in_memory_once(tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    audio.write_audio(path, torch.zeros(4_000_000))
    monkeypatch.setattr(audio, "_BLOCK", 1 << 14)
    tracemalloc.start()
    try:
        assert audio.read_audio(path).shape == (4_000_000,)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * 4 * 4_000_000
    finally:
        tracemalloc.stop()


def _cut(suffix):
    def make(path):
        whole = path.with_suffix(suffix)
        noise = torch.rand(48000, generator=torch.Generator().manual_seed(0)) - 0.5
        audio.write_audio(whole, noise)
        path = path.with_name(f"broken{suffix}")
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        return path

    return make


def _content(content):
    def make(path):
        path.write_bytes(content)
        return path

    return make


def _samples(samples, rate=16000, subtype="FLOAT"):
    def make(path):
        soundfile.write(path, samples, rate, subtype)
        return path

    return make


def _flac_of_unknown_length(path):
    path = path.with_suffix(".flac")
    audio.write_audio(path, tone())
    content = bytearray(path.read_bytes())
    # The last 36 bits of these five bytes of STREAMINFO are the number of samples; 0 stands for unknown.
    content[21:26] = (int.from_bytes(content[21:26], "big") >> 36 << 36).to_bytes(5, "big")
    path.write_bytes(content)
    return path


def _flac_that_claims_too_much(path):
    path = _flac_of_unknown_length(path)
    content = bytearray(path.read_bytes())
    content[21:26] = (int.from_bytes(content[21:26], "big") | (1 << 35)).to_bytes(5, "big")
    path.write_bytes(content)
    return path


def _folder(path):
    path.mkdir()
    return path


def _pipe(path):
    os.mkfifo(path)
    return path


BROKEN = {
    "missing": (lambda path: path, "no such file"),
    "folder": (_folder, "is a folder, not a file"),
    **({"pipe": (_pipe, "is a pipe or a device, not a file")} if hasattr(os, "mkfifo") else {}),
    "no file's name": (lambda path: path.with_name("x" * 300 + ".wav"), "not readable"),
    "empty file": (_content(b""), "not readable as audio"),
    "text": (_content(b"this is no audio\n" * 100), "not readable as audio"),
    "wav header alone": (_content(b"RIFF" + struct.pack("<I", 4) + b"WAVE"), "not readable as audio"),
    "raw": (lambda path: _content(b"\0" * 1000)(path.with_suffix(".raw")), "without a header"),
    "cut flac": (_cut(".flac"), "broken or cut short"),
    "cut mp3": (_cut(".mp3"), "cut short"),
    "flac of unknown length": (_flac_of_unknown_length, "does not give the length"),
    "flac that claims 25 days": (_flac_that_claims_too_much, "cut short"),
    "no samples": (_samples(np.zeros(0)), "has no samples"),
    "NaN": (_samples(np.array([0.0, np.nan, 0.0])), "NaN or infinite"),
    "infinite": (_samples(np.array([[0.0, 0.0], [np.inf, 0.0]])), "NaN or infinite"),
    "rate of 1 Hz": (_samples(np.zeros(100), 1), "sample rate of 1 Hz"),
    "rate of 2 GHz": (_samples(np.zeros(100), 2_000_000_000), "sample rate of 2000000000 Hz"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_sentence_that_names_them(tmp_path, case):
    make, reason = BROKEN[case]
    path = make(tmp_path / "broken.wav")
    with pytest.raises(AudioError, match=reason) as caught:
        audio.read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(wav):
    wav.chmod(0)
    with pytest.raises(AudioError, match="not readable"):
        audio.read_audio(wav)


def test_folders_are_searched_by_suffix(tmp_path):
    for name in ("b.wav", "a/c.FLAC", "a/d.txt", ".hidden/e.wav", "._b.wav", "f.wav/g.mp3"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "h.ogg").touch()
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "corpus")
    found = [path.relative_to(tmp_path / "corpus").as_posix() for path in audio.find_audio(tmp_path / "corpus")]
    assert found == ["a/c.FLAC", "b.wav", "f.wav/g.mp3", "linked/h.ogg"]


def test_one_channel_of_several(tmp_path):
    samples = np.random.default_rng(0).normal(scale=0.1, size=(5000, 3)).astype(np.float32)
    path = tmp_path / "three.wav"
    soundfile.write(path, samples, 16000, "FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channel in range(3):
            np.testing.assert_array_equal(audio.read_audio(path, channel=channel), samples[:, channel])
        np.testing.assert_array_equal(audio.read_audio(path, start=100, num_frames=50, channel=2), samples[100:150, 2])
    for channel in (3, -1):
        with pytest.raises(AudioError, match=f"has 3 channels, counted from 0, and no channel {channel}"):
            audio.read_audio(path, channel=channel)
