"""The whole model: waveform to latent, latent to waveform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.models.bottleneck import Compressor, Restorer
from wavcube_plugins.models.decoder import AcousticDecoder
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import check_lengths, check_waveforms, length_mask
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.models.windowed import decode_windowed, encode_windowed

# Samples beyond this are scaled down before anything is squared.
_LARGE = 1e4


@dataclass
class WavCubeFeatures:
    """What the encoder computes in one pass; everything is zero beyond the lengths.

    Args:
        hidden_states: WavLM's hidden states, `num_layers` + 1 tensors (B, L, C).
        latent: (B, L', latent_dim), L' = L except at 25 Hz.
        restored: The features that the Restorer rebuilds from the latent, (B, L, C).
        lengths: (B,) frames of hidden states and restored features.
        latent_lengths: (B,) frames of the latent.
    """

    hidden_states: list[Tensor]
    latent: Tensor
    restored: Tensor
    lengths: Tensor
    latent_lengths: Tensor


@dataclass
class WavCubeOutput:
    """What training needs from one forward pass; everything is zero beyond the lengths.

    Args:
        features: The WavLM features that are compressed, (B, L, C).
        latent: (B, L', latent_dim), L' = L except at 25 Hz; the mean in the case of the VAEs.
        restored: The features that the Restorer rebuilds from the latent, (B, L, C).
        lengths: (B,) frames of features and restored features.
        latent_lengths: (B,) frames of the latent.
        reconstruction: Waveforms of the input's shape (B, T).
    """

    features: Tensor
    latent: Tensor
    restored: Tensor
    lengths: Tensor
    latent_lengths: Tensor
    reconstruction: Tensor


class WavCube(nn.Module):
    """One compact continuous representation of speech (arXiv 2605.06407).

    The sub-modules are `wavlm`, `compressor`, `restorer` and `decoder`. In every method, lengths may be left out when
    all items are whole, and an item gives the same result in a padded batch as alone. See `SpeechCodec` for the
    interface that it shares with other codecs.

    Args:
        config: All sizes.

    Attributes:
        trained: False while the weights are random.
        metadata: Notes on the weights, as strings.
    """

    def __init__(self, config: WavCubeConfig):
        super().__init__()
        self.config = config
        self.wavlm = WavLM(config.wavlm)
        # Only an inner layer needs it, since the last one passes the encoder's own final LayerNorm.
        self.post_wavlm_layer_norm = (
            nn.LayerNorm(config.wavlm.hidden_dim) if config.wavlm_layer != -1 else nn.Identity()
        )
        self.compressor = Compressor(config.wavlm, config.bottleneck)
        self.restorer = Restorer(config.wavlm, config.bottleneck)
        self.decoder = AcousticDecoder(config.bottleneck.latent_dim, config.decoder, config.bottleneck.frame_stride)
        self.trained = False
        self.metadata: dict[str, str] = {}

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def latent_dim(self) -> int:
        """Channels of the latent."""
        return self.config.bottleneck.latent_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the latent."""
        return self.compressor.projection.dtype

    def encode(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn waveforms into the latent, with gradients unless under `torch.inference_mode()` or `torch.no_grad()`.

        With gradients, memory grows with the square of the length, and the fastest kernels are not used.

        Args:
            waveforms: (B, T) at `sample_rate`, in -1 … 1 (the level does not matter, since waveforms are normalised).
            lengths: (B,) valid samples.
            window_seconds: Encode in overlapping windows of this length, for audio of hours. Memory (apart from the
                waveform's own) and time per second then stay constant; the result differs a little from the exact one.

        Returns:
            The latent (B, L, latent_dim), zero beyond the lengths, and its lengths (B,) in frames. T samples give
            1 + (T - 400) // 320 frames, at least one; at 25 Hz half as many, rounded up. For the VAEs it is the mean.

        Raises:
            InputError: waveforms or lengths of the wrong type, shape or content.
        """
        waveforms, lengths, masked = self.prepare(waveforms, lengths)
        if window_seconds is not None:
            return encode_windowed(self, waveforms, lengths, window_seconds)
        features = self.encoder_features(waveforms, masked)
        latent = self.compressor(features, None if masked is None else self.wavlm.frame_lengths(lengths))
        return latent, self.frame_lengths(lengths)

    def decode(
        self, latent: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn the latent into waveforms, with gradients as in `encode`.

        Args:
            latent: (B, L, latent_dim).
            lengths: (B,) valid frames.
            window_seconds: Decode in overlapping, cross-faded windows of this length, for audio of hours.

        Returns:
            Waveforms (B, T) in float32, T = hop_length * L, zero beyond the lengths, and the lengths (B,) in samples.

        Raises:
            InputError: a latent or lengths of the wrong type, shape or content, or values so large that the waveform
                is not finite.
        """
        if not isinstance(latent, Tensor) or not latent.is_floating_point():
            kind = latent.dtype if isinstance(latent, Tensor) else type(latent).__name__
            raise InputError(f"the latent must be a floating point torch.Tensor, got {kind}")
        if latent.ndim != 3 or latent.shape[2] != self.latent_dim or 0 in latent.shape:
            raise InputError(
                f"the latent must have shape (batch, frames, {self.latent_dim}), got {tuple(latent.shape)}"
            )
        lengths = check_lengths(lengths, latent, "frames")
        masked = lengths if bool((lengths < latent.shape[1]).any()) else None
        valid = latent if masked is None else latent.masked_fill(~length_mask(lengths, latent.shape[1])[..., None], 0.0)
        if not torch.isfinite(valid.sum(dtype=torch.float32)):
            raise InputError("the latent has NaN or infinite values")
        valid = valid.to(self.dtype)
        if window_seconds is not None:
            waveforms, samples = decode_windowed(self, valid, lengths, window_seconds)
        else:
            waveforms, samples = self.decoder(valid, masked), lengths * self.hop_length
        if not torch.isfinite(waveforms.sum()):
            largest = float(latent.abs().max())
            raise InputError(f"the latent cannot be decoded in {self.dtype}: its largest value is {largest:g}")
        return waveforms, samples

    def reconstruct(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode waveforms and decode them again; arguments and errors as in `encode`.

        Returns:
            Waveforms (B, T) of the input's shape, zero beyond the lengths, and the lengths (B,) in samples.
        """
        latent, frame_lengths = self.encode(waveforms, lengths, window_seconds=window_seconds)
        decoded, _ = self.decode(latent, frame_lengths, window_seconds=window_seconds)
        return fit_length(decoded, waveforms.shape[1], lengths), check_lengths(lengths, waveforms, "samples")

    def hidden_states(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return every hidden state of WavLM, for SUPERB's weighted sum; arguments and errors as in `encode`.

        Returns:
            `num_layers` + 1 tensors (B, L, C), zero beyond the lengths, from the input of the first layer to the output
            of the final LayerNorm; and the lengths (B,) in WavLM's frames, 50 Hz in any case.
        """
        waveforms, lengths, masked = self.prepare(waveforms, lengths)
        states = self.wavlm.hidden_states(waveforms, masked)
        frame_lengths = self.wavlm.frame_lengths(lengths)
        frame_masked = None if masked is None else frame_lengths
        return [mask_frames(state, frame_masked) for state in states], frame_lengths

    def features(self, waveforms: Tensor, lengths: Tensor | None = None) -> WavCubeFeatures:
        """Return hidden states, latent and restored features of one pass; arguments and errors as in `encode`."""
        waveforms, lengths, masked = self.prepare(waveforms, lengths)
        states = self.wavlm.hidden_states(waveforms, masked)
        frame_lengths = self.wavlm.frame_lengths(lengths)
        frame_masked = None if masked is None else frame_lengths
        selected = self.post_wavlm_layer_norm(states[self.config.wavlm_layer])
        latent = self.compressor(selected, frame_masked)
        restored = self.restorer(latent, frame_masked, frames=selected.shape[1])
        return WavCubeFeatures(
            [mask_frames(state, frame_masked) for state in states],
            latent,
            mask_frames(restored, frame_masked),
            frame_lengths,
            self.frame_lengths(lengths),
        )

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> WavCubeOutput:
        """Run the whole model, for training; arguments and errors as in `encode`."""
        prepared, lengths, masked = self.prepare(waveforms, lengths)
        frame_lengths, latent_lengths = self.wavlm.frame_lengths(lengths), self.frame_lengths(lengths)
        frame_masked = None if masked is None else frame_lengths
        features = self.encoder_features(prepared, masked)
        latent = self.compressor(features, frame_masked)
        restored = mask_frames(self.restorer(latent, frame_masked, frames=features.shape[1]), frame_masked)
        decoded = self.decoder(latent, None if masked is None else latent_lengths)
        reconstruction = fit_length(decoded, waveforms.shape[1], masked)
        return WavCubeOutput(features, latent, restored, frame_lengths, latent_lengths, reconstruction)

    def window_samples(self, frames: int) -> int:
        """Return how many samples the first so many latent frames cover."""
        wavlm = self.config.wavlm
        return (frames * self.config.bottleneck.frame_stride - 1) * wavlm.hop_length + wavlm.receptive_field

    def encode_window(self, waveforms: Tensor) -> Tensor:
        """Turn a piece (B, T) of waveforms from `prepare` into its latent (B, L, latent_dim)."""
        return self.compressor(self.encoder_features(waveforms))

    def decode_window(self, latent: Tensor) -> Tensor:
        """Turn a piece (B, L, latent_dim) of a latent into its waveform (B, hop_length * L), float32."""
        return self.decoder(latent)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many latent frames (B,) waveforms of the given lengths (B,) in samples make; at least one."""
        return self.compressor.latent_lengths(self.wavlm.frame_lengths(lengths))

    def prepare(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check and normalise waveforms; arguments and errors as in `encode`.

        Returns:
            Normalised waveforms (B, T) in the weights' type, zero beyond the lengths; the lengths (B,) in samples; and
            the lengths once more, or None if all items are whole and nothing needs to be masked.
        """
        lengths = check_waveforms(waveforms, lengths)
        masked = lengths if bool((lengths < waveforms.shape[1]).any()) else None
        return normalise(waveforms, masked).to(self.dtype), lengths, masked

    def encoder_features(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, wavlm: WavLM | None = None
    ) -> Tensor:
        """Return the features that are compressed: the chosen hidden state, after its LayerNorm if it is an inner one.

        Args:
            waveforms: Waveforms (B, T) from `prepare`, normalised and zero beyond their lengths.
            lengths: (B,) samples, or None if all items are whole.
            wavlm: Another WavLM of the same sizes to use instead of the model's own, such as the frozen teacher.

        Returns:
            (B, L, C), zero beyond `wavlm.frame_lengths(lengths)`.
        """
        wavlm = self.wavlm if wavlm is None else wavlm
        features = self.post_wavlm_layer_norm(wavlm(waveforms, lengths, layer=self.config.wavlm_layer))
        return mask_frames(features, None if lengths is None else wavlm.frame_lengths(lengths))


def fit_length(waveforms: Tensor, samples: int, lengths: Tensor | None = None) -> Tensor:
    """Cut or zero-pad decoded waveforms at the end, to the shape and lengths of those that were encoded.

    Args:
        waveforms: (B, T').
        samples: The wanted T.
        lengths: (B,) samples, or None if all items are whole.

    Returns:
        (B, T), zero beyond the lengths.
    """
    waveforms = F.pad(waveforms, (0, samples - waveforms.shape[1]))
    if lengths is None:
        return waveforms
    return waveforms.masked_fill(~length_mask(torch.as_tensor(lengths, device=waveforms.device), samples), 0.0)


def normalise(waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Bring each waveform to zero mean and unit variance over its own valid samples.

    Args:
        waveforms: (B, T), of any finite level.
        lengths: (B,) samples, or None if all items are whole.

    Returns:
        (B, T) in float32, zero beyond the lengths.
    """
    if waveforms.dtype != torch.float64:
        waveforms = waveforms.float()
    padding = None if lengths is None else ~length_mask(lengths, waveforms.shape[1])
    if padding is not None:
        waveforms = waveforms.masked_fill(padding, 0.0)
    # The squares of very large samples would overflow; 1e-7 below means nothing to them.
    peak = waveforms.detach().abs().amax(dim=1, keepdim=True)
    waveforms = (waveforms / torch.where(peak > _LARGE, peak, 1.0)).float()
    if padding is None or lengths is None:
        mean = waveforms.mean(dim=1, keepdim=True)
        variance = (waveforms - mean).square().mean(dim=1, keepdim=True)
        return (waveforms - mean) / torch.sqrt(variance + 1e-7)
    mean = waveforms.sum(dim=1, keepdim=True) / lengths[:, None]
    centred = (waveforms - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / lengths[:, None]
    return centred / torch.sqrt(variance + 1e-7)
