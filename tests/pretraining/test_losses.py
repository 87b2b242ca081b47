"""The pretraining losses and discriminators, held to the reference's values of the first training step."""

import json

import pytest
import torch
from helpers.discriminators import golden_discriminators
from helpers.paths import GOLDEN
from safetensors.torch import load_file

from wavcube_plugins import load_model
from wavcube_plugins.models.mel import LogMel
from wavcube_plugins.pretraining.discriminators import Discriminators
from wavcube_plugins.pretraining.losses import (
    STAGE_WEIGHTS,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_loss,
    semantic_anchoring_loss,
)


@pytest.fixture(scope="module")
def golden_batch():
    return load_file(GOLDEN / "train_batch.safetensors")["waveforms"]


def golden_row(stage):
    return json.loads((GOLDEN / "train_steps.json").read_text())[f"stage{stage}"]["rows"][0]


def test_golden_losses_of_stage_1(golden_batch):
    output = load_model(GOLDEN / "official_stage1.ckpt")(golden_batch)
    row, weights = golden_row(1), STAGE_WEIGHTS[1]
    mel = mel_loss(LogMel(), golden_batch, output.reconstruction)
    semantic = semantic_anchoring_loss(output.restored, output.features)
    assert mel.item() == pytest.approx(row["mel"], rel=1e-5)
    assert semantic.item() == pytest.approx(row["semantic"], rel=1e-5)
    assert (weights.mel * mel + weights.semantic * semantic).item() == pytest.approx(row["gen_total"], rel=1e-5)


def test_golden_losses_of_stage_2(golden_batch):
    with torch.no_grad():
        output, row = load_model(GOLDEN / "official_stage2.ckpt")(golden_batch), golden_row(2)
        mel = mel_loss(LogMel(), golden_batch, output.reconstruction)
        assert mel.item() == pytest.approx(row["mel"], rel=1e-5)
        discriminators = golden_discriminators()
        real, generated = discriminators(golden_batch), discriminators(output.reconstruction)
    for kind in ("mp", "mrd"):
        found = {
            "disc": discriminator_loss(real[kind][0], generated[kind][0]),
            "fm": feature_matching_loss(real[kind][1], generated[kind][1]),
        }
        for name, loss in found.items():
            assert loss.item() == pytest.approx(row[f"{name}_{kind}"], rel=1e-4)
        # The learning rate of the first step is zero, so the discriminators are the same after it.
        assert generator_loss(generated[kind][0]).item() == pytest.approx(row[f"gen_{kind}"], rel=1e-4)


def test_discriminator_names_are_the_public_ones():
    lines = (GOLDEN.parent / "state_dict_keys.tsv").read_text().splitlines()
    public = {line.split("\t")[0] for line in lines if "disc." in line and "spec_fn" not in line}
    ours = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        )
        for name in Discriminators().state_dict()
    }
    assert ours == public


def test_semantic_loss_counts_valid_frames_alone():
    features, teacher = torch.randn(2, 2, 10, 8).unbind(0)
    lengths = torch.tensor([10, 4])
    changed = features.clone()
    changed[1, 4:] = 100.0
    expected = semantic_anchoring_loss(features, teacher, lengths)
    assert torch.equal(semantic_anchoring_loss(changed, teacher, lengths), expected)
    assert semantic_anchoring_loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_hinge_losses_know_their_targets():
    good, bad = [torch.full((2, 5), 2.0)], [torch.full((2, 5), -2.0)]
    assert discriminator_loss(good, bad).item() == 0
    assert discriminator_loss(bad, good).item() == 6
    assert generator_loss(good).item() == 0
    assert generator_loss(bad).item() == 3
