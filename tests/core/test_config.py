"""Sizes: where they are declared they are checked, and JSON holds them."""

import dataclasses
import json
import math

import pytest
import torch

from wavcube_plugins import WavCube
from wavcube_plugins.config import (
    BACKBONES,
    FLOW_PRESETS,
    PRESETS,
    BottleneckConfig,
    DecoderConfig,
    FlowConfig,
    WavCubeConfig,
    WavLMConfig,
)
from wavcube_plugins.errors import InputError


def test_config_round_trip_and_errors():
    for config in PRESETS.values():
        assert WavCubeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown preset 'large'; choose one of wavcube"):
        WavCubeConfig.preset("large")
    with pytest.raises(ValueError, match="unknown setting 'sample_rat'"):
        WavCubeConfig.from_dict({"sample_rat": 16000})
    with pytest.raises(ValueError, match=r"wavlm\. must be a mapping, got int"):
        WavCubeConfig.from_dict({"wavlm": 3})
    with pytest.raises(ValueError, match="hidden_dim must be a multiple of num_heads"):
        WavCubeConfig.from_dict({"wavlm": {"num_heads": 7}})
    with pytest.raises(ValueError, match="wavlm_layer must lie in"):
        WavCubeConfig.from_dict({"wavlm_layer": 25})
    with pytest.raises(ValueError, match="must be half the encoder's"):
        WavCubeConfig.from_dict({"decoder": {"hop_length": 320}})
    assert WavCubeConfig.preset("wavcube").wavlm.receptive_field == 400
    assert WavCubeConfig.preset("wavcube").hop_length == 320


def test_every_named_configuration_is_accepted_and_survives_json():
    for configs in (PRESETS, FLOW_PRESETS, BACKBONES):
        for config in configs.values():
            assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


# One value out of range for every number, whichever class declares it.
WRONG = {
    WavLMConfig: {
        "conv_dims": [(), (512,) * 6, (0,) * 7, (512,) * 6 + (-1,), [512] * 7, ("512",) * 7],
        "conv_kernels": [(), (3,) * 6, (0,) * 7, (10, 3, 3, 3, 3, 2, 2.0)],
        "conv_strides": [(), (2,) * 8, (5, 2, 2, 2, 2, 2, 0)],
        "hidden_dim": [0, -1024, 1025, 1024.0, "1024", None],
        "num_layers": [0, -1, 1.5, True],
        "num_heads": [0, -16, 7, 2048],
        "ffn_dim": [0, -1],
        "pos_conv_kernel": [0, -128],
        "pos_conv_groups": [0, -16, 7],
        "num_buckets": [0, 3, -320],
        "max_distance": [0, 80, -800],
        "extractor_mode": ["batch_norm", "", None],
        "conv_bias": [1, "yes", None],
        "layer_norm_first": [0, None],
        "relative_positions": [1, None],
    },
    BottleneckConfig: {
        "latent_dim": [-3, 0, 1, 16.0],
        "num_layers": [0, -1],
        "dropout": [3, 1, 1.0, -0.1, math.nan, "0.1"],
        "kind": ["vq", None],
        "sigma": [-0.5, math.nan, math.inf],
        "frame_stride": [0, 3, -1, 2.0],
    },
    DecoderConfig: {
        "dim": [0, -1024, 1025, 16],  # 16 heads of one channel each have nothing to rotate
        "num_layers": [0, -1],
        "num_heads": [0, -16, 7, 1024],
        "ffn_dim": [0, -1],
        "num_mels": [0, -128],
        "vocoder_dim": [0, 257, 16],
        "vocoder_layers": [0, -1],
        "vocoder_heads": [0, 7, 256],
        "vocoder_ffn_dim": [0, -1],
        "window_left": [-1, 1.0],
        "window_right": [-1],
        "n_fft": [0, -640, 160, 512, 320.0, 641],
        "hop_length": [0, -160, 640, 128.0, 5],
        "rope_base": [0, -1.0, math.nan, math.inf, "10000"],
    },
    WavCubeConfig: {
        "wavlm": [None, {}, BottleneckConfig()],
        "bottleneck": [None, WavLMConfig()],
        "decoder": [None, DecoderConfig(hop_length=320)],
        "sample_rate": [0, -16000, 16000.0, "16000"],
        "wavlm_layer": [-2, 25, 1.0],
    },
    FlowConfig: {
        "dim": [0, -1024, 1025, 16],
        "num_layers": [0, -1],
        "num_heads": [0, 7, 1024],
        "ffn_factor": [0, -2, 2.5],
        "dropout": [1, 3, -0.1, math.nan],
        "text_dim": [0, -2, 511],
        "text_layers": [-1],
        "text_kernel": [0, -7, 8],
        "text_factor": [0, -2],
        "text_layout": ["aligned"],
        "time_dim": [0, -2, 255],
        "pos_conv_kernel": [0, -31, 32],
        "pos_conv_groups": [0, 7],
        "rope_base": [0, math.nan],
        "span": [(0.7,), (0.0, 1.0), (0.9, 0.5), (0.5, 1.5), (math.nan, 1.0), (0.7, "1"), [0.7, 1.0], 0.7],
        "audio_drop": [-0.1, 1.1, math.nan],
        "both_drop": [-0.1, 1.1, math.nan],
        "ema_decay": [-0.1, 1.0, 1.1, math.nan],
    },
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_wrong_sizes_are_refused_where_they_are_declared(kind):
    assert set(WRONG[kind]) == {field.name for field in dataclasses.fields(kind)}
    for name, values in WRONG[kind].items():
        for value in values:
            with pytest.raises(InputError) as caught:
                kind(**{name: value})
            assert "\n" not in str(caught.value), (name, value)


def test_plain_attention_does_not_look_at_buckets():
    config = dataclasses.replace(WavLMConfig(), relative_positions=False, num_buckets=0, max_distance=0)
    assert not config.relative_positions


def test_errors_name_the_part():
    with pytest.raises(InputError, match=r"^bottleneck\.latent_dim must be at least 2, got -3$"):
        WavCubeConfig.from_dict({"bottleneck": {"latent_dim": -3}})
    with pytest.raises(InputError, match=r"^wavlm\.conv_dims must be a tuple of int, got 3$"):
        WavCubeConfig.from_dict({"wavlm": {"conv_dims": 3}})
    with pytest.raises(InputError, match=r"^unknown setting 3; known are"):
        BottleneckConfig.from_dict({3: 4, "kind": "ae"})


@pytest.mark.parametrize(
    "decoder",
    [
        {"n_fft": 320},
        {"n_fft": 480},
        {"n_fft": 1280},
        {"window_left": 0, "window_right": 0},
        {"num_mels": 1},
        {"dim": 8, "num_heads": 4, "vocoder_dim": 8, "vocoder_heads": 4},
    ],
    ids=str,
)
def test_the_smallest_sizes_that_are_accepted_decode(decoder):
    tiny = PRESETS["tiny"]
    model = WavCube(dataclasses.replace(tiny, decoder=dataclasses.replace(tiny.decoder, **decoder))).eval()
    with torch.inference_mode():
        waveforms, lengths = model.decode(torch.randn(1, 7, model.latent_dim))
    assert waveforms.shape == (1, 7 * 320) and lengths.tolist() == [7 * 320]
    assert waveforms.isfinite().all()


@pytest.mark.parametrize(
    "wavlm",
    [
        {"num_buckets": 4, "max_distance": 2},
        {"num_buckets": 5, "max_distance": 2},
        {"pos_conv_kernel": 1},
        {"num_layers": 1, "num_heads": 64},
        {"conv_dims": (1,) * 7},
    ],
    ids=str,
)
def test_the_smallest_sizes_that_are_accepted_encode(wavlm):
    tiny = PRESETS["tiny"]
    sizes = dataclasses.replace(
        tiny,
        wavlm=dataclasses.replace(tiny.wavlm, **wavlm),
        bottleneck=BottleneckConfig(latent_dim=2, num_layers=1, dropout=0),
    )
    with torch.inference_mode():
        latent, frames = WavCube(sizes).eval().encode(torch.randn(1, 4000))
    assert latent.shape == (1, 12, 2) and frames.tolist() == [12]
    assert latent.isfinite().all()
