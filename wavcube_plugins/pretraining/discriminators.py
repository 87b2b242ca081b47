"""The discriminators of both stages: multi-period (HiFi-GAN) and multi-resolution STFT in bands (DAC, Vocos).

State dict names are those of the public checkpoints below `multiperioddisc.` and `multiresddisc.`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (2048, 1024, 512)
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
PERIOD_CHANNELS = (32, 128, 512, 1024)
BAND_CHANNELS = 32
SLOPE = 0.1  # of the leaky rectifier


def _conv(*arguments, **keywords) -> nn.Module:
    return weight_norm(nn.Conv2d(*arguments, **keywords))


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample together.

    Args:
        period: In samples.
        width: Share of the published discriminator's channels.
    """

    def __init__(self, period: int, width: float = 1.0):
        super().__init__()
        self.period = period
        channels = (1, *(max(1, round(width * count)) for count in PERIOD_CHANNELS))
        convs = [_conv(a, b, (5, 1), (3, 1), padding=(2, 0)) for a, b in pairwise(channels)]
        self.convs = nn.ModuleList([*convs, _conv(channels[-1], channels[-1], (5, 1), padding=(2, 0))])
        self.conv_post = _conv(channels[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, waveforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scores (B, N) and inner features of waveforms (B, T)."""
        missing = -waveforms.shape[1] % self.period
        x = F.pad(waveforms[:, None], (0, missing), mode="reflect")  # (B, 1, T)
        x = x.unflatten(2, (-1, self.period))  # (B, 1, T / period, period)
        features = []
        for index, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), SLOPE)
            if index:  # the first layer's features are not matched
                features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class BandDiscriminator(nn.Module):
    """Looks at a complex spectrogram in five frequency bands.

    Args:
        window_length: Of the STFT in samples; the hop is a quarter of it.
        channels: Of every convolution.
    """

    def __init__(self, window_length: int, channels: int = BAND_CHANNELS):
        super().__init__()
        self.window_length = window_length
        bins = window_length // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in BANDS]

        def stack() -> nn.ModuleList:
            first = _conv(2, channels, (3, 9), padding=(1, 4))
            middle = [_conv(channels, channels, (3, 9), stride=(1, 2), padding=(1, 4)) for _ in range(3)]
            return nn.ModuleList([first, *middle, _conv(channels, channels, (3, 3), padding=(1, 1))])

        self.band_convs = nn.ModuleList(stack() for _ in self.bands)
        self.conv_post = _conv(channels, 1, (3, 3), padding=(1, 1))

    def forward(self, waveforms: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return scores (B, 1, frames, N) and inner features of waveforms (B, T)."""
        spectrum = self._spectrum(waveforms)  # (B, 2, frames, bins)
        features, parts = [], []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            x = spectrum[..., low:high]
            for index, conv in enumerate(cast(nn.ModuleList, convs)):
                x = F.leaky_relu(conv(x), SLOPE)
                if index:
                    features.append(x)
            parts.append(x)
        x = self.conv_post(torch.cat(parts, dim=-1))
        return x, [*features, x]

    def _spectrum(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):
            x = waveforms.float()
            x = x - x.mean(dim=-1, keepdim=True)
            x = 0.8 * x / (x.abs().amax(dim=-1, keepdim=True) + 1e-9)
            window = torch.hann_window(self.window_length, device=x.device)
            spectrum = torch.stft(
                x, self.window_length, self.window_length // 4, window=window, center=True, return_complex=True
            )
            return torch.view_as_real(spectrum).permute(0, 3, 2, 1)


class Discriminators(nn.Module):
    """Both kinds, each a list of discriminators.

    Args:
        width: Share of the published discriminators' channels.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        periods = [PeriodDiscriminator(period, width) for period in PERIODS]
        bands = [BandDiscriminator(window, max(1, round(width * BAND_CHANNELS))) for window in WINDOWS]
        self.multiperioddisc = nn.ModuleDict({"discriminators": nn.ModuleList(periods)})
        self.multiresddisc = nn.ModuleDict({"discriminators": nn.ModuleList(bands)})

    def forward(self, waveforms: Tensor) -> dict[str, tuple[list[Tensor], list[list[Tensor]]]]:
        """Return, for `mp` (multi-period) and `mrd` (multi-resolution), the scores and inner features of (B, T)."""
        results = {}
        for kind, group in (("mp", self.multiperioddisc), ("mrd", self.multiresddisc)):
            pairs = [discriminator(waveforms) for discriminator in cast(nn.ModuleList, group["discriminators"])]
            results[kind] = ([scores for scores, _ in pairs], [features for _, features in pairs])
        return results
