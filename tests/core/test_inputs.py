"""Arrays and tensors from elsewhere, odd values and odd surroundings: the right result or one sentence."""

import threading

import numpy as np
import pytest
import torch

from wavcube_plugins import load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.lengths import check_lengths, pad_batch
from wavcube_plugins.models.mel import mel_spectrogram, mel_to_waveform

# Around the borders of the first frames, and some more.
LENGTHS = (1, 399, 400, 401, 719, 720, 721, 5000)


def speechlike(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.sin(torch.arange(samples) / 9.0) + 0.1 * torch.randn(samples, generator=generator))[None]


@pytest.fixture(scope="module")
def nano():
    return load_model("nano")


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "lengths",
    [
        [900, 400],
        (900, 400),
        np.array([900, 400]),
        np.array([900, 400], dtype=np.int16),
        np.array([900, 400], dtype=np.uint64),
        torch.tensor([900, 400], dtype=torch.int32),
        torch.tensor([900, 400], dtype=torch.uint16),
    ],
    ids=lambda lengths: f"{type(lengths).__name__}-{getattr(lengths, 'dtype', '')}",
)
def test_lengths_of_any_kind(lengths):
    checked = check_lengths(lengths, torch.zeros(2, 900), "samples")
    assert checked.dtype == torch.int64 and checked.tolist() == [900, 400]


@pytest.mark.parametrize(
    "lengths",
    [
        ["900", "400"],
        [None, 400],
        np.array([900, 400], dtype=">i8"),
        np.array([900.0, 400.0]),
        torch.tensor([900j, 400]),
        "900",
        pytest.param(object(), id="object"),
    ],
    ids=str,
)
def test_lengths_that_are_none_are_one_sentence(nano, lengths):
    with pytest.raises(InputError, match="lengths must be whole numbers of samples, got"):
        nano.encode(torch.zeros(2, 900), lengths)


def test_arrays_in_place_of_tensors_are_one_sentence(nano):
    for array in (np.zeros((1, 900), np.float32), np.zeros((1, 900), ">f4"), [[0.0] * 900]):
        with pytest.raises(InputError, match=r"waveforms must be a torch\.Tensor, got"):
            nano.encode(array)
    with pytest.raises(InputError, match=r"latent must be a floating point torch\.Tensor, got ndarray"):
        nano.decode(np.zeros((1, 9, 32), np.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_waveforms_and_latents_of_other_types(nano, dtype):
    waveforms = speechlike(8000)
    with torch.inference_mode():
        latent, frames = nano.encode(waveforms.to(dtype))
        expected, _ = nano.encode(waveforms.to(dtype).float())
        assert latent.dtype == torch.float32 and torch.equal(latent, expected)
        sound, _ = nano.decode(latent.to(dtype), frames)
        assert sound.dtype == torch.float32 and torch.equal(sound, nano.decode(latent.to(dtype).float(), frames)[0])


def test_the_default_type_changes_nothing(nano, float64_by_default):
    waveforms = speechlike(40000).float()
    with torch.inference_mode():
        latent, frames = nano.encode(waveforms)
        sound, _ = nano.decode(latent, frames)
        windowed, _ = nano.decode(latent, frames, window_seconds=1)
        again, _ = nano.reconstruct(waveforms)
        mel = mel_spectrogram(waveforms[0])
        from_mel = mel_to_waveform(mel)
    assert {tensor.dtype for tensor in (latent, sound, windowed, again, mel, from_mel)} == {torch.float32}
    assert load_model("nano").dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert torch.equal(nano.encode(waveforms)[0], latent)
        assert torch.equal(nano.decode(latent, frames)[0], sound)
        assert torch.equal(mel_spectrogram(waveforms[0]), mel)


@pytest.mark.parametrize("level", [1e3, 1e5, 1e19, 1e30, 1e37])
def test_the_level_does_not_matter_however_high(nano, level):
    waveforms, lengths = pad_batch([speechlike(8000)[0], speechlike(3000, 1)[0]])
    with torch.inference_mode():
        expected, _ = nano.encode(waveforms * 100, lengths)
        latent, _ = nano.encode(waveforms * level, lengths)
        wide, _ = nano.encode(waveforms.double() * level**8, lengths)
    assert (latent - expected).abs().max() < 1e-3
    assert (wide - expected).abs().max() < 1e-3


@pytest.mark.parametrize("window", [None, 0.8])
@pytest.mark.parametrize("scale", [1e20, 1e38])
def test_latents_that_no_model_gives_are_one_sentence(nano, scale, window):
    latent = torch.randn(1, 60, 32) * scale
    with torch.inference_mode(), pytest.raises(InputError, match=r"cannot be decoded in torch.float32.*value is|NaN"):
        nano.decode(latent, window_seconds=window)


def test_large_latents_of_half_precision_models_are_decoded_or_one_sentence():
    model = load_model("nano", dtype="float16")
    for scale in (1.0, 1e3, 6e4):
        try:
            with torch.inference_mode():
                sound, _ = model.decode((torch.rand(1, 60, 32) - 0.5) * scale)
        except InputError as error:
            assert "float16" in str(error)
        else:
            assert sound.isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_clicks_offsets_and_clipping_are_finite(dtype):
    model = load_model("nano", dtype=dtype)
    click = torch.zeros(16000)
    click[8000] = 1.0
    wave = speechlike(16000)[0]
    for waveform in (click, 0.9 + 0.01 * wave, (50 * wave).clamp(-1, 1), torch.zeros(16000), torch.ones(16000)):
        with torch.inference_mode():
            latent, frames = model.encode(waveform[None])
            sound, _ = model.decode(latent, frames)
        assert latent.isfinite().all() and sound.isfinite().all()


def test_a_batch_gives_what_its_items_give_whatever_stands_in_the_padding(nano):
    items = [speechlike(length, length)[0] for length in LENGTHS]
    waveforms, lengths = pad_batch(items)
    for index, length in enumerate(LENGTHS):
        waveforms[index, length:] = float("nan")
    with torch.inference_mode():
        latent, frames = nano.encode(waveforms, lengths)
        for index, item in enumerate(items):
            alone, count = nano.encode(item[None])
            assert count.item() == frames[index]
            assert (latent[index, : frames[index]] - alone[0]).abs().max() < 1e-4
        latent[torch.arange(latent.shape[1]) >= frames[:, None]] = float("nan")
        sound, _ = nano.decode(latent, frames)
    assert sound.isfinite().all()


def test_training_after_inference_mode():
    model = load_model("nano")
    waveforms = speechlike(8000)
    with torch.inference_mode():
        expected = model(waveforms).reconstruction
    output = model(waveforms)
    output.reconstruction.square().sum().backward()
    assert (output.reconstruction - expected).abs().max() < 1e-4
    assert model.decoder.vocoder.head.weight.grad.isfinite().all()


def test_six_threads_at_once(nano):
    waveforms = [speechlike(4000 + 1000 * index, index) for index in range(6)]
    with torch.inference_mode():
        expected = [nano.encode(waveform)[0] for waveform in waveforms]
    results, errors = [None] * 6, []

    def encode(index):
        try:
            for _ in range(3):
                with torch.inference_mode():
                    results[index] = nano.encode(waveforms[index])[0]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for result, wanted in zip(results, expected, strict=True):
        assert (result - wanted).abs().max() < 1e-5
