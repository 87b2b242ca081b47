"""What the paper varies, by configuration alone: the bottleneck's kind, its rate, the WavLM layer, the backbone."""

import dataclasses
import json
import os
import re

import pytest
import torch
import torchaudio
from safetensors.torch import save_file

import wavcube_plugins.checkpoints.backbones as backbones
import wavcube_plugins.models.layers as layers
from wavcube_plugins import WavCube, WavCubeConfig, load_model
from wavcube_plugins.checkpoints import (
    CheckpointError,
    load_discriminators,
    load_teacher,
    save_model,
)
from wavcube_plugins.checkpoints.backbones import FILES, init_from_backbone, load_backbone, save_backbone
from wavcube_plugins.config import BACKBONES, WavLMConfig
from wavcube_plugins.models.bottleneck import FrameDownsampler, FrameUpsampler
from wavcube_plugins.models.lengths import pad_batch
from wavcube_plugins.models.wavcube import normalise
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining.discriminators import Discriminators

SMALL = WavCubeConfig.preset("tiny").wavlm
FORMS = {
    "wavlm_large": SMALL,
    "wavlm_base": dataclasses.replace(SMALL, extractor_mode="group_norm", layer_norm_first=False),
    "hubert_large": dataclasses.replace(SMALL, relative_positions=False),
    "hubert_base": dataclasses.replace(
        SMALL, extractor_mode="group_norm", layer_norm_first=False, relative_positions=False
    ),
    "wav2vec2_lv60k": dataclasses.replace(SMALL, conv_bias=True, relative_positions=False),
    "base_with_bias": dataclasses.replace(SMALL, extractor_mode="group_norm", layer_norm_first=False, conv_bias=True),
}
LENGTHS = (1, 400, 401, 721, 5000, 16784)


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


def reference_model(config: WavLMConfig):
    """torchaudio's own network of the given sizes, with random weights that no layer leaves at its neutral values."""
    sizes = {
        "extractor_mode": config.extractor_mode,
        "extractor_conv_layer_config": list(
            zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
        ),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_dim,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": config.pos_conv_kernel,
        "encoder_pos_conv_groups": config.pos_conv_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_num_heads": config.num_heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": config.ffn_dim,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": config.layer_norm_first,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    if config.relative_positions:
        buckets = {"encoder_num_buckets": config.num_buckets, "encoder_max_distance": config.max_distance}
        model = torchaudio.models.wavlm_model(**sizes, **buckets)
    else:
        model = torchaudio.models.wav2vec2_model(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def backbone_pair(config):
    reference = reference_model(config)
    ours = WavLM(config).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@pytest.mark.parametrize("block", [None, 50_000])
def test_every_backbone_is_torchaudios(form, monkeypatch, block):
    if block is not None:
        monkeypatch.setitem(layers.BLOCK_ELEMENTS, "cpu", block)
    reference, ours = backbone_pair(form)
    waveforms = 0.3 * torch.randn(2, 24111) + 0.1
    with torch.no_grad():
        expected, _ = reference.extract_features(waveforms)
        last, _ = reference(waveforms)
        if form.layer_norm_first:
            expected[-1] = last  # torchaudio leaves the final layer norm out of its list
        states = ours.hidden_states(waveforms)
        assert torch.equal(ours(waveforms), states[-1])
        assert torch.equal(ours(waveforms, layer=2), states[2])
    assert difference(expected[-1], last) == 0 and len(states) == len(expected) + 1
    for state, wanted in zip(states[1:], expected, strict=True):
        assert difference(state, wanted) < 2e-5 * wanted.abs().max()
    assert difference(ours(waveforms), last) < 2e-5 * last.abs().max()  # training takes other kernels


def test_every_backbone_in_a_padded_batch_gives_what_it_gives_alone(form):
    _, ours = backbone_pair(form)
    items = [0.3 * torch.randn(length) for length in LENGTHS]
    waveforms, lengths = pad_batch(items)
    with torch.inference_mode():
        together = ours.hidden_states(waveforms, lengths)
        frames = ours.frame_lengths(lengths)
        for index, item in enumerate(items):
            for state, alone in zip(together, ours.hidden_states(item[None]), strict=True):
                assert difference(state[index, : frames[index]], alone[0]) < 1e-4


@pytest.mark.parametrize("name", ["wavlm_base", "hubert_large"])
def test_padding_changes_no_gradient_of_a_backbone(name):
    _, ours = backbone_pair(FORMS[name])
    items = [0.3 * torch.randn(length) for length in (9000, 5000, 399)]
    waveforms, lengths = pad_batch(items)
    frames = ours.frame_lengths(lengths)
    together = layers.mask_frames(ours(waveforms, lengths), frames).square().sum()
    apart = sum(ours(item[None]).square().sum() for item in items)
    parameters = list(ours.parameters())
    pairs = zip(torch.autograd.grad(together, parameters), torch.autograd.grad(apart, parameters), strict=True)
    for a, b in pairs:
        assert difference(a, b) < 1e-4 * b.abs().max().clamp_min(0.05)  # no key has a use for its bias


def test_the_level_means_nothing_to_a_group_norm():
    _, ours = backbone_pair(FORMS["wavlm_base"])
    waveforms = torch.randn(1, 8000)
    with torch.inference_mode():
        assert difference(ours(waveforms), ours(20.0 * waveforms + 3.0)) < 1e-2


@pytest.mark.parametrize("name", ["wavlm_base", "hubert_base"])
def test_half_precision_of_the_other_backbones_is_close(name):
    _, ours = backbone_pair(FORMS[name])
    waveforms = 0.3 * torch.randn(1, 8000)
    with torch.inference_mode():
        expected = ours(waveforms)
        with torch.autocast("cpu", torch.bfloat16):
            assert (ours(waveforms) - expected).abs().mean() < 0.03 * expected.abs().mean()
        assert (ours.bfloat16()(waveforms.bfloat16()) - expected).abs().mean() < 0.05 * expected.abs().mean()


# The bottleneck -------------------------------------------------------------------------------------------------------


def tiny(wavlm: WavLMConfig = SMALL, **bottleneck) -> WavCubeConfig:
    sizes = dataclasses.replace(WavCubeConfig.preset("tiny").bottleneck, **bottleneck)
    return dataclasses.replace(WavCubeConfig.preset("tiny"), wavlm=wavlm, bottleneck=sizes)


VARIANTS = {
    "vae": tiny(kind="vae"),
    "sigma_vae": tiny(kind="sigma_vae"),
    "25 Hz": tiny(frame_stride=2),
    "vae at 25 Hz": tiny(kind="vae", frame_stride=2, latent_dim=8),
    "layer 2": dataclasses.replace(tiny(), wavlm_layer=2),
    "base at 25 Hz": tiny(FORMS["wavlm_base"], frame_stride=2),
    "hubert": tiny(FORMS["hubert_base"]),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return WavCube(VARIANTS[request.param]).eval()


def test_every_variant_keeps_its_lengths_and_ignores_padding(variant):
    stride = variant.config.bottleneck.frame_stride
    assert (variant.hop_length, variant.frame_rate) == (320 * stride, 50 / stride)
    items = [0.3 * torch.randn(length) for length in (1, 720, 1040, 12345)]
    waveforms, lengths = pad_batch(items)
    with torch.inference_mode():
        latent, frames = variant.encode(waveforms, lengths)
        decoded, samples = variant.decode(latent, frames)
        output = variant(waveforms, lengths)
        features = variant.features(waveforms, lengths)
        states, _ = variant.hidden_states(waveforms, lengths)
        assert torch.equal(samples, frames * variant.hop_length)
        assert torch.equal(output.latent_lengths, frames) and torch.equal(features.latent_lengths, frames)
        assert torch.equal(output.lengths, features.lengths)
        for index, item in enumerate(items):
            wavlm_frames = max(1, (len(item) - 400) // 320 + 1)
            assert frames[index] == -(-wavlm_frames // stride) and output.lengths[index] == wavlm_frames
            alone = variant(item[None])
            assert alone.latent.shape[1] == frames[index] and alone.restored.shape[1] == wavlm_frames
            for ours in (latent, output.latent, features.latent):
                assert difference(ours[index, : frames[index]], alone.latent[0]) < 1e-4
                assert not ours[index, frames[index] :].any()
            for ours in (output.restored, features.restored):
                assert difference(ours[index, :wavlm_frames], alone.restored[0]) < 1e-4
                assert not ours[index, wavlm_frames:].any()
            assert difference(output.features[index, :wavlm_frames], alone.features[0]) < 1e-4
            assert difference(states[-1][index, :wavlm_frames], variant.hidden_states(item[None])[0][-1][0]) < 1e-4
            assert difference(decoded[index, : samples[index]], variant.decode(alone.latent)[0][0]) < 1e-4
            assert difference(output.reconstruction[index, : len(item)], alone.reconstruction[0]) < 1e-4
        restored, _ = variant.reconstruct(waveforms, lengths)
    assert restored.shape == output.reconstruction.shape == waveforms.shape
    assert difference(restored, output.reconstruction) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["25 Hz", "base at 25 Hz"])
def test_windows_work_at_25_hz(name):
    model = WavCube(VARIANTS[name]).eval()
    waveforms, lengths = pad_batch([0.3 * torch.randn(150000), 0.3 * torch.randn(99999), 0.3 * torch.randn(20777)])
    with torch.inference_mode():
        exact, frames = model.encode(waveforms, lengths)
        windowed, windowed_frames = model.encode(waveforms, lengths, window_seconds=4)
        assert torch.equal(frames, windowed_frames) and windowed.shape == exact.shape
        assert difference(windowed[2], exact[2]) < 1e-5  # shorter than a window: the exact result
        assert (windowed - exact).abs().mean() < 0.1 * exact.abs().mean()
        assert (windowed[0].abs().sum(-1) > 0).all()
        sound, samples = model.decode(exact, frames)
        windowed_sound, windowed_samples = model.decode(exact, frames, window_seconds=4)
        assert torch.equal(samples, windowed_samples) and windowed_sound.shape == sound.shape
        assert (windowed_sound - sound).abs().mean() < 0.15 * sound.abs().mean()


def test_the_two_convolutions_are_each_others_transpose():
    down, up = FrameDownsampler(3), FrameUpsampler(3)
    with torch.no_grad():
        down.conv.bias.zero_()
        up.conv.bias.zero_()
        up.conv.weight.copy_(down.conv.weight)
    x, y = torch.randn(2, 10, 3), torch.randn(2, 5, 3)
    assert (down(x, None) * y).sum().item() == pytest.approx((x * up(y, None)).sum().item(), rel=1e-4)
    for frames in (1, 2, 3, 8, 9):
        assert down(x[:, :frames], None).shape[1] == -(-frames // 2)
        assert up(y[:, :frames], None).shape[1] == 2 * min(frames, 5)


def test_only_what_a_variant_needs_is_added_to_the_weights():
    usual = {name: tensor.shape for name, tensor in WavCube(tiny()).state_dict().items()}

    def changes(**bottleneck):
        state = {name: tensor.shape for name, tensor in WavCube(tiny(**bottleneck)).state_dict().items()}
        assert not set(usual) - set(state)
        return {name: tuple(shape) for name, shape in state.items() if usual.get(name) != shape}

    assert changes(kind="sigma_vae") == {}
    assert changes(kind="vae") == {"compressor.projection.2.weight": (32, 40), "compressor.projection.2.bias": (32,)}
    assert changes(frame_stride=2) == {
        f"{module}.conv.{name}": shape
        for module in ("compressor.downsampler", "restorer.upsampler", "decoder.latent_upsampler")
        for name, shape in (("weight", (16, 16, 4)), ("bias", (16,)))
    }


@pytest.mark.parametrize("kind", ["ae", "sigma_vae", "vae"])
@pytest.mark.parametrize("stride", [1, 2])
def test_drawing_adds_the_noise_of_its_kind(kind, stride):
    compressor = WavCube(tiny(kind=kind, frame_stride=stride)).eval().compressor
    features, lengths = torch.randn(3, 401, 64), torch.tensor([401, 200, 3])
    mean = compressor(features, lengths)
    latent, divergence = compressor.draw(features, lengths, torch.Generator().manual_seed(1))
    again, _ = compressor.draw(features, lengths, torch.Generator().manual_seed(1))
    other, _ = compressor.draw(features, lengths)
    assert torch.equal(latent, again) and latent.shape == mean.shape and divergence.shape == ()
    valid = layers.length_mask(compressor.latent_lengths(lengths), mean.shape[1])
    assert not latent[~valid].any() and not mean[~valid].any()
    noise = (latent - mean)[valid]
    if kind == "ae":
        assert not noise.any() and divergence == 0
        return
    assert not torch.equal(latent, other)
    if kind == "sigma_vae":
        assert divergence == 0
        assert noise.std().item() == pytest.approx(0.5, rel=0.05) and abs(noise.mean().item()) < 0.02
        return
    means, log_variances = compressor._distribution(features, lengths)
    gaussian = torch.distributions.Normal(means[valid], (0.5 * log_variances[valid]).exp())
    expected = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (noise / gaussian.scale).std().item() == pytest.approx(1.0, rel=0.05)
    for target in (divergence, latent.sum()):
        (gradient,) = torch.autograd.grad(target, compressor.projection[2].weight, retain_graph=True)
        assert gradient.isfinite().all() and all(part.abs().sum() > 0 for part in gradient.chunk(2))


def test_a_vaes_log_variance_is_bounded():
    compressor = WavCube(tiny(kind="vae")).compressor
    with torch.no_grad():
        compressor.projection[2].bias[16:24] = 1000.0
        compressor.projection[2].bias[24:] = -1000.0
    _, log_variance = compressor._distribution(torch.randn(1, 5, 64), None)
    assert log_variance[..., :8].eq(12).all() and log_variance[..., 8:].eq(-12).all()
    assert compressor.draw(torch.randn(1, 5, 64))[1].isfinite()


def test_the_teachers_features_pass_the_same_layer_norm():
    model = WavCube(VARIANTS["layer 2"]).eval()
    teacher = WavLM(model.config.wavlm).eval()
    with torch.no_grad():
        model.post_wavlm_layer_norm.weight.fill_(3.0)
    waveforms, lengths = pad_batch([torch.randn(9000), torch.randn(5000)])
    normalised, lengths, masked = model.prepare(waveforms, lengths)
    features = model.encoder_features(normalised, masked, wavlm=teacher)
    state = teacher(normalised, masked, layer=2)
    expected = 3.0 * torch.nn.functional.layer_norm(state, state.shape[-1:])
    frames = teacher.frame_lengths(lengths)
    assert difference(features[0], expected[0]) < 1e-5 and not features[1, frames[1] :].any()
    assert difference(features, model.encoder_features(normalised, masked)) > 0.1


def test_an_inner_layer_trains():
    model = WavCube(VARIANTS["layer 2"])
    output = model(torch.randn(1, 8000))
    (output.reconstruction.square().sum() + output.restored.square().sum()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    unused = {name for name, _ in model.named_parameters()} - trained
    assert {"post_wavlm_layer_norm.weight", "wavlm.encoder.transformer.layers.1.layer_norm.weight"} <= trained
    above = ("wavlm.encoder.transformer.layers.2.", "wavlm.encoder.transformer.layers.3.")
    assert all(name.startswith((*above, "wavlm.encoder.transformer.layer_norm.")) for name in unused)


def test_every_variant_is_saved_and_loaded(variant, tmp_path):
    save_model(variant, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == variant.config
    waveforms = torch.randn(1, 8000)
    with torch.inference_mode():
        assert torch.equal(loaded.reconstruct(waveforms)[0], variant.reconstruct(waveforms)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bottleneck": {"kind": "gan"}}, "kind must be one of ae, vae, sigma_vae, got 'gan'"),
        ({"bottleneck": {"frame_stride": 3}}, "frame_stride must be one of 1, 2, got 3"),
        ({"bottleneck": {"sigma": -1.0}}, "sigma must be a number from 0 up, got -1.0"),
        ({"wavlm": {"extractor_mode": "default"}}, "extractor_mode must be one of layer_norm, group_norm"),
        ({"wavlm": {"conv_bias": 1}}, "wavlm.conv_bias must be bool, got 1"),
    ],
)
def test_impossible_variants_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        WavCubeConfig.from_dict(values)


# Backbones ------------------------------------------------------------------------------------------------------------


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def renamed(state, *pairs):
    def rename(name):
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): tensor for name, tensor in state.items()}


OLD_WEIGHT_NORM = (
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
)


def apart(state):
    """q, k and v in tensors of their own, as all but torchaudio have them."""
    split = {}
    for name, tensor in state.items():
        if ".attention.attention.in_proj_" in name:
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace("attention.attention.in_proj_", f"attention.{part}_proj.")] = values.clone()
        else:
            split[name.replace("attention.attention.out_proj", "attention.out_proj")] = tensor
    return split


def hugging_face(wavlm, prefix=""):
    state = renamed(apart(wavlm.state_dict()), (r"^encoder\.(feature_projection|transformer)\.", r"\1."))
    state = renamed(state, (r"^transformer\.", "encoder."), *OLD_WEIGHT_NORM)
    state = {prefix + name: tensor for name, tensor in state.items()}
    return {**state, f"{prefix}masked_spec_embed": torch.zeros(64), "lm_head.weight": torch.zeros(3)}


def authors(wavlm):
    norm = "2.1" if wavlm.config.extractor_mode == "layer_norm" else "2"
    state = renamed(
        apart(wavlm.state_dict()),
        (r"^encoder\.feature_projection\.projection\.", "post_extract_proj."),
        (r"^encoder\.feature_projection\.", ""),
        (r"^encoder\.transformer\.", "encoder."),
        (r"pos_conv_embed\.conv", "pos_conv.0"),
        (r"(conv_layers\.\d+)\.conv\.", r"\1.0."),
        (r"(conv_layers\.\d+)\.layer_norm\.", rf"\1.{norm}."),
        (r"(\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"\.attention\.", ".self_attn."),
        (r"gru_rel_pos_linear", "grep_linear"),
        (r"gru_rel_pos_const", "grep_a"),
        (r"rel_attn_embed", "relative_attention_bias"),
        (r"feed_forward\.intermediate_dense", "fc1"),
        (r"feed_forward\.output_dense", "fc2"),
        *OLD_WEIGHT_NORM,
    )
    return {**state, "mask_emb": torch.zeros(64)}


def test_the_known_backbones_are_torchaudios():
    assert BACKBONES.keys() == FILES.keys()
    for name, config in BACKBONES.items():
        bundle = getattr(torchaudio.pipelines, name.upper())
        assert bundle._path == FILES[name] and bundle._sample_rate == 16000
        with torch.device("meta"):
            reference = (
                torchaudio.models.wavlm_model if config.relative_positions else torchaudio.models.wav2vec2_model
            )(**bundle._params)
            ours = WavLM(config)
        assert {n: t.shape for n, t in ours.state_dict().items()} == {
            n: t.shape for n, t in reference.state_dict().items()
        }
        sizes = bundle._params
        assert config.num_heads == sizes["encoder_num_heads"]
        assert config.layer_norm_first == sizes["encoder_layer_norm_first"]
        assert config.extractor_mode == sizes["extractor_mode"]
        assert config.conv_strides == tuple(stride for _, _, stride in sizes["extractor_conv_layer_config"])
        if config.relative_positions:
            assert config.max_distance == sizes["encoder_max_distance"]


def test_a_backbone_is_saved_and_loaded(form, tmp_path):
    wavlm = WavLM(form)
    wavlm.metadata["from"] = "somewhere"
    save_backbone(wavlm, tmp_path, {"steps": "10"})
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    for source in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        loaded = load_backbone(source)
        assert loaded.config == form and same_weights(loaded, wavlm) and not loaded.training
        assert loaded.metadata == {"from": "somewhere", "steps": "10", "source": str(tmp_path)}
    with pytest.raises(CheckpointError, match="its format is 'wavlm-1' and not 'wavcube-1'"):
        load_model(tmp_path)
    save_backbone(wavlm, tmp_path, dtype=torch.float16)
    loaded = load_backbone(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_every_spelling_of_a_backbone_is_read(form, tmp_path):
    wavlm = WavLM(form)
    state = wavlm.state_dict()
    torch.save(state, tmp_path / "torchaudio.pth")
    torch.save({**renamed(state, *OLD_WEIGHT_NORM), "aux.weight": torch.zeros(3)}, tmp_path / "torchaudio_old.pt")
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    torch.save(hugging_face(wavlm), tmp_path / "hugging_face.bin")
    torch.save(hugging_face(wavlm, "wavlm."), tmp_path / "hugging_face_with_head.bin")
    torch.save({"cfg": None, "model": authors(wavlm)}, tmp_path / "authors.pt")
    for name in os.listdir(tmp_path):
        loaded = load_backbone(tmp_path / name, form)
        assert loaded.config == form and not loaded.training
        if name != "half.safetensors":
            assert same_weights(loaded, wavlm), name
        (tmp_path / name).write_bytes(b"")  # a loaded encoder survives its file
        assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_settings_beside_the_weights_tell_what_tensors_do_not(form, tmp_path):
    form = dataclasses.replace(form, num_heads=8, **({} if form.relative_positions else {"max_distance": 800}))
    wavlm = WavLM(form)
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(hugging_face(wavlm), folder / "pytorch_model.bin")
    settings = {"num_attention_heads": 8, "do_stable_layer_norm": form.layer_norm_first, "model_type": "wavlm"}
    settings |= {"max_bucket_distance": form.max_distance, "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    (folder / "config.json").write_text(json.dumps(settings))
    cfg = {"encoder_attention_heads": 8, "max_distance": form.max_distance, "layer_norm_first": form.layer_norm_first}
    torch.save({"cfg": cfg, "model": authors(wavlm)}, tmp_path / "WavLM.pt")
    for source in (folder, folder / "pytorch_model.bin", tmp_path / "WavLM.pt"):
        loaded = load_backbone(source)
        buckets = {} if form.relative_positions else {"num_buckets": 320}
        assert loaded.config == dataclasses.replace(form, **buckets)
        assert same_weights(loaded, wavlm)


def test_the_backbone_of_a_wavcube(golden_checkpoint, golden_model, golden_io, tmp_path):
    waveform = normalise(golden_io["a.waveform"][None])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "epoch.ckpt").write_bytes(golden_checkpoint.read_bytes())
    for source in (golden_checkpoint, folder):
        teacher = load_backbone(source)
        with torch.inference_mode():
            assert difference(teacher(waveform)[0], golden_io["a.teacher_last"]) < 1e-5
    assert same_weights(load_teacher(golden_checkpoint), teacher) and teacher.config == golden_model.config.wavlm
    first = golden_checkpoint.with_name("official_stage1.ckpt")
    assert same_weights(load_teacher(first), load_model(first).wavlm)
    save_model(golden_model, tmp_path / "native")
    for source in (tmp_path / "native", tmp_path / "native" / "model.safetensors"):
        assert same_weights(load_backbone(source), golden_model.wavlm)


def test_a_published_backbone_comes_from_the_cache_or_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(BACKBONES, "hubert_base", FORMS["hubert_base"])
    for name in ("hubert_base", "wavlm_base_plus"):
        with pytest.raises(CheckpointError, match=rf"{name}: not on this machine.*download https://.*{FILES[name]}"):
            load_backbone(name, local_files_only=True)
    with pytest.raises(CheckpointError, match="downloads are off"):
        load_backbone("hubert_base")  # HF_HUB_OFFLINE is set
    wavlm = WavLM(FORMS["hubert_base"])
    server = tmp_path / "server"
    server.mkdir()
    torch.save(wavlm.state_dict(), server / FILES["hubert_base"])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(backbones, "ADDRESS", f"{server.as_uri()}/")
    assert same_weights(load_backbone("hubert_base"), wavlm)
    with pytest.raises(CheckpointError, match="hubert_large: cannot be downloaded"):
        load_backbone("hubert_large")
    (server / FILES["hubert_base"]).unlink()
    assert same_weights(load_backbone("hubert_base", local_files_only=True), wavlm)


def test_a_backbone_that_cannot_be_read_is_one_sentence(golden_model, golden_checkpoint, tmp_path):
    def saved(name, content):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    state = WavLM(SMALL).state_dict()
    lacking = {name: tensor for name, tensor in state.items() if "layers.1.final_layer_norm" not in name}
    other = dataclasses.replace(SMALL, ffn_dim=96)
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x")
    broken = tmp_path / "broken"
    save_backbone(WavLM(SMALL), broken)
    (broken / "config.json").write_text("{")
    for source, message in (
        ("wavlm_huge", "no such file or folder; the known backbones are nano, wavlm_large"),
        (tmp_path / "none.pt", "no such file or folder"),
        (empty, "expected a backbone or a WavCube.*found neither"),
        (tmp_path / "model.onnx", r"found \.onnx"),
        (broken, "config.json: not readable as JSON"),
        (saved("list.pt", [1]), "expected a state dict of tensors, found a list"),
        (saved("entries.pt", {"a": 1}), "expected a state dict of tensors, found the entries a"),
        (saved("foreign.pt", {"a": torch.zeros(1)}), "expected the tensors of WavLM, HuBERT or wav2vec 2.0, found a"),
        (saved("lightning.pt", {"state_dict": {"a": torch.zeros(1)}}), "expected a WavCube state_dict"),
        (saved("lacking.pt", lacking), "expected the tensors of a WavLM model, but it lacks .*layers.1.final_layer"),
        (saved("other.pt", WavLM(other).state_dict()), "sizes are those of no known backbone.*expected conv_dims"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_backbone(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="does not fit: expected ffn_dim 128, found 96"):
        load_backbone(tmp_path / "other.pt", SMALL)
    assert load_backbone(tmp_path / "other.pt", other).config == other


def test_a_new_model_starts_from_its_backbone(form):
    model, backbone = WavCube(tiny(form, frame_stride=2)), WavLM(form)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    init_from_backbone(model, backbone, adapters=False)
    assert same_weights(model.wavlm, backbone)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(name.startswith("wavlm.") for name in changed)
    init_from_backbone(model, backbone)
    for adapter in (model.compressor, model.restorer):
        assert same_weights(adapter.layers, backbone.encoder.transformer.layers[:3])
    # Its layers do what the backbone's do.
    waveform = torch.randn(1, 8000)
    model.eval(), backbone.eval()
    with torch.no_grad():
        states = backbone.hidden_states(waveform)
        assert difference(model.compressor._run_layers(states[0]), states[3]) < 1e-5


def test_a_backbone_of_other_sizes_is_refused():
    model = WavCube(tiny())
    with pytest.raises(ValueError, match=r"configuration has wavlm\.ffn_dim 128, the backbone has 96"):
        init_from_backbone(model, WavLM(dataclasses.replace(SMALL, ffn_dim=96)))
    short = dataclasses.replace(SMALL, num_layers=2)
    with pytest.raises(ValueError, match="num_layers is 3, the backbone has 2 layers"):
        init_from_backbone(WavCube(tiny(short)), WavLM(short))


# Continuing the public checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2])
def test_public_checkpoints_can_be_trained_on(golden_checkpoint, tmp_path, stage):
    path = golden_checkpoint.with_name(f"official_stage{stage}.ckpt")
    content = torch.load(path, weights_only=True)
    lines = (golden_checkpoint.parents[1] / "state_dict_keys.tsv").read_text().splitlines()[1:]
    state = content["state_dict"]
    for index, line in enumerate(lines):
        name, shape = line.split("\t")
        if name.startswith(("multiperioddisc.", "multiresddisc.")):
            # One number seen at every place, or the file would have 170 MB.
            state[name] = torch.tensor(float(index)).expand([int(size) for size in shape.split("x")])
    torch.save(content, tmp_path / "public.ckpt")
    loaded = load_model(tmp_path / "public.ckpt")
    assert (loaded.metadata["stage"], loaded.metadata["global_step"]) == (str(stage), str(content["global_step"]))
    assert same_weights(load_teacher(tmp_path / "public.ckpt"), loaded.wavlm) == (stage == 1)
    found = load_discriminators(tmp_path / "public.ckpt")
    with torch.device("meta"):
        discriminators = Discriminators()
    discriminators.load_state_dict(found, assign=True)
    weight = discriminators.multiperioddisc["discriminators"][2].convs[1].parametrizations.weight.original1
    assert weight.mean() == state["multiperioddisc.discriminators.2.convs.1.weight_v"].mean()
    new = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
        if "weight_" in name and "disc." in name
    }
    content["state_dict"] = {**{name: tensor for name, tensor in state.items() if "disc." not in name}, **new}
    torch.save(content, tmp_path / "new_spelling.ckpt")
    assert load_discriminators(tmp_path / "new_spelling.ckpt").keys() <= found.keys()


def test_a_checkpoint_without_discriminators_says_so(golden_checkpoint, tmp_path):
    content = torch.load(golden_checkpoint, weights_only=True)
    content["state_dict"] = {name: tensor for name, tensor in content["state_dict"].items() if "disc." not in name}
    torch.save(content, tmp_path / "without.ckpt")
    with pytest.raises(CheckpointError, match=r"with discriminators, but it has no multiperioddisc\.…"):
        load_discriminators(tmp_path / "without.ckpt")
