"""One training step of either stage, without any framework: what is computed, in which order, with which gradients.

The generator runs once per step and serves both networks: the discriminators learn from its detached output, then it
learns against the updated discriminators. The frozen teacher runs once, and nothing leaves the device.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wavcube_plugins.models.mel import MEL_N_FFT, LogMel
from wavcube_plugins.models.usage import train_only, used_parameters
from wavcube_plugins.models.wavcube import WavCube, fit_length, normalise
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining.average import WeightAverage
from wavcube_plugins.pretraining.losses import (
    LossWeights,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_loss,
    phase_loss,
    semantic_anchoring_loss,
)

# AdamW's settings for both networks (paper section 4.1).
LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.8, 0.9), 0.01


class NonFiniteError(RuntimeError):
    """Too many steps in a row had gradients that are not finite."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate of both optimisers: a linear rise, then half a cosine down to zero.

    Args:
        learning_rate: The highest.
        warmup_steps: Length of the rise.
        total_steps: Where it reaches zero.
    """

    learning_rate: float = LEARNING_RATE
    warmup_steps: int = 5_000
    total_steps: int = 500_000

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        part = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


@dataclass
class GeneratorOutput:
    """What the generator gives for a batch of whole crops.

    Attributes:
        reconstruction: Waveforms (B, T).
        losses: By name: `semantic_restored`, in stage 2 `semantic_student` too, and `kl` for a variational bottleneck.
    """

    reconstruction: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Generator(nn.Module):
    """Everything but the discriminators, as one stage trains it.

    Stage 1 trains Compressor and Restorer by the semantic loss alone and the decoder on the detached latent; WavLM is
    frozen. Stage 2 trains all of them and the student, and anchors both the restored and the student's features to the
    teacher's. WavLM stays in eval mode in both: only the adapters drop anything.

    Args:
        model: The model to train. Its WavLM is the teacher of stage 1 and the student of stage 2.
        stage: 1 or 2.
        teacher: The frozen WavLM of stage 2. It is kept out of the state dict, since it never changes.
        checkpointing: Work out each layer's inner values again in the backward pass instead of keeping them: slower
            by about a third, in a fraction of the memory.

    Raises:
        ValueError: another stage, a missing teacher, or one of another size.
    """

    teacher: WavLM | None

    def __init__(self, model: WavCube, stage: int, teacher: WavLM | None = None, *, checkpointing: bool = False):
        super().__init__()
        if stage not in (1, 2):
            raise ValueError(f"stage must be 1 or 2, got {stage}")
        if (teacher is None) != (stage == 1):
            raise ValueError(f"stage {stage} {'needs a' if stage == 2 else 'has no separate'} teacher")
        if teacher is not None and teacher.config.hidden_dim != model.config.wavlm.hidden_dim:
            raise ValueError(
                f"the teacher's features have {teacher.config.hidden_dim} channels, "
                f"the model's {model.config.wavlm.hidden_dim}"
            )
        self.model, self.stage = model, stage
        object.__setattr__(self, "teacher", teacher)
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        train_only(model, used_parameters(model, "restored", "reconstruction"))
        if stage == 1:
            model.wavlm.requires_grad_(False)
        # It also makes the target of the semantic loss, which must not move.
        model.post_wavlm_layer_norm.requires_grad_(False)
        if checkpointing:
            _checkpoint_layers(model)

    def train(self, mode: bool = True) -> Generator:
        super().train(mode)
        self.model.wavlm.eval()
        return self

    def _apply(self, function, *arguments, **keywords):
        if self.teacher is not None:
            self.teacher._apply(function, *arguments, **keywords)
        return super()._apply(function, *arguments, **keywords)

    def forward(self, waveforms: Tensor) -> GeneratorOutput:
        """Encode and decode whole crops (B, T)."""
        model = self.model
        normalised = normalise(waveforms)
        if self.stage == 1:
            with torch.no_grad():
                features = target = model.encoder_features(normalised)
        else:
            features = model.encoder_features(normalised)
            with torch.no_grad():
                target = model.encoder_features(normalised, wavlm=self.teacher)
        if self.training:
            latent, kl = model.compressor.draw(features)
        else:  # validation is not random, and the loss of what it does not draw means nothing
            latent, kl = model.compressor(features), None
        losses = {"semantic_restored": semantic_anchoring_loss(model.restorer(latent, frames=target.shape[1]), target)}
        if self.stage == 2:
            losses["semantic_student"] = semantic_anchoring_loss(features, target)
        if kl is not None and model.config.bottleneck.kind == "vae":
            losses["kl"] = kl
        decoded = model.decoder(latent.detach() if self.stage == 1 else latent)
        return GeneratorOutput(fit_length(decoded, waveforms.shape[1]), losses)


def _checkpoint_layers(model: WavCube) -> None:
    stacks = (
        model.wavlm.encoder.transformer.layers,
        model.compressor.layers,
        model.restorer.layers,
        model.decoder.layers,
        model.decoder.vocoder.layers,
    )
    for stack in stacks:
        for layer in stack:
            layer.forward = functools.partial(_checkpointed, layer.forward)


def _checkpointed(function, *arguments):
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False)


@dataclass
class StepResult:
    """What a step did.

    Attributes:
        losses: Detached scalars by name, on the device.
        gradient_norms: Of `generator` and `discriminators`, as far as they were trained, on the device.
        learning_rate: That it ran with.
        skipped: Which of the two had gradients that are not finite, and was left as it was.
    """

    losses: dict[str, Tensor]
    gradient_norms: dict[str, Tensor]
    learning_rate: float
    skipped: tuple[str, ...]


class PretrainingStep:
    """Trains generator and discriminators on one batch after the other.

    The two may be wrapped, as by DistributedDataParallel or `torch.compile`; each is called once per step through the
    wrapper where gradients are to be shared, so that all processes stay equal.

    Args:
        generator: A `Generator`, wrapped or not.
        discriminators: `Discriminators`, wrapped or not.
        weights: Of the losses.
        schedule: Of both learning rates.
        seed: Dropout and noise of a step depend on it, the step and the rank alone, so that a resumed run repeats them.
        rank: Of this process.
        autocast: Type of the networks' products (torch.bfloat16), or None for float32. Losses and the inverse STFT
            stay in float32.
        max_gradient_norm: Longer gradients are shortened to this; None leaves them, as the paper does.
        most_skipped: So many batches in a row without finite gradients end the training.
        sample_rate: In Hz.
        mel_windows: Of the log-mel distance, in samples; the paper has one.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        discriminator_schedule: The discriminators' own learning rate, its steps counted from their first one; None
            gives them the generator's, as in the paper.
        ema_decay: Decay per step of an average of the generator's weights that validates in their place; None goes
            without.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminators: nn.Module,
        weights: LossWeights,
        schedule: Schedule,
        *,
        seed: int = 0,
        rank: int = 0,
        autocast: torch.dtype | None = None,
        max_gradient_norm: float | None = None,
        most_skipped: int = 50,
        sample_rate: int = 16000,
        mel_windows: Sequence[int] = (MEL_N_FFT,),
        betas: tuple[float, float] = BETAS,
        weight_decay: float = WEIGHT_DECAY,
        discriminator_schedule: Schedule | None = None,
        ema_decay: float | None = None,
    ):
        self.generator, self.discriminators = generator, discriminators
        self.weights, self.schedule, self.discriminator_schedule = weights, schedule, discriminator_schedule
        self.average = None if ema_decay is None else WeightAverage(cast(Generator, unwrap(generator)).model, ema_decay)
        self.seed, self.rank = seed, rank
        self.autocast, self.max_gradient_norm, self.most_skipped = autocast, max_gradient_norm, most_skipped
        self.device = next(generator.parameters()).device
        self.log_mels = [LogMel(sample_rate, window).to(self.device) for window in mel_windows]
        self.optimizers = {
            name: torch.optim.AdamW(
                [parameter for parameter in module.parameters() if parameter.requires_grad],
                lr=schedule.learning_rate,
                betas=betas,
                weight_decay=weight_decay,
                fused=True,
            )
            for name, module in (("generator", generator), ("discriminators", discriminators))
        }
        self.skipped, self.skipped_in_a_row = 0, 0

    def state_dict(self) -> dict:
        """What a resumed run needs besides the weights: both optimisers' states and the counters."""
        return {
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            **({} if self.average is None else {"averaged": self.average.steps}),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Take what `state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        if self.average is not None:
            self.average.steps = state.get("averaged", 0)

    def __call__(self, waveforms: Tensor, step: int, scheduled: int | None = None) -> StepResult:
        """Train on whole crops.

        Args:
            waveforms: (B, T), on any device.
            step: Counted from 0.
            scheduled: The step at which schedule and discriminators stand, where that is another one: a run with a
                time limit goes through its schedule by the clock.

        Raises:
            NonFiniteError: this was one batch too many without finite gradients.
        """
        waveforms = waveforms.to(self.device, non_blocking=True)
        scheduled = step if scheduled is None else scheduled
        learning_rate = self.schedule(scheduled)
        seed_step(self.seed, step, self.rank)
        losses, norms, skipped = {}, {}, []
        adversarial = scheduled >= self.weights.adversarial_from

        with self._autocast():
            output = self.generator(waveforms)
        fake = output.reconstruction

        if adversarial:
            loss = self._discriminator_losses(waveforms, fake.detach(), losses)
            own = self.discriminator_schedule
            rate = learning_rate if own is None else own(scheduled - int(self.weights.adversarial_from))
            norms["discriminators"] = self._optimise("discriminators", loss, rate, skipped)
        loss = self._generator_losses(waveforms, output, adversarial, losses)
        norms["generator"] = self._optimise("generator", loss, learning_rate, skipped)
        if self.average is not None and "generator" not in skipped:
            self.average.update()

        self.skipped += bool(skipped)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row >= self.most_skipped:
            raise NonFiniteError(
                f"the gradients of {' and '.join(skipped)} were not finite in {self.skipped_in_a_row} batches "
                f"in a row, up to step {step}"
            )
        losses = {name: value.detach() for name, value in losses.items()}
        return StepResult(losses, norms, learning_rate, tuple(skipped))

    @torch.no_grad()
    def validate(self, waveforms: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses that need no discriminator, and the reconstructions (B, T), of whole crops (B, T).

        The averaged weights answer, if there are any.
        """
        waveforms = waveforms.to(self.device)
        with nullcontext() if self.average is None else self.average.applied(), self._autocast():
            output = unwrap(self.generator)(waveforms)
        losses = {"mel": mel_loss(self.log_mels, waveforms, output.reconstruction), **output.losses}
        losses["semantic"] = _semantic(losses)
        return losses, output.reconstruction

    def _discriminator_losses(self, real: Tensor, fake: Tensor, losses: dict[str, Tensor]) -> Tensor:
        with self._autocast():
            results = self.discriminators(torch.cat([real, fake]))
        total = real.new_zeros(())
        for kind, (scores, _) in results.items():
            reals, fakes = zip(*(score.chunk(2) for score in scores), strict=True)
            losses[f"disc_{kind}"] = discriminator_loss(reals, fakes)
            total = total + losses[f"disc_{kind}"]
        losses["disc_total"] = self.weights.adversarial * total
        return losses["disc_total"]

    def _generator_losses(
        self, real: Tensor, output: GeneratorOutput, adversarial: bool, losses: dict[str, Tensor]
    ) -> Tensor:
        weights = self.weights
        fake = output.reconstruction
        losses["mel"] = mel_loss(self.log_mels, real, fake)
        losses.update(output.losses)
        losses["semantic"] = _semantic(output.losses)
        total = weights.mel * losses["mel"] + weights.semantic * losses["semantic"]
        if "kl" in losses:
            total = total + weights.kl * losses["kl"]
        if weights.phase:
            losses["phase"] = phase_loss(real, fake)
            total = total + weights.phase * losses["phase"]
        if adversarial:
            # Past the wrapper: these gradients are the generator's alone.
            discriminators = unwrap(self.discriminators)
            with frozen(discriminators), self._autocast():
                with torch.no_grad():
                    real_results = discriminators(real)
                fake_results = discriminators(fake)
            for kind, (scores, features) in fake_results.items():
                losses[f"gen_{kind}"] = generator_loss(scores)
                losses[f"fm_{kind}"] = feature_matching_loss(real_results[kind][1], features)
                total = total + weights.adversarial * (losses[f"gen_{kind}"] + losses[f"fm_{kind}"])
        losses["gen_total"] = total
        return total

    def _optimise(self, name: str, loss: Tensor, learning_rate: float, skipped: list[str]) -> Tensor:
        """Go one step down; return the gradient's norm."""
        optimizer = self.optimizers[name]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # After DDP's reduction, so that all processes skip together.
        limit = math.inf if self.max_gradient_norm is None else self.max_gradient_norm
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        if torch.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        else:
            skipped.append(name)
        return norm

    def _autocast(self):
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def _semantic(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in losses.items() if name.startswith("semantic_")]).sum()


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module below DistributedDataParallel's and `torch.compile`'s wrappers."""
    while True:
        inner = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
        if inner is None:
            return module
        module = inner


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without working out those of its own parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set PyTorch's random generators for one step, so that its dropout does not depend on what came before."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))
