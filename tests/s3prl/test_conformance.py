"""What s3prl asks of an upstream, and what we ask of ours besides."""

import dataclasses
import doctest
import json
import math
import pickle
import random
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from safetensors.torch import load_file

from wavcube_plugins import load_model
from wavcube_plugins.checkpoints import CheckpointError, save_model
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.s3prl import expert, hook, hubconf
from wavcube_plugins.s3prl.names import ENTRIES, FEATURE_KEYS
from wavcube_plugins.s3prl.options import UpstreamOptions
from wavcube_plugins.s3prl.sources import local_source, url_source

HOP, RATE = 320, 16000
KEYS = FEATURE_KEYS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the weights of:UserWarning", "ignore:.*set_audio_backend.*:UserWarning"),
]


@pytest.fixture(scope="module")
def s3prl():
    """s3prl itself, with the entries registered as the wrapper does it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setitem(sys.modules, "espnet2", None)  # s3prl imports it if it can, for many seconds
        import s3prl.hub
        import s3prl.nn
        import s3prl.upstream.interfaces
    hook.register()
    return s3prl


@pytest.fixture(scope="module", params=["tiny", "nano"])
def preset(request):
    return request.param


@pytest.fixture(scope="module", params=["wavcube", "wavcube_layers"])
def entry(request):
    return request.param


@pytest.fixture(scope="module")
def upstream(entry, preset):
    """An upstream whose mode and weights tests leave as they are."""
    return getattr(hubconf, entry)(ckpt=preset, model_config=None, refresh=False).eval()


@pytest.fixture(scope="module")
def tiny():
    return hubconf.wavcube("tiny").eval()


def waves(*seconds, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(round(length * RATE), generator=generator).mul(0.1).requires_grad_(requires_grad)
        for length in seconds
    ]


def flatten(features):
    """Name every tensor of an upstream's dictionary."""
    return {
        f"{key}[{index}]": tensor
        for key, value in features.items()
        for index, tensor in enumerate(value if isinstance(value, list) else [value])
    }


# What comes out -------------------------------------------------------------------------------------------------------


def test_dictionary_is_plain_and_its_tensors_fit_together(upstream, entry):
    with torch.no_grad():
        features = upstream(waves(1.0, 0.4, 0.02))
    assert type(features) is dict and tuple(sorted(features)) == tuple(sorted(KEYS))
    for name, tensor in flatten(features).items():
        assert tensor.dtype == torch.float32 and tensor.shape[:2] == (3, 50), name
    config = upstream.model.config
    width, layers = config.wavlm.hidden_dim, config.wavlm.num_layers + 1
    assert features["latent"].shape[2] == config.bottleneck.latent_dim
    assert features["restored"].shape[2] == width
    assert len(features["wavlm"]) == layers and {state.shape[2] for state in features["wavlm"]} == {width}
    expected = [features["latent"]] if entry == "wavcube" else features["wavlm"]
    assert len(features["hidden_states"]) == len(expected)
    for found, wanted in zip(features["hidden_states"], expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(features["last_hidden_state"], expected[-1])


def test_features_are_the_models_own(upstream, preset):
    model, wav = load_model(preset), waves(1.3)[0]
    with torch.no_grad():
        features = upstream([wav])
        latent, _ = model.encode(wav[None])
        states, _ = model.hidden_states(wav[None])
        restored = model.features(wav[None]).restored
    frames = latent.shape[1]
    torch.testing.assert_close(features["latent"][:, :frames], latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(features["restored"][:, :frames], restored, rtol=0, atol=1e-5)
    for found, wanted in zip(features["wavlm"], states, strict=True):
        torch.testing.assert_close(found[:, :frames], wanted, rtol=0, atol=1e-5)


def test_golden_features_of_the_reference_implementation():
    golden = load_file(GOLDEN / "io.safetensors")
    upstream = hubconf.wavcube_local(str(GOLDEN / "official_stage2.ckpt")).eval()
    layers = hubconf.wavcube_layers_local(str(GOLDEN / "official_stage2.ckpt")).eval()
    wavs = {name: golden[f"{name}.waveform"].flatten() for name in "ab"}
    with torch.no_grad():
        alone = {name: upstream([wav]) for name, wav in wavs.items()}
        together, layered = upstream(list(wavs.values())), layers(list(wavs.values()))
    for row, name in enumerate("ab"):
        expected = {"latent[0]": golden[f"{name}.latent"], "restored[0]": golden[f"{name}.restored"]}
        expected |= {f"wavlm[{index}]": golden[f"{name}.student_hidden_{index}"] for index in range(5)}
        expected["hidden_states[0]"] = expected["last_hidden_state[0]"] = expected["latent[0]"]
        for key, reference in expected.items():
            reference = reference.reshape(-1, reference.shape[-1])
            tolerance = 1e-5 if "latent" in key or "hidden_states" in key else 1e-4
            for found in (flatten(alone[name])[key][0], flatten(together)[key][row]):
                torch.testing.assert_close(found[: len(reference)], reference, rtol=0, atol=tolerance, msg=key)
        for index, state in enumerate(layered["hidden_states"]):
            reference = golden[f"{name}.student_hidden_{index}"].flatten(0, -2)
            torch.testing.assert_close(state[row, : len(reference)], reference, rtol=0, atol=1e-4)


def test_golden_features_of_short_and_unequal_inputs():
    """Ours, kept from when they agreed with the reference: the padding of short inputs and the repeated frames."""
    golden = load_file(GOLDEN.parent / "s3prl_features.safetensors")
    upstream = hubconf.wavcube(str(GOLDEN / "official_stage2.ckpt")).eval()
    with torch.no_grad():
        features = upstream([golden["waveform"][:length] for length in golden["lengths"].tolist()])
    for key in ("latent", "restored"):
        torch.testing.assert_close(features[key], golden[key], rtol=0, atol=1e-5)


def test_evaluation_is_deterministic_and_training_mode_the_same(upstream):
    wavs = waves(1.0, 0.6)
    with torch.no_grad():
        first, second = upstream(wavs), upstream(wavs)
        upstream.train()
        third = upstream(wavs)
        assert upstream.training and not any(module.training for module in upstream.model.modules())
        upstream.eval()
    for name, tensor in flatten(first).items():
        assert torch.equal(tensor, flatten(second)[name]) and torch.equal(tensor, flatten(third)[name]), name


def test_dropout_would_show(tiny):
    """The test above can fail: with the model in training mode the Compressor's dropout changes the latent."""
    wavs = waves(1.0)
    with torch.no_grad():
        tiny.model.train()
        noisy = tiny(wavs)["latent"]
        tiny.model.eval()
        assert not torch.equal(noisy, tiny(wavs)["latent"])


def test_number_of_layers_is_constant(upstream):
    counts = set()
    for seed in range(5):
        for mode in (False, True):
            torch.manual_seed(seed)
            upstream.train(mode)
            with torch.no_grad():
                counts.add(
                    tuple(len(value) for value in upstream(waves(0.3, 0.2, seed=seed)).values() if value is not None)
                )
    upstream.eval()
    assert len(counts) == 1


def test_input_is_not_modified(upstream):
    wavs = waves(1.0, 0.5)
    copies = [wav.clone() for wav in wavs]
    with torch.no_grad():
        upstream(wavs)
    assert all(torch.equal(wav, copy) for wav, copy in zip(wavs, copies, strict=True))


def test_digital_silence_is_finite(upstream):
    wavs = [torch.zeros(8000, requires_grad=True), torch.zeros(300, requires_grad=True)]
    features = flatten(upstream(wavs))
    assert all(torch.isfinite(tensor).all() for tensor in features.values())
    sum(tensor.sum() for tensor in features.values()).backward()
    assert all(torch.isfinite(wav.grad).all() for wav in wavs)


# Lengths --------------------------------------------------------------------------------------------------------------


def test_frames_for_every_length(tiny):
    samples = torch.arange(1, 48124)
    frames = tiny.model.wavlm.frame_lengths(samples)
    assert int(frames.min()) == 1
    assert int((frames - torch.round(samples / HOP)).abs().max()) < 5
    started = torch.div(samples + HOP - 1, HOP, rounding_mode="floor")
    assert int((started - frames).min()) >= 0 and int((started - frames).max()) == 2  # what `forward` repeats


@pytest.mark.parametrize("base", [1, 160, 320, 400, 480, 640, 720, 799, 800, 16000, 48000])
def test_output_has_one_frame_per_started_hop(tiny, s3prl, base):
    wrapped = _wrap(s3prl, tiny)
    for samples in sorted({max(1, base - 1), base, base + 1, base + 79, base + 80, base + 123}):
        with torch.no_grad():
            features = tiny(waves(samples / RATE))
            states, lengths = wrapped(torch.randn(1, samples), torch.tensor([samples]))
        wanted = -(-samples // HOP)
        assert all(tensor.shape[1] == wanted for tensor in flatten(features).values())
        assert abs(wanted - round(samples / HOP)) < 5
        assert states[0].shape[1] == wanted == int(lengths[0])


def test_batch_of_random_lengths(s3prl, upstream):
    wrapped = _wrap(s3prl, upstream)
    generator = random.Random(0)
    for _ in range(3):
        lengths = torch.tensor([generator.randint(1, 9000) for _ in range(5)])
        with torch.no_grad():
            states, frames = wrapped(torch.randn(5, int(lengths.max())), lengths)
        assert frames[0].tolist() == [-(-length // HOP) for length in lengths.tolist()]
        assert states[0].shape[1] == int(frames[0].max())


def test_alone_and_batched_agree_for_every_key(upstream, s3prl):
    wavs = waves(1.0, 0.02, 0.0101, 0.5, 0.777)
    featurizers = [
        s3prl.upstream.interfaces.Featurizer(upstream, key, upstream_device="cpu", layer_selection=layer)
        for key, layer in [(key, None) for key in KEYS] + [("wavlm", 2)]
    ]
    with torch.no_grad():
        together = upstream(wavs)
        for row, wav in enumerate(wavs):
            alone = upstream([wav])
            frames = flatten(alone)["latent[0]"].shape[1]
            for name, tensor in flatten(alone).items():
                found = flatten(together)[name][row]
                torch.testing.assert_close(found[:frames], tensor[0], rtol=0, atol=1e-4, msg=name)
                # Whatever is cut out of the padding is the last frame again, not something of the neighbours'.
                torch.testing.assert_close(found[frames:], found[frames - 1].expand_as(found[frames:]), rtol=0, atol=0)
            for featurizer in featurizers:
                lone, batched = featurizer([wav], alone)[0], featurizer(wavs, together)[row]
                assert lone.shape[0] == round(len(wav) / HOP)
                torch.testing.assert_close(lone, batched, rtol=0, atol=1e-4)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("seconds", [(1.0, 2.2, 3.0), (0.05,), (0.05, 0.05), (0.05, 0.3, 1.0)])
def test_forward_and_backward_under_anomaly_detection(s3prl, upstream, seconds):
    wrapped = _wrap(s3prl, upstream).train()
    featurizer = s3prl.nn.Featurizer(wrapped)
    wavs = waves(*seconds)
    lengths = torch.tensor([len(wav) for wav in wavs])
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        states, frames = featurizer(*wrapped(batch, lengths))
        states.square().sum().backward()
    assert torch.isfinite(batch.grad).all() and float(batch.grad.abs().sum()) > 0
    assert states.shape[1] == int(frames.max())
    upstream.zero_grad()
    upstream.eval()


def test_fine_tuning_reaches_every_weight_that_is_used(upstream, entry):
    upstream.train()
    upstream.zero_grad()
    sum(state.square().mean() for state in upstream(waves(0.5))["hidden_states"]).backward()
    reached = {name for name, weight in upstream.named_parameters() if weight.grad is not None and weight.grad.any()}
    upstream.zero_grad()
    upstream.eval()
    assert "model.wavlm.feature_extractor.conv_layers.0.conv.weight" in reached
    assert any(name.startswith("model.compressor.projection") for name in reached) == (entry == "wavcube")
    assert all(weight.requires_grad for weight in upstream.parameters())


def test_frozen_under_no_grad(upstream):
    with torch.no_grad():
        features = upstream(waves(0.5))
    assert not any(tensor.requires_grad for tensor in flatten(features).values())


def test_state_dict_round_trip(upstream, entry, preset):
    state = {name: tensor.clone() for name, tensor in upstream.state_dict().items()}
    assert not any("decoder" in name for name in state)
    other = getattr(hubconf, entry)(preset).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05)
        wavs = waves(0.7, 0.3)
        reference = upstream(wavs)
        assert not torch.allclose(other(wavs)["latent"], reference["latent"], atol=1e-3)
        other.load_state_dict(state)
        for name, tensor in flatten(other(wavs)).items():
            assert torch.equal(tensor, flatten(reference)[name]), name


def test_an_upstream_can_be_saved_whole_and_sent_to_other_processes(upstream, tmp_path):
    wavs = waves(0.4, 0.3)
    torch.save(upstream, tmp_path / "upstream.pt")
    copies = [torch.load(tmp_path / "upstream.pt", weights_only=False), pickle.loads(pickle.dumps(upstream))]
    with torch.no_grad():
        reference = flatten(upstream(wavs))
        for copy in copies:
            for name, tensor in flatten(copy(wavs)).items():
                assert torch.equal(tensor, reference[name]), name


def test_hooks_work_as_in_s3prls_own_upstreams():
    """With hooks, the hidden states are what they collect; the other keys stay."""
    upstream = hubconf.wavcube("tiny").eval()
    wavs = waves(0.4, 0.3)
    with torch.no_grad():
        plain = upstream(wavs)
        upstream.add_hook("self.model.compressor", lambda inputs, output: output)
        upstream.add_hook("self.model.wavlm.feature_extractor", lambda inputs, output: output, "cnn")
        hooked = upstream(wavs)
        assert len(hooked["hidden_states"]) == 2 and torch.equal(hooked["latent"], plain["latent"])
        assert hooked["_hidden_states_info"] == ("cnn", "self.model.compressor")
        upstream.remove_hook("cnn")
        assert len(upstream(wavs)["hidden_states"]) == 1
        upstream.remove_all_hooks()
        assert torch.equal(upstream(wavs)["hidden_states"][0], plain["latent"])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("-u wavcube -s wavlm", {"only_hidden_states": True}, "-s wavlm has no effect, .* used, the latent$"),
        ("-u wavcube -l 9", {}, "-l 9 has no effect, since there is one layer to choose from: the latent is used; "),
        ("-u wavcube -s restored -l 2", {}, "-l 2 has no effect, .*: restored is used; "),
        ("-u wavcube -swavlm -l 2", {}, None),
        ("-u wavcube_layers -l 2", {"layers": True}, None),
        ("-u wavcube_layers -l 2 -s restored", {"layers": True, "only_hidden_states": True}, "every layer of WavLM$"),
        ("-u wavcube -s latent", {}, None),
    ],
)
def test_choices_without_effect_are_warned_about(arguments, options, message, monkeypatch, tmp_path):
    """s3prl passes neither -s nor -l to an upstream, and says nothing."""
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", "-m", "train", *arguments.split()])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "s3prl/run_downstream.py", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expert.UpstreamExpert("nano", **options)
        monkeypatch.setattr(sys.modules["__main__"], "__file__", "somebody's_own.py")
        expert.UpstreamExpert("nano", **options)
    found = [str(warning.message) for warning in caught if "has no effect" in str(warning.message)]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


def test_half_precision_and_autocast_give_float32():
    wavs = waves(0.6, 0.3)
    plain, half = hubconf.wavcube("tiny").eval(), hubconf.wavcube("tiny", {"dtype": "bfloat16"}).eval()
    assert half.model.dtype == torch.bfloat16
    with torch.no_grad():
        exact = flatten(plain(wavs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = flatten(plain(wavs))
        for other in (flatten(half(wavs)), mixed):
            for name, tensor in other.items():
                assert tensor.dtype == torch.float32, name
                assert torch.nn.functional.cosine_similarity(tensor, exact[name], dim=-1).mean() > 0.99, name


# s3prl's own classes --------------------------------------------------------------------------------------------------


def _wrap(s3prl, upstream):
    """An S3PRLUpstream around an upstream that exists already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3prl.hub, "wavcube_existing", lambda **_: upstream, raising=False)
        wrapped = s3prl.nn.S3PRLUpstream("wavcube_existing")
    return wrapped.eval()


def test_integer_properties(s3prl, upstream, entry):
    wrapped = _wrap(s3prl, upstream)
    featurizer = s3prl.nn.Featurizer(wrapped)
    assert all(type(upstream.get_downsample_rates(key)) is int for key in KEYS)
    assert upstream.get_downsample_rates("hidden_states") == HOP
    numbers = [wrapped.num_layers, *wrapped.downsample_rates, *wrapped.hidden_sizes]
    numbers += [featurizer.output_size, featurizer.downsample_rate]
    assert all(type(number) is int for number in numbers)
    config = upstream.model.config
    assert wrapped.num_layers == (1 if entry == "wavcube" else config.wavlm.num_layers + 1)
    assert featurizer.output_size == (config.bottleneck.latent_dim if entry == "wavcube" else config.wavlm.hidden_dim)
    upstream.eval()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("selections", [None, [0, 2, 3]])
def test_featurizer_of_s3prl_nn(s3prl, upstream, entry, selections, normalize):
    wrapped = _wrap(s3prl, upstream)
    if entry == "wavcube" and selections is not None:
        selections = [0]
    featurizer = s3prl.nn.Featurizer(wrapped, layer_selections=selections, normalize=normalize)
    wavs = waves(1.0, 0.4)
    lengths = torch.tensor([len(wav) for wav in wavs])
    with torch.no_grad():
        states, frames = featurizer(*wrapped(torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), lengths))
    assert states.shape == (2, 50, featurizer.output_size) and frames.tolist() == [50, 20]
    assert torch.isfinite(states).all()


def test_featurizer_of_the_runner_for_every_key(s3prl, upstream, capfd):
    config = upstream.model.config
    latent, width = config.bottleneck.latent_dim, config.wavlm.hidden_dim
    sizes = {"latent": latent, "wavlm": width, "restored": width}
    sizes["hidden_states"] = sizes["last_hidden_state"] = width if upstream.layers else latent
    wavs = waves(1.0, 0.4)
    for key, size in sizes.items():
        featurizer = s3prl.upstream.interfaces.Featurizer(upstream, key, upstream_device="cpu")
        assert featurizer.feature_selection == key and featurizer.output_dim == size
        assert featurizer.downsample_rate == HOP
        with torch.no_grad():
            features = featurizer(wavs, upstream(wavs))
        assert [tuple(feature.shape) for feature in features] == [(50, size), (20, size)]
    assert "Warning" not in capfd.readouterr().err


def test_random_weights_on_request(s3prl):
    wrapped = s3prl.nn.S3PRLUpstream("wavcube", "tiny", randomize=True).eval()
    with torch.no_grad():
        states, _ = wrapped(torch.randn(1, 8000), torch.tensor([8000]))
    assert torch.isfinite(states[0]).all()


# Where the weights come from ------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The published repository in an offline cache, with tiny models of two revisions in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--yhaha--WavCube"
    (repository / "refs").mkdir(parents=True)
    for revision, scale in (("main", 1.0), ("older", 2.0)):
        commit = revision.encode().hex().ljust(40, "0")
        (repository / "refs" / revision).write_text(commit)
        for folder, shift in (("WavCube", 0.0), ("WavCube-Pro", 0.5)):
            model = load_model("tiny")
            with torch.no_grad():
                model.compressor.projection[3].weight.mul_(scale)
                model.compressor.projection[3].bias.add_(shift)
            save_model(model, repository / "snapshots" / commit / folder)
    return tmp_path


def latent_of(upstream):
    with torch.no_grad():
        return upstream.eval()(waves(0.5))["latent"]


def test_plain_names_load_the_published_models(hub_cache, s3prl, tiny):
    reference = latent_of(tiny)
    for name, shift in (("wavcube", 0.0), ("wavcube_layers", 0.0), ("wavcube_pro", 0.5)):
        for arguments in ({"refresh": False}, {"ckpt": None, "model_config": None, "refresh": True}, {}):
            found = latent_of(getattr(s3prl.hub, name)(**arguments))
            torch.testing.assert_close(found, reference + shift, rtol=0, atol=1e-5)
    wrapped = s3prl.nn.S3PRLUpstream("wavcube_pro")
    assert wrapped.hidden_sizes == [16]
    older = s3prl.hub.wavcube(model_config={"revision": "older"})
    torch.testing.assert_close(latent_of(older), 2 * reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        latent_of(s3prl.hub.wavcube("yhaha/WavCube/WavCube-Pro")), reference + 0.5, rtol=0, atol=1e-5
    )


def test_without_network_the_message_names_nano(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"wavcube_pro: .*run_downstream.py: -k nano"):
        hubconf.wavcube_pro()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    save_model(load_model("tiny"), folder)
    return folder


def test_every_entry_takes_the_runners_arguments(folder, tmp_path, monkeypatch, s3prl, tiny):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    reference = latent_of(tiny)
    for name in ENTRIES:
        ckpt = (folder / "model.safetensors").as_uri() if name.endswith("_url") else str(folder)
        upstream = getattr(s3prl.hub, name)(ckpt=ckpt, model_config=None, refresh=False)
        torch.testing.assert_close(latent_of(upstream), reference, rtol=0, atol=0)
        assert upstream.layers == ("layers" in name)
        assert len(getattr(s3prl.hub, name)(ckpt, None)(waves(0.1))["hidden_states"]) == (5 if upstream.layers else 1)


def test_url_is_downloaded_once_and_again_on_request(folder, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    served = tmp_path / "served"
    save_model(load_model("tiny"), served)
    url = (served / "model.safetensors").as_uri()
    first = latent_of(hubconf.wavcube_url(url))
    model = load_model("tiny")
    with torch.no_grad():
        model.compressor.projection[3].bias.add_(1.0)
    save_model(model, served)
    assert torch.equal(latent_of(hubconf.wavcube_url(url, refresh=False)), first)
    torch.testing.assert_close(latent_of(hubconf.wavcube_url(url, refresh=True)), first + 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(latent_of(hubconf.wavcube(url)), first + 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(latent_of(hubconf.wavcube_custom(url)), first + 1, rtol=0, atol=1e-5)

    ckpt = GOLDEN / "official_stage2.ckpt"
    torch.testing.assert_close(latent_of(hubconf.wavcube_url(ckpt.as_uri())), latent_of(hubconf.wavcube(str(ckpt))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hubconf.wavcube_local(), r"-u wavcube_local needs weights: give a folder or a file with -k"),
        (lambda: hubconf.wavcube_pro_url(), r"-u wavcube_pro_url needs weights: give a URL with -k"),
        (lambda: local_source("nowhere/at/all"), r"nowhere/at/all: no such file or folder"),
        (lambda: url_source("model.ckpt"), r"model.ckpt: expected a URL"),
        (
            lambda: hubconf.wavcube_url("file:///nowhere/model.ckpt"),
            r"file:///nowhere/model.ckpt: cannot be downloaded",
        ),
        (lambda: hubconf.wavcube("nowhere.ckpt"), r"nowhere.ckpt: no such file or folder"),
        (
            lambda: hubconf.wavcube("tiny", "nowhere.yaml"),
            r"nowhere.yaml: expected a file of options for -g, No such file",
        ),
        (lambda: hubconf.wavcube("tiny", {"dtyp": "float16"}), r"unknown option 'dtyp'; known are config, revision"),
        (lambda: hubconf.wavcube("tiny", dtype="int8"), r"dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (
            lambda: hubconf.wavcube("tiny", {"only_hidden_states": 1}),
            r"only_hidden_states must be true or false, got 1",
        ),
        (lambda: hubconf.wavcube("tiny", {"revision": 1.0}), r"revision must be text, got 1.0"),
        (lambda: hubconf.wavcube("tiny", {"config": 5}), r"config must be the name of a preset or a mapping, got 5"),
    ],
)
def test_mistakes_are_one_sentence(call, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([torch.zeros(1, 800)], r"waveform 0 must be 1-D and floating point, got shape \(1, 800\) of torch.float32"),
        ([torch.zeros(800), torch.zeros(800, dtype=torch.int16)], r"waveform 1 must be 1-D .* of torch.int16"),
        ([torch.zeros(800), torch.zeros(0)], r"must"),
        ([], r"^expected a list of waveforms, got an empty one$"),
        ([np.zeros(800, dtype=np.float32)], r"^waveform 0 must be a torch.Tensor, got ndarray; use torch.tensor$"),
        ([torch.zeros(800), torch.full((900,), float("nan"))], r"NaN or infinite"),
    ],
)
def test_unusable_waveforms_are_refused(tiny, wavs, message):
    with pytest.raises(ValueError, match=message):
        tiny(wavs)


# Options (-g) ---------------------------------------------------------------------------------------------------------


def test_options_come_from_yaml_json_mappings_and_names(tmp_path, folder):
    (tmp_path / "options.yaml").write_text("dtype: bfloat16\nonly_hidden_states: true\n")
    (tmp_path / "options.json").write_text(json.dumps({"revision": "main"}))
    assert UpstreamOptions.read(tmp_path / "options.yaml") == UpstreamOptions(dtype="bfloat16", only_hidden_states=True)
    assert UpstreamOptions.read(str(tmp_path / "options.json")) == UpstreamOptions(revision="main")
    assert UpstreamOptions.read({"dtype": "float16"}, dtype="float32") == UpstreamOptions()
    sizes = UpstreamOptions.read(folder / "config.json").config
    assert WavCubeConfig.from_dict(sizes) == WavCubeConfig.preset("tiny")
    (tmp_path / "list.yaml").write_text("- dtype\n")
    with pytest.raises(ValueError, match=r"list.yaml: expected a mapping of options for -g, found list"):
        UpstreamOptions.read(tmp_path / "list.yaml")
    (tmp_path / "wave.yaml").write_bytes(b"RIFF\xff\x00: [")
    with pytest.raises(ValueError, match=r"wave.yaml: expected a file of options for -g, not YAML or JSON"):
        UpstreamOptions.read(tmp_path / "wave.yaml")


def test_sizes_of_a_checkpoint_of_no_preset(tmp_path):
    """Heads cannot be read from tensors: a wrong number given with -g must change the outcome, the right one not."""
    ckpt = GOLDEN / "official_stage2.ckpt"
    config = WavCubeConfig.preset("tiny")
    by_name = hubconf.wavcube(str(ckpt), {"config": "tiny"})
    (tmp_path / "sizes.json").write_text(json.dumps({"format": "wavcube-1", "config": config.to_dict()}))
    by_file = hubconf.wavcube(str(ckpt), str(tmp_path / "sizes.json"))
    assert torch.equal(latent_of(by_name), latent_of(by_file))
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, window_left=7))
    assert hubconf.wavcube(str(ckpt), {"config": other.to_dict()}).model.config == other
    with pytest.raises(CheckpointError, match="does not fit"):
        hubconf.wavcube(str(ckpt), {"config": "nano"})


def test_only_hidden_states_leaves_the_rest_out_and_changes_nothing(upstream, entry, preset, monkeypatch):
    lean = getattr(hubconf, entry)(preset, {"only_hidden_states": True}).eval()
    monkeypatch.setattr(lean.model, "restorer", None)  # whoever ran it would fail
    wavs = waves(0.8, 0.3)
    with torch.no_grad():
        found, reference = lean(wavs), upstream(wavs)
    assert set(found) == {"hidden_states", "last_hidden_state"}
    for name, tensor in flatten(found).items():
        torch.testing.assert_close(tensor, flatten(reference)[name], rtol=0, atol=1e-6)


def test_example_in_the_docstring():
    result = doctest.testmod(expert)
    assert result.attempted == 2 and result.failed == 0


def test_a_latent_at_half_the_rate_keeps_its_own_lengths(tmp_path):
    config = WavCubeConfig.preset("tiny")
    config = dataclasses.replace(config, bottleneck=dataclasses.replace(config.bottleneck, frame_stride=2))
    save_model(WavCube(config), tmp_path / "slow")
    for layers in (False, True):
        slow = expert.UpstreamExpert(tmp_path / "slow", layers=layers).eval()
        features = slow(waves(1.0, 0.61))
        for key in KEYS:
            tensors = features[key] if isinstance(features[key], list) else [features[key]]
            assert {len(tensor[0]) for tensor in tensors} == {math.ceil(RATE / slow.get_downsample_rates(key))}
        assert slow.get_downsample_rates("latent") == 2 * HOP
        alone = slow(waves(1.0, 0.61)[1:])["latent"][0]
        torch.testing.assert_close(features["latent"][1, : len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_a_local_folder_called_like_a_preset_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert local_source("./nano") == local_source("nano") == str(tmp_path / "nano")
