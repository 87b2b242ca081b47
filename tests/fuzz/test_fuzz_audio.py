"""Audio files of every container, whole and damaged: what is read is the whole recording, or it is refused."""

import numpy as np
import pytest
import soundfile
import torch
from helpers.fuzz import audio_files, check_message, damage, guard
from hypothesis import event, given
from hypothesis import strategies as st

from wavcube_plugins.audio import AudioError, read_audio, read_info, write_audio

pytestmark = pytest.mark.filterwarnings("ignore:.*channels, mixed down")


def read(path, rate):
    """Return the samples of a file, or None if it was refused in one sentence."""
    try:
        with guard():
            waveform = read_audio(path, rate)
    except AudioError as error:
        check_message(error, path)
        return None
    assert waveform.dtype == torch.float32 and waveform.ndim == 1 and len(waveform)
    assert torch.isfinite(waveform).all()
    return waveform.numpy()


@given(audio=audio_files(), data=st.data())
def test_whole_files_are_read_as_they_are(folder, audio, data):
    path = folder / f"a{audio.suffix}"
    path.write_bytes(audio.data)
    samples = read(path, audio.rate)
    event(f"{audio.container} {audio.encoding}")
    if not len(audio.truth):
        assert samples is None
        return
    assert samples is not None
    tolerance = 0 if audio.lossless else 1e-6
    np.testing.assert_allclose(samples, audio.mono, rtol=0, atol=max(tolerance, 2e-7))
    info = read_info(path)
    assert (info.sample_rate, info.num_frames, info.num_channels) == (audio.rate, *audio.truth.shape)
    # A part is the same as that part of the whole.
    start = data.draw(st.integers(0, len(samples) - 1), "start")
    size = data.draw(st.integers(1, 2 * len(samples)), "num_frames")
    part = read_audio(path, audio.rate, start=start, num_frames=size).numpy()
    wanted = samples[start : start + size]
    assert part.shape == wanted.shape
    # Lossy decoders settle over some frames after a seek; what is lossless is exact.
    if audio.lossless:
        np.testing.assert_array_equal(part, wanted)
    resampled = read(path, 16000)
    assert len(resampled) == -(-len(samples) * 16000 // audio.rate)


@given(audio=audio_files(st.integers(1, 4000)), change=damage(kinds=("cut",), most=1))
def test_files_that_were_cut_are_refused_or_whole(folder, audio, change):
    path = folder / f"cut{audio.suffix}"
    path.write_bytes(change(audio.data))
    samples = read(path, audio.rate)
    event("refused" if samples is None else "read")
    if samples is not None:
        np.testing.assert_allclose(samples, audio.mono, rtol=0, atol=1e-6)


@given(audio=audio_files(), change=damage())
def test_damaged_files_are_read_or_refused(folder, audio, change):
    path = folder / f"damaged{audio.suffix}"
    path.write_bytes(change(audio.data))
    try:
        with guard():
            info = read_info(path)
    except AudioError as error:
        check_message(error, path)
        assert read(path, 16000) is None
        return
    samples = read(path, info.sample_rate)
    event("refused" if samples is None else "read")
    if samples is not None:
        assert len(samples) == info.num_frames


@given(data=st.binary(max_size=400), suffix=st.sampled_from((".wav", ".flac", ".mp3", ".ogg", ".sph", ".raw", "")))
def test_arbitrary_bytes_are_read_or_refused(folder, data, suffix):
    path = folder / f"bytes{suffix}"
    path.write_bytes(data)
    read(path, 16000)


@given(
    samples=st.integers(0, 3000),
    scale=st.sampled_from((0.0, 0.1, 1.0, 3.0, 1e30)),
    suffix=st.sampled_from((".wav", ".flac", ".aiff", ".au", ".w64", ".ogg", ".opus", ".mp3")),
    rate=st.sampled_from((8000, 16000, 24000, 48000)),
)
def test_what_is_written_is_what_is_read(folder, samples, scale, suffix, rate):
    path = folder / f"written{suffix}"
    waveform = scale * torch.from_numpy(np.random.default_rng(samples).uniform(-1, 1, samples)).float()
    with guard():
        write_audio(path, waveform, rate)
    if not samples:
        assert read(path, rate) is None
        return
    again = read(path, rate)
    assert again is not None and soundfile.info(path).samplerate == rate
    if suffix in (".wav", ".flac", ".aiff", ".au", ".w64"):
        np.testing.assert_allclose(again, waveform.clamp(-1, 1).numpy(), rtol=0, atol=1.01 / 32768)
    elif suffix != ".mp3":
        assert len(again) == samples


@pytest.mark.parametrize("suffix", [".au", ".vox", ".gsm", ".al", ".ul"])
def test_bytes_without_a_header_are_no_audio(folder, suffix):
    """libsndfile takes them for samples because of the suffix."""
    path = folder / f"headerless{suffix}"
    path.write_bytes(bytes(range(100)))
    assert read(path, 8000) is None
