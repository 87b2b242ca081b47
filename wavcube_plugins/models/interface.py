"""What a speech codec with a continuous latent offers, declared once for everything that works with one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SpeechCodec(Protocol):
    """Waveforms to latents and back; `WavCube` is one.

    Lengths travel beside padded batches and may be left out when all items are whole. An item of a padded batch gives
    what it gives alone.
    """

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        ...

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        ...

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        ...

    @property
    def latent_dim(self) -> int:
        """Channels of the latent."""
        ...

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many latent frames (B,) waveforms of the given lengths (B,) in samples make."""
        ...

    def encode(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn waveforms (B, T) into the latent (B, L, latent_dim) and its lengths (B,) in frames."""
        ...

    def decode(
        self, latent: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn the latent (B, L, latent_dim) into waveforms (B, hop_length * L) and their lengths (B,) in samples."""
        ...

    def reconstruct(
        self, waveforms: Tensor, lengths: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode and decode waveforms (B, T), which keep their shape and lengths."""
        ...


class WindowCodec(SpeechCodec, Protocol):
    """A codec that can work in windows: it encodes and decodes pieces of what was checked and normalised as a whole."""

    def window_samples(self, frames: int) -> int:
        """Return how many samples the first so many latent frames cover."""
        ...

    def encode_window(self, waveforms: Tensor) -> Tensor:
        """Turn a piece (B, T) of normalised waveforms into its latent (B, L, latent_dim)."""
        ...

    def decode_window(self, latent: Tensor) -> Tensor:
        """Turn a piece (B, L, latent_dim) of a latent into its waveform (B, hop_length * L), float32."""
        ...
