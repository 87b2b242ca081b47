"""The losses of both stages (paper section 3.3) and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wavcube_plugins.models.lengths import length_mask
from wavcube_plugins.models.mel import LogMel


@dataclass(frozen=True)
class LossWeights:
    """How the losses of a stage are weighed.

    Args:
        mel: Of the log-mel distance.
        adversarial: Of the hinge and feature-matching losses, and of the discriminators' own loss.
        semantic: Of the semantic anchoring loss.
        adversarial_from: Step at which the discriminators come in; before it mel and semantic losses stand alone.
        kl: Of the divergence of a variational bottleneck from a standard normal distribution.
        phase: Of the distance of compressed complex spectra, which the paper does not have: it makes up for
            discriminators, which compare waveforms sample by sample, where there is no time for them.
    """

    mel: float
    adversarial: float
    semantic: float
    adversarial_from: int
    kl: float = 1e-4
    phase: float = 0.0


STAGE_WEIGHTS = {
    1: LossWeights(mel=45.0, adversarial=1.0, semantic=1.0, adversarial_from=5000),
    2: LossWeights(mel=4.5, adversarial=0.1, semantic=1.0, adversarial_from=0),
}


# Of the complex spectrum in the phase loss: window in samples (hop: a quarter), bins (up to 1 kHz of 16), power of
# magnitudes, and floor.
_PHASE_N_FFT, _PHASE_BINS, _PHASE_POWER, _PHASE_FLOOR = 512, 33, 0.3, 1e-3


def mel_loss(log_mels: LogMel | Sequence[LogMel], real: Tensor, generated: Tensor) -> Tensor:
    """Return the mean absolute log-mel distance of two batches of waveforms (B, T), averaged over several windows."""
    log_mels = [log_mels] if isinstance(log_mels, LogMel) else log_mels
    return torch.stack([F.l1_loss(log_mel(generated), log_mel(real)) for log_mel in log_mels]).mean()


def phase_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the mean absolute distance of the compressed complex spectra of two batches of waveforms (B, T).

    A log-mel distance is deaf to phase. Here magnitudes are raised to the power 0.3, about as loud as they sound, and
    keep their phases; real and imaginary parts count alike. Only the lowest sixteenth of the sampling rate counts: a
    phase that cannot be foreseen, as those of high harmonics and of noise, is best answered by silence.
    """
    return F.l1_loss(_compressed_spectrum(generated), _compressed_spectrum(real))


def _compressed_spectrum(waveforms: Tensor) -> Tensor:
    with torch.autocast(waveforms.device.type, enabled=False):
        window = torch.hann_window(_PHASE_N_FFT, device=waveforms.device)
        spectrum = torch.view_as_real(
            torch.stft(
                waveforms.float(),
                _PHASE_N_FFT,
                _PHASE_N_FFT // 4,
                window=window,
                pad_mode="constant",
                normalized=True,
                return_complex=True,
            )[:, :_PHASE_BINS]
        )
        # The power's gradient at nothing is infinite, so that there is a floor.
        energy = spectrum.square().sum(-1, keepdim=True) + _PHASE_FLOOR**2
        return spectrum * energy.pow((_PHASE_POWER - 1) / 2)


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
        torch.stack([F.l1_loss(b.float(), a.float().detach()) for a, b in zip(ours, theirs, strict=True)]).sum()
        for ours, theirs in zip(real, generated, strict=True)
    ]
    return torch.stack(losses).mean()
