"""Pretraining without a toolkit: the steps of both stages, their data, where they start from and what they report."""

import copy
import dataclasses
import importlib.util
import json
import math
import os

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers.discriminators import golden_discriminators
from helpers.paths import GOLDEN, ROOT
from safetensors.torch import load_file
from torch import nn

from wavcube_plugins import WavCubeConfig, load_model
from wavcube_plugins.audio import AudioError, read_audio
from wavcube_plugins.checkpoints import CheckpointError, load_teacher, save_model
from wavcube_plugins.checkpoints.backbones import save_backbone
from wavcube_plugins.data.manifests import Manifest
from wavcube_plugins.data.utterance import Utterance
from wavcube_plugins.models.mel import LogMel
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining import data, runs
from wavcube_plugins.pretraining.discriminators import Discriminators
from wavcube_plugins.pretraining.disturb import disturb
from wavcube_plugins.pretraining.losses import (
    STAGE_WEIGHTS,
    feature_matching_loss,
    generator_loss,
    mel_loss,
    phase_loss,
)
from wavcube_plugins.pretraining.reports import Report
from wavcube_plugins.pretraining.step import (
    Generator,
    NonFiniteError,
    PretrainingStep,
    Schedule,
    frozen,
    seed_step,
    unwrap,
)

WIDTH = 0.02  # of the discriminators' channels
SMALL = WavCubeConfig.preset("tiny").wavlm
BASE = dataclasses.replace(SMALL, extractor_mode="group_norm", layer_norm_first=False)
BACKBONES = {
    "wavlm_large": SMALL,
    "wavlm_base": BASE,
    "hubert_large": dataclasses.replace(SMALL, relative_positions=False),
    "base_with_bias": dataclasses.replace(BASE, conv_bias=True),
}
EAGER = Schedule(1e-3, 0, 100)  # learns from the first step on

pytestmark = pytest.mark.usefixtures("one_thread")


def backbone(form="wavlm_large"):
    return WavLM(BACKBONES[form]).eval()


def begin(stage=1, form="wavlm_large", dropout=None, **choices):
    """Model, teacher and discriminators of a stage at tiny size, as a run would begin with them."""
    encoder = backbone(form)
    config = runs.configure("tiny", encoder, **choices)
    if dropout is not None:
        config = dataclasses.replace(config, bottleneck=dataclasses.replace(config.bottleneck, dropout=dropout))
    start = runs.start_stage1(config, encoder, discriminator_width=WIDTH)
    if stage == 2:
        start.teacher = copy.deepcopy(encoder)
    return start


def training(start, stage=1, *, adversarial_from=0, weights=None, checkpointing=False, schedule=EAGER, **options):
    """A training step that learns at once and has the discriminators from the beginning."""
    generator = Generator(start.model, stage, start.teacher if stage == 2 else None, checkpointing=checkpointing)
    weights = weights or dataclasses.replace(STAGE_WEIGHTS[stage], adversarial_from=adversarial_from)
    return PretrainingStep(generator.train(), start.discriminators.train(), weights, schedule, **options)


def weights_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def changed(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.fixture
def waveforms():
    return 0.1 * torch.randn(2, 6400)


# The golden steps -----------------------------------------------------------------------------------------------------


def gradient_norm(module):
    gradients = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack(gradients).norm().item() if gradients else 0.0


@pytest.mark.parametrize("stage", [1, 2])
def test_golden_steps(stage):
    golden = json.loads((GOLDEN / "train_steps.json").read_text())[f"stage{stage}"]
    waveforms = load_file(GOLDEN / "train_batch.safetensors")["waveforms"]
    checkpoint = GOLDEN / f"official_stage{stage}.ckpt"
    model = load_model(checkpoint)
    generator = Generator(model, stage, load_teacher(checkpoint) if stage == 2 else None).train()
    for module in generator.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    weights = dataclasses.replace(STAGE_WEIGHTS[stage], adversarial_from=golden["gan_from_step"])
    step = PretrainingStep(generator, golden_discriminators(), weights, Schedule(1e-4, 2, 10))
    parts = {
        "compressor": model.compressor,
        "restorer": model.restorer,
        "decoder": model.decoder,
        "student": model.wavlm,
    }
    for row in golden["rows"]:
        result = step(waveforms, row["step"])
        assert result.learning_rate == pytest.approx(row["lr"], rel=1e-9)
        found = {"semantic_student": 0.0, **{name: value.item() for name, value in result.losses.items()}}
        expected = {name: row[name] for name in found if name in row}
        assert expected.keys() >= {"mel", "semantic", "gen_total", "semantic_student"}
        assert ("fm_mrd" in found) == ("fm_mrd" in row)
        if stage == 1:
            expected.pop("semantic_restored")  # the reference counts its one semantic loss as the sum alone
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=3e-4)
        norms = {name: gradient_norm(part) for name, part in parts.items()}
        assert norms == pytest.approx(row["grad_norm"], rel=1e-3)


# Which gradient goes where --------------------------------------------------------------------------------------------


def acoustic_loss(start, generator, waveforms):
    """What listens to the sound alone: mel, adversarial and feature-matching loss."""
    output = generator(waveforms)
    loss = mel_loss(LogMel(), waveforms, output.reconstruction)
    real, fake = start.discriminators(waveforms), start.discriminators(output.reconstruction)
    for kind in ("mp", "mrd"):
        loss = loss + generator_loss(fake[kind][0]) + feature_matching_loss(real[kind][1], fake[kind][1])
    return loss


@pytest.mark.parametrize("choices", [{}, {"bottleneck": "vae"}, {"frame_rate": 25}], ids=str)
def test_stage_1_sends_no_acoustic_gradient_into_the_compressor(waveforms, choices):
    start = begin(**choices)
    generator = Generator(start.model, 1).train()
    loss = acoustic_loss(start, generator, waveforms)
    behind = list(start.model.decoder.parameters())
    before = [*start.model.compressor.parameters(), *start.model.restorer.parameters()]
    gradients = torch.autograd.grad(loss, before + behind, allow_unused=True)
    # Not small: there is no path at all.
    assert all(gradient is None for gradient in gradients[: len(before)])
    assert all(gradient.abs().max() > 0 for gradient in gradients[len(before) :])
    assert not any(parameter.requires_grad for parameter in start.model.wavlm.parameters())


def test_stage_1_trains_the_compressor_the_same_with_any_acoustic_loss(waveforms):
    compressors, decoders = [], []
    for mel, adversarial in ((45.0, 1.0), (1.0, 10.0)):
        torch.manual_seed(0)
        start = begin()
        step = training(
            start, weights=dataclasses.replace(STAGE_WEIGHTS[1], mel=mel, adversarial=adversarial, adversarial_from=1)
        )
        for number in range(3):
            step(waveforms, number)
        compressors.append(weights_of(start.model.compressor) | weights_of(start.model.restorer))
        decoders.append(weights_of(start.model.decoder))
    assert same(*compressors)
    assert not same(*decoders)


def test_stage_2_sends_the_acoustic_gradient_into_compressor_and_student(waveforms):
    start = begin(2)
    generator = Generator(start.model, 2, start.teacher).train()
    loss = acoustic_loss(start, generator, waveforms)
    reached = [*start.model.compressor.parameters(), *start.model.wavlm.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, reached))
    assert not any(parameter.requires_grad for parameter in start.teacher.parameters())


ABLATIONS = {
    "ae": {},
    "vae": {"bottleneck": "vae"},
    "sigma_vae": {"bottleneck": "sigma_vae"},
    "25 Hz": {"frame_rate": 25},
    "vae at 25 Hz, 8 channels": {"bottleneck": "vae", "frame_rate": 25, "latent_dim": 8},
    "layer 3": {"wavlm_layer": 3},
    "layer 0": {"wavlm_layer": 0},
    "base": {"form": "wavlm_base"},
    "layer 2 of base": {"form": "wavlm_base", "wavlm_layer": 2},
    "base with bias": {"form": "base_with_bias"},
    "hubert": {"form": "hubert_large"},
}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_trainable_parameter_is_trained(waveforms, ablation, stage):
    start = begin(stage, **ABLATIONS[ablation])
    step = training(start, stage)
    modules = step.generator, step.discriminators
    trainable = [{n for n, p in module.named_parameters() if p.requires_grad} for module in modules]
    before = [weights_of(module) for module in modules]
    teacher = weights_of(start.teacher)
    result = step(waveforms, 0)
    # DDP would wait for a gradient that never comes.
    with_gradient = [{n for n, p in module.named_parameters() if p.grad is not None} for module in modules]
    assert with_gradient == trainable
    # The bias of keys shifts all scores of a query alike, and the gradient of rounding errors may be nought.
    left = trainable[0] - changed(step.generator, before[0])
    assert all("k_proj.bias" in name for name in left)
    assert changed(step.generator, before[0]) <= trainable[0]
    assert changed(step.discriminators, before[1]) <= trainable[1]
    assert same(weights_of(start.teacher), teacher)
    assert all(torch.isfinite(value) for value in result.losses.values())
    assert ("kl" in result.losses) == (start.model.config.bottleneck.kind == "vae")
    assert ("semantic_student" in result.losses) == (stage == 2)
    assert result.skipped == ()
    student = {name for name in trainable[0] if name.startswith("model.wavlm.")}
    assert bool(student) == (stage == 2)
    layer = start.model.config.wavlm_layer
    if layer != -1:
        above = [f"model.wavlm.encoder.transformer.layers.{index}." for index in range(layer, SMALL.num_layers)]
        assert not any(name.startswith(tuple(above)) for name in trainable[0])


def test_the_teacher_is_no_part_of_the_state_and_moves_with_the_generator():
    start = begin(2)
    generator = Generator(start.model, 2, start.teacher)
    assert not any("teacher" in name for name, _ in [*generator.named_parameters(), *generator.named_modules()])
    generator.double()
    assert next(start.teacher.parameters()).dtype == torch.float64


def test_only_the_adapters_drop_anything():
    for stage in (1, 2):
        start = begin(stage)
        generator = Generator(start.model, stage, start.teacher if stage == 2 else None).train()
        assert not any(module.training for module in start.model.wavlm.modules())
        assert not any(module.training for module in start.teacher.modules())
        assert start.model.compressor.training and start.model.restorer.training
        assert not generator.eval().model.compressor.training


def test_wrong_stages_and_teachers_are_refused():
    start = begin()
    with pytest.raises(ValueError, match="stage must be 1 or 2, got 3"):
        Generator(start.model, 3)
    with pytest.raises(ValueError, match="stage 2 needs a teacher"):
        Generator(start.model, 2)
    with pytest.raises(ValueError, match="stage 1 has no separate teacher"):
        Generator(start.model, 1, start.teacher)
    other = WavLM(dataclasses.replace(SMALL, hidden_dim=32))
    with pytest.raises(ValueError, match="features have 32 channels, the model's 64"):
        Generator(start.model, 2, other)


# One step -------------------------------------------------------------------------------------------------------------


def test_schedule():
    schedule = Schedule(2.0, 10, 110)
    rates = {0: 0.0, 5: 1.0, 10: 2.0, 60: 1.0, 110: 0.0, 1000: 0.0}
    assert {step: schedule(step) for step in rates} == pytest.approx(rates)
    assert Schedule(2.0, 0, 10)(0) == 2.0


def test_discriminators_come_in_at_their_step(waveforms):
    start = begin()
    step = training(start, adversarial_from=1)
    before = weights_of(start.discriminators)
    alone = step(waveforms, 0)
    assert same(weights_of(start.discriminators), before)
    assert set(alone.losses) == {"mel", "semantic", "semantic_restored", "gen_total"}
    assert set(alone.gradient_norms) == {"generator"}
    both = step(waveforms, 1)
    assert changed(start.discriminators, before)
    assert set(both.losses) > {"disc_mp", "disc_mrd", "disc_total", "gen_mp", "gen_mrd", "fm_mp", "fm_mrd"}
    assert set(both.gradient_norms) == {"generator", "discriminators"}


@pytest.mark.parametrize("stage", [1, 2])
def test_totals_are_the_weighted_sums(waveforms, stage):
    start = begin(stage, bottleneck="vae")
    weights = dataclasses.replace(STAGE_WEIGHTS[stage], adversarial_from=0, kl=0.5, phase=7.0)
    losses = training(start, stage, weights=weights)(waveforms, 0).losses
    semantic = losses["semantic_restored"] + losses.get("semantic_student", 0.0)
    adversarial = sum(losses[f"{part}_{kind}"] for part in ("gen", "fm") for kind in ("mp", "mrd"))
    expected = weights.mel * losses["mel"] + weights.semantic * semantic + weights.adversarial * adversarial
    expected = expected + 0.5 * losses["kl"] + 7 * losses["phase"]
    assert losses["gen_total"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["disc_total"].item() == pytest.approx(
        weights.adversarial * (losses["disc_mp"] + losses["disc_mrd"]).item(), rel=1e-5
    )


def test_several_mel_windows_are_averaged(waveforms):
    start = begin(dropout=0.0)
    one, two, both = (
        training(copy.deepcopy(start), mel_windows=windows)(waveforms, 0).losses["mel"].item()
        for windows in ([1024], [256], [1024, 256])
    )
    assert both == pytest.approx((one + two) / 2, rel=1e-5)


def test_the_phase_loss_hears_what_a_log_mel_distance_does_not(waveforms):
    # Half a turn of every phase.
    assert mel_loss(LogMel(), waveforms, -waveforms).item() == pytest.approx(0, abs=1e-6)
    assert phase_loss(waveforms, waveforms).item() == 0
    half, quarter = phase_loss(waveforms, -waveforms).item(), phase_loss(waveforms, waveforms / 16).item()
    # 1/16 to the power 0.3 is 0.435.
    assert half > 0.01 and quarter == pytest.approx((1 - 0.435) / 2 * half, rel=0.05)


def test_the_phase_loss_has_finite_gradients_where_there_is_nothing(waveforms):
    silence = torch.zeros_like(waveforms, requires_grad=True)
    phase_loss(waveforms, silence).backward()
    assert torch.isfinite(silence.grad).all()


def test_generator_and_teacher_run_once_per_step(waveforms):
    start = begin(2)
    step = training(start, 2)
    passes = []
    for name, module in (("decoder", start.model.decoder), ("student", start.model.wavlm), ("teacher", start.teacher)):
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
    step(waveforms, 0)
    assert sorted(passes) == ["decoder", "student", "teacher"]


@pytest.mark.parametrize("stage", [1, 2])
def test_checkpointing_changes_no_gradient(waveforms, stage):
    start = begin(stage)
    gradients, losses = [], []
    for checkpointing in (False, True):
        step = training(copy.deepcopy(start), stage, checkpointing=checkpointing)
        losses.append(step(waveforms, 3).losses)  # with dropout: what is worked out again must drop the same
        gradients.append([p.grad for p in step.generator.parameters() if p.grad is not None])
        assert step.generator.state_dict().keys() == training(begin(stage), stage).generator.state_dict().keys()
    assert same(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("stage", [1, 2])
def test_bfloat16_stays_close_and_keeps_float32_weights(waveforms, stage):
    start = begin(stage, dropout=0.0)
    exact = training(copy.deepcopy(start), stage)(waveforms, 0)
    step = training(start, stage, autocast=torch.bfloat16)
    rough = step(waveforms, 0)
    assert rough.skipped == ()
    assert all(parameter.dtype == torch.float32 for parameter in step.generator.parameters())
    assert all(value.dtype == torch.float32 for value in rough.losses.values())
    assert not same(rough.losses, exact.losses)
    for name, value in rough.losses.items():
        assert value.item() == pytest.approx(exact.losses[name].item(), rel=0.05, abs=1e-3)
    # (That of the untrained discriminators is a small difference of large numbers.)
    assert rough.gradient_norms["generator"].item() == pytest.approx(exact.gradient_norms["generator"].item(), rel=0.1)


def test_a_step_depends_on_nothing_but_its_number(waveforms):
    start = begin(bottleneck="vae")
    results = []
    for rank, noise in ((0, 0), (0, 7), (1, 0)):
        step = training(copy.deepcopy(start), rank=rank, seed=3)
        torch.randn(noise)
        results.append(step(waveforms, 5).losses)
    assert same(results[0], results[1])
    assert not torch.equal(results[0]["semantic"], results[2]["semantic"])  # each process drops its own
    seeds = set()
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 1), (0, 1, 11)):
        seed_step(*key)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 6


def test_a_saved_state_goes_on_exactly(waveforms, tmp_path):
    start = begin(2)
    alone = training(copy.deepcopy(start), 2)
    for number in range(4):
        alone(waveforms.roll(number), number)
    first = training(start, 2)
    for number in range(2):
        first(waveforms.roll(number), number)
    torch.save([first.state_dict(), *(m.state_dict() for m in (first.generator, first.discriminators))], tmp_path / "a")

    again = begin(2)
    again.teacher.load_state_dict(start.teacher.state_dict())
    second = training(again, 2)
    state, generator, discriminators = torch.load(tmp_path / "a", weights_only=True)
    second.generator.load_state_dict(generator)
    second.discriminators.load_state_dict(discriminators)
    second.load_state_dict(state)
    for number in range(2, 4):
        second(waveforms.roll(number), number)
    assert same(weights_of(second.generator), weights_of(alone.generator))
    assert same(weights_of(second.discriminators), weights_of(alone.discriminators))


def test_gradients_that_are_not_finite_skip_the_step(waveforms):
    start = begin()
    step = training(start, most_skipped=3)
    step(waveforms, 0)
    broken = waveforms.clone()
    broken[1, 400] = math.nan
    modules = step.generator, step.discriminators
    before = [weights_of(module) for module in modules]
    moments = copy.deepcopy(step.state_dict())
    for number in (1, 2):
        assert step(broken, number).skipped == ("discriminators", "generator")
    assert all(same(weights_of(module), state) for module, state in zip(modules, before, strict=True))
    for name in step.optimizers:
        for a, b in zip(moments[name]["state"].values(), step.state_dict()[name]["state"].values(), strict=True):
            assert same(a, b)
    assert (step.skipped, step.skipped_in_a_row) == (2, 2)
    assert step(waveforms, 3).skipped == ()
    assert all(changed(module, state) for module, state in zip(modules, before, strict=True))
    assert (step.skipped, step.skipped_in_a_row) == (2, 0)

    for number in (4, 5):
        step(broken, number)
    with pytest.raises(NonFiniteError, match="discriminators and generator were not finite in 3 batches in a row"):
        step(broken, 6)
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(step.generator).values())


def test_one_network_is_skipped_without_the_other(waveforms):
    start = begin()
    step = training(start)
    before = weights_of(step.generator), weights_of(step.discriminators)
    parameter = next(step.discriminators.parameters())
    hook = parameter.register_hook(lambda gradient: gradient * math.inf)
    assert step(waveforms, 0).skipped == ("discriminators",)
    assert changed(step.generator, before[0]) and same(weights_of(step.discriminators), before[1])
    hook.remove()
    assert step(waveforms, 1).skipped == ()


def test_long_gradients_are_shortened(waveforms):
    start = begin()
    free = training(copy.deepcopy(start))(waveforms, 0).gradient_norms
    step = training(start, max_gradient_norm=0.01)
    norms = step(waveforms, 0).gradient_norms
    assert same(free, norms)  # what is reported is what there was
    for module, norm in ((step.generator, norms["generator"]), (step.discriminators, norms["discriminators"])):
        assert gradient_norm(module) == pytest.approx(min(0.01, norm.item()), rel=1e-3)


def test_validation_changes_nothing_and_draws_nothing(waveforms):
    start = begin(bottleneck="vae")
    step = training(start)
    before = weights_of(step.generator)
    step.generator.eval()
    losses, reconstruction = step.validate(waveforms)
    assert not reconstruction.requires_grad
    assert set(losses) == {"mel", "semantic", "semantic_restored"}
    assert same(weights_of(step.generator), before)
    # What the model gives for use, with the mean of its latent.
    with torch.no_grad():
        expected = start.model.eval()(waveforms).reconstruction
    torch.testing.assert_close(reconstruction, expected, atol=1e-5, rtol=1e-4)


def test_the_average_follows_the_weights_and_validates_in_their_place(waveforms):
    start = begin(dropout=0.0)
    step = training(start, adversarial_from=math.inf, ema_decay=0.9)
    name, weight = next((n, p) for n, p in start.model.named_parameters() if p.requires_grad and p.ndim == 2)
    expected = weight.detach().clone()
    for number in range(4):
        step(waveforms, number)
        share = max(0.1, 9 / (10 + number))
        expected = expected + share * (weight.detach() - expected)
    average = step.average.state_dict()[name]
    assert torch.allclose(average, expected, atol=1e-6) and not torch.allclose(average, weight, atol=1e-6)
    live = step.validate(waveforms)[1]
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(step.validate(waveforms)[1], live)  # the live weights are not asked
    assert torch.allclose(step.average.state_dict()[name], average) and not torch.allclose(weight, average)


def test_a_skipped_step_is_not_averaged(waveforms):
    start = begin()
    step = training(start, adversarial_from=math.inf, ema_decay=0.5)
    step(waveforms, 0)
    before = {name: one.clone() for name, one in step.average.state_dict().items()}
    assert step(torch.full_like(waveforms, math.inf), 1).skipped == ("generator",)
    assert same(before, step.average.state_dict())


def test_discriminators_may_learn_at_a_rate_of_their_own(waveforms):
    start = begin()
    step = training(start, adversarial_from=3, discriminator_schedule=Schedule(5e-4, 2, 10))
    rates = []
    for number in range(6):
        result = step(waveforms, number)
        rates.append(step.optimizers["discriminators"].param_groups[0]["lr"])
        assert result.learning_rate == EAGER(number)
    assert rates[3:] == [0.0, 2.5e-4, 5e-4]


def test_frozen_and_unwrap():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with pytest.raises(ZeroDivisionError), frozen(module):
        module(x).sum().backward()
        raise ZeroDivisionError
    assert x.grad is not None and module[1].weight.grad is None
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    wrapper, compiled = nn.Module(), nn.Module()
    compiled._orig_mod, wrapper.module = module, compiled
    assert unwrap(wrapper) is module and unwrap(module) is module


# Several processes ----------------------------------------------------------------------------------------------------


def _train_distributed(rank, world_size, folder):
    """Two steps of one of the processes; it saves its weights."""
    torch.set_num_threads(1)  # of a process of its own
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    batch = torch.load(folder / "batch.pt")
    for stage in (1, 2):
        torch.manual_seed(rank)  # the ranks begin apart; DDP makes them equal
        start = begin(stage, dropout=0.0)
        if rank == 0 or world_size == 1:
            state = torch.load(folder / f"start{stage}.pt")
            start.model.load_state_dict(state["model"])
            start.discriminators.load_state_dict(state["discriminators"])
        if stage == 2:
            start.teacher.load_state_dict(torch.load(folder / f"start{stage}.pt")["teacher"])
        generator = Generator(start.model, stage, start.teacher if stage == 2 else None).train()
        discriminators = start.discriminators
        if world_size > 1:
            # As SpeechBrain wraps them: nothing unused is looked for.
            generator = nn.parallel.DistributedDataParallel(generator)
            discriminators = nn.parallel.DistributedDataParallel(discriminators)
        weights = dataclasses.replace(STAGE_WEIGHTS[stage], adversarial_from=1)
        step = PretrainingStep(generator, discriminators, weights, Schedule(1e-4, 0, 100), rank=rank)
        share = batch.chunk(world_size)[rank]
        norms = [step(share, number).gradient_norms for number in range(3)]
        torch.save((norms, start.model.state_dict(), start.discriminators.state_dict()), folder / f"{stage}.{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    torch.save(0.1 * torch.randn(4, 6400), tmp_path / "batch.pt")
    begun = {}
    for stage in (1, 2):
        start = begin(stage, dropout=0.0)
        parts = {"model": start.model, "discriminators": start.discriminators, "teacher": start.teacher}
        begun[stage] = {name: weights_of(part) for name, part in parts.items()}
        torch.save(begun[stage], tmp_path / f"start{stage}.pt")
    (tmp_path / "pair").mkdir()
    for name in ("batch.pt", "start1.pt", "start2.pt"):
        os.link(tmp_path / name, tmp_path / "pair" / name)
    _train_distributed(0, 1, tmp_path)
    torch.multiprocessing.spawn(_train_distributed, (2, tmp_path / "pair"), nprocs=2)
    for stage in (1, 2):
        norms, *alone = torch.load(tmp_path / f"{stage}.0.pt")
        first, second = (torch.load(tmp_path / "pair" / f"{stage}.{rank}.pt") for rank in (0, 1))
        for ours, theirs in zip(first[1:], second[1:], strict=True):
            assert same(ours, theirs)
        for a, b in zip(norms, first[0], strict=True):
            assert {n: v.item() for n, v in a.items()} == pytest.approx({n: v.item() for n, v in b.items()}, rel=1e-3)
        for state, expected, before in zip(first[1:], alone, list(begun[stage].values())[:2], strict=True):
            way = torch.cat([(expected[name] - before[name]).flatten() for name in expected])
            apart = torch.cat([(expected[name] - state[name]).flatten() for name in expected])
            # Adam makes a full step of a gradient that is nearly nought, in which rounding decides on the sign.
            assert apart.norm() < 0.1 * way.norm()


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def speech(tmp_path):
    """Twelve recordings of 0.2 to 1.3 s, each with its own pitch."""
    folder = tmp_path / "speech"
    folder.mkdir()
    for index in range(12):
        time = np.arange(3200 + 1600 * index) / 16000
        soundfile.write(folder / f"{index:02d}.wav", 0.2 * np.sin(2 * np.pi * (100 + 50 * index) * time), 16000)
    return folder


def crops(folder, **options):
    return data.Crops(Manifest(folder), options.pop("seconds", 0.5), 16000, **options)


def test_draws_are_those_of_the_key_alone():
    assert data.draw(1, "a").random() == data.draw(1, "a").random() == pytest.approx(0.54351839, abs=1e-8)
    assert data.draw(1, "a").random() != data.draw(1, "b").random() != data.draw(2, "b").random()
    data.draw("\udcff").random()  # a file name that is not UTF-8


def test_crops_follow_from_seed_pass_and_id(speech):
    here, there = crops(speech, seed=1), crops(speech, seed=1)
    there[3, 0], there[5, 2]  # what came before does not matter
    for key in ((3, 0), (11, 4)):
        waveform, name, skipped = here[key]
        assert torch.equal(waveform, there[key][0])
        assert (waveform.shape, name, skipped) == ((8000,), f"{key[0]:02d}", [])
    assert not torch.equal(here[11, 0][0], here[11, 1][0])
    assert not torch.equal(here[11, 0][0], crops(speech, seed=2)[11, 0][0])


def test_peaks_lie_between_the_two_levels(speech):
    peaks = [20 * math.log10(crops(speech)[index % 12, index][0].abs().max()) for index in range(60)]
    assert -6 <= min(peaks) < -5.5 and -1.5 < max(peaks) <= -1
    beginnings = data.Beginnings(Manifest(speech), 0.5, 16000)
    assert beginnings[7, 0][0].abs().max().item() == pytest.approx(10 ** (-3 / 20))
    expected = read_audio(speech / "07.wav")[:8000]
    torch.testing.assert_close(beginnings[7, 0][0], expected * (10 ** (-3 / 20) / expected.abs().max()))
    assert torch.equal(beginnings[7, 0][0], beginnings[7, 3][0])


def test_a_crop_is_the_part_of_the_file_that_was_asked_for(tmp_path):
    ramp = np.linspace(0.1, 0.9, 32000)
    soundfile.write(tmp_path / "ramp.wav", ramp, 16000, "FLOAT")
    whole = Utterance("ramp", str(tmp_path / "ramp.wav"))

    def crop(utterance, position, seconds=0.5):
        waveform = data.read_crop(utterance, seconds, 16000, position=position, peak_db=0.0)
        return waveform.numpy()

    for position, start in ((0.0, 0), (0.25, 6000), (1.0, 24000)):
        part = ramp[start : start + 8000]
        np.testing.assert_allclose(crop(whole, position), part / part.max(), atol=1e-6)
    # A cut of a long recording: nothing of its neighbours, and what is short is repeated.
    cut = dataclasses.replace(whole, start=0.5, duration=0.25)
    part = ramp[8000:12000] / ramp[11999]
    np.testing.assert_allclose(crop(cut, 0.7), np.concatenate([part, part]), atol=1e-6)
    # A duration beyond the end of the file is cut.
    np.testing.assert_allclose(
        crop(dataclasses.replace(whole, start=1.75, duration=9.0), 0.3)[:4000], ramp[28000:] / 0.9, atol=1e-6
    )
    with pytest.raises(AudioError, match=r"0\.05 s long, too short to train on \(at least 0\.1 s\)"):
        crop(dataclasses.replace(cut, duration=0.05), 0.0)
    with pytest.raises(AudioError, match=r"0\.00 s long, too short"):
        crop(dataclasses.replace(whole, start=60.0), 0.0)


def test_a_pause_is_not_amplified_to_the_level_of_speech(tmp_path):
    noise = np.random.default_rng(0).normal(0, 1e-4, 16000)
    soundfile.write(tmp_path / "pause.wav", noise, 16000, "FLOAT")
    soundfile.write(tmp_path / "quiet.wav", 1000 * noise, 16000, "FLOAT")
    soundfile.write(tmp_path / "nothing.wav", 0 * noise, 16000, "FLOAT")
    pause, quiet, nothing = (
        data.read_crop(Utterance(name, str(tmp_path / f"{name}.wav")), 1.0, 16000, position=0.0, peak_db=-1.0).numpy()
        for name in ("pause", "quiet", "nothing")
    )
    np.testing.assert_allclose(pause, noise * 10**1.5, atol=1e-7)
    assert abs(quiet).max() == pytest.approx(10 ** (-1 / 20)) and not nothing.any()


@pytest.mark.parametrize(("rate", "suffix"), [(8000, "wav"), (44100, "flac"), (48000, "ogg"), (22254, "wav")])
def test_any_rate_format_and_number_of_channels(tmp_path, rate, suffix):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / f"tone.{suffix}", np.stack([tone, tone], 1), rate)
    waveform, _, skipped = crops(tmp_path)[0, 0]
    assert waveform.shape == (8000,) and not skipped
    spectrum = np.abs(np.fft.rfft(waveform.numpy() * np.hanning(8000)))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=2)


def test_silence_stays_silence(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    assert not crops(tmp_path)[0, 0][0].any()


@pytest.fixture
def damaged(speech):
    """The recordings with four that cannot be used among them, at the indices 12 to 15."""
    (speech / "x_empty.wav").touch()
    (speech / "x_text.wav").write_text("not audio")
    soundfile.write(speech / "x_short.wav", np.zeros(100), 16000)
    whole = (speech / "11.wav").read_bytes()
    (speech / "y_cut.wav").write_bytes(whole[: len(whole) // 3])
    return speech


def test_what_cannot_be_read_gives_way_to_another_and_is_named(damaged):
    dataset = crops(damaged)
    waveform, name, skipped = dataset[12, 0]
    assert torch.equal(waveform, crops(damaged)[12, 0][0]) and waveform.abs().max() > 0.4
    assert name < "12" and skipped[0].id == "x_empty" and "not readable as audio" in skipped[0].reason
    reasons = {entry.id: entry.reason for index in range(12, 16) for entry in dataset[index, 0][2]}
    assert "too short to train on" in reasons["x_short"]
    assert reasons.keys() == {"x_empty", "x_text", "x_short", "y_cut"} or reasons.keys() == {
        "x_empty",
        "x_text",
        "x_short",
    }
    assert len({dataset[12, number][1] for number in range(20)}) > 4  # not always the same one in its place
    batch = data.collate([dataset[index, 0] for index in (0, 12, 1)])
    assert batch.waveforms.shape == (3, 8000) and len(batch) == 3
    assert batch.ids[::2] == ["00", "01"] and batch.skipped[0].id == "x_empty"


def test_broken_utterances_never_lead_round_in_a_circle(tmp_path):
    # Of four, three are broken: whichever is asked for, in whichever pass, the fourth is found.
    soundfile.write(tmp_path / "good.wav", np.ones(16000) / 2, 16000)
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    dataset = crops(tmp_path)
    assert {dataset[index, number][1] for index in range(4) for number in range(50)} == {"good"}


def test_when_nothing_can_be_read_any_more(damaged):
    dataset = crops(damaged)
    for path in damaged.iterdir():
        path.unlink()
    with pytest.raises(
        data.DataError, match=r"100 utterances in a row could not be read, the last one because: .*no such"
    ):
        dataset[0, 0]


def test_lines_that_cannot_be_used_are_skipped_too(speech, tmp_path):
    lines = [json.dumps({"path": str(speech / "03.wav")}), "{broken", json.dumps({"text": "no audio"})]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    dataset = data.Crops(Manifest(tmp_path / "list.jsonl"), 0.5, 16000)
    _, name, skipped = dataset[1, 0]
    assert name.endswith("03") and skipped[0].id == "entry 2" and "entry 2: not JSON" in skipped[0].reason


def test_data_are_looked_at_before_training(damaged):
    data.check_data(crops(damaged))
    for index in range(12):
        (damaged / f"{index:02d}.wav").write_text("")
    (damaged / "y_cut.wav").unlink()
    with pytest.raises(
        data.DataError, match=r"none of the 15 utterances tried, of 15, can be read; the first because: "
    ):
        data.check_data(crops(damaged))


@pytest.mark.parametrize(("size", "batch_size", "world_size"), [(10, 4, 1), (7, 3, 2), (3, 8, 2), (1, 2, 1)])
def test_every_utterance_comes_up_once_per_pass_and_passes_have_no_seam(size, batch_size, world_size):
    samplers = [data.StepSampler(size, batch_size, 5, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.steps = range(3 * size)
        assert len(sampler) == 3 * size
    batches = [list(sampler) for sampler in samplers]
    keys = [key for step in zip(*batches, strict=True) for batch in step for key in batch]
    assert all(len(batch) == batch_size for rank in batches for batch in rank)
    passes = len(keys) // size
    assert keys[: passes * size] == sorted(keys[: passes * size], key=lambda key: key[1])
    orders = [[index for index, number in keys if number == wanted] for wanted in range(passes)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 5:
        assert len({tuple(order) for order in orders}) > 1
    assert samplers[0].epoch(size) == world_size * batch_size
    # Any step can be the first one.
    again = data.StepSampler(size, batch_size, 5, world_size - 1, world_size)
    for first in (0, 2, 2 * size - 1):
        again.steps = range(first, 3 * size)
        assert list(again) == batches[-1][first:]
    other = data.StepSampler(size, batch_size, 6, 0, world_size)
    other.steps = range(3 * size)
    assert size == 1 or list(other) != batches[0]


def test_workers_change_nothing(damaged):
    found = []
    for workers in (0, 2):
        sampler = data.StepSampler(16, 4)
        sampler.steps = range(3, 9)
        loader = torch.utils.data.DataLoader(
            crops(damaged), batch_sampler=sampler, collate_fn=data.collate, num_workers=workers
        )
        found.append(list(loader))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a.waveforms, b.waveforms) and (a.ids, a.skipped) == (b.ids, b.skipped)


def test_a_mixture_draws_by_weight_and_each_part_in_whole_passes():
    mixture = data.Mixture([30, 5], [3, 1])
    sampler = data.StepSampler(35, 10, 5, mixture=mixture)
    sampler.steps = range(200)
    keys = [key for batch in sampler for key in batch]
    few = [key for key in keys if key[0] >= 30]
    assert len(few) == 500
    # No utterance of a part comes up again before all others of it did.
    for first in range(0, 500, 5):
        assert {index for index, _ in few[first : first + 5]} == set(range(30, 35))
        assert {number for _, number in few[first : first + 5]} == {first // 5}
    # It goes on from any step as if it had never stopped.
    later = data.StepSampler(35, 10, 5, mixture=data.Mixture([30, 5], [3, 1]))
    later.steps = range(117, 119)
    assert [key for batch in later for key in batch] == keys[1170:1190]
    # Two processes share the positions.
    halves = [data.StepSampler(35, 5, 5, rank, 2, data.Mixture([30, 5], [3, 1])) for rank in (0, 1)]
    for half in halves:
        half.steps = range(3)
    shared = zip(*halves, strict=True)
    assert [key for pair in shared for batch in pair for key in batch] == keys[:30]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [([3, 4], [1.0], "2 positive weights"), ([3, 4], [1, 0], "positive"), ([3, 4], [1e5, 1], "thousandth")],
)
def test_bad_mixtures_are_refused(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        data.Mixture(sizes, weights)


def test_a_chain_of_parts_is_one_after_the_other():
    chain = data.chain([["a", "b"], ["c"], ["d", "e", "f"]])
    assert len(chain) == 6 and [chain[index] for index in range(6)] == list("abcdef")


def test_disturbed_batches_are_the_same_every_time_and_keep_their_peaks(speech):
    dataset = crops(speech)
    items = [dataset[index, 0] for index in range(8)]
    clean, first, again = data.collate(items), *(data.collate_disturbed(items, dataset.sample_rate) for _ in range(2))
    assert torch.equal(first.waveforms, again.waveforms) and first.ids == clean.ids
    assert torch.allclose(first.waveforms.abs().amax(1), clean.waveforms.abs().amax(1), rtol=1e-5)
    changes = (first.waveforms - clean.waveforms).abs().amax(1)
    assert (changes > 1e-3).sum() >= 4


def test_disturbances_leave_speech_at_its_time():
    torch.manual_seed(0)
    waveforms = torch.zeros(16, 16000)
    waveforms[:, 8000:8400] = torch.randn(16, 400)
    for seed in range(5):
        disturbed = disturb(waveforms, seed)
        assert disturbed.shape == waveforms.shape and torch.isfinite(disturbed).all()
        spectra = torch.fft.rfft(disturbed, 32768) * torch.fft.rfft(waveforms, 32768).conj()
        lags = torch.fft.irfft(spectra, 32768).argmax(1)
        lags = torch.where(lags > 16384, lags - 32768, lags)
        assert lags.abs().max() <= 8  # samples


def test_validation_is_held_out_always_the_same(speech):
    utterances = Manifest(speech)
    train, valid = data.hold_out(utterances, 64)
    assert (len(train), len(valid)) == (11, 1)  # of few a tenth
    assert {u.id for u in [*train, *valid]} == {u.id for u in utterances}
    again = data.hold_out(Manifest(speech), 64)
    assert [list(part) for part in again] == [list(train), list(valid)]
    many = [Utterance(str(number), "") for number in range(1000)]
    train, valid = data.hold_out(many, 64)
    assert (len(train), len(valid)) == (936, 64)
    assert not {u.id for u in train} & {u.id for u in valid}
    assert [u.id for u in data.hold_out(many, 64, seed=1)[1]] != [u.id for u in valid]
    with pytest.raises(data.DataError, match="only one utterance"):
        data.hold_out(many[:1], 64)
    with pytest.raises(IndexError):
        train[936]


def test_a_given_validation_set_is_taken_whole_or_in_part():
    many = [Utterance(str(number), "") for number in range(100)]
    assert data.take(many, 100) == many
    some = data.take(many, 64)
    assert len({u.id for u in some}) == 64 and list(data.take(many, 64)) == list(some)


def test_several_sources_one_after_the_other(speech, tmp_path):
    (tmp_path / "list.txt").write_text("speech/03.wav\nspeech/04.wav\n")
    utterances = data.open_utterances([str(speech), str(tmp_path / "list.txt")])
    assert len(utterances) == 14 and utterances[13].source == str(speech / "04.wav")
    assert len(data.open_utterances(str(speech))) == 12


# What a run starts from -----------------------------------------------------------------------------------------------


def test_configure_takes_the_backbones_sizes_and_the_ablations():
    config = runs.configure(
        "nano", backbone("hubert_large"), bottleneck="vae", latent_dim=8, frame_rate=25, wavlm_layer=3
    )
    assert config.wavlm == BACKBONES["hubert_large"]
    assert (config.bottleneck.kind, config.bottleneck.latent_dim, config.bottleneck.frame_stride) == ("vae", 8, 2)
    assert config.wavlm_layer == 3 and config.decoder == WavCubeConfig.preset("nano").decoder
    assert runs.configure("wavcube") == WavCubeConfig.preset("wavcube")
    for choices, problem in (
        ({"bottleneck": "vqvae"}, "kind must be one of ae, vae, sigma_vae, got 'vqvae'"),
        ({"frame_rate": 100}, "frame_rate must be 50 or 25, got 100"),
        ({"wavlm_layer": 7}, "wavlm_layer must lie in"),
    ):
        with pytest.raises(ValueError, match=problem):
            runs.configure("tiny", backbone(), **choices)
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        runs.configure("huge")


def test_stage_1_begins_with_copies_of_the_first_layers():
    encoder = backbone()
    config = runs.configure("tiny", encoder)
    first, second, other = (runs.start_stage1(config, encoder, discriminator_width=WIDTH, seed=s) for s in (0, 0, 1))
    layers = encoder.encoder.transformer.layers[:3].state_dict()
    assert same(first.model.compressor.layers.state_dict(), layers)
    assert same(first.model.restorer.layers.state_dict(), layers)
    assert same(first.model.wavlm.state_dict(), encoder.state_dict())
    assert first.teacher is first.model.wavlm
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.discriminators.state_dict(), second.discriminators.state_dict())
    assert not same(first.model.decoder.state_dict(), other.model.decoder.state_dict())
    random = runs.start_stage1(config, encoder, adapters=False, discriminator_width=WIDTH)
    assert not same(random.model.compressor.layers.state_dict(), layers)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Checkpoints of both stages in the form of the public ones, with whole discriminators in half precision."""
    discriminators = {}
    for name, tensor in Discriminators().state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        discriminators[name.replace("parametrizations.weight.original1", "weight_v")] = tensor.half()
    folder = tmp_path_factory.mktemp("public")
    for stage in (1, 2):
        content = torch.load(GOLDEN / f"official_stage{stage}.ckpt", weights_only=True)
        content["state_dict"].update(discriminators)
        torch.save(content, folder / f"stage{stage}.ckpt")
    yield folder, discriminators
    for stage in (1, 2):
        (folder / f"stage{stage}.ckpt").unlink()


@pytest.mark.parametrize(("source", "stage"), [(1, 1), (1, 2), (2, 2)])
def test_public_checkpoints_are_continued_with_their_discriminators(public, waveforms, source, stage):
    folder, discriminators = public
    path = folder / f"stage{source}.ckpt"
    start = runs.start_from(path, stage)
    found = start.discriminators.state_dict()
    name = "multiperioddisc.discriminators.2.convs.1."
    assert torch.equal(found[f"{name}parametrizations.weight.original1"], discriminators[f"{name}weight_v"].float())
    assert torch.equal(found[f"{name}parametrizations.weight.original0"], discriminators[f"{name}weight_g"].float())
    assert torch.equal(found[f"{name}bias"], discriminators[f"{name}bias"].float())
    assert same(start.model.state_dict(), load_model(path).state_dict())
    assert same(start.teacher.state_dict(), load_teacher(path).state_dict())
    assert (start.teacher is start.model.wavlm) == (stage == 1)
    assert source == 2 or same(start.teacher.state_dict(), start.model.wavlm.state_dict())
    assert start.origin == path.name
    # They are of the published size; a training step of a narrow pair tells whether the rest fits together.
    start.discriminators = Discriminators(WIDTH)
    before = weights_of(start.model)
    assert training(start, stage)(waveforms, 0).skipped == ()
    assert {name.split(".")[0] for name in changed(start.model, before)} == {
        *("compressor", "restorer", "decoder"),
        *(["wavlm"] if stage == 2 else []),
    }


def test_a_checkpoint_without_discriminators_gets_fresh_ones():
    path = GOLDEN / "official_stage1.ckpt"
    with pytest.warns(UserWarning, match=r"the discriminators start at random: .*it has no multiresddisc"):
        runs.start_from(path, 2)
    first, second = (runs.start_from(path, 2, discriminator_width=WIDTH) for _ in range(2))
    assert same(first.discriminators.state_dict(), second.discriminators.state_dict())


def test_discriminators_of_other_sizes_are_refused(public, tmp_path):
    folder, _ = public
    content = torch.load(folder / "stage1.ckpt", weights_only=True)
    content["state_dict"]["multiperioddisc.discriminators.0.conv_post.bias"] = torch.zeros(7)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"its discriminators are not those of WavCube, .*conv_post\.bias"):
        runs.start_from(tmp_path / "other.ckpt", 2)


def test_native_folders_are_continued(tmp_path):
    for stage in (1, 2):
        save_model(load_model(GOLDEN / f"official_stage{stage}.ckpt"), tmp_path / str(stage), dtype=torch.float16)
    start = runs.start_from(tmp_path / "1", 2, discriminator_width=WIDTH)
    assert same(start.teacher.state_dict(), start.model.wavlm.state_dict())
    assert start.teacher is not start.model.wavlm  # the student must not take the teacher with it
    assert start.model.dtype == torch.float32
    assert runs.start_from(tmp_path / "1", 1, discriminator_width=WIDTH).model.metadata["stage"] == "1"
    with pytest.raises(CheckpointError, match="does not hold the frozen teacher; name it, such as --backbone"):
        runs.start_from(tmp_path / "2", 2, discriminator_width=WIDTH)
    teacher = load_teacher(GOLDEN / "official_stage2.ckpt")
    start = runs.start_from(tmp_path / "2", 2, teacher=teacher, discriminator_width=WIDTH)
    assert start.teacher is teacher


@pytest.mark.parametrize("name", ["results/wavcube/stage1", "owner/name", "nowhere.ckpt", "wavcube"])
def test_a_missing_start_is_never_looked_for_on_the_hub(name):
    with pytest.raises(CheckpointError, match=f"{name}: no such run, checkpoint or model folder to start from"):
        runs.start_from(name, 2)


def test_stage_1_does_not_go_on_from_stage_2():
    with pytest.raises(CheckpointError, match="is of stage 2, which stage 1 cannot go on from"):
        runs.start_from(GOLDEN / "official_stage2.ckpt", 1, discriminator_width=WIDTH)


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not the folder of a training run, it has no run\.json"):
        runs.read_run(tmp_path)
    for text, problem in (("{", "damaged"), ("[]", "expected the format"), ('{"format": "x"}', "expected the format")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=problem):
            runs.load_run(tmp_path)
    start = begin()
    runs.write_run(tmp_path, start, 1, {"discriminator_width": WIDTH})
    with pytest.raises(CheckpointError, match="this run has no checkpoint yet"):
        runs.load_run(tmp_path)
    with pytest.raises(CheckpointError, match="this run has no validated checkpoint yet"):
        runs.load_run(tmp_path, "best")
    with pytest.raises(CheckpointError, match="this run has no checkpoint yet"):
        runs.start_from(tmp_path, 2)


def save_checkpoint(folder, model, stage, meta, discriminators=None):
    """A checkpoint as training leaves it."""
    folder.mkdir(parents=True)
    torch.save(runs.trained_weights(model, stage), folder / "model.ckpt")
    torch.save((discriminators or Discriminators(WIDTH)).state_dict(), folder / "discriminators.ckpt")
    torch.save({}, folder / "training.ckpt")
    (folder / "brain.ckpt").touch()
    (folder / "CKPT.yaml").write_text(yaml.dump(meta))


def test_a_runs_checkpoints_last_best_and_broken(tmp_path):
    start = begin()
    runs.write_run(tmp_path, start, 1, {"discriminator_width": WIDTH})
    scores = {10: 0.9, 20: 0.5, 30: math.nan, 40: 0.7, 50: None}
    for step, mel in scores.items():
        start.model.decoder.layer_norm.bias.data.fill_(step)
        meta = {"unixtime": float(step), "step": step} | ({} if mel is None else {"mel": mel})
        save_checkpoint(tmp_path / "save" / f"CKPT+{100 - step}", start.model, 1, meta)
    assert [runs.read_meta(path)["step"] for path in runs.checkpoints(tmp_path)] == list(scores)
    for which, step in (("last", 50), ("best", 20)):
        model, checkpoint = runs.load_run(tmp_path, which)
        assert model.decoder.layer_norm.bias[0] == step and checkpoint.name == f"CKPT+{100 - step}"
        assert model.trained and not model.training
        assert model.metadata == {"stage": "1", "global_step": str(step), "origin": start.origin}
    # Cut short while they were written or removed: they do not count, and go away.
    (tmp_path / "save" / "CKPT+50" / "training.ckpt").unlink()
    (tmp_path / "save" / "CKPT+60" / "CKPT.yaml").rename(tmp_path / "save" / "CKPT+60" / "CKPT.yaml.part")
    assert len(runs.checkpoints(tmp_path)) == 3
    runs.remove_unfinished(tmp_path)
    assert len(list((tmp_path / "save").iterdir())) == 3
    (tmp_path / "save" / "CKPT+80" / "model.ckpt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"model\.ckpt: cut short or not a checkpoint"):
        runs.load_run(tmp_path, "best")


def test_weights_of_another_model_are_refused():
    model = begin().model
    state = runs.trained_weights(model, 1)
    assert not any(name.startswith("wavlm.") for name in state)
    assert any(name.startswith("wavlm.") for name in runs.trained_weights(model, 2))
    with pytest.raises(CheckpointError, match="of another model: the two differ in wavlm"):
        runs.load_weights(model, state, 2)
    state.pop("decoder.layer_norm.bias")
    with pytest.raises(CheckpointError, match=r"of another model: the two differ in decoder\.layer_norm\.bias"):
        runs.load_weights(model, state, 1)


def test_a_run_is_exported_and_is_where_stage_2_starts(tmp_path):
    start = begin(bottleneck="sigma_vae")
    run = tmp_path / "run"
    runs.write_run(run, start, 1, {"discriminator_width": WIDTH, "train": "speech"})
    save_checkpoint(run / "save" / "CKPT+a", start.model, 1, {"unixtime": 1.0, "step": 7}, start.discriminators)
    runs.export_run(run, tmp_path / "export", metadata={"licence": "none"})
    model = load_model(tmp_path / "export")
    assert same(model.state_dict(), start.model.state_dict())
    assert model.trained and model.config == start.model.config
    assert {"stage": "1", "global_step": "7", "licence": "none"}.items() <= model.metadata.items()
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"model.safetensors", "config.json"}

    second = runs.start_from(run, 2, discriminator_width=WIDTH)
    assert same(second.model.state_dict(), start.model.state_dict())
    assert same(second.teacher.state_dict(), start.model.wavlm.state_dict())
    assert second.teacher is not second.model.wavlm
    assert same(second.discriminators.state_dict(), start.discriminators.state_dict())
    assert second.origin == "stage 1 run run, step 7"
    narrow = runs.start_from(run, 2, discriminator_width=2 * WIDTH)  # of another width they begin anew
    assert not same(narrow.discriminators.state_dict(), start.discriminators.state_dict())
    # Its stage 2 holds the teacher, too, though the student moves on.
    second.model.wavlm.encoder.transformer.layer_norm.bias.data.add_(1)
    runs.write_run(tmp_path / "two", second, 2, {"discriminator_width": WIDTH})
    save_checkpoint(tmp_path / "two" / "save" / "CKPT+a", second.model, 2, {"unixtime": 1.0, "step": 9})
    third = runs.start_from(tmp_path / "two", 2, discriminator_width=WIDTH)
    assert same(third.model.state_dict(), second.model.state_dict())
    assert same(third.teacher.state_dict(), start.model.wavlm.state_dict())
    with pytest.raises(CheckpointError, match="is of stage 2"):
        runs.start_from(tmp_path / "two", 1, discriminator_width=WIDTH)
    # What was exported of stage 1 starts stage 2 as well.
    assert same(
        runs.start_from(tmp_path / "export", 2, discriminator_width=WIDTH).teacher.state_dict(),
        weights_of(start.model.wavlm),
    )


def test_backbones_are_kept_with_the_run(tmp_path):
    save_backbone(backbone(), tmp_path / "encoder")
    start = begin()
    runs.write_run(tmp_path / "run", start, 1, {"discriminator_width": WIDTH})
    again = runs.open_run(tmp_path / "run")
    assert same(again.model.wavlm.state_dict(), start.model.wavlm.state_dict())
    assert again.teacher is again.model.wavlm and again.origin == start.origin
    assert again.discriminators.state_dict().keys() == start.discriminators.state_dict().keys()


# What is reported -----------------------------------------------------------------------------------------------------


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


@pytest.fixture
def syllables():
    noise = np.random.default_rng(0).normal(scale=0.1, size=32000) * (np.sin(np.arange(32000) / 850) > 0)
    return torch.from_numpy(noise).float()


def test_a_report_has_numbers_sounds_and_pictures(tmp_path, syllables):
    report = Report(tmp_path, 16000)
    report.training(20, {"mel": 0.5, "learning rate": 1.25e-8, "gradient norm/generator": 3.0, "skipped steps": 1})
    worse = syllables + 0.02 * torch.randn(32000)
    scores = report.validation(20, {"mel": 0.25}, [("a/b c", syllables, worse), ("d", syllables, 2 * syllables)])
    report.close()
    assert scores["mel"] == 0.25 and 0.5 < scores["STOI"] < 1 < scores["PESQ-WB"]
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    expected = {"mel": 0.5, "learning rate": 1.25e-8, "gradient norm/generator": 3.0, "skipped steps": 1}
    assert lines[0] == {"step": 20, **expected}
    assert lines[1]["valid mel"] == 0.25 and lines[1]["valid STOI"] == pytest.approx(scores["STOI"], rel=1e-6)
    found = events(tmp_path)
    assert found.Scalars("mel/train")[0].value == 0.5 and found.Scalars("mel/valid")[0].step == 20
    assert set(found.Tags()["images"]) == {"0_a_b_c", "1_d"}
    assert "1_d/reconstruction" in found.Tags()["audio"] and len(found.Tags()["audio"]) == 4
    names = {path.name for path in (tmp_path / "examples").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("0_a_b_c", "1_d") for kind in ("original.flac", "reconstruction.flac", "png")
    }
    assert read_audio(tmp_path / "examples" / "1_d.reconstruction.flac").abs().max() <= 1
    assert Report.shorten({"mel": 0.123456, "gen_total": 12.0, "other": 1.0}) == {"mel": "0.123", "total": "12"}


def test_a_report_survives_what_cannot_be_measured(tmp_path, syllables):
    report = Report(tmp_path, 16000)
    examples = [("silent", torch.zeros(16000), syllables[:16000]), ("broken", syllables, syllables * math.nan)]
    with pytest.warns(UserWarning) as caught:
        scores = report.validation(5, {"mel": math.nan}, examples)
    report.close()
    messages = [str(warning.message) for warning in caught]
    assert any("silent: STOI: the reference is silent" in message for message in messages)
    assert any("broken: the reconstruction has NaN" in message for message in messages)
    assert set(scores) <= {"mel"}
    assert json.loads((tmp_path / "progress.jsonl").read_text()) == {"step": 5, "valid mel": None}
    assert not any("broken" in path.name for path in (tmp_path / "examples").iterdir())


def test_a_report_goes_on_after_half_a_line(tmp_path):
    for half in ("", '{"step": 1, "me'):
        with open(tmp_path / "progress.jsonl", "a") as file:
            file.write(half)
        report = Report(tmp_path, 16000)
        report.training(2, {"mel": 0.5})
        report.close()
    line = '{"step": 2, "mel": 0.5}'
    assert (tmp_path / "progress.jsonl").read_text().splitlines() == [line, half, line]


def test_larger_metrics_are_measured_when_they_are_asked_for(tmp_path, syllables, monkeypatch):
    class Predictor(nn.Module):
        def forward(self, waveforms, sample_rate):
            assert waveforms.shape == (1, 32000) and sample_rate == 16000
            return torch.tensor([4.25])

    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: Predictor())
    settings = {"utmos": True, "dnsmos": True, "voice_similarity": True, "wer": None}
    report = Report(tmp_path, 16000, settings)
    scores = report.validation(1, {}, [("a", syllables, syllables)])
    report.close()
    assert scores["UTMOS"] == 4.25 and "WER" not in scores
    assert 1 <= scores["DNSMOS"] <= 5 and scores["voice similarity"] == pytest.approx(1, abs=1e-4)


# The benchmark --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load_benchmark():
    def load(name):
        path = ROOT / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("pretraining")


@pytest.mark.parametrize("stage", [1, 2])
def test_the_benchmark_compares_steps_that_do_the_same(benchmark, waveforms, stage):
    config, device = WavCubeConfig.preset("tiny"), torch.device("cpu")
    theirs, ours = (
        benchmark.build_step(way, stage, config, WIDTH, device, dropout=0.0)
        for way in (benchmark.REFERENCE, "ours, float32")
    )
    for number in range(3):
        expected, found = theirs(waveforms, number).losses, ours(waveforms, number).losses
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["pretraining", "speed"])
def test_benchmarks_measure_the_gpu_that_is_named(load_benchmark, monkeypatch, name):
    chosen = []

    class Measured(Exception):
        pass

    def get_device_name():
        raise Measured

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
    monkeypatch.setattr(torch.cuda, "get_device_name", get_device_name)
    for device in ("cuda:1", "cuda"):
        with pytest.raises(Measured):
            load_benchmark(name).main(["--device", device, "--threads", str(torch.get_num_threads())])
    assert chosen == ["cuda:1"]


def test_the_benchmark_measures_in_processes_of_their_own(benchmark, capfd):
    words = "--device cpu --size tiny --stages 2 --width 0.02 --batch 1 --seconds 0.3 --steps 1 --warmup 0 --rounds 1"
    assert benchmark.main([*words.split(), "--threads", "1"]) == 0
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| 2 |")]
    assert [row[2] for row in rows] == ["reference's way, float32", "ours, float32", "ours, bfloat16"]
    assert all(float(row[3]) > 0 and 100 < float(row[5].replace(",", "")) < 10_000 for row in rows)
    assert rows[0][4] == "1.00x"
