"""The SpeechBrain lobe: its contract as SpeechBrain's own lobes have it, without their faults; and inference."""

import ast
import copy
import dataclasses
import doctest
import inspect
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import soundfile
import torch
from helpers.paths import GOLDEN
from torch import nn

from wavcube_plugins import WavCubeConfig, load_model
from wavcube_plugins.audio import AudioError, AudioWarning, read_audio, write_audio
from wavcube_plugins.checkpoints import CheckpointError, save_model
from wavcube_plugins.heads import weighted_sum
from wavcube_plugins.models.wavcube import WavCube as Model
from wavcube_plugins.speechbrain import (
    ChannelsFirstDecoder,
    ChannelsFirstEncoder,
    WavCube,
    WeightedSum,
    WeightedWavCube,
    lobe,
)
from wavcube_plugins.speechbrain.lengths import absolute_lengths, relative_lengths
from wavcube_plugins.speechbrain.lobe import FEATURES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchaudio and SpeechBrain about each other's age
    import speechbrain as sb
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.inference.ASR import EncoderASR
    from speechbrain.utils.checkpoints import Checkpointer
    from speechbrain.utils.data_utils import batch_pad_right

    from wavcube_plugins.speechbrain import WavCubeCodec, drop_in, modules
    from wavcube_plugins.speechbrain import codec as codec_module

SOURCE = GOLDEN / "official_stage2.ckpt"  # of the sizes of `tiny`: latent of 16, WavLM of 4 layers of 64
SPEECH = Path(lobe.__file__).parents[1] / "assets" / "speech" / "adam_01.flac"
LAYERS = 5
STEM = "model.wavlm.feature_extractor."

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:the weights of:UserWarning",
        "ignore:Grad strides do not match:UserWarning",
        "ignore:torchaudio._backend:UserWarning",
    ),
]


@pytest.fixture(scope="module", params=FEATURES)
def features(request):
    return request.param


@pytest.fixture(scope="module")
def frozen():
    """A frozen lobe whose weights and mode tests leave as they are."""
    return WavCube(SOURCE, freeze=True)


@pytest.fixture(scope="module")
def inner(tmp_path_factory):
    """A model folder whose latent is made of an inner layer, so that the layers behind it are of no use to it."""
    folder = tmp_path_factory.mktemp("inner")
    save_model(Model(dataclasses.replace(WavCubeConfig.preset("tiny"), wavlm_layer=2)), folder)
    return folder


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model folder at 25 Hz, with a WavLM of the Base form."""
    tiny = WavCubeConfig.preset("tiny")
    config = dataclasses.replace(
        tiny,
        wavlm=dataclasses.replace(tiny.wavlm, extractor_mode="group_norm", layer_norm_first=False),
        bottleneck=dataclasses.replace(tiny.bottleneck, frame_stride=2),
        wavlm_layer=3,
    )
    folder = tmp_path_factory.mktemp("slow")
    save_model(Model(config), folder)
    return folder


def batch(*samples, seed=0):
    """Noise of the given lengths as SpeechBrain batches it: waveforms and relative lengths."""
    generator = torch.Generator().manual_seed(seed)
    return batch_pad_right([0.1 * torch.randn(length, generator=generator) for length in samples])


def trainable(module):
    return {name for name, weight in module.named_parameters() if weight.requires_grad}


def weights_of(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


# The contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [lobe, codec_module, weighted_sum, drop_in, modules], ids=str)
def test_examples_of_the_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted >= 3 and not results.failed


def test_constructor_and_call_are_those_of_speechbrains_lobes():
    # Read, not imported: transformers takes ten seconds.
    tree = ast.parse((Path(sb.__file__).parent / "integrations" / "huggingface" / "wav2vec2.py").read_text())
    (theirs,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Wav2Vec2"]
    theirs = {node.name: node.args for node in theirs.body if isinstance(node, ast.FunctionDef)}
    names = [argument.arg for argument in theirs["__init__"].args]
    defaults = [ast.literal_eval(default) for default in theirs["__init__"].defaults]
    ours = inspect.signature(WavCube.__init__).parameters
    assert list(ours)[: len(names)] == names and len(defaults) == 5
    assert [ours[name].default for name in names[-5:]] == defaults
    assert list(inspect.signature(WavCube.forward).parameters) == [argument.arg for argument in theirs["forward"].args]


def test_shapes(features, slow):
    wav, lens = batch(8000, 3000)
    shapes = {"latent": (2, 24, 16), "hidden_states": (2, 24, 64), "restored": (2, 24, 64), "reconstruction": (2, 8000)}
    at_25_hz = {**shapes, "latent": (2, 12, 16)}
    for source, expected, hop in ((SOURCE, shapes, 320), (slow, at_25_hz, 640)):
        model = WavCube(source, freeze=True, features=features)
        out = model(wav, lens)
        assert out.shape == expected[features] and not out.requires_grad
        assert model.output_dim == (1 if features == "reconstruction" else out.shape[-1])
        assert model.hop_length == {"latent": hop, "reconstruction": 1}.get(features, 320)
        assert model.sample_rate == 16000
        assert torch.equal(model(wav), model(wav, torch.ones(2)))  # lengths may be left out
        assert len(list(model.parameters())) > 100


def test_all_hidden_states(frozen):
    wav, lens = batch(8000, 3000)
    layered = WavCube(SOURCE, freeze=True, output_all_hiddens=True)
    assert layered.features == "hidden_states" and layered.num_layers == LAYERS
    states = layered(wav, lens)
    assert states.shape == (LAYERS, 2, 24, 64)
    assert torch.equal(states[-1], WavCube(SOURCE, freeze=True, features="hidden_states")(wav, lens))
    expected, _ = frozen.model.hidden_states(wav, torch.tensor([8000, 3000]))
    assert torch.equal(states, torch.stack(expected))


def test_features_are_the_models_own(features):
    model, wav, lengths = load_model(SOURCE), *batch(8000, 3000)[:1], torch.tensor([8000, 3000])
    with torch.no_grad():
        result = model.features(wav, lengths)
        expected = {
            "latent": result.latent,
            "hidden_states": result.hidden_states[-1],
            "restored": result.restored,
            "reconstruction": model.reconstruct(wav, lengths)[0],
        }
    found = WavCube(SOURCE, freeze=True, features=features)(wav, lengths / 8000)
    torch.testing.assert_close(found, expected[features], rtol=0, atol=1e-6)


def test_encode_decode_reconstruct(frozen):
    wav, lens = batch(8000, 3000)
    latent, latent_lens = frozen.encode(wav, lens)
    assert torch.equal(latent, frozen(wav, lens))
    assert torch.round(latent_lens * latent.shape[1]).tolist() == [24, 9]
    decoded = frozen.decode(latent, latent_lens)
    assert decoded.shape == (2, 24 * 320) and not decoded[1, 9 * 320 :].any()
    rebuilt = frozen.reconstruct(wav, lens)
    assert rebuilt.shape == wav.shape and not rebuilt[1, 3000:].any()
    torch.testing.assert_close(
        rebuilt[:, : 24 * 320], decoded * (torch.arange(24 * 320) < torch.tensor([[8000], [3000]]))
    )
    assert torch.equal(frozen.decode(latent[:1]), frozen.decode(latent[:1], torch.ones(1)))
    # Whatever `forward` is set to, the codec is the same.
    other = WavCube(SOURCE, output_norm=True, features="restored", apply_spec_augment=True).train()
    torch.testing.assert_close(other.encode(wav, lens)[0], latent, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.reconstruct(wav, lens), rebuilt, rtol=0, atol=1e-4)


def test_windows_for_long_audio(frozen):
    wav, _ = batch(48000)
    latent, lens = frozen.encode(wav, window_seconds=1.0)
    assert latent.shape == (1, 149, 16) and not torch.equal(latent, frozen(wav))
    assert frozen.decode(latent, lens, window_seconds=1.0).shape == (1, 149 * 320)
    assert frozen.reconstruct(wav, window_seconds=1.0).shape == wav.shape


def test_output_norm_is_over_channels_alone(frozen):
    wav, lens = batch(8000, 3000)
    normed = WavCube(SOURCE, output_norm=True, freeze=True, features="hidden_states")
    out, plain = normed(wav, lens), WavCube(SOURCE, freeze=True, features="hidden_states")(wav, lens)
    for item, frames in enumerate((24, 9)):
        valid = out[item, :frames]
        torch.testing.assert_close(valid.mean(-1), torch.zeros(frames), rtol=0, atol=1e-5)
        torch.testing.assert_close(valid.var(-1, unbiased=False), torch.ones(frames), rtol=0, atol=1e-3)
        for frame in (0, frames - 1):  # each frame from itself alone
            x = plain[item, frame]
            expected = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
            torch.testing.assert_close(valid[frame], expected, rtol=0, atol=1e-5)
    assert not out[1, 9:].any()


def test_names_that_other_parts_of_speechbrain_call(frozen):
    wav, lens = batch(8000, 3000)
    assert torch.equal(frozen.extract_features(wav, lens), frozen(wav, lens))
    assert frozen.frame_counts(wav, lens).tolist() == [24, 9]


def test_a_drop_in_for_the_weighted_ssl_model(tmp_path):
    """Made, called and trained as MP3S's scripts do it, which give the weights of the sum an optimiser of their own."""
    model = WeightedWavCube(hub=str(SOURCE), save_path=str(tmp_path), layernorm=True, freeze=True)
    assert trainable(model) == {"weights"} and model.num_layers == LAYERS == len(model.weights)
    wav, lens = batch(8000, 3000)
    optimiser = torch.optim.Adam([model.weights], 0.1)
    before = model(wav, lens)
    assert before.shape == (2, 24, model.output_dim)
    before[..., 0].sum().backward()
    optimiser.step()
    assert not torch.equal(model(wav, lens), before)
    other = WeightedWavCube(str(SOURCE), layernorm=True, freeze=True)
    assert set(model.state_dict()) == {"weights"}
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(wav, lens), model(wav, lens))


def test_channels_first_for_separation_recipes(frozen):
    wav, _ = batch(8000)
    encoded = ChannelsFirstEncoder(frozen)(wav)
    assert torch.equal(encoded, frozen(wav).transpose(1, 2))
    assert torch.equal(ChannelsFirstDecoder(frozen)(encoded), frozen.decode(frozen(wav)))


def test_without_a_source_it_is_the_published_model():
    for make in (WavCube, WeightedWavCube):
        with pytest.raises(CheckpointError, match=r"^wavcube: it is not in the local cache"):
            make()


# Lengths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tiny", "slow", "inner"])
def test_features_do_not_depend_on_the_batch(source, features, request):
    model = WavCube(source if source == "tiny" else request.getfixturevalue(source), freeze=True, features=features)
    wavs = [0.1 * torch.randn(length) for length in (9600, 300, 719, 7001, 4000)]
    wav, lens = batch_pad_right(wavs)
    noisy = wav.clone()
    for row, item in enumerate(wavs):
        noisy[row, len(item) :] = 7.0  # what stands in the padding does not matter either
    for together in (model(wav, lens), model(noisy, lens)):
        counts = torch.round(model.frame_lens(wav, lens) * together.shape[1]).long().tolist()
        for row, item in enumerate(wavs):
            alone = model(item[None])
            assert alone.shape[1] == counts[row]
            torch.testing.assert_close(together[row, : counts[row]], alone[0], rtol=0, atol=2e-5)
            assert not together[row, counts[row] :].any()
        assert torch.equal(model.frame_lens(wavs[0][None]), torch.ones(1))


def test_all_hidden_states_do_not_depend_on_the_batch():
    model = WavCube(SOURCE, freeze=True, output_all_hiddens=True, output_norm=True)
    wavs = [0.1 * torch.randn(length) for length in (9600, 300, 7001)]
    together = model(*batch_pad_right(wavs))
    for row, item in enumerate(wavs):
        alone = model(item[None])
        torch.testing.assert_close(together[:, row, : alone.shape[2]], alone[:, 0], rtol=0, atol=2e-5)


def test_relative_lengths_come_back_exactly():
    generator = random.Random(0)
    for longest in (1, 2, 3, 320, 16000, 16001, 2**20 - 1, 2**22 + 3, 10_000_019, 2**24 - 1):
        samples = torch.tensor(
            [1, longest, *{generator.randint(1, longest) for _ in range(5000)}, max(1, longest - 1), (longest + 1) // 2]
        )
        holder = torch.empty(1).expand(len(samples), longest)  # a batch of this shape that takes no memory
        for lens in (samples / longest, samples.float() / float(longest), (samples.double() / longest).float()):
            assert lens.dtype == torch.float32
            assert torch.equal(absolute_lengths(lens, holder), samples), longest
        assert torch.equal(absolute_lengths(relative_lengths(samples, longest), holder), samples)


def test_lengths_as_speechbrain_makes_them():
    wavs = [torch.zeros(length) for length in (160000, 47111, 12345, 1, 99999)]
    wav, lens = batch_pad_right(wavs)
    assert absolute_lengths(lens, wav).tolist() == [len(item) for item in wavs]
    padded = sb.dataio.batch.PaddedBatch([{"id": str(i), "sig": item} for i, item in enumerate(wavs)])
    assert absolute_lengths(padded.sig.lengths, padded.sig.data).tolist() == [len(item) for item in wavs]


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        (torch.tensor([8000, 3000]), r"relative lengths in 0 … 1, got torch\.int64"),
        (torch.tensor([1.0, 1.2]), r"must lie in 0 … 1 and leave no item empty, got 1 … 1\.2 of 8000"),
        (torch.tensor([1.0, 0.0]), r"must lie in 0 … 1 and leave no item empty, got 0 … 1 of 8000"),
        (torch.tensor([1.0, float("nan")]), r"must lie in 0 … 1"),
        (torch.tensor([1.0]), r"must have shape \(2,\), one per item, got \(1,\)"),
    ],
)
def test_wrong_lengths_are_named(frozen, lens, message):
    wav, _ = batch(8000, 3000)
    for call in (frozen, frozen.encode, frozen.reconstruct):
        with pytest.raises(ValueError, match=f"^wav_lens.*{message}"):
            call(wav, lens)
    with pytest.raises(ValueError, match=r"^latent_lens must"):
        frozen.decode(torch.zeros(2, 8000, 16), lens)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(8000), "shape"),
        (torch.zeros(2, 8000, 1), "shape"),
        (torch.zeros(2, 8000, dtype=torch.int16), "floating point"),
        (torch.full((2, 8000), float("nan")), "NaN"),
    ],
)
def test_wrong_waveforms_are_named(wav, message):
    model = WavCube(SOURCE, freeze=True).eval()
    for lens in (None, torch.tensor([1.0, 0.5])):
        with pytest.raises(ValueError, match=message):
            model(wav, lens)


def test_waveforms_that_are_not_finite_give_nan_in_training(features):
    model = WavCube(SOURCE, features=features).train()
    wav, lens = batch(8000, 3000)
    clean = model(wav, lens)
    wav[1, 5000] = float("nan")  # in the padding
    assert torch.equal(model(wav, lens), clean)
    wav[1, 100] = float("inf")
    spoilt = model(wav, lens)
    assert spoilt[1].isnan().all()
    torch.testing.assert_close(spoilt[0], clean[0])
    layered = WavCube(SOURCE, freeze=True, output_all_hiddens=True)(wav, lens)
    assert layered[:, 1].isnan().all() and torch.isfinite(layered[:, 0]).all()


def test_speechbrain_skips_batches_that_are_not_finite(tmp_path):
    model = WavCube(SOURCE, freeze=True)
    broken = NOISE.clone()
    broken[7] = float("nan")
    brain = fit(model, tmp_path, epochs=2, noise=broken, skip_nonfinite_grads=True, nonfinite_patience=6)
    assert all(torch.isfinite(weight).all() for weight in brain.modules.head.parameters())
    with pytest.raises(ValueError, match="Loss is not finite and patience is exhausted"):
        fit(model, tmp_path / "impatient", epochs=1, noise=broken, nonfinite_patience=2)


def test_input_stays_as_it_is(frozen):
    wav, lens = batch(8000, 3000)
    before = wav.clone()
    frozen(wav, lens)
    assert torch.equal(wav, before)


# Frozen, trained, and what is kept ------------------------------------------------------------------------------------


class Probe(sb.Brain):
    """A linear layer on pooled features learns to tell a tone from noise."""

    def on_fit_start(self):
        super().on_fit_start()
        self.random, self.losses = set(), []

    def compute_forward(self, batch, stage):
        self.random.add(any(module.training for module in self.modules.wavcube.model.modules()))
        return self.modules.head(self.modules.wavcube(*batch.sig).mean(dim=1))

    def compute_objectives(self, predictions, batch, stage):
        loss = nn.functional.cross_entropy(predictions, batch.label)
        if stage == sb.Stage.TRAIN:
            self.losses.append(loss.item())
        return loss

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.checkpointer.save_checkpoint()


TONE, NOISE = (
    0.1 * torch.sin(torch.arange(3200) / 5.0),
    0.1 * torch.randn(3000, generator=torch.Generator().manual_seed(1)),
)
DATA = tuple(batch_pad_right([TONE, NOISE, TONE[:2500]]))


def fit(model, folder, epochs, rate=0.02, noise=NOISE, **options):
    """Train a head, and the lobe unless it is frozen, six steps per epoch; return what has learnt."""
    head = nn.Linear(model.output_dim, 2)
    brain = Probe(
        {"wavcube": model, "head": head},
        lambda parameters: torch.optim.Adam(parameters, rate),
        run_opts={"device": "cpu", "noprogressbar": True, **options},
        checkpointer=Checkpointer(folder, {"wavcube": model, "head": head}),
    )
    data = []
    for kinds in ((TONE[:2500], noise), (TONE[:2500], NOISE)):
        items = {f"{kind}{i}": {"sig": wav, "label": kind} for i in range(6) for kind, wav in enumerate(kinds)}
        data.append(sb.dataio.dataset.DynamicItemDataset(items, output_keys=["id", "sig", "label"]))
    brain.fit(range(epochs), *data, {"batch_size": 2}, {"batch_size": 4})
    return brain


def test_fitting_a_head_on_a_frozen_lobe(tmp_path):
    model = WavCube(SOURCE, freeze=True, features="hidden_states")
    before, wav = weights_of(model), DATA[0]
    reference = model(wav)
    brain = fit(model, tmp_path, epochs=3)
    assert brain.random == {False} and model.training is False  # validation came last
    assert torch.equal(model.train()(wav), reference)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert brain.losses[-1] < 0.5 * brain.losses[0]
    # The checkpoint has the head, and nothing of the lobe, for which it needs no room.
    folder = brain.checkpointer.find_checkpoint().path
    assert torch.load(folder / "wavcube.ckpt") == {}
    assert (folder / "wavcube.ckpt").stat().st_size < 50_000  # names of modules
    head, other = nn.Linear(64, 2), WavCube(SOURCE, freeze=True, features="hidden_states")
    recovered = Checkpointer(tmp_path, {"wavcube": other, "head": head}, allow_partial_load=True).recover_if_possible()
    assert recovered is not None and torch.equal(head.weight, brain.modules.head.weight)
    assert torch.equal(other(wav), reference)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tuning(tmp_path, precision):
    model = WavCube(SOURCE)
    before, wav = weights_of(model), DATA[0]
    brain = fit(model, tmp_path, epochs=2, rate=1e-3, precision=precision)
    assert brain.random == {False}
    assert brain.losses[-1] < 0.5 * brain.losses[0]
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == trainable(model) and f"{STEM}conv_layers.0.conv.weight" in changed
    assert {name.split(".")[1] for name in changed} == {"wavlm", "compressor"}
    state = torch.load(brain.checkpointer.find_checkpoint().path / "wavcube.ckpt")
    assert set(state) == changed
    # The checkpoint goes into a fresh lobe, to train on or frozen.
    for freeze in (False, True):
        other = WavCube(SOURCE, freeze=freeze)
        Checkpointer(tmp_path, {"wavcube": other}, allow_partial_load=True).recover_if_possible()
        torch.testing.assert_close(other(wav), model(wav), rtol=0, atol=1e-5)
        assert not torch.allclose(other(wav), WavCube(SOURCE)(wav), atol=1e-3)


def test_frozen_means_eval_always():
    model, wav = WavCube(SOURCE, freeze=True, dropout=True), DATA[0]
    reference = model.eval()(wav)
    nn.ModuleDict({"outer": model}).train()
    assert model.training and not any(module.training for module in model.model.modules())
    assert torch.equal(model(wav), reference) and torch.equal(model(wav), reference)
    assert not trainable(model)


def test_nothing_is_random_unless_asked():
    wav = DATA[0]
    model = WavCube(SOURCE).train()
    assert torch.equal(model(wav), model(wav))
    # The test can fail: with dropout asked for, it does.
    model = WavCube(SOURCE, dropout=True).train()
    assert not torch.equal(model(wav), model(wav))
    assert not any(
        module.training for module in model.model.wavlm.modules() if isinstance(module, nn.Dropout) and module.p
    )
    model.eval()
    assert torch.equal(model(wav), model(wav))


@pytest.mark.parametrize("source", ["tiny", "inner", "slow"])
def test_trainable_is_what_is_used(source, features, request):
    model = WavCube(source if source == "tiny" else request.getfixturevalue(source), features=features).train()
    weight = torch.randn(model(*DATA).shape)  # a sum alone has no gradient behind a LayerNorm
    (model(*DATA) * weight).sum().backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert reached == trainable(model) == set(model.state_dict())
    top = {name.split(".")[1] for name in reached}
    expected = {"wavlm"} if features == "hidden_states" else {"wavlm", "compressor"}
    expected |= {"restored": {"restorer"}, "reconstruction": {"decoder"}}.get(features, set())
    expected |= {"post_wavlm_layer_norm"} if source != "tiny" and features != "hidden_states" else set()
    assert top == expected


def test_options_that_freeze_parts():
    stem = {name for name, _ in WavCube("tiny").named_parameters() if name.startswith(STEM)}
    full = trainable(WavCube("tiny", features="reconstruction"))
    by_option = WavCube("tiny", features="reconstruction", freeze_feature_extractor=True)
    assert trainable(by_option) == set(by_option.state_dict()) == full - stem
    by_call = WavCube("tiny", features="reconstruction")
    by_call.model.feature_extractor._freeze_parameters()  # as stock recipes do it
    assert by_call.model.feature_extractor is by_call.model.wavlm.feature_extractor
    assert trainable(by_call) == set(by_call.state_dict()) == full - stem and by_call.freeze_feature_extractor
    without_decoder = trainable(WavCube("tiny", features="reconstruction", freeze_decoder=True))
    assert without_decoder == {name for name in full if not name.startswith("model.decoder.")}
    frozen = WavCube("tiny", freeze=True)
    frozen.model.feature_extractor._freeze_parameters()
    assert not trainable(frozen)


def test_state_dicts_load_both_ways_and_strictly(features):
    trained = WavCube("tiny", features=features)
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    state, wav = trained.state_dict(), DATA[0]
    assert set(state) == trainable(trained)
    frozen = WavCube("tiny", features=features, freeze=True)
    assert frozen.state_dict() == {}
    reference = frozen(wav)
    # Nothing into either: the weights stay.
    frozen.load_state_dict({})
    assert torch.equal(frozen(wav), reference)
    fresh = WavCube("tiny", features=features)
    fresh.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(fresh(wav), reference, rtol=1e-5, atol=1e-5)
    # Everything into either.
    for other in (fresh, frozen):
        other.load_state_dict(state)
        torch.testing.assert_close(other(wav), trained(wav), rtol=1e-5, atol=1e-5)
    # From a lobe with a frozen stem into one without, and back.
    part = WavCube("tiny", features=features, freeze_feature_extractor=True)
    part.load_state_dict(state)
    torch.testing.assert_close(part(wav), trained(wav), rtol=1e-5, atol=1e-5)
    fresh.load_state_dict(part.state_dict())
    # As a part of something larger, and by assignment.
    nested, target = (
        nn.ModuleDict({"a": nn.ModuleList([item])}) for item in (trained, WavCube("tiny", features=features))
    )
    assert set(nested.state_dict()) == {f"a.0.{name}" for name in state}
    target.load_state_dict(nested.state_dict(), assign=True)
    torch.testing.assert_close(target["a"][0](wav), trained(wav), rtol=1e-5, atol=1e-5)
    target["a"][0].load_state_dict({}, assign=True)
    assert trainable(target["a"][0]) == trainable(trained)
    # A state that does not fit is still an error.
    for model in (frozen, fresh):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict({**state, "model.wavlm.unknown": torch.zeros(1)})
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_state_dict({name: torch.zeros(3, 3, 3, 3) for name in state})
    name = "model.wavlm.encoder.transformer.layers.1.layer_norm.weight"
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        fresh.load_state_dict({key: tensor for key, tensor in state.items() if key != name})


def test_weights_frozen_after_training_stay_in_checkpoints():
    model = WavCube("tiny")
    saved = set(model.state_dict())
    model.requires_grad_(False)
    assert set(model.state_dict()) == saved


def test_weights_thawed_by_hand_go_into_checkpoints():
    model = WavCube("tiny", freeze=True)
    model.model.compressor.projection.requires_grad_()
    state = model.state_dict()
    assert state and all(name.startswith("model.compressor.projection.") for name in state)


def test_decoder_is_optional(frozen):
    small = WavCube(SOURCE, freeze=True, decoder=False)
    wav, lens = batch(8000, 3000)
    assert torch.equal(small(wav, lens), frozen(wav, lens)) and torch.equal(small.encode(wav)[0], frozen.encode(wav)[0])
    assert not any("decoder" in name for name, _ in small.named_parameters())
    for call in (lambda: small.decode(torch.zeros(1, 4, 16)), lambda: small.reconstruct(wav)):
        with pytest.raises(ValueError, match="decoder=False"):
            call()
    small.load_state_dict(WavCube(SOURCE, features="reconstruction").state_dict())  # what is trained but not there


def test_gradients_pass_through_a_frozen_lobe(frozen):
    """To train what comes before it: a mask on the latent, or an enhancer whose output is compared in features."""
    wav, lens = batch(3200, 2000)
    latent = frozen.encode(wav, lens)[0].requires_grad_()
    frozen.decode(latent).square().sum().backward()
    assert latent.grad.abs().sum() > 0
    wav.requires_grad_()
    frozen(wav, lens)[:, :, 0].sum().backward()
    assert wav.grad.abs().sum() > 0 and not wav.grad[1, 2000:].any()
    assert all(weight.grad is None for weight in frozen.parameters())
    with torch.no_grad():
        assert not frozen(wav, lens).requires_grad


def test_ddp_finds_no_unused_parameter(features, tmp_path):
    """DDP complains in the step after one in which a parameter had no gradient."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for freeze_stem in (False, True):
            model = WavCube(SOURCE, features=features, freeze_feature_extractor=freeze_stem)
            parallel = nn.parallel.DistributedDataParallel(model).train()
            assert not any(module.training for module in model.model.modules())
            for _ in range(3):
                parallel(*DATA).square().mean().backward()
            # The test can fail.
            weight = model.model.restorer if features != "restored" else model.model.decoder
            weight.requires_grad_()
            parallel = nn.parallel.DistributedDataParallel(model)
            with pytest.raises(RuntimeError, match=r"did not receive grad|finished reduction"):
                for _ in range(2):
                    parallel(*DATA).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_mixed_precision_stays_close(features):
    wav, lens = batch(8000, 5000)
    for freeze in (True, False):
        model = WavCube(SOURCE, features=features, freeze=freeze)
        exact = model(wav, lens).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(wav, lens)
        assert torch.isfinite(mixed).all()
        assert nn.functional.cosine_similarity(mixed.detach().float(), exact, dim=-1)[0].mean() > 0.99


def test_copies_are_independent():
    model, wav = WavCube("tiny"), DATA[0]
    other = copy.deepcopy(model)
    assert torch.equal(other(wav), model(wav)) and set(other.state_dict()) == set(model.state_dict())
    other.model.feature_extractor._freeze_parameters()
    assert trainable(other) < trainable(model) == set(model.state_dict())
    assert repr(model) == "WavCube(source='tiny', features='latent', freeze=False)"


@pytest.mark.parametrize("freeze", [True, False])
def test_lobes_are_pickled_and_saved_whole(tmp_path, features, freeze):
    model, (wav, lens) = WavCube(SOURCE, features=features, freeze=freeze), batch(4000, 3000)
    torch.save(model, tmp_path / "lobe.pt")
    for other in (torch.load(tmp_path / "lobe.pt", weights_only=False), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(wav, lens), model(wav, lens)) and trainable(other) == trainable(model)
        assert set(other.state_dict()) == set(model.state_dict())
        other.load_state_dict(model.state_dict())
        other.model.feature_extractor._freeze_parameters()
        assert not any(name.startswith(STEM) for name in trainable(other))
    assert trainable(model) == set(model.state_dict())  # the copies were frozen, not this one


class Encoded(torch.utils.data.Dataset):
    """Features computed where the data are read, as some recipes have it."""

    def __init__(self, model, wavs):
        self.model, self.wavs = model, wavs

    def __len__(self):
        return len(self.wavs)

    def __getitem__(self, index):
        return self.model(self.wavs[index][None])[0]


def test_lobes_work_in_workers_of_a_data_loader(frozen):
    wavs = batch(4000, 4000)[0]
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Encoded(frozen, wavs), 2, num_workers=1, multiprocessing_context=context)
        (found,) = loader
        torch.testing.assert_close(found, frozen(wavs), rtol=0, atol=1e-5)


def test_a_fine_tuned_model_can_be_saved_whole(tmp_path):
    model = WavCube("tiny")
    with torch.no_grad():
        model.model.compressor.projection[0].bias.add_(0.1)
    save_model(model.model, tmp_path)
    assert torch.equal(WavCube(tmp_path)(DATA[0]), model(DATA[0]))


# Masking --------------------------------------------------------------------------------------------------------------


def test_spec_augment_masks_valid_frames_in_training_alone(frozen):
    wav, lens = batch(24000, 12000, 4000)
    model = WavCube(SOURCE, freeze=True, apply_spec_augment=True).eval()
    plain = frozen(wav, lens)
    assert torch.equal(model(wav, lens), plain)
    model.train()
    share = torch.zeros(3)
    frames = torch.round(model.frame_lens(wav, lens) * plain.shape[1]).long().tolist()
    for _ in range(12):
        masked = model(wav, lens)
        kept = masked == plain
        assert ((masked == 0) | kept).all()  # nothing else changes
        for item, count in enumerate(frames):
            valid = ~kept[item, :count]
            share[item] += valid.float().mean() / 12
            spans = valid.all(dim=1).sum()
            assert spans <= 2 * 0.2 * count and spans < 40 and (~valid).float().mean() > 0.3
    assert (share > 0.02).all() and not torch.equal(model(wav, lens), model(wav, lens))
    torch.manual_seed(3)
    first = model(wav, lens)
    torch.manual_seed(3)
    assert torch.equal(model(wav, lens), first)


def test_spec_augment_masks_all_layers_alike():
    wav, lens = batch(24000, 9000)
    model = WavCube(SOURCE, freeze=True, apply_spec_augment=True, output_all_hiddens=True)
    plain = model.eval()(wav, lens)
    changed = model.train()(wav, lens) != plain
    assert changed.any() and all(torch.equal(layer, changed[0]) for layer in changed)


def test_spec_augment_lets_gradients_through():
    model = WavCube(SOURCE, apply_spec_augment=True).train()
    (model(*DATA) ** 2).sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trainable(model)


# The weighted sum -----------------------------------------------------------------------------------------------------


def test_weighted_sum():
    states = torch.randn(LAYERS, 2, 7, 64)
    module = WeightedSum(LAYERS)
    torch.testing.assert_close(module(states), states.mean(0))
    assert torch.equal(module(list(states)), module(states))
    with torch.no_grad():
        module.weights.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0]))
    share = torch.softmax(module.weights, 0)
    torch.testing.assert_close(module(states), (share[:, None, None, None] * states).sum(0))
    assert list(module.state_dict()) == ["weights"]
    with pytest.raises(ValueError, match="expected 5 layers, got 2"):
        module(torch.randn(2, 7, 64))


def test_weighted_sum_with_layer_norm_ignores_the_scale_of_layers():
    states = torch.randn(LAYERS, 2, 7, 64)
    module = WeightedSum(LAYERS, layer_norm=True)
    torch.testing.assert_close(module(100 * states + 3), module(states), rtol=0, atol=1e-4)


def test_weighted_sum_learns_which_layer_counts():
    torch.manual_seed(0)
    states = torch.randn(LAYERS, 4, 7, 8)
    module = WeightedSum(LAYERS)
    optimiser = torch.optim.Adam(module.parameters(), 0.3)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.mse_loss(module(states), states[3]).backward()
        optimiser.step()
    assert int(module.weights.argmax()) == 3 and module.weights.softmax(0)[3] > 0.9


# What can be wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "no/such/place/model.ckpt"}, "no/such/place/model.ckpt: no such file or folder"),
        ({"source": "tiny", "sample_rate": 8000}, "sample rate of 8000 Hz, but the model tiny takes 16000 Hz"),
        (
            {"source": "tiny", "features": "latents"},
            "one of latent, hidden_states, restored, reconstruction, got 'latents'",
        ),
        (
            {"source": "tiny", "output_all_hiddens": True, "features": "latent"},
            "output_all_hiddens gives hidden_states",
        ),
        ({"source": "tiny", "features": "reconstruction", "output_norm": True}, "no output_norm"),
        ({"source": "tiny", "features": "reconstruction", "decoder": False}, "needs the decoder"),
    ],
)
def test_wrong_options_are_named_in_one_sentence(options, message):
    with pytest.raises(ValueError) as raised:
        WavCube(**options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_misspelt_options_are_errors():
    with pytest.raises(TypeError, match="output_all_hidden"):
        WavCube("tiny", output_all_hidden=True)


def test_the_right_sample_rate_is_accepted():
    assert WavCube("tiny", sample_rate=16000).sample_rate == 16000


def test_save_path_is_where_hub_models_go(tmp_path, monkeypatch, frozen):
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--somebody--wavcube"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_model(load_model(SOURCE), repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    wav = DATA[0]
    for path in (tmp_path / "cache", str(tmp_path / "cache")):
        assert torch.equal(WavCube("somebody/wavcube", path, freeze=True)(wav), frozen(wav))
    assert str(tmp_path / "elsewhere") == constants.HF_HUB_CACHE
    codec = WavCubeCodec.from_hparams("somebody/wavcube", savedir=tmp_path / "cache", run_opts={"device": "cpu"})
    assert torch.equal(codec.encode_batch(wav)[0], frozen(wav))
    with pytest.raises(CheckpointError, match="somebody/wavcube: it is not in the local cache"):
        WavCube("somebody/wavcube")
    assert str(tmp_path / "elsewhere") == constants.HF_HUB_CACHE


def test_without_speechbrain_one_sentence_says_what_to_install():
    script = """
import sys
sys.modules["speechbrain"] = None
try:
    import wavcube_plugins.speechbrain
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = "wavcube_plugins.speechbrain needs SpeechBrain; from a clone: pip install '.[speechbrain]'\n"
    assert result.stdout == expected


def test_speechbrain_is_still_speechbrain():
    import wavcube_plugins.speechbrain as ours

    assert sb is not ours and Path(sb.__file__).parent != Path(ours.__file__).parent and hasattr(sb, "Brain")
    assert {"OnWavCube", "WavCube", "WavCubeCodec", "WeightedSum"} <= set(dir(ours))
    assert all(getattr(ours, name).__name__ == name for name in dir(ours))
    with pytest.raises(AttributeError, match="no attribute 'Brain'"):
        ours.Brain  # noqa: B018


# In hyperparameter files ----------------------------------------------------------------------------------------------


def test_hyperparameter_file(tmp_path):
    hparams = load_hyperpyyaml(f"""
source: {SOURCE}
sample_rate: 16000
wavcube: !new:wavcube_plugins.speechbrain.WavCube
    source: !ref <source>
    save_path: {tmp_path}
    freeze: True
    output_all_hiddens: True
    sample_rate: !ref <sample_rate>
weighted_sum: !new:wavcube_plugins.speechbrain.WeightedSum
    num_layers: {LAYERS}
head: !new:speechbrain.nnet.linear.Linear
    input_size: 64
    n_neurons: 3
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    wavcube: !ref <wavcube>
    weighted_sum: !ref <weighted_sum>
    head: !ref <head>
codec: !apply:wavcube_plugins.speechbrain.WavCubeCodec.from_hparams
    source: !ref <source>
    run_opts:
        device: cpu
modules:
    encoder: !ref <encoder>
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: {tmp_path}
    recoverables:
        encoder: !ref <encoder>
""")
    wavs = [0.1 * torch.randn(length) for length in (8000, 3000)]
    encoder, (wav, lens) = hparams["encoder"], batch_pad_right(wavs)
    out = encoder(wav, lens)
    assert out.shape == (2, 24, 3)
    # The container hands the lengths on: an item gives what it gives alone.
    torch.testing.assert_close(out[1, :9], encoder(wavs[1][None])[0], rtol=0, atol=1e-5)
    # Around a frozen lobe a checkpoint holds the rest.
    hparams["checkpointer"].save_checkpoint()
    state = torch.load(hparams["checkpointer"].find_checkpoint().path / "encoder.ckpt")
    assert set(state) == {"weighted_sum.weights", "head.w.weight", "head.w.bias"}
    with torch.no_grad():
        for weight in (encoder["head"].w.weight, encoder["weighted_sum"].weights):
            weight.add_(1.0)
    hparams["checkpointer"].recover_if_possible()
    assert torch.equal(encoder(wav, lens), out)
    assert hparams["codec"].encode_batch(wav, lens)[0].shape == (2, 24, 16)


def test_errors_in_a_hyperparameter_file_name_the_culprit():
    yaml = "wavcube: !new:wavcube_plugins.speechbrain.WavCube\n    source: {}\n    sample_rate: {}\n"
    with pytest.raises(ValueError, match="8000 Hz, but the model tiny takes 16000 Hz"):
        load_hyperpyyaml(yaml.format("tiny", 8000))
    with pytest.raises(ValueError, match=r"^/no/such/folder: no such file or folder"):
        load_hyperpyyaml(yaml.format("/no/such/folder", 16000))


# Inference ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec():
    return WavCubeCodec.from_hparams(SOURCE, run_opts={"device": "cpu"})


def test_codec_batches(codec, frozen):
    wav, lens = batch(8000, 3000)
    latents, latent_lens = codec.encode_batch(wav, lens)
    assert torch.equal(latents, frozen.encode(wav, lens)[0]) and not latents.requires_grad
    assert torch.equal(codec.decode_batch(latents, latent_lens), frozen.decode(latents, latent_lens))
    rebuilt = codec.reconstruct_batch(wav, lens)
    assert torch.equal(rebuilt, frozen.reconstruct(wav, lens)) and torch.equal(codec(wav, lens), rebuilt)
    assert not trainable(codec) and not any(module.training for module in codec.mods.modules())


def test_codec_files(codec, frozen, tmp_path):
    wav = read_audio(SPEECH)
    latent = codec.encode_file(SPEECH)
    assert latent.shape == (1 + (len(wav) - 400) // 320, 16)
    assert torch.equal(latent, frozen.encode(wav[None])[0][0])
    rebuilt = codec.reconstruct_file(str(SPEECH), tmp_path / "copy.wav")
    assert rebuilt.shape == wav.shape and torch.equal(rebuilt, frozen.reconstruct(wav[None])[0])
    torch.testing.assert_close(read_audio(tmp_path / "copy.wav"), rebuilt.clamp(-1, 1), rtol=0, atol=1e-4)
    assert torch.equal(codec.reconstruct_file(SPEECH), rebuilt)
    assert codec.encode_file(SPEECH, window_seconds=1.0).shape == latent.shape
    # SpeechBrain's own way of reading, which converts silently.
    torch.testing.assert_close(codec.load_audio(str(SPEECH)), wav)


def test_codec_files_of_another_rate_or_with_channels(codec, tmp_path):
    write_audio(tmp_path / "slow.wav", 0.1 * torch.randn(4000), 8000)
    with pytest.raises(AudioError, match=r"slow\.wav: has a sample rate of 8000 Hz, but the model takes 16000 Hz"):
        codec.encode_file(tmp_path / "slow.wav")
    with pytest.raises(AudioError, match="8000 Hz"):
        codec.reconstruct_file(tmp_path / "slow.wav", tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()
    assert codec.encode_file(tmp_path / "slow.wav", resample=True).shape == (24, 16)
    assert codec.reconstruct_file(tmp_path / "slow.wav", resample=True).shape == (8000,)
    soundfile.write(tmp_path / "stereo.wav", 0.1 * torch.randn(8000, 2).numpy(), 16000)
    with pytest.warns(AudioWarning, match=r"stereo\.wav: 2 channels"):
        assert codec.encode_file(tmp_path / "stereo.wav").shape == (24, 16)


@pytest.mark.parametrize("method", ["encode_file", "reconstruct_file"])
def test_codec_files_that_are_broken_are_named_in_one_sentence(codec, method, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "cut.flac").write_bytes(SPEECH.read_bytes()[:4000])
    for name in ("noise.wav", "empty.flac", "cut.flac", "missing.wav", "no/such/folder.wav"):
        with pytest.raises(AudioError) as raised:
            getattr(codec, method)(tmp_path / name)
        assert str(raised.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(raised.value)


def test_codec_refuses_a_suffix_before_it_works(codec, tmp_path):
    with pytest.raises(AudioError, match=r"out\.txt"):
        codec.reconstruct_file(SPEECH, tmp_path / "out.txt")


def test_codec_from_all_kinds_of_sources(codec, tmp_path):
    wav = DATA[0]
    save_model(load_model(SOURCE), tmp_path / "native")
    for source in (tmp_path / "native", str(tmp_path / "native"), tmp_path / "native" / "model.safetensors"):
        other = WavCubeCodec.from_hparams(source, run_opts={"device": "cpu"})
        assert torch.equal(other.encode_batch(wav)[0], codec.encode_batch(wav)[0])
    with pytest.raises(CheckpointError, match=r"^/no/such/folder: no such file or folder"):
        WavCubeCodec.from_hparams("/no/such/folder")
    with pytest.raises(TypeError, match="overides"):
        WavCubeCodec.from_hparams("tiny", overides={})
    assert WavCubeCodec.from_hparams("nano", run_opts={"device": "cpu"}).encode_batch(wav)[0].shape == (3, 9, 32)


def test_codec_from_a_hyperparameter_file(tmp_path):
    """A fine-tuned lobe, its weights beside the file as SpeechBrain's folders have them."""
    trained = WavCube(SOURCE, features="reconstruction")
    with torch.no_grad():
        trained.model.decoder.upsample_proj.bias.add_(0.5)
    folder, text = tmp_path / "model", "wavcube: !new:wavcube_plugins.speechbrain.WavCube\n"
    folder.mkdir()
    torch.save(trained.state_dict(), folder / "wavcube.ckpt")
    text += f"""
    source: {SOURCE}
    freeze: True
modules:
    wavcube: !ref <wavcube>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        wavcube: !ref <wavcube>
"""
    wav, lens = batch(8000, 3000)
    (folder / "hyperparams.yaml").write_text(text)
    (folder / "other.yaml").write_text(text.replace("freeze: True", "freeze: False"))
    for name in (None, "hyperparams.yaml", "other.yaml"):
        codec = WavCubeCodec.from_hparams(str(folder), name, savedir=tmp_path / "links", run_opts={"device": "cpu"})
        torch.testing.assert_close(
            codec.reconstruct_batch(wav, lens), trained.reconstruct(wav, lens), rtol=0, atol=1e-5
        )
        assert not trainable(codec) and not any(module.training for module in codec.mods.modules())
    (folder / "wrong.yaml").write_text(text.replace("modules:\n    wavcube:", "modules:\n    encoder:"))
    with pytest.raises(ValueError, match="must have a 'wavcube', the lobe; found encoder"):
        WavCubeCodec.from_hparams(folder, "wrong.yaml")


def test_codec_in_bfloat16(codec):
    wav, lens = batch(8000, 5000)
    mixed = WavCubeCodec.from_hparams(SOURCE, run_opts={"device": "cpu", "precision": "bf16"})
    latents, exact = mixed.encode_batch(wav, lens)[0], codec.encode_batch(wav, lens)[0]
    assert latents.dtype == torch.float32 and not torch.equal(latents, exact)
    assert nn.functional.cosine_similarity(latents[0], exact[0], dim=-1).mean() > 0.99
    assert torch.isfinite(mixed.decode_batch(latents)).all()


def test_transcripts_of_speechbrains_own_interface(tmp_path):
    """EncoderASR on a local folder: the lobe, fine-tuned, and a head in one encoder, with a CTC label encoder."""
    labels = sb.dataio.encoder.CTCTextEncoder()
    labels.insert_blank(index=0)
    labels.update_from_iterable("ab ", sequence_input=False)
    labels.save(tmp_path / "tokenizer.ckpt")
    (tmp_path / "hyperparams.yaml").write_text(f"""
wavcube: !new:wavcube_plugins.speechbrain.WavCube
    source: {SOURCE}
head: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 4
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    wavcube: !ref <wavcube>
    head: !ref <head>
    log_softmax: !ref <log_softmax>
tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: 0
modules:
    encoder: !ref <encoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <encoder>
        tokenizer: !ref <tokenizer>
""")
    with (tmp_path / "hyperparams.yaml").open() as file:
        encoder = load_hyperpyyaml(file)["encoder"]
    with torch.no_grad():
        encoder["wavcube"].model.compressor.projection[0].bias.add_(0.3)
        latent, weight = encoder["wavcube"](read_audio(SPEECH)[None])[0], encoder["head"].w.weight.normal_()
        encoder["head"].w.bias.copy_(-weight @ latent.mean(0))  # so that every label is heard
    torch.save(encoder.state_dict(), tmp_path / "encoder.ckpt")
    asr = EncoderASR.from_hparams(str(tmp_path), savedir=str(tmp_path / "links"), run_opts={"device": "cpu"})
    text = asr.transcribe_file(str(SPEECH))
    assert len(text) > 5 and set(text) <= set("ab ")
    wavs = [read_audio(SPEECH), read_audio(SPEECH)[:20000]]
    wav, lens = batch_pad_right(wavs)
    together, _ = asr.transcribe_batch(wav, lens)
    assert together[0] == text
    torch.testing.assert_close(asr.encode_batch(wav, lens), encoder(wav, lens).detach(), rtol=0, atol=1e-4)
    alone, _ = asr.transcribe_batch(wavs[1][None], torch.ones(1))
    assert together[1][: len(alone[0]) - 1] == alone[0][:-1]  # relative lengths may give or take the last frame
