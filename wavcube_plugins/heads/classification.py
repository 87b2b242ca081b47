"""What recipes put on WavCube's features: plain PyTorch modules for which padding does not exist.

Every head takes features (B, L, C) and whole numbers of frames (B,), and is made as `Head(in_dim, out_dim, ...)`, so
that a hyperparameter file names all but these two (`!name:`) and a recipe fills them in: the first is the lobe's, the
second follows from the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcube_plugins.heads.weighted_sum import WeightedSum
from wavcube_plugins.models.layers import mask_frames
from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.speechbrain.lobe import WavCube, absolute_lengths


class OnWavCube(nn.Module):
    """A lobe with a head on it, in one module, as DDP and SpeechBrain's interfaces for trained models like it.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import OnWavCube, WavCube
    >>> from wavcube_plugins.heads.classification import Recurrent
    >>> wavcube = WavCube("nano", freeze=True)
    >>> model = OnWavCube(wavcube, Recurrent(wavcube.output_dim, 30, dim=64))
    >>> model(torch.randn(2, 16000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 49, 30])

    Args:
        wavcube: The lobe; with `output_all_hiddens` its layers are added up by a `WeightedSum` that is trained too.
        head: Takes features (B, L, C) and frames (B,).
    """

    def __init__(self, wavcube: WavCube, head: nn.Module):
        super().__init__()
        self.wavcube = wavcube
        self.weighted_sum = WeightedSum(wavcube.num_layers, layer_norm=True) if wavcube.output_all_hiddens else None
        self.head = head

    def forward(self, wav: Tensor, wav_lens: Tensor | None = None, *more: Tensor):
        """Return what the head makes of waveforms, or of features that were computed before.

        Args:
            wav: Waveforms (B, T), or features (B, L, C) as the lobe gives them.
            wav_lens: (B,) relative lengths of either; None if all items are whole.
            *more: What the head takes beside features and frames.

        Raises:
            ValueError: waveforms or lengths of wrong type, shape or content.
        """
        frames = self.frame_counts(wav, wav_lens)
        if wav.ndim == 2:
            wav = self.wavcube(wav, wav_lens)
        if self.weighted_sum is not None:
            wav = self.weighted_sum(wav)
        return self.head(wav, frames, *more)

    def frame_counts(self, wav: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Return how many frames (B,) each item of what `forward` takes has; no parameter is involved."""
        if wav.ndim == 2:
            of_model = self.wavcube.model if self.wavcube.features == "latent" else self.wavcube.model.wavlm
            lengths = absolute_lengths(wav_lens, wav)
            if lengths is None:
                lengths = torch.full((len(wav),), wav.shape[1], device=wav.device)
            return of_model.frame_lengths(lengths)
        lengths = absolute_lengths(wav_lens, wav)
        return torch.full((len(wav),), wav.shape[1], device=wav.device) if lengths is None else lengths


class Recurrent(nn.Module):
    """Bidirectional LSTM layers and a linear one for every frame, as SUPERB's recognisers have it.

    Args:
        in_dim: Channels of the features.
        out_dim: Values per frame.
        dim: Hidden channels of each direction.
        layers: How many.
        dropout: Between the layers and before the last linear one.
        log_softmax: Give logarithms of probabilities; beyond an item's frames that of class 0, the blank, is 0.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 512,
        layers: int = 2,
        dropout: float = 0.0,
        log_softmax: bool = False,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.lstm = nn.LSTM(
            in_dim, dim, layers, batch_first=True, bidirectional=True, dropout=dropout if layers > 1 else 0.0
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * dim, out_dim)
        self.log_softmax = log_softmax

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Turn (B, L, C) and frames (B,) into (B, L, out_dim)."""
        return self.label(self.dropout(self.states(features, frames)), frames)

    def label(self, states: Tensor, frames: Tensor) -> Tensor:
        """Turn what `states` gives into (B, L, out_dim)."""
        out = self.linear(states)
        if not self.log_softmax:
            return mask_frames(out, frames)
        out = out.float().log_softmax(-1)
        # Relative lengths may let a decoder look one frame too far; it finds a blank there.
        padding = ~length_mask(frames, out.shape[1])[..., None]
        blank = torch.full((out.shape[-1],), -100.0, device=out.device)
        blank[0] = 0.0
        return torch.where(padding, blank, out)

    def states(self, features: Tensor, frames: Tensor) -> Tensor:
        """Return what the linear layer works on, (B, L, 2 dim), zero beyond the frames."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.norm(features), frames.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=features.shape[1])[0]


class Pooled(nn.Module):
    """One vector per utterance: dilated convolutions, attentive mean and deviation over time, a linear layer.

    Args:
        in_dim: Channels of the features.
        out_dim: Size of the vector.
        dim: Channels of the convolutions.
        dilations: One convolution of three frames for each.
        dropout: Before the last linear layer.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 512,
        dilations: Sequence[int] = (1, 2, 3),
        dropout: float = 0.0,
    ):
        super().__init__()
        self.first = nn.Linear(in_dim, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, 3, dilation=step, padding=step) for step in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in dilations)
        self.attention = nn.Sequential(nn.Linear(dim, max(1, dim // 4)), nn.Tanh(), nn.Linear(max(1, dim // 4), dim))
        self.last = nn.Sequential(nn.LayerNorm(2 * dim), nn.Dropout(dropout), nn.Linear(2 * dim, out_dim))

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Turn (B, L, C) and frames (B,) into (B, out_dim)."""
        x = self.first(features)  # (B, L, dim)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.gelu(conv(mask_frames(norm(x), frames).transpose(1, 2)).transpose(1, 2))
        return self.last(attentive_statistics(x, self.attention(x), frames))


def check_heads(dim: int, heads: int) -> None:
    """Check that attention heads with rotary positions can share channels.

    Raises:
        ValueError: they cannot.
    """
    if dim < 1 or dim % (2 * heads):
        raise ValueError(f"dim must be a multiple of {2 * heads}, twice the {heads} attention heads, got {dim}")


def attentive_statistics(x: Tensor, scores: Tensor, frames: Tensor) -> Tensor:
    """Return weighted means and standard deviations over time, (B, 2 C), of x (B, L, C) with scores (B, L, C)."""
    padding = ~length_mask(frames, x.shape[1])[..., None]
    weights = scores.float().masked_fill(padding, float("-inf")).softmax(dim=1)
    x = x.float()
    mean = (weights * x).sum(1)
    variance = (weights * (x - mean[:, None]).square()).sum(1)
    return torch.cat([mean, (variance + 1e-5).sqrt()], dim=-1)


class Classifier(nn.Module):
    """Logarithms of the probabilities of classes, from a vector.

    Args:
        in_dim: Size of the vector.
        out_dim: Classes.
        angular: Compare directions only, by cosines with a learnt vector per class, as losses with an angular margin
            need it; False is a linear layer.
        scale: What cosines are multiplied by before they become probabilities.
    """

    def __init__(self, in_dim: int, out_dim: int, *, angular: bool = False, scale: float = 30.0):
        super().__init__()
        self.angular, self.scale = angular, scale
        self.linear = nn.Linear(in_dim, out_dim, bias=not angular)

    def forward(self, x: Tensor, labels: Tensor | None = None, margin: float = 0.0) -> Tensor:
        """Turn (B, in_dim) into (B, out_dim).

        Args:
            x: Vectors.
            labels: (B,) true classes, whose angles are widened by the margin, to train with (Deng et al. 2019).
            margin: In radians.
        """
        if not self.angular:
            return self.linear(x).float().log_softmax(-1)
        cosines = F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.linear.weight.float(), dim=-1))
        if labels is not None and margin:
            true = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
            # Beyond a half turn the cosine would rise again; there it is lowered by as much in a straight line.
            wide = torch.where(true > -math.cos(margin), (true.acos() + margin).cos(), true - margin * math.sin(margin))
            cosines = cosines.scatter(1, labels[:, None], wide)
        return (self.scale * cosines).log_softmax(-1)


class Understanding(nn.Module):
    """Units of text with slots for every frame, and classes of intents for the whole.

    Args:
        in_dim: Channels of the features.
        out_dim: How many units there are, under "units", and under other names the classes of each part of an intent.
        **options: Of `Recurrent`.
    """

    def __init__(self, in_dim: int, out_dim: Mapping[str, int], **options):
        super().__init__()
        self.units = Recurrent(in_dim, out_dim["units"], log_softmax=True, **options)
        width = self.units.linear.in_features
        self.attention = nn.Linear(width, width)
        self.intents = nn.ModuleDict(
            {name: Classifier(2 * width, count) for name, count in out_dim.items() if name != "units"}
        )

    def forward(self, features: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """Turn (B, L, C) and frames (B,) into `units` (B, L, units) and (B, classes) for each part of the intent."""
        states = self.units.dropout(self.units.states(features, frames))
        pooled = attentive_statistics(states, self.attention(states), frames)
        result = {name: intent(pooled) for name, intent in self.intents.items()}
        return {"units": self.units.label(states, frames), **result}


class Unchanged(nn.Module):
    """Gives back its first argument: in place of steps that SpeechBrain's interfaces insist on."""

    def forward(self, x: Tensor, *_) -> Tensor:
        return x
