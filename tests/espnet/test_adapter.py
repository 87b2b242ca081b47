"""The ESPnet adapter's classes: what they give, and that the frozen model stays out of ESPnet's hands."""

import copy
import functools
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from wavcube_plugins import load_model
from wavcube_plugins.errors import InputError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:the weights of 'tiny'")]

from espnet2.asr.frontend.default import DefaultFrontend  # noqa: E402
from espnet2.layers.global_mvn import GlobalMVN  # noqa: E402
from espnet2.torch_utils.initialize import initialize  # noqa: E402
from espnet2.tts.feats_extract.log_mel_fbank import LogMelFbank  # noqa: E402
from espnet2.utils.get_default_kwargs import get_default_kwargs  # noqa: E402

from wavcube_plugins.espnet import WavCubeFeatsExtract, WavCubeFrontend, WavCubeVocoder  # noqa: E402
from wavcube_plugins.espnet.vocoder import build_vocoder  # noqa: E402

LENGTHS = torch.tensor([16000, 9000])


@pytest.fixture(scope="module")
def speech():
    waveforms = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    waveforms[1, 9000:] = 0
    return waveforms


@pytest.fixture(scope="module")
def core():
    return load_model("nano")


@pytest.fixture(scope="module")
def features():
    return WavCubeFeatsExtract("nano")


def weights_of(module):
    return {name: weight.clone() for name, weight in module.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Features -------------------------------------------------------------------------------------------------------------


def test_features_are_the_latent(features, core, speech):
    latent, frames = features(speech, LENGTHS)
    with torch.no_grad():
        wanted, wanted_frames = core.encode(speech, LENGTHS)
        alone, _ = core.encode(speech[1:, :9000])
    torch.testing.assert_close(latent, wanted, atol=1e-5, rtol=0)
    assert torch.equal(frames, wanted_frames) and features.output_size() == latent.shape[2]
    torch.testing.assert_close(latent[1:, : frames[1]], alone, atol=1e-4, rtol=0)
    assert not latent[1, frames[1] :].any()
    whole, _ = features(speech[:1])  # as ESPnet calls it at inference
    torch.testing.assert_close(whole, wanted[:1], atol=1e-4, rtol=0)


def test_latents_from_disk_go_through_and_are_left_alone(features, speech, tmp_path):
    latent, frames = features(speech, LENGTHS)
    before = latent.clone()
    passed, passed_frames = features(latent, frames)
    assert torch.equal(passed, before) and torch.equal(passed_frames, frames)
    # GlobalMVN subtracts in place.
    import numpy as np

    flat = latent[0].numpy()
    np.savez(tmp_path / "stats.npz", count=len(flat), sum=flat.sum(0), sum_square=(flat**2).sum(0))
    GlobalMVN(tmp_path / "stats.npz")(passed, passed_frames)
    assert not torch.equal(passed, before) and torch.equal(latent, before)


def test_features_can_be_changed_in_place_and_differentiated_through(features, speech):
    latent, _ = features(speech, LENGTHS)
    assert not latent.is_inference() and not latent.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (latent.add_(1) * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_options_of_tts_sh_are_taken_and_checked():
    made = WavCubeFeatsExtract("tiny", fs="16k", n_fft=1024, hop_length=320, win_length=None)
    assert {"n_fft", "n_shift", "fs"} & made.get_parameters().keys() != {"n_fft", "n_shift", "fs"}
    for options, sentence in [
        ({"hop_length": 256}, "hop_length is 256, but .* 320 samples; with tts.sh: --n_shift 320"),
        ({"fs": 24000}, "fs is 24000, but the WavCube model tiny takes 16000 Hz"),
        ({"fs": "fast"}, "fs must be a sample rate"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"model": "nowhere"}, "nowhere: no such file or folder"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            WavCubeFeatsExtract(**{"model": "tiny", **options})
    with pytest.raises(ValueError, match=r"latents \(batch, frames, 16\), got \(1, 5, 3\)"):
        made(torch.randn(1, 5, 3))


# Frozen ---------------------------------------------------------------------------------------------------------------

MAKERS = [
    lambda: WavCubeFeatsExtract("tiny"),
    lambda: WavCubeFrontend(model="tiny"),
    lambda: WavCubeFrontend(model="tiny", features="restored"),
]


@pytest.mark.parametrize("make", MAKERS)
def test_frozen_model_is_no_part_of_its_owner(make):
    owner = nn.ModuleDict({"part": make()})
    part = owner["part"]
    assert not list(owner.parameters()) and not owner.state_dict() and len(list(owner.modules())) == 2
    before = weights_of(part)
    initialize(nn.ModuleDict({"frontend": part, "other": nn.Linear(2, 2)}), "xavier_uniform")
    assert same(before, weights_of(part))
    owner.train()
    assert part.training and not any(module.training for module in part.model.modules())
    owner.to("meta")
    assert {weight.device.type for weight in part.model.parameters()} == {"meta"}


def test_casting_the_owner_costs_no_digits(speech):
    part = WavCubeFrontend(model="tiny")
    before = weights_of(part)
    part.half().float()
    assert same(before, weights_of(part))
    assert part(speech.double(), LENGTHS)[0].dtype == torch.float64
    low = WavCubeFeatsExtract("tiny", dtype="bfloat16").to(torch.float32)
    assert {weight.dtype for weight in low.model.parameters()} == {torch.bfloat16}
    assert low(speech, LENGTHS)[0].dtype == torch.float32


TRAINABLE = [
    functools.partial(WavCubeFrontend, model="tiny", features=kind, trainable=True)
    for kind in ("latent", "restored", "layers")
]


@pytest.mark.parametrize("make", [*MAKERS, lambda: WavCubeFrontend(model="tiny", features="layers"), *TRAINABLE])
def test_copies_compute_the_same(make, speech, tmp_path):
    part = make()
    wanted, _ = part(speech, LENGTHS)
    torch.save(part, tmp_path / "part.pt")
    saved = torch.load(tmp_path / "part.pt", weights_only=False)
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part)), saved):
        got, _ = twin(speech, LENGTHS)
        torch.testing.assert_close(got, wanted, atol=0, rtol=0)
        assert twin.model is not part.model
        trained = [[name for name, weight in one.named_parameters() if weight.requires_grad] for one in (part, twin)]
        assert trained[0] == trained[1] and twin.state_dict().keys() == part.state_dict().keys()


def test_checkpoint_of_the_frozen_one_is_small(tmp_path):
    sizes = {}
    for trainable in (False, True):
        torch.save(WavCubeFrontend(model="nano", trainable=trainable).state_dict(), tmp_path / "state.pth")
        sizes[trainable] = (tmp_path / "state.pth").stat().st_size
    assert sizes[False] < 2_000 and sizes[True] > 10_000_000


# Frontend -------------------------------------------------------------------------------------------------------------


def test_frontend_gives_what_the_core_gives(core, speech):
    with torch.no_grad():
        wanted = core.features(speech, LENGTHS)
    for kind, values in [("latent", wanted.latent), ("restored", wanted.restored)]:
        frontend = WavCubeFrontend(model="nano", features=kind)
        got, frames = frontend(speech, LENGTHS)
        torch.testing.assert_close(got, values, atol=1e-4, rtol=0)
        assert frontend.output_size() == got.shape[2] and torch.equal(frames, wanted.lengths)
    frontend = WavCubeFrontend(model="nano", features="layers")
    assert [name for name, _ in frontend.named_parameters()] == ["layer_weights"]
    frontend.layer_weights.data[3] = 50.0
    got, _ = frontend(speech, LENGTHS)
    torch.testing.assert_close(got, wanted.hidden_states[3], atol=1e-4, rtol=0)
    frontend.layer_weights.data.zero_()
    got, _ = frontend(speech, LENGTHS)
    torch.testing.assert_close(got, torch.stack(wanted.hidden_states).mean(0), atol=1e-4, rtol=0)
    got.square().sum().backward()
    assert frontend.layer_weights.grad.abs().sum() > 0


def test_frontend_does_not_look_at_the_padding(speech):
    for kind in ("latent", "restored", "layers"):
        frontend = WavCubeFrontend(model="tiny", features=kind)
        together, frames = frontend(speech, LENGTHS)
        alone, _ = frontend(speech[1:, :9000], LENGTHS[1:])
        torch.testing.assert_close(together[1:, : frames[1]], alone, atol=1e-4, rtol=0)
        longer, longer_frames = frontend(nn.functional.pad(speech, (0, 3200)), LENGTHS)  # data_parallel pads on
        assert longer.shape == together.shape and torch.equal(longer_frames, frames)


@pytest.mark.parametrize("kind", ["latent", "restored", "layers"])
def test_trainable_frontend_trains_all_it_uses(kind, speech):
    frontend = WavCubeFrontend(model="tiny", features=kind, trainable=True).train()
    got, _ = frontend(speech, LENGTHS)
    got.square().sum().backward()
    used = [name for name, weight in frontend.named_parameters() if weight.requires_grad]
    assert any("feature_extractor" in name for name in used)
    assert not [name for name, weight in frontend.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not any(module.training for module in frontend.model.modules())
    assert all(name in frontend.state_dict() for name in used)


@pytest.mark.parametrize("how", ["chainer", "xavier_uniform"])
def test_trainable_frontend_survives_init(how):
    frontend = WavCubeFrontend(model="tiny", features="restored", trainable=True)
    before = {name: weight.clone() for name, weight in frontend.state_dict().items()}
    initialize(nn.ModuleDict({"frontend": frontend, "encoder": nn.Linear(4, 4)}), how)
    assert same(before, frontend.state_dict())


def test_frontend_refuses_in_one_sentence(speech):
    for options, sentence in [
        ({"features": "mel"}, "features must be one of latent, restored, layers, got 'mel'"),
        ({"trainable": True, "dtype": "bfloat16"}, "trainable needs dtype float32"),
        ({"fs": "8k"}, "fs is 8k, but the WavCube model tiny takes 16000 Hz"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            WavCubeFrontend(model="tiny", **options)
    with pytest.raises(ValueError, match="features: layers needs waveforms"):
        WavCubeFrontend(model="tiny", features="layers")(torch.randn(1, 5, 16))
    with pytest.raises(ValueError, match="trainable needs waveforms"):
        WavCubeFrontend(model="tiny", trainable=True)(torch.randn(1, 5, 16))
    with pytest.raises(ValueError, match="recording of several channels"):
        WavCubeFrontend(model="tiny")(torch.randn(1, 16000, 2))


class Stage(nn.Module):
    """What joint training puts in front of a frontend, such as speech enhancement."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 5, padding=2)

    def forward(self, speech):
        return speech + self.conv(speech[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["latent", "restored", "layers"])
def test_gradients_pass_a_frozen_frontend_to_what_is_before_it(kind, speech):
    stage, frontend = Stage(), WavCubeFrontend(model="tiny", features=kind).train()
    features, _ = frontend(stage(speech), LENGTHS)
    features.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in stage.parameters())
    assert all(weight.grad is None for weight in frontend.model.parameters())
    # The gradient is that of the features, not merely some number.
    step = 1e-3
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            stage.conv.bias.add_(sign * step)
            values.append(frontend(stage(speech).double(), LENGTHS)[0].square().sum())
            stage.conv.bias.sub_(sign * step)
    slope = float(values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(stage.conv.bias.grad), rel=0.2, abs=0.5)
    # Nothing is stored for a gradient that nobody needs.
    features, _ = frontend(speech, LENGTHS)
    assert features.requires_grad == (kind == "layers")


def test_features_pass_gradients_as_well(speech):
    stage = Stage()
    WavCubeFeatsExtract("tiny")(stage(speech), LENGTHS)[0].square().sum().backward()
    assert stage.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_float32_is_float32_under_amp(half, speech, core):
    parts = [WavCubeFeatsExtract("nano")]
    parts += [WavCubeFrontend(model="nano", features=kind) for kind in ("latent", "restored", "layers")]
    for part in parts:
        wanted, _ = part(speech, LENGTHS)
        with torch.autocast("cpu", half):
            got, _ = part(speech, LENGTHS)
        assert got.dtype == torch.float32 and torch.equal(got, wanted)
    vocoder, latent = WavCubeVocoder("nano"), core.encode(speech[:1])[0][0].detach()
    wanted = vocoder(latent)
    with torch.autocast("cpu", half):
        assert torch.equal(vocoder(latent), wanted)


def test_a_trainable_frontend_follows_amp(speech):
    frontend = WavCubeFrontend(model="tiny", trainable=True)
    wanted, _ = frontend(speech, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = frontend(speech, LENGTHS)
    assert not torch.equal(got, wanted)
    torch.testing.assert_close(got, wanted, atol=0.1, rtol=0.1)


def test_the_published_model_is_the_default(monkeypatch):
    """Without a name nothing quietly falls back to a toy."""
    asked = []

    def load(name, **_):
        asked.append(name)
        return load_model("tiny")

    for module in ("features", "frontend", "vocoder"):
        monkeypatch.setattr(f"wavcube_plugins.espnet.{module}.load_model", load)
    WavCubeFeatsExtract(), WavCubeFrontend(), WavCubeVocoder()
    assert asked == ["wavcube"] * 3
    assert build_vocoder("wavcube", nn.Module(), "cpu").source == "wavcube"


def test_defaults_of_espnets_filter_banks_are_ignored_by_name():
    """ESPnet3 merges the options of the default class into a configuration that gives none."""
    frontend = WavCubeFrontend(model="tiny", **get_default_kwargs(DefaultFrontend))
    assert frontend.hop_length == 320
    made = WavCubeFeatsExtract("tiny", **get_default_kwargs(LogMelFbank))  # has fs 16000 and hop_length 256
    assert made.hop_length == 320
    for kind, section in ((WavCubeFrontend, "frontend_conf"), (WavCubeFeatsExtract, "feats_extract_conf")):
        with pytest.raises(InputError, match=f"{section} has the option modle, which wavcube does not know"):
            kind(modle="tiny")


# Vocoder --------------------------------------------------------------------------------------------------------------


def test_vocoder_is_the_decoder(core, features, speech):
    latent, _ = features(speech[:1])
    vocoder = WavCubeVocoder("nano").to(torch.float16)
    with torch.no_grad():
        wanted = core.decode(latent)[0][0]
    torch.testing.assert_close(vocoder(latent[0]), wanted, atol=1e-4, rtol=0)
    assert vocoder.fs == 16000 and not vocoder.state_dict() and len(wanted) == 320 * latent.shape[1]
    torch.testing.assert_close(pickle.loads(pickle.dumps(vocoder))(latent[0]), wanted, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"one latent \(frames, 32\)"):
        vocoder(latent)


def test_whose_vocoder_it_is(features):
    ours, other = nn.Module(), nn.Module()
    ours.feats_extract, other.feats_extract = features, None
    assert build_vocoder(None, ours, "cpu").source == "nano"
    assert build_vocoder("wavcube", ours, "cpu").source == "nano"
    assert build_vocoder("wavcube:nano", other, "cpu").source == "nano"
    for name, model in [(None, other), ("train_nodev.pkl", ours), ("wavcube.pkl", ours)]:
        assert build_vocoder(name, model, "cpu") is None
    with pytest.raises(ValueError, match="takes 16 channels, but the features of nano have 32"):
        build_vocoder("wavcube:tiny", ours, "cpu")


# The runner -----------------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "wavcube_plugins.espnet.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_runner_says_what_is_wrong_in_one_line():
    for arguments, sentence in [
        (["-m", "espnet2.bin.no_such_tool"], "-m espnet2.bin.no_such_tool: no module of that name"),
        (["--ngpu", "1"], "--ngpu: no such script; expected -m MODULE"),
        (["-c", "from wavcube_plugins.espnet import WavCubeFeatsExtract as F; F('nowhere')"], "nowhere: no such file"),
    ]:
        result = run(*arguments)
        assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert run("--help").returncode == 0
