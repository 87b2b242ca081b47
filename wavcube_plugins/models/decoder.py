"""AcousticDecoder: from the latent to the waveform (paper section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.config import DecoderConfig
from wavcube_plugins.models.bottleneck import FrameUpsampler
from wavcube_plugins.models.layers import (
    Linear,
    attend,
    cpu_attention,
    has_cpu_attention,
    mask_frames,
    windowed,
)
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.products import linear

# Queries that a windowed layer handles together: enough for efficient products, few enough that most of the keys beside
# them lie inside the window.
WINDOW_BLOCK = 64


class Rotary:
    """Rotary position embedding in its "rotate half" form, computed once for all layers of a stack.

    Args:
        frames: Length L of the sequence.
        head_dim: Channels D of a head.
        base: Base of the wavelengths.
        like: Tensor that gives the tables their device and type.
    """

    def __init__(self, frames: int, head_dim: int, base: float, like: Tensor):
        device = like.device
        frequencies = base ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
        angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * frequencies  # (L, D / 2)
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # (L, 1, D)
        self.cos, self.sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, L, H, D)."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin


class Window:
    """The keys that each query of a windowed layer may see, in blocks, computed once for all layers.

    Args:
        frames: Length L of the sequence.
        left: Frames seen to the left.
        right: Frames seen to the right.
        lengths: (B,) valid frames, or None if all are.
        like: Tensor that gives the mask its device and type.
    """

    def __init__(self, frames: int, left: int, right: int, lengths: Tensor | None, like: Tensor):
        self.left, self.right = left, right
        self.frames, self.blocks = frames, math.ceil(frames / WINDOW_BLOCK)
        device = like.device
        query = torch.arange(self.blocks * WINDOW_BLOCK, device=device).view(self.blocks, WINDOW_BLOCK, 1)
        key = torch.arange(WINDOW_BLOCK + left + right, device=device) - left
        key = torch.arange(self.blocks, device=device)[:, None, None] * WINDOW_BLOCK + key  # (N, 1, K)
        inside = (key >= query - left) & (key <= query + right) & (key >= 0)  # (N, Q, K)
        ends = torch.full((1,), frames, device=device) if lengths is None else lengths
        allowed = inside & (key < ends[:, None, None, None])  # (B or 1, N, Q, K)
        # A query in the padding sees itself; without any key its softmax would be NaN.
        allowed = allowed | (key == query)
        mask = torch.zeros(allowed.shape, device=device, dtype=like.dtype).masked_fill_(~allowed, float("-inf"))
        self.mask = mask[:, :, None]  # (B or 1, N, 1, Q, K)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within the window; queries, keys, values and the result are (B, L, H, D)."""
        size, _, heads, dim = query.shape
        spare = self.blocks * WINDOW_BLOCK - self.frames
        query = F.pad(query, (0, 0, 0, 0, 0, spare)).view(size, self.blocks, WINDOW_BLOCK, heads, dim)
        span = WINDOW_BLOCK + self.left + self.right
        key, value = (
            windowed(F.pad(x.flatten(2), (0, 0, self.left, self.right + spare)), span, WINDOW_BLOCK)
            .unflatten(2, (span, heads, dim))  # (B, N, K, H, D)
            .transpose(2, 3)
            for x in (key, value)
        )
        mask = self.mask.expand(size, -1, heads, -1, -1)
        attended = attend(
            query.transpose(2, 3).flatten(0, 1),  # (B N, H, Q, D)
            key.flatten(0, 1),
            value.flatten(0, 1),
            mask.flatten(0, 1),
        )
        attended = attended.transpose(1, 2).reshape(size, self.blocks * WINDOW_BLOCK, heads, dim)
        return attended[:, : self.frames]


class RotaryAttention(nn.Module):
    """Causal or windowed self-attention with rotary positions; keys are projected without a bias.

    Args:
        dim: Channels.
        num_heads: Heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = Linear(dim, dim, bias=False)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Rotary, window: Window | None) -> Tensor:
        """Attend over x (B, L, C): to the past and the present if window is None, else within the window."""
        size, frames, dim = x.shape
        heads = (size, frames, self.num_heads, dim // self.num_heads)
        query = rotary(self.q_proj(x).view(heads))  # (B, L, H, D)
        key = rotary(self.k_proj(x).view(heads))
        value = self.v_proj(x).view(heads)
        if window is not None:
            attended = window.attend(query, key, value)
        else:
            # Padding follows all valid frames, so no valid query sees it.
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            if has_cpu_attention(query):
                return self.out_proj(cpu_attention(query, key, value, causal=True))
            attended = attend(query, key, value, causal=True).transpose(1, 2)
        return self.out_proj(attended.reshape(size, frames, dim))


class DecoderLayer(nn.Module):
    """One pre-norm layer of the decoder or of its vocoder.

    Args:
        dim: Channels.
        num_heads: Heads.
        ffn_dim: Hidden channels of the feed-forward block.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = RotaryAttention(dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, ffn_dim)
        self.fc2 = Linear(ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, rotary: Rotary, window: Window | None = None) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), rotary, window)
        return x + self.fc2(linear(self.final_layer_norm(x), self.fc1.weight, self.fc1.bias, gelu=True))


class Upsampler(nn.Module):
    """Transposed convolution from L frames to 2L, with a GroupNorm over each item's valid frames.

    Args:
        in_dim: Channels in.
        out_dim: Channels out.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(in_dim, out_dim, kernel_size=3, stride=2)
        self.norm = nn.GroupNorm(1, out_dim)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Turn (B, L, C_in) into (B, 2L, C_out); lengths (B,) in frames, None if all are whole."""
        x = self.conv(mask_frames(x, lengths).transpose(1, 2)).transpose(1, 2)  # (B, 2L + 1, C_out)
        if lengths is None:
            x = F.group_norm(x.transpose(1, 2), 1, self.norm.weight, self.norm.bias, self.norm.eps).transpose(1, 2)
            return x[:, :-1]
        # An item's statistics cover its own 2 L_i + 1 frames, including the one that is cut off.
        valid = length_mask(2 * lengths + 1, x.shape[1])[..., None]
        count = ((2 * lengths + 1) * x.shape[2])[:, None, None]
        wide = x.float()
        mean = wide.masked_fill(~valid, 0.0).sum((1, 2), keepdim=True) / count
        variance = (wide - mean).masked_fill(~valid, 0.0).square().sum((1, 2), keepdim=True) / count
        x = ((wide - mean) * torch.rsqrt(variance + self.norm.eps)).to(x.dtype)
        return (x * self.norm.weight + self.norm.bias)[:, :-1]


class InverseSTFT(nn.Module):
    """Inverse STFT with "same" padding: N frames give exactly N hops of samples.

    Args:
        n_fft: Length of the FFT and of the Hann window, a multiple of the hop.
        hop_length: Samples between frames.
    """

    def __init__(self, n_fft: int, hop_length: int):
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length

    def forward(self, spectrum: Tensor, lengths: Tensor | None) -> Tensor:
        """Turn a complex spectrum (B, N, n_fft / 2 + 1) into (B, N * hop); lengths (B,) in frames or None."""
        window = torch.hann_window(self.n_fft, device=spectrum.device, dtype=torch.float32)
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=-1) * window  # (B, N, n_fft)
        weights = window.square().expand(1, frames.shape[1], -1)
        if lengths is not None:
            frames = mask_frames(frames, lengths)
            weights = mask_frames(weights.expand(len(frames), -1, -1), lengths)
        waveforms = self._overlap_add(frames) / self._overlap_add(weights)
        if lengths is None:
            return waveforms
        # The last window of an item reaches beyond its end, where the envelope falls to zero.
        return waveforms.masked_fill(~length_mask(lengths * self.hop_length, waveforms.shape[1]), 0.0)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        size, count, _ = frames.shape
        overlap = self.n_fft // self.hop_length
        parts = frames.view(size, count, overlap, self.hop_length)
        total = frames.new_zeros(size, count + overlap - 1, self.hop_length)
        for index in range(overlap):
            total[:, index : index + count] += parts[:, :, index]
        cut = (self.n_fft - self.hop_length) // 2
        return total.flatten(1)[:, cut:-cut]  # (B, N * hop)


class _Vocoder(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embeddings = Linear(config.num_mels, config.vocoder_dim, bias=False)
        self.layers = nn.ModuleList(
            DecoderLayer(config.vocoder_dim, config.vocoder_heads, config.vocoder_ffn_dim)
            for _ in range(config.vocoder_layers)
        )
        self.layer_norm = nn.LayerNorm(config.vocoder_dim)
        self.head = Linear(config.vocoder_dim, config.n_fft + 2)


class AcousticDecoder(nn.Module):
    """Causal transformer at the latent's rate, upsampling by two, windowed transformer, inverse STFT.

    Args:
        latent_dim: Channels of the latent.
        config: Sizes.
        frame_stride: Feature frames per latent frame, 1 or 2. The causal transformer works at the features' rate.
    """

    def __init__(self, latent_dim: int, config: DecoderConfig, frame_stride: int = 1):
        super().__init__()
        self.config = config
        self.latent_upsampler = FrameUpsampler(latent_dim) if frame_stride == 2 else None
        self.upsample_proj = nn.Conv1d(latent_dim, config.dim, kernel_size=1)
        self.layers = nn.ModuleList(
            DecoderLayer(config.dim, config.num_heads, config.ffn_dim) for _ in range(config.num_layers)
        )
        self.layer_norm = nn.LayerNorm(config.dim)
        self.upsampler = Upsampler(config.dim, config.num_mels)
        self.vocoder = _Vocoder(config)
        self.istft = InverseSTFT(config.n_fft, config.hop_length)

    def forward(self, latent: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Turn the latent into waveforms.

        Args:
            latent: (B, L, latent_dim).
            lengths: (B,) frames, or None if all items are whole.

        Returns:
            Waveforms (B, T), float32, T = L times `frame_stride` times two hops; zero beyond their lengths.
        """
        config = self.config
        if self.latent_upsampler is not None:
            latent = self.latent_upsampler(latent, lengths)
            lengths = None if lengths is None else 2 * lengths
        x = linear(latent, self.upsample_proj.weight[..., 0], self.upsample_proj.bias)  # (B, L, C)
        rotary = Rotary(x.shape[1], config.dim // config.num_heads, config.rope_base, x)
        for layer in self.layers:
            x = layer(x, rotary)
        x = self.upsampler(self.layer_norm(x), lengths)  # (B, 2L, num_mels)

        vocoder = self.vocoder
        lengths = None if lengths is None else 2 * lengths
        x = vocoder.embeddings(x)  # (B, 2L, C_vocoder)
        rotary = Rotary(x.shape[1], config.vocoder_dim // config.vocoder_heads, config.rope_base, x)
        window = Window(x.shape[1], config.window_left, config.window_right, lengths, x)
        for layer in vocoder.layers:
            x = layer(x, rotary, window)
        spectrum = vocoder.head(vocoder.layer_norm(x)).float()  # (B, 2L, n_fft + 2)

        # Complex numbers need float32, and exp overflows early in half precision.
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = spectrum.chunk(2, dim=-1)
            magnitude = log_magnitude.clamp_max(math.log(100.0)).exp()
            return self.istft(torch.polar(magnitude, phase), lengths)
