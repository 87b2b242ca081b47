"""The losses of both stages (paper section 3.3) and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from wavcube_plugins.audio import length_mask


@dataclass(frozen=True)
class LossWeights:
    """How the losses of a stage are weighed.

    Args:
        mel: Of the log-mel distance.
        adversarial: Of the hinge and feature-matching losses, and of the discriminators' own loss.
        semantic: Of the semantic anchoring loss.
        adversarial_from: Step at which the discriminators come in; before it mel and semantic losses stand alone.
    """

    mel: float
    adversarial: float
    semantic: float
    adversarial_from: int


STAGE_WEIGHTS = {
    1: LossWeights(mel=45.0, adversarial=1.0, semantic=1.0, adversarial_from=5000),
    2: LossWeights(mel=4.5, adversarial=0.1, semantic=1.0, adversarial_from=0),
}


class LogMel(nn.Module):
    """Log-mel spectrogram in the training loss's form: magnitude, centred, natural log clipped at 1e-7.

    Args:
        sample_rate: In Hz.
        n_fft: Window and FFT length in samples.
        hop_length: In samples.
        n_mels: Bands.
    """

    def __init__(self, sample_rate: int = 16000, n_fft: int = 1024, hop_length: int = 256, n_mels: int = 100):
        super().__init__()
        self.transform = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, center=True, power=1
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        """Turn waveforms (B, T) into (B, n_mels, frames)."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return self.transform(waveforms.float()).clamp_min(1e-7).log()


def mel_loss(log_mel: LogMel, real: Tensor, generated: Tensor) -> Tensor:
    """Return the mean absolute log-mel distance of two batches of waveforms (B, T)."""
    return F.l1_loss(log_mel(generated), log_mel(real))


def semantic_anchoring_loss(features: Tensor, teacher: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the mean squared error plus one minus the mean cosine of two sequences of features.

    Args:
        features: (B, L, C), restored or the student's.
        teacher: (B, L, C).
        lengths: (B,) valid frames, or None if all are; frames beyond them do not count.
    """
    features, teacher = features.float(), teacher.float()
    if lengths is not None:
        valid = length_mask(lengths, features.shape[1])
        features, teacher = features[valid], teacher[valid]
    return F.mse_loss(features, teacher) + 1 - F.cosine_similarity(features, teacher, dim=-1).mean()


def discriminator_loss(real_scores: Sequence[Tensor], generated_scores: Sequence[Tensor]) -> Tensor:
    """Return the hinge loss of the discriminators of one kind, averaged over them."""
    losses = [
        F.relu(1 - real.float()).mean() + F.relu(1 + generated.float()).mean()
        for real, generated in zip(real_scores, generated_scores, strict=True)
    ]
    return torch.stack(losses).mean()


def generator_loss(generated_scores: Sequence[Tensor]) -> Tensor:
    """Return the hinge loss of the generator against the discriminators of one kind, averaged over them."""
    return torch.stack([F.relu(1 - scores.float()).mean() for scores in generated_scores]).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], generated: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the distance of the discriminators' inner layers: summed over layers, averaged over discriminators."""
    losses = [
        sum(F.l1_loss(b.float(), a.float().detach()) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(real, generated, strict=True)
    ]
    return torch.stack(losses).mean()
