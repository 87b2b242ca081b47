"""Which parameters an output depends on, checked against autograd."""

import dataclasses

import pytest
import torch

from wavcube_plugins import WavCube, WavCubeConfig
from wavcube_plugins.models.usage import train_only, unused_parts, used_parameters
from wavcube_plugins.pretraining.step import Generator

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = WavCubeConfig.preset("tiny")
FORMS = {
    "layer norms first": {},
    "base": {"layer_norm_first": False, "extractor_mode": "group_norm"},
    "base with biases": {"layer_norm_first": False, "extractor_mode": "group_norm", "conv_bias": True},
    "large with a group norm": {"extractor_mode": "group_norm", "conv_bias": True},
    "layer norms last": {"layer_norm_first": False},
    "plain attention": {"relative_positions": False, "conv_bias": True},
}
BOTTLENECKS = {"ae": {}, "vae": {"kind": "vae"}, "25 Hz": {"frame_stride": 2}}
LAYERS = (-1, 0, 2, TINY.wavlm.num_layers)
OUTPUTS = ("hidden_states", "features", "latent", "restored", "reconstruction")


def build(form="layer norms first", layer=-1, bottleneck="ae"):
    config = dataclasses.replace(
        TINY,
        wavlm=dataclasses.replace(TINY.wavlm, **FORMS[form]),
        bottleneck=dataclasses.replace(TINY.bottleneck, **BOTTLENECKS[bottleneck]),
        wavlm_layer=layer,
    )
    return WavCube(config)


def with_gradient(model, tensors):
    loss = sum(tensor.square().sum() for tensor in tensors)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def output_of(model, kind):
    waveforms = 0.1 * torch.randn(2, 2000)
    if kind == "hidden_states":
        return model.hidden_states(waveforms)[0]
    return [getattr(model(waveforms), kind)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_exactly_the_used_parameters_receive_a_gradient(form, layer):
    model = build(form, layer)
    for output in OUTPUTS:
        assert with_gradient(model, output_of(model, output)) == used_parameters(model, output), output


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_every_kind_of_bottleneck(bottleneck):
    model = build(layer=2, bottleneck=bottleneck)
    for output in OUTPUTS:
        assert with_gradient(model, output_of(model, output)) == used_parameters(model, output), output


def test_the_last_hidden_state_alone_depends_on_what_all_depend_on():
    model = build("base", layer=2)
    assert with_gradient(model, output_of(model, "hidden_states")[-1:]) == used_parameters(model, "hidden_states")


def test_several_outputs_at_once():
    model = build(layer=2)
    latent, states = used_parameters(model, "latent"), used_parameters(model, "hidden_states")
    assert used_parameters(model, "latent", "hidden_states") == latent | states
    assert states - latent  # the upper layers


def test_parts_that_no_output_passes_through():
    assert unused_parts("latent") == ("restorer", "decoder")
    assert unused_parts("restored") == ("decoder",)
    assert unused_parts("restored", "reconstruction") == ()
    assert unused_parts("hidden_states") == ("post_wavlm_layer_norm", "compressor", "restorer", "decoder")


def test_parts_that_were_removed_are_left_out():
    model = build()
    model.decoder = None
    assert used_parameters(model, "reconstruction") == used_parameters(model, "latent")


def test_unknown_outputs_are_named():
    for function in (lambda: used_parameters(build(), "latents"), lambda: unused_parts("latents")):
        with pytest.raises(ValueError, match=r"outputs must be among hidden_states, .*got 'latents'"):
            function()


def test_train_only_freezes_the_rest():
    model = build(layer=2)
    names = used_parameters(model, "latent")
    train_only(model, names)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_pretraining_trains_what_receives_a_gradient_and_nothing_else(form, layer):
    model = build(form, layer)
    for stage in (1, 2):
        generator = Generator(model, stage, build(form, layer).wavlm if stage == 2 else None).train()
        output = generator(0.1 * torch.randn(2, 3200))
        trained = with_gradient(model, [output.reconstruction, *output.losses.values()])
        assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if stage == 2:
            expected = used_parameters(model, "restored", "reconstruction")
            # It also makes the target of the semantic loss, which must not move.
            assert trained == {name for name in expected if not name.startswith("post_wavlm_layer_norm.")}
