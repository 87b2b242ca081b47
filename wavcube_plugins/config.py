"""Every size of the model, as frozen dataclasses, and the named presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wavcube_plugins.errors import InputError

_MOST_LAYERS = 1000

_Sizes = TypeVar("_Sizes", bound="_Config")


class _Config:
    """What all configurations share: checked types, and a form that JSON can hold."""

    def __post_init__(self):
        _check_types(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain numbers and lists, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls: type[_Sizes], values: dict[str, Any]) -> _Sizes:
        """Build a configuration from what `to_dict` returned; absent settings keep their defaults.

        Raises:
            InputError: an unknown setting, or a value that is of the wrong type or out of range.
        """
        return _from_dict(cls, values, "")


@dataclass(frozen=True)
class WavLMConfig(_Config):
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
        num_buckets: Buckets of the relative positions; at least 4.
        max_distance: Distance in frames beyond which all positions share one bucket; more than `num_buckets // 4`.
        extractor_mode: `layer_norm` puts a LayerNorm after every layer of the conv stem; `group_norm` (Base models)
            normalises the first layer only, each channel over the whole utterance.
        conv_bias: Whether the convolutions of the stem have biases.
        layer_norm_first: Whether transformer layers normalise their input (Large models) or their output (Base models).
        relative_positions: Whether attention has WavLM's gated relative position bias. HuBERT and wav2vec 2.0 have
            plain attention, for which `num_buckets` and `max_distance` are unused.

    Raises:
        InputError: a value of the wrong type or out of range, or sizes that do not fit together.
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
        super().__post_init__()
        _check_choice("extractor_mode", self.extractor_mode, ("layer_norm", "group_norm"))
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides):
            raise InputError(
                f"conv_dims, conv_kernels and conv_strides must have one entry per layer, "
                f"got {len(self.conv_dims)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        for name in ("conv_dims", "conv_kernels", "conv_strides"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InputError(f"{name} must hold positive numbers, got {getattr(self, name)}")
        _check_positive(self, "hidden_dim", "num_layers", "num_heads", "ffn_dim", "pos_conv_kernel", "pos_conv_groups")
        _check_divides("hidden_dim", self.hidden_dim, "num_heads", self.num_heads)
        _check_divides("hidden_dim", self.hidden_dim, "pos_conv_groups", self.pos_conv_groups)
        if self.relative_positions:
            # A quarter of the buckets hold one distance each; the logarithmic ones lie between these and max_distance.
            if self.num_buckets < 4:
                raise InputError(f"num_buckets must be at least 4, got {self.num_buckets}")
            if self.max_distance <= self.num_buckets // 4:
                raise InputError(
                    f"max_distance must exceed a quarter of num_buckets {self.num_buckets}, got {self.max_distance}"
                )

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return math.prod(self.conv_strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame covers, which is the shortest input the conv stem can take."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class BottleneckConfig(_Config):
    """Sizes and kind of the bottleneck, Compressor and Restorer (paper section 3.1 and its ablations).

    Args:
        latent_dim: Channels of the latent; at least 2, since a LayerNorm follows.
        num_layers: WavLM layers in each of the two.
        dropout: Dropout of those layers during training, from 0 to below 1; the rest of the model has none.
        kind: `ae` takes the Compressor's output as the latent. `vae` takes it as the mean of a Gaussian whose variance
            the Compressor predicts as well, and training samples from it; `sigma_vae` does the same with a fixed
            variance. At inference the latent is always the mean.
        sigma: Standard deviation of `sigma_vae`; not negative.
        frame_stride: Feature frames per latent frame: 1 for 50 Hz, or 2 for 25 Hz by a strided convolution.

    Raises:
        InputError: a value of the wrong type or out of range.
    """

    latent_dim: int = 128
    num_layers: int = 3
    dropout: float = 0.1
    kind: str = "ae"
    sigma: float = 0.5
    frame_stride: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.latent_dim < 2:  # the LayerNorm of a single channel is constant
            raise InputError(f"latent_dim must be at least 2, got {self.latent_dim}")
        _check_positive(self, "num_layers")
        _check_dropout(self.dropout)
        _check_choice("kind", self.kind, ("ae", "vae", "sigma_vae"))
        _check_choice("frame_stride", self.frame_stride, (1, 2))
        if not 0 <= self.sigma < math.inf:
            raise InputError(f"sigma must be a number from 0 up, got {self.sigma}")


@dataclass(frozen=True)
class DecoderConfig(_Config):
    """Sizes of the AcousticDecoder (paper section 3.2).

    Args:
        dim: Channels of the causal transformer.
        num_layers: Causal layers.
        num_heads: Heads of the causal layers, each of an even number of channels.
        ffn_dim: Hidden channels of their feed-forward blocks.
        num_mels: Channels between the transposed convolution and the vocoder.
        vocoder_dim: Channels of the vocoder's windowed layers.
        vocoder_layers: Windowed layers.
        vocoder_heads: Heads of the windowed layers, each of an even number of channels.
        vocoder_ffn_dim: Hidden channels of their feed-forward blocks.
        window_left: Frames (100 Hz) that a windowed layer sees to the left.
        window_right: Frames that it sees to the right.
        n_fft: Length of the inverse FFT and its Hann window, in samples; even, and a multiple of `hop_length`, at least
            twice it.
        hop_length: Hop of the inverse STFT, in samples; even, and half the encoder's hop.
        rope_base: Base of the rotary embedding's wavelengths.

    Raises:
        InputError: a value of the wrong type or out of range, or sizes that do not fit together.
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
        super().__post_init__()
        _check_positive(
            self, "dim", "num_layers", "num_heads", "ffn_dim", "num_mels", "vocoder_dim", "vocoder_layers",
            "vocoder_heads", "vocoder_ffn_dim", "hop_length",
        )  # fmt: skip
        _check_heads("dim", self.dim, "num_heads", self.num_heads)
        _check_heads("vocoder_dim", self.vocoder_dim, "vocoder_heads", self.vocoder_heads)
        for name in ("window_left", "window_right"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length:
            raise InputError(
                f"n_fft must be a multiple of hop_length, at least twice it, got {self.n_fft} and {self.hop_length}"
            )
        # Half of what a window reaches beyond its hop is cut off at either end.
        if self.n_fft % 2 or self.hop_length % 2:
            raise InputError(f"n_fft and hop_length must be even, got {self.n_fft} and {self.hop_length}")
        _check_rope_base(self.rope_base)


@dataclass(frozen=True)
class WavCubeConfig(_Config):
    """All sizes of one WavCube model; the defaults are the paper's.

    Args:
        wavlm: The encoder's backbone.
        bottleneck: Compressor and Restorer.
        decoder: The acoustic decoder.
        sample_rate: Sample rate of the waveforms, in Hz.
        wavlm_layer: The hidden state that is compressed. -1 is the last one, after the final LayerNorm; 0 (the input
            of the first layer) to `wavlm.num_layers` are hidden states that pass through one more LayerNorm.

    Raises:
        InputError: a value of the wrong type or out of range, or parts that do not fit together.
    """

    wavlm: WavLMConfig = field(default_factory=WavLMConfig)
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    sample_rate: int = 16000
    wavlm_layer: int = -1

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "sample_rate")
        if not -1 <= self.wavlm_layer <= self.wavlm.num_layers:
            raise InputError(f"wavlm_layer must lie in -1 … {self.wavlm.num_layers}, got {self.wavlm_layer}")
        if 2 * self.decoder.hop_length != self.wavlm.hop_length:
            raise InputError(
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
            InputError: no preset has that name.
        """
        if name not in PRESETS:
            raise InputError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]


@dataclass(frozen=True)
class FlowConfig(_Config):
    """Sizes and objective of the flow-matching TTS model; the defaults are those of F5-TTS v1, as in the paper.

    Args:
        dim: Channels of the transformer.
        num_layers: Transformer layers.
        num_heads: Attention heads, each of an even number of channels.
        ffn_factor: Hidden channels of the feed-forward blocks, as a multiple of `dim`.
        dropout: After attention and inside the feed-forward blocks during training, from 0 to below 1.
        text_dim: Channels of the text encoder; even.
        text_layers: Its ConvNeXt-V2 blocks; 0 leaves the embeddings as they are.
        text_kernel: Their kernel, in tokens; odd.
        text_factor: Their hidden channels, as a multiple of `text_dim`.
        text_layout: `filler` puts the n-th token at the n-th frame and fills up the rest, as F5-TTS does; `stretched`
            spreads the tokens evenly over all frames (Zhu et al. 2025, ZipVoice), which needs far less training data.
        time_dim: Width of the sinusoid that encodes the time of the flow; even.
        pos_conv_kernel: Kernel of the convolutional position embedding, in frames; odd.
        pos_conv_groups: Its groups.
        rope_base: Base of the rotary embedding's wavelengths.
        span: Smallest and largest fraction of an utterance that is masked, to be filled in.
        audio_drop: Probability that a training batch gets no audio condition.
        both_drop: Probability that it gets neither audio nor text.
        ema_decay: Decay of the moving average of the weights per optimiser step, from 0 to below 1.

    Raises:
        InputError: a value of the wrong type or out of range, or sizes that do not fit together.
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
        super().__post_init__()
        _check_positive(
            self, "dim", "num_layers", "num_heads", "ffn_factor", "text_dim", "text_kernel", "text_factor", "time_dim",
            "pos_conv_kernel", "pos_conv_groups",
        )  # fmt: skip
        if self.text_layers < 0:
            raise InputError(f"text_layers must not be negative, got {self.text_layers}")
        _check_heads("dim", self.dim, "num_heads", self.num_heads)
        _check_divides("dim", self.dim, "pos_conv_groups", self.pos_conv_groups)
        _check_divides("text_dim", self.text_dim, "2, for its sinusoids", 2)
        _check_divides("time_dim", self.time_dim, "2, for its sinusoids", 2)
        for name in ("text_kernel", "pos_conv_kernel"):
            if getattr(self, name) % 2 == 0:
                raise InputError(f"{name} must be odd, got {getattr(self, name)}")
        _check_choice("text_layout", self.text_layout, ("filler", "stretched"))
        if len(self.span) != 2 or not 0 < self.span[0] <= self.span[1] <= 1:
            raise InputError(f"span must be two fractions, 0 < smallest <= largest <= 1, got {self.span}")
        for name in ("audio_drop", "both_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in 0 … 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must lie in 0 … 1, 1 excluded, got {self.ema_decay}")
        _check_dropout(self.dropout)
        _check_rope_base(self.rope_base)

    @classmethod
    def preset(cls, name: str) -> FlowConfig:
        """Return the sizes of a named TTS model: `base`, `small` or `tiny`.

        Raises:
            InputError: no preset has that name.
        """
        if name not in FLOW_PRESETS:
            raise InputError(f"unknown TTS preset {name!r}; choose one of {', '.join(FLOW_PRESETS)}")
        return FLOW_PRESETS[name]


def _check_types(config: Any) -> None:
    """Check that every field holds what its default is made of."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        part = _part(item)
        if part is not None:
            if not isinstance(value, part):
                raise InputError(f"{item.name} must be a {part.__name__}, got {value!r}")
        elif isinstance(item.default, tuple):
            if not isinstance(value, tuple) or not all(_same_type(entry, item.default[0]) for entry in value):
                kind = type(item.default[0]).__name__
                raise InputError(f"{item.name} must be a tuple of {kind}, got {value!r}")
        elif not _same_type(value, item.default):
            raise InputError(f"{item.name} must be {type(item.default).__name__}, got {value!r}")


def _part(item: dataclasses.Field) -> type | None:
    """Return the class of a field that is itself a configuration, None for a plain value."""
    return item.default_factory if isinstance(item.default_factory, type) else None


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(config, name)}")
        # Models are built layer by layer, which would not end for the number in a damaged file.
        if name.endswith("layers") and getattr(config, name) > _MOST_LAYERS:
            raise InputError(f"{name} must be at most {_MOST_LAYERS}, got {getattr(config, name)}")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if divisor < 1 or value % divisor:
        raise InputError(f"{name} must be a multiple of {divisor_name}, got {value} and {divisor}")


def _check_heads(name: str, dim: int, heads_name: str, heads: int) -> None:
    _check_divides(name, dim, heads_name, heads)
    _check_divides(f"{name} / {heads_name}", dim // heads, "2, for the rotary embedding", 2)


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in 0 … 1, 1 excluded, got {dropout}")


def _check_rope_base(base: float) -> None:
    if not 0 < base < math.inf:
        raise InputError(f"rope_base must be a positive number, got {base}")


def _from_dict(cls: type[_Sizes], values: Any, where: str) -> _Sizes:
    if not isinstance(values, dict):
        raise InputError(f"{where or 'the configuration'} must be a mapping, got {type(values).__name__}")
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise InputError(f"unknown setting {where}{unknown[0]!r}; known are {', '.join(fields)}")
    arguments = {}
    for name, value in values.items():
        part = _part(fields[name])
        if part is not None:
            arguments[name] = _from_dict(part, value, f"{where}{name}.")
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**arguments)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


_BASE = WavLMConfig(
    hidden_dim=768, num_layers=12, num_heads=12, ffn_dim=3072, extractor_mode="group_norm", layer_norm_first=False
)
_PLAIN = WavLMConfig(relative_positions=False)

# Encoders whose weights torchaudio publishes, under the names of `torchaudio.pipelines` in lower case. Those with a
# GroupNorm were trained on waveforms that were not normalised; it makes no difference to them that WavCube's are.
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
    # Small enough to come with the package: about eight million parameters for encoder and decoder.
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
    # For nano's latent, on a laptop: about three million, too few to need dropout.
    "tiny": FlowConfig(
        dim=192, num_layers=6, num_heads=3, dropout=0.0, text_dim=128, text_layers=2, time_dim=128, ema_decay=0.999
    ),
}
