"""The network: golden values, and invariants of padding, length, causality, precision and memory."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
import torchaudio
from torch.utils._python_dispatch import TorchDispatchMode

import wavcube_plugins.models.layers as layers
import wavcube_plugins.models.products as products
import wavcube_plugins.models.relative_attention as relative_attention
from wavcube_plugins import WavCube, WavCubeConfig, load_model
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.decoder import InverseSTFT, Rotary, Window
from wavcube_plugins.models.interface import SpeechCodec
from wavcube_plugins.models.lengths import pad_batch
from wavcube_plugins.models.wavlm import WavLM

# Samples: below and at the receptive field, around the border to the second frame, and common lengths.
LENGTHS = (1, 2, 399, 400, 401, 719, 720, 721, 8000, 16784, 48123)


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that was stored, counting a view as what it views."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_golden_values_alone(golden_model, golden_io):
    with torch.inference_mode():
        for name in "ab":
            waveform = golden_io[f"{name}.waveform"][None]
            latent, lengths = golden_model.encode(waveform)
            assert lengths.item() == len(golden_io[f"{name}.latent"])
            assert difference(latent[0], golden_io[f"{name}.latent"]) < 1e-5
            decoded, samples = golden_model.decode(latent, lengths)
            assert samples.item() == decoded.shape[1] == 320 * lengths.item()
            assert difference(decoded[0], golden_io[f"{name}.reconstruction"]) < 1e-4


def test_golden_values_batched(golden_model, golden_io):
    waveforms, lengths = pad_batch([golden_io["a.waveform"], golden_io["b.waveform"]])
    with torch.inference_mode():
        latent, latent_lengths = golden_model.encode(waveforms, lengths)
        decoded, samples = golden_model.decode(latent, latent_lengths)
    for item, name in enumerate("ab"):
        expected = golden_io[f"{name}.latent"]
        assert difference(latent[item, : len(expected)], expected) < 1e-5
        assert not latent[item, len(expected) :].any()
        expected = golden_io[f"{name}.reconstruction"]
        assert difference(decoded[item, : len(expected)], expected) < 1e-4
        assert not decoded[item, samples[item] :].any()


def test_golden_hidden_states_and_restored_features(golden_model, golden_io):
    with torch.inference_mode():
        waveform = golden_io["a.waveform"][None]
        features = golden_model.features(waveform)
        states, _ = golden_model.hidden_states(waveform)
        output = golden_model(waveform)
    assert len(states) == len(features.hidden_states) == 5
    for index, state in enumerate(states):
        assert difference(state[0], golden_io[f"a.student_hidden_{index}"]) < 1e-5
        assert torch.equal(state, features.hidden_states[index])
    assert difference(features.restored[0], golden_io["a.restored"]) < 1e-5
    assert difference(output.restored[0], golden_io["a.restored"]) < 1e-5
    assert difference(output.features[0], golden_io["a.student_hidden_4"]) < 1e-5
    size = len(golden_io["a.reconstruction"])
    assert output.reconstruction.shape == waveform.shape
    assert difference(output.reconstruction[0, :size], golden_io["a.reconstruction"]) < 1e-4
    assert not output.reconstruction[0, size:].any()


@pytest.mark.filterwarnings("ignore:.*UNTRAINED")
@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_a_padded_batch_gives_what_each_item_gives_alone(preset):
    model = load_model(preset)
    items = [0.1 * torch.randn(length) for length in LENGTHS]
    waveforms, lengths = pad_batch(items)
    waveforms = waveforms.masked_fill(~layers.length_mask(lengths, waveforms.shape[1]), 7.0)  # padding must not matter
    with torch.inference_mode():
        latent, latent_lengths = model.encode(waveforms, lengths)
        decoded, samples = model.decode(latent, latent_lengths)
        states, _ = model.hidden_states(waveforms, lengths)
        restored = model.features(waveforms, lengths).restored
        for index, item in enumerate(items):
            alone, frames = model.encode(item[None])
            assert frames.item() == latent_lengths[index] == max(1, (len(item) - 400) // 320 + 1)
            assert alone.isfinite().all()
            assert difference(latent[index, :frames], alone[0]) < 1e-4
            assert difference(restored[index, :frames], model.features(item[None]).restored[0]) < 1e-4
            for state, expected in zip(states, model.hidden_states(item[None])[0], strict=True):
                assert difference(state[index, :frames], expected[0]) < 1e-4
            expected, _ = model.decode(alone)
            assert samples[index] == expected.shape[1]
            assert difference(decoded[index, : samples[index]], expected[0]) < 1e-4


def test_padding_changes_no_gradient(golden_model):
    # In double precision, where sums over other numbers of frames do not differ by their rounding.
    golden_model.double()
    items = [0.1 * torch.randn(length, dtype=torch.float64) for length in (9000, 5000, 399)]

    def loss(waveforms, lengths):
        output = golden_model(waveforms, lengths)
        return output.reconstruction.square().sum() + output.restored.square().sum() + output.latent.sum()

    def gradients():
        found = {name: p.grad.clone() for name, p in golden_model.named_parameters() if p.grad is not None}
        golden_model.zero_grad()
        return found

    batch, lengths = pad_batch(items)
    batch.requires_grad_()
    loss(batch, lengths).backward()
    together = gradients()
    for index, item in enumerate(items):
        item = item[None].requires_grad_()
        loss(item, None).backward()
        scale = item.grad.abs().max()
        assert difference(batch.grad[index, : item.shape[1]] / scale, item.grad[0] / scale) < 1e-6
        assert not batch.grad[index, item.shape[1] :].any()
    for name, gradient in gradients().items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert difference(together[name] / scale, gradient / scale) < 1e-6, name
    assert len(together) == len(list(golden_model.parameters()))


def test_every_item_is_normalised_alone(golden_model):
    item = 0.1 * torch.randn(1, 8000)
    with torch.inference_mode():
        expected, _ = golden_model.encode(item)
        louder, _ = golden_model.encode(3.0 * item + 0.2)
    assert difference(louder, expected) < 1e-4


@pytest.mark.slow
def test_blocks_change_nothing(golden_model, monkeypatch):
    waveforms, lengths = pad_batch([0.1 * torch.randn(30000), 0.1 * torch.randn(9000)])
    with torch.inference_mode():
        expected, _ = golden_model.encode(waveforms, lengths)
        monkeypatch.setitem(layers.BLOCK_ELEMENTS, "cpu", 1000)
        monkeypatch.setattr(relative_attention, "QUERY_ROWS", 7)
        monkeypatch.setattr(layers, "CPU_SCORES", 1)
        monkeypatch.setattr(layers, "CPU_ROWS", 7)
        monkeypatch.setattr(layers, "CPU_FRAMES", 1)
        latent, _ = golden_model.encode(waveforms, lengths)
    assert difference(latent, expected) < 1e-5
    assert difference(golden_model.encode(waveforms, lengths)[0], expected) < 1e-5  # with gradients


@pytest.mark.parametrize("fast", [True, False])
def test_the_way_of_attending_changes_nothing(golden_model, monkeypatch, fast):
    """The products of oneDNN and the plain ones, which processors without AVX-512 take, agree with training's."""
    waveforms, lengths = pad_batch([0.1 * torch.randn(30000), 0.1 * torch.randn(9000)])
    if not fast:
        monkeypatch.setattr(products, "_onednn", lambda form: None)
    with torch.inference_mode():
        latent, frames = golden_model.encode(waveforms, lengths)
        sound, _ = golden_model.decode(latent, frames)
    expected, frames = golden_model.encode(waveforms, lengths)
    assert difference(latent, expected) < 1e-5
    assert difference(sound, golden_model.decode(expected, frames)[0]) < 1e-4


@pytest.mark.parametrize(("causal", "ragged"), [(True, False), (False, False), (False, True)])
def test_cpu_attention_is_attention(monkeypatch, causal, ragged):
    monkeypatch.setattr(layers, "CPU_SCORES", 1)
    monkeypatch.setattr(layers, "CPU_ROWS", 32)
    monkeypatch.setattr(layers, "CPU_FRAMES", 1)
    query, key, value = torch.randn(3, 2, 3, 100, 8).unbind(0)
    counts = [100, 60] if ragged else None
    bias = torch.randn(3, 100, 100)

    def block_bias(item, head, block):
        return bias[head, block, 100 - (counts or [100, 100])[item] :].contiguous()

    with torch.inference_mode():
        if not layers.has_cpu_attention(query):
            pytest.skip("this processor's own kernel is taken")
        attended = layers.cpu_attention(
            query, key, value, causal=causal, bias=None if causal else block_bias, lengths=counts
        )
    for item, count in enumerate(counts or [100, 100]):
        mask = torch.ones(count, count, dtype=torch.bool).tril() if causal else bias[:, :count, 100 - count :]
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[item, :, :count], key[item, :, 100 - count :], value[item, :, 100 - count :], mask
        )
        assert difference(attended[item, :count], expected.transpose(0, 1).flatten(1)) < 1e-5
        assert not attended[item, count:].any()


@pytest.mark.slow
def test_wavlm_agrees_with_torchaudio_at_full_size():
    config = WavCubeConfig.preset("wavcube").wavlm
    reference = torchaudio.models.wavlm_large().eval()
    with torch.device("meta"):
        ours = WavLM(config)
    ours.load_state_dict(reference.state_dict(), assign=True)
    ours.eval()
    waveforms = torch.randn(1, 24000)
    with torch.inference_mode():
        expected, _ = reference.extract_features(waveforms)
        states = ours.hidden_states(waveforms)
        final = reference.encoder.transformer.layer_norm(expected[-1])  # torchaudio leaves it out of the list
    assert len(states) == len(expected) + 1 == 25
    for index, state in enumerate(expected[:-1]):
        assert difference(states[index + 1], state) < 1e-4
    assert difference(states[-1], final) < 1e-4


@pytest.mark.parametrize(("buckets", "distance", "frames"), [(320, 800, 1900), (32, 80, 200), (160, 400, 1)])
def test_relative_positions_are_torchaudios(buckets, distance, frames):
    reference = torchaudio.models.wav2vec2.wavlm_attention.WavLMSelfAttention(
        8, 2, has_relative_attention_bias=True, num_buckets=buckets, max_distance=distance
    )
    expected = reference.compute_bias(frames, frames)
    positions = relative_attention.RelativePositions(reference.rel_attn_embed.weight, frames, distance)
    gate = torch.ones(1, 2, frames, 1)
    bias = positions.gated(gate, slice(None), slice(None), None)
    assert torch.equal(bias[0].flip(-1), expected)


def causal_layers(decoder, latent):
    x = decoder.upsample_proj(latent.transpose(1, 2)).transpose(1, 2)
    rotary = Rotary(x.shape[1], decoder.config.dim // decoder.config.num_heads, decoder.config.rope_base, x)
    for layer in decoder.layers:
        x = layer(x, rotary)
    return x


def test_the_decoders_first_layers_are_causal(golden_model):
    decoder = golden_model.decoder
    latent = torch.randn(1, 200, golden_model.latent_dim)
    changed = latent.clone()
    changed[:, 150:] += 1.0
    with torch.inference_mode():
        x, y = (causal_layers(decoder, item) for item in (latent, changed))
    assert torch.equal(x[:, :150], y[:, :150])
    assert difference(x[:, 150:], y[:, 150:]) > 1e-3


def test_window_sees_exactly_its_frames():
    frames, left, right = 300, 40, 10
    query, key = torch.randn(2, 1, frames, 2, 8).unbind(0)
    value = torch.randn(1, frames, 2, 8)
    window = Window(frames, left, right, None, value)
    attended = window.attend(query, key, value)
    position = torch.arange(frames)
    offset = position[None] - position[:, None]
    mask = (offset >= -left) & (offset <= right)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask
    ).transpose(1, 2)
    assert difference(attended, expected) < 1e-5


def test_rotary_scores_depend_on_distance_alone():
    rotary = Rotary(64, 8, 10000.0, torch.zeros(1))
    query, key = torch.randn(2, 8).unbind(0)
    queries, keys = (rotary(item.expand(1, 64, 1, 8))[0, :, 0] for item in (query, key))
    scores = queries @ keys.T
    for offset in (-5, 0, 17):
        diagonal = scores.diagonal(offset)
        assert difference(diagonal, diagonal[:1].expand_as(diagonal)) < 1e-4
    assert scores[0, 0].item() == pytest.approx((query @ key).item(), abs=1e-5)


def test_inverse_stft_inverts_the_stft():
    waveform = torch.randn(1, 160 * 50)
    padded = torch.nn.functional.pad(waveform, (240, 240))
    window = torch.hann_window(640)
    spectrum = torch.fft.rfft(padded.unfold(-1, 640, 160) * window)
    assert spectrum.shape[1] == 50
    restored = InverseSTFT(640, 160)(spectrum, None)
    assert restored.shape == waveform.shape
    assert difference(restored, waveform) < 1e-5


@pytest.mark.parametrize(("dtype", "latent_error", "sound_error"), [
    (torch.bfloat16, 0.03, 0.005),
    (torch.float16, 0.004, 0.001),
])  # fmt: skip
def test_half_precision_is_close(golden_checkpoint, golden_io, dtype, latent_error, sound_error):
    model = load_model(golden_checkpoint, dtype=dtype)
    with torch.inference_mode():
        latent, lengths = model.encode(golden_io["a.waveform"][None])
        decoded, _ = model.decode(latent, lengths)
    assert latent.dtype == model.dtype == dtype
    assert decoded.dtype == torch.float32
    assert (latent[0].float() - golden_io["a.latent"]).abs().mean() < latent_error
    assert (decoded[0] - golden_io["a.reconstruction"]).abs().mean() < sound_error


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_is_close(golden_model, golden_io, grad):
    waveform = golden_io["a.waveform"][None]
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        output = golden_model(waveform)
    assert output.reconstruction.dtype == torch.float32
    assert (output.latent[0].float() - golden_io["a.latent"]).abs().mean() < 0.03
    size = len(golden_io["a.reconstruction"])
    assert (output.reconstruction[0, :size] - golden_io["a.reconstruction"]).abs().mean() < 0.005


def test_silence_and_constant_are_finite(golden_model):
    for waveform in (torch.zeros(1, 16000), torch.full((1, 16000), 0.5)):
        with torch.inference_mode():
            latent, _ = golden_model.encode(waveform)
            decoded, _ = golden_model.decode(latent)
        assert latent.isfinite().all()
        assert decoded.isfinite().all()


def test_eval_is_deterministic_and_training_drops_only_in_the_adapters(golden_model):
    waveform = 0.1 * torch.randn(1, 8000)
    first, second = golden_model(waveform), golden_model(waveform)
    assert torch.equal(first.reconstruction, second.reconstruction)
    golden_model.train()
    first, second = golden_model(waveform), golden_model(waveform)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.latent, second.latent)
    latent = first.latent.detach()
    assert torch.equal(golden_model.decode(latent)[0], golden_model.decode(latent)[0])


def test_inputs_are_not_modified(golden_model):
    waveforms = torch.randn(2, 9000)
    latent = torch.randn(2, 20, golden_model.latent_dim)
    copies = waveforms.clone(), latent.clone()
    golden_model.encode(waveforms, torch.tensor([9000, 5000]))
    golden_model.decode(latent, torch.tensor([20, 11]))
    assert torch.equal(waveforms, copies[0])
    assert torch.equal(latent, copies[1])


def test_reconstruct_keeps_shape_and_length(golden_model):
    waveforms, lengths = pad_batch([torch.randn(5001), torch.randn(777)])
    restored, out_lengths = golden_model.reconstruct(waveforms, lengths)
    assert restored.shape == waveforms.shape
    assert torch.equal(out_lengths, lengths)
    assert not restored[1, 777:].any()


@pytest.mark.slow
def test_windows_meet_without_a_gap_and_come_close_to_the_exact_result(golden_model):
    waveforms, lengths = pad_batch([0.1 * torch.randn(200000), 0.1 * torch.randn(130000), 0.1 * torch.randn(3000)])
    with torch.inference_mode():
        exact, frames = golden_model.encode(waveforms, lengths)
        windowed, windowed_frames = golden_model.encode(waveforms, lengths, window_seconds=4)
        assert torch.equal(frames, windowed_frames)
        assert windowed.shape == exact.shape
        assert difference(windowed[2], exact[2]) < 1e-5  # shorter than a window: the exact result
        assert (windowed - exact).abs().mean() < 0.1 * exact.abs().mean()
        assert (windowed[0, : frames[0]].abs().sum(-1) > 0).all()

        sound, samples = golden_model.decode(exact, frames)
        windowed_sound, windowed_samples = golden_model.decode(exact, frames, window_seconds=4)
        assert torch.equal(samples, windowed_samples)
        assert windowed_sound.shape == sound.shape
        assert (windowed_sound - sound).abs().mean() < 0.15 * sound.abs().mean()
    with pytest.raises(ValueError, match="window_seconds must be at least"):
        golden_model.encode(waveforms, lengths, window_seconds=0.1)


@pytest.mark.slow
def test_memory_grows_linearly_with_length():
    model = WavCube(WavCubeConfig.preset("tiny")).eval()

    sizes = []
    for seconds in (40, 80):
        waveforms = torch.randn(1, seconds * 16000)
        with torch.inference_mode(), LargestTensor() as largest:
            latent, _ = model.encode(waveforms)
            model.decode(latent)
        sizes.append(largest.elements)
    # One head's matrix of all pairs of frames would have 4 and 16 million elements, and all heads' four times that.
    assert sizes[1] < 2.1 * sizes[0]
    assert sizes[1] < 4000 * 4000


@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (torch.randn(16000), None, r"shape \(batch, samples\), got \(16000,\)"),
        (torch.randn(1, 1, 16000), None, r"shape \(batch, samples\)"),
        (torch.ones(1, 16000, dtype=torch.int16), None, "floating point in -1 … 1, got torch.int16"),
        (torch.zeros(1, 0), None, "must not be empty"),
        (torch.tensor([[0.0, math.nan]]), None, "waveform 0 of the batch has NaN or infinite"),
        (torch.tensor([[0.0, 1.0], [0.0, math.inf]]), None, "waveform 1 of the batch has NaN or infinite"),
        (torch.randn(2, 900), torch.tensor([900]), r"shape \(2,\), one per item"),
        (torch.randn(2, 900), torch.tensor([900, 901]), r"1 … 900 samples, got 900 … 901"),
        (torch.randn(2, 900), torch.tensor([900, 0]), r"1 … 900 samples, got 0 … 900"),
        (torch.randn(2, 900), torch.tensor([1.0, 0.5]), "whole numbers of samples, got torch.float32"),
        ([0.0, 1.0], None, "must be a torch.Tensor, got list"),
    ],
)
def test_bad_waveforms_are_named(golden_model, waveforms, lengths, message):
    with pytest.raises(ValueError, match=message):
        golden_model.encode(waveforms, lengths)


def test_infinite_padding_does_no_harm(golden_model):
    waveforms = torch.randn(2, 3000)
    expected, _ = golden_model.encode(waveforms, torch.tensor([3000, 1000]))
    waveforms[1, 1000:] = math.nan
    latent, _ = golden_model.encode(waveforms, torch.tensor([3000, 1000]))
    assert torch.equal(latent, expected)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (torch.randn(1, 20, 5), r"shape \(batch, frames, 16\), got \(1, 20, 5\)"),
        (torch.randn(20, 16), r"shape \(batch, frames, 16\)"),
        (torch.ones(1, 20, 16, dtype=torch.long), "floating point torch.Tensor, got torch.int64"),
        (torch.full((1, 20, 16), math.nan), "NaN or infinite"),
        (torch.zeros(1, 0, 16), r"got \(1, 0, 16\)"),
        ("latent", "got str"),
    ],
)
def test_bad_latents_are_named(golden_model, latent, message):
    with pytest.raises(ValueError, match=message):
        golden_model.decode(latent)


def test_an_inner_layer_passes_one_more_layer_norm():
    config = dataclasses.replace(WavCubeConfig.preset("tiny"), wavlm_layer=2)
    model = WavCube(config).eval()
    with torch.no_grad():
        model.post_wavlm_layer_norm.weight.fill_(2.0)
    waveform = torch.randn(1, 8000)
    with torch.inference_mode():
        states, _ = model.hidden_states(waveform)
        output = model(waveform)
    expected = 2.0 * torch.nn.functional.layer_norm(states[2], states[2].shape[-1:])
    assert difference(output.features, expected) < 1e-5
    assert difference(model.features(waveform).latent, output.latent) < 1e-5


def test_properties(golden_model):
    assert (golden_model.sample_rate, golden_model.hop_length) == (16000, 320)
    assert (golden_model.frame_rate, golden_model.latent_dim) == (50.0, 16)


def test_the_model_offers_the_interface(golden_model):
    assert isinstance(golden_model, SpeechCodec)
    assert golden_model.window_samples(1) == 400 and golden_model.window_samples(3) == 1040


def test_unknown_layers_are_named(golden_model):
    for layer in (5, -2, 100):
        with pytest.raises(InputError, match=rf"layer must lie in -1 … 4, got {layer}"):
            golden_model.wavlm(torch.zeros(1, 8000), layer=layer)


def test_the_network_needs_neither_audio_files_nor_toolkits():
    code = (
        "import sys, pkgutil, importlib\n"
        # Importing these now fails. (torchaudio looks for soundfile as well, and does without it.)
        "for name in ('soundfile', 's3prl', 'espnet2', 'speechbrain', 'huggingface_hub', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "import torch, wavcube_plugins.models as models\n"
        "for module in pkgutil.iter_modules(models.__path__):\n"
        "    importlib.import_module(f'wavcube_plugins.models.{module.name}')\n"
        "assert 'wavcube_plugins.audio' not in sys.modules\n"
        "from wavcube_plugins import WavCube, WavCubeConfig\n"
        "WavCube(WavCubeConfig.preset('tiny')).encode(torch.randn(1, 4000))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
