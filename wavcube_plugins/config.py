"""Every size of the model, as frozen dataclasses, and the named presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WavLMConfig:
    """Sizes and form of a WavLM, HuBERT or wav2vec 2.0 encoder; the defaults are WavLM-Large.

    Args:
        conv_dims: Channels of each layer of the conv stem.
        conv_kernels: Kernel of each layer of the conv stem, in samples of its input.
        conv_strides: Stride of each layer; their product is the hop length in samples.
        hidden_dim: Channels of the transformer.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the feed-forward blocks.
        pos_conv_kernel: Kernel of the positional convolution, in frames.
        pos_conv_groups: Groups of the positional convolution.
        num_buckets: Buckets of the relative positions.
        max_distance: Distance in frames from which all positions share one bucket.
        extractor_mode: `layer_norm`: LayerNorm behind every layer of the conv stem. `group_norm` (Base models): only
            the first layer is normalised, each channel over the whole utterance.
        conv_bias: Whether the conv stem has biases.
        layer_norm_first: Transformer layers normalise what comes in (Large models); False: what goes out (Base).
        relative_positions: Attention has WavLM's gated relative position bias; False: plain attention, as in HuBERT
            and wav2vec 2.0, where `num_buckets` and `max_distance` mean nothing.
    """

    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    hidden_dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    extractor_mode: str = "layer_norm"
    conv_bias: bool = False
    layer_norm_first: bool = True
    relative_positions: bool = True

    def __post_init__(self):
        _check_choice("extractor_mode", self.extractor_mode, ("layer_norm", "group_norm"))
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError(
                f"conv_dims, conv_kernels and conv_strides must have one entry per layer, "
                f"got {len(self.conv_dims)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        _check_divides("hidden_dim", self.hidden_dim, "num_heads", self.num_heads)
        _check_divides("hidden_dim", self.hidden_dim, "pos_conv_groups", self.pos_conv_groups)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: the shortest input the conv stem can take."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain numbers and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WavLMConfig:
        """Build sizes from what `to_dict` returned; what is absent keeps its default.

        Raises:
            ValueError: an unknown or misspelt name, or a value of the wrong kind.
        """
        return _from_dict(cls, values, "")


@dataclass(frozen=True)
class BottleneckConfig:
    """Sizes and kind of the bottleneck, Compressor and Restorer (paper section 3.1 and its ablations).

    Args:
        latent_dim: Channels of the latent.
        num_layers: WavLM layers in each of the two.
        dropout: Dropout of those layers while training; nothing else in the model drops anything.
        kind: `ae`: the latent is what the Compressor gives. `vae`: that is the mean of a Gaussian whose variance the
            Compressor gives too, and training draws from it. `sigma_vae`: likewise with a fixed variance. At inference
            the latent is the mean in every case.
        sigma: Standard deviation of `sigma_vae`.
        frame_stride: Feature frames per latent frame: 1 for 50 Hz, or 2 for 25 Hz by a strided convolution.
    """

    latent_dim: int = 128
    num_layers: int = 3
    dropout: float = 0.1
    kind: str = "ae"
    sigma: float = 0.5
    frame_stride: int = 1

    def __post_init__(self):
        _check_choice("kind", self.kind, ("ae", "vae", "sigma_vae"))
        _check_choice("frame_stride", self.frame_stride, (1, 2))
        if self.sigma < 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma}")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the AcousticDecoder (paper section 3.2).

    Args:
        dim: Channels of the causal transformer.
        num_layers: Causal layers.
        num_heads: Heads of the causal layers.
        ffn_dim: Hidden channels of their feed-forward blocks.
        num_mels: Channels between the transposed convolution and the vocoder.
        vocoder_dim: Channels of the vocoder's windowed layers.
        vocoder_layers: Windowed layers.
        vocoder_heads: Heads of the windowed layers.
        vocoder_ffn_dim: Hidden channels of their feed-forward blocks.
        window_left: Frames (100 Hz) a windowed layer sees to the left.
        window_right: Frames it sees to the right.
        n_fft: Length of the inverse FFT and its Hann window, in samples.
        hop_length: Hop of the inverse STFT, in samples: half the encoder's hop.
        rope_base: Base of the rotary embedding's wavelengths.
    """

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    num_mels: int = 128
    vocoder_dim: int = 256
    vocoder_layers: int = 16
    vocoder_heads: int = 16
    vocoder_ffn_dim: int = 1024
    window_left: int = 40
    window_right: int = 10
    n_fft: int = 640
    hop_length: int = 160
    rope_base: float = 10000.0

    def __post_init__(self):
        _check_divides("dim", self.dim, "num_heads", self.num_heads)
        _check_divides("vocoder_dim", self.vocoder_dim, "vocoder_heads", self.vocoder_heads)


@dataclass(frozen=True)
class WavCubeConfig:
    """All sizes of one WavCube model; the defaults are the paper's.

    Args:
        wavlm: The encoder's backbone.
        bottleneck: Compressor and Restorer.
        decoder: The acoustic decoder.
        sample_rate: Sample rate of the waveforms, in Hz.
        wavlm_layer: The hidden state that is compressed: -1 is the last one after the final layer norm, any other
            index a hidden state (0 is the input of the first layer) that passes one more LayerNorm.
    """

    wavlm: WavLMConfig = field(default_factory=WavLMConfig)
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    sample_rate: int = 16000
    wavlm_layer: int = -1

    def __post_init__(self):
        if not -1 <= self.wavlm_layer <= self.wavlm.num_layers:
            raise ValueError(f"wavlm_layer must lie in -1 … {self.wavlm.num_layers}, got {self.wavlm_layer}")
        if 2 * self.decoder.hop_length != self.wavlm.hop_length:
            raise ValueError(
                f"the decoder's hop of {self.decoder.hop_length} samples must be half the encoder's, "
                f"{self.wavlm.hop_length}"
            )

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.wavlm.hop_length * self.bottleneck.frame_stride

    @classmethod
    def preset(cls, name: str) -> WavCubeConfig:
        """Return the sizes of a named model: `wavcube`, `wavcube_pro`, `nano` or `tiny`.

        Raises:
            ValueError: no preset has that name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain numbers and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WavCubeConfig:
        """Build a configuration from what `to_dict` returned; what is absent keeps its default.

        Raises:
            ValueError: an unknown or misspelt name, or a value of the wrong kind.
        """
        return _from_dict(cls, values, "")


@dataclass(frozen=True)
class FlowConfig:
    """Sizes and objective of the flow-matching TTS model; the defaults are those of F5-TTS v1, as in the paper.

    Args:
        dim: Channels of the transformer.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        ffn_factor: Hidden channels of the feed-forward blocks, as a multiple of `dim`.
        dropout: Behind attention and inside the feed-forward blocks while training.
        text_dim: Channels of the text encoder.
        text_layers: Its ConvNeXt-V2 blocks.
        text_kernel: Their kernel, in tokens; odd.
        text_factor: Their hidden channels, as a multiple of `text_dim`.
        text_layout: `filler`, F5-TTS's: the n-th token stands at the n-th frame and filler follows; or `stretched`: the
            tokens are spread evenly over all frames (Zhu et al. 2025, ZipVoice), which is learnt from far less speech.
        time_dim: Width of the sinusoid that encodes the time of the flow.
        pos_conv_kernel: Kernel of the convolutional position embedding, in frames; odd.
        pos_conv_groups: Its groups.
        rope_base: Base of the rotary embedding's wavelengths.
        span: Least and largest part of an utterance that is hidden and to be filled in.
        audio_drop: Probability that a training batch sees no audio condition.
        both_drop: Probability that it sees neither audio nor text.
        ema_decay: Decay of the moving average of the weights, per optimiser step.
    """

    dim: int = 1024
    num_layers: int = 22
    num_heads: int = 16
    ffn_factor: int = 2
    dropout: float = 0.1
    text_dim: int = 512
    text_layers: int = 4
    text_kernel: int = 7
    text_factor: int = 2
    text_layout: str = "filler"
    time_dim: int = 256
    pos_conv_kernel: int = 31
    pos_conv_groups: int = 16
    rope_base: float = 10000.0
    span: tuple[float, float] = (0.7, 1.0)
    audio_drop: float = 0.3
    both_drop: float = 0.2
    ema_decay: float = 0.9999

    def __post_init__(self):
        _check_divides("dim", self.dim, "num_heads", self.num_heads)
        _check_divides("dim", self.dim, "pos_conv_groups", self.pos_conv_groups)
        _check_divides("dim / num_heads", self.dim // self.num_heads, "2, for the rotary embedding", 2)
        _check_divides("text_dim", self.text_dim, "2, for its sinusoids", 2)
        _check_divides("time_dim", self.time_dim, "2, for its sinusoids", 2)
        for name in ("text_kernel", "pos_conv_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")
        _check_choice("text_layout", self.text_layout, ("filler", "stretched"))
        if len(self.span) != 2 or not 0 < self.span[0] <= self.span[1] <= 1:
            raise ValueError(f"span must be two parts of the whole, 0 < least <= largest <= 1, got {self.span}")
        for name in ("dropout", "audio_drop", "both_drop", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 … 1, got {getattr(self, name)}")

    @classmethod
    def preset(cls, name: str) -> FlowConfig:
        """Return the sizes of a named TTS model: `base`, `small` or `tiny`.

        Raises:
            ValueError: no preset has that name.
        """
        if name not in FLOW_PRESETS:
            raise ValueError(f"unknown TTS preset {name!r}; choose one of {', '.join(FLOW_PRESETS)}")
        return FLOW_PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain numbers and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowConfig:
        """Build a configuration from what `to_dict` returned; what is absent keeps its default.

        Raises:
            ValueError: an unknown or misspelt name, or a value of the wrong kind.
        """
        return _from_dict(cls, values, "")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if divisor < 1 or value % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor_name}, got {value} and {divisor}")


def _from_dict(cls, values: dict[str, Any], where: str):
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the configuration'} must be a mapping, got {type(values).__name__}")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"unknown setting {where}{unknown[0]!r}; known are {', '.join(fields)}")
    arguments = {}
    for name, value in values.items():
        default = fields[name].default
        if default is dataclasses.MISSING:
            arguments[name] = _from_dict(fields[name].default_factory, value, f"{where}{name}.")
            continue
        value = tuple(value) if isinstance(value, list) else value
        allowed = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(default, bool):
            raise ValueError(f"{where}{name} must be {type(default).__name__}, got {value!r}")
        arguments[name] = value
    return cls(**arguments)


_BASE = WavLMConfig(
    hidden_dim=768, num_layers=12, num_heads=12, ffn_dim=3072, extractor_mode="group_norm", layer_norm_first=False
)
_PLAIN = WavLMConfig(relative_positions=False)

# Encoders that torchaudio publishes weights of; the names are those of `torchaudio.pipelines` in small letters. Those
# with a GroupNorm were trained on waveforms as they come; that WavCube normalises these makes no difference to them.
BACKBONES = {
    "wavlm_large": WavLMConfig(),
    "wavlm_base": _BASE,
    "wavlm_base_plus": _BASE,
    "hubert_base": dataclasses.replace(_BASE, relative_positions=False),
    "hubert_large": _PLAIN,
    "hubert_xlarge": dataclasses.replace(_PLAIN, hidden_dim=1280, num_layers=48, ffn_dim=5120),
    "wav2vec2_base": dataclasses.replace(_BASE, relative_positions=False),
    "wav2vec2_large": dataclasses.replace(_PLAIN, extractor_mode="group_norm", layer_norm_first=False),
    "wav2vec2_large_lv60k": dataclasses.replace(_PLAIN, conv_bias=True),
    "wav2vec2_xlsr53": dataclasses.replace(_PLAIN, conv_bias=True),
    "wav2vec2_xlsr_300m": dataclasses.replace(_PLAIN, conv_bias=True),
}

PRESETS = {
    "wavcube": WavCubeConfig(),
    # The same network, trained on 6,000 hours.
    "wavcube_pro": WavCubeConfig(),
    # Small enough to ship: about eight million parameters for encoder and decoder.
    "nano": WavCubeConfig(
        wavlm=WavLMConfig(
            conv_dims=(96,) * 7,
            hidden_dim=192,
            num_layers=6,
            num_heads=6,
            ffn_dim=768,
            pos_conv_kernel=32,
            pos_conv_groups=12,
            num_buckets=160,
            max_distance=400,
        ),
        bottleneck=BottleneckConfig(latent_dim=32, num_layers=1),
        decoder=DecoderConfig(
            dim=192,
            num_layers=6,
            num_heads=6,
            ffn_dim=768,
            num_mels=80,
            vocoder_dim=192,
            vocoder_layers=4,
            vocoder_heads=6,
            vocoder_ffn_dim=768,
        ),
    ),
    # For tests: the sizes of the golden checkpoints.
    "tiny": WavCubeConfig(
        wavlm=WavLMConfig(
            conv_dims=(32,) * 7,
            hidden_dim=64,
            num_layers=4,
            num_heads=4,
            ffn_dim=128,
            pos_conv_kernel=16,
            pos_conv_groups=4,
            num_buckets=32,
            max_distance=80,
        ),
        bottleneck=BottleneckConfig(latent_dim=16),
        decoder=DecoderConfig(
            dim=64,
            num_layers=3,
            num_heads=4,
            ffn_dim=128,
            num_mels=24,
            vocoder_dim=32,
            vocoder_layers=2,
            vocoder_heads=4,
            vocoder_ffn_dim=64,
        ),
    ),
}

FLOW_PRESETS = {
    # About 337 million parameters, the paper's.
    "base": FlowConfig(),
    # About 159 million.
    "small": FlowConfig(dim=768, num_layers=18, num_heads=12),
    # For nano's latent, on a laptop; about three million. So few weights need no dropout.
    "tiny": FlowConfig(
        dim=192, num_layers=6, num_heads=3, dropout=0.0, text_dim=128, text_layers=2, time_dim=128, ema_decay=0.999
    ),
}
