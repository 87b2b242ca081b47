"""`tts: wavcube_cfm`, zero-shot TTS by flow matching on the latent, as ESPnet's TTS task trains and saves it.

The model itself is `wavcube_plugins.tts`; this only adapts it. Inference is in `wavcube_plugins.espnet.inference`.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.tts.abs_tts import AbsTTS
from torch import Tensor

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.tts import FlowMatching
from wavcube_plugins.tts.flow import GUIDANCE, STEPS, SWAY


class WavCubeCFM(AbsTTS):
    """Flow matching that fills in speech, conditioned on text and on the speech around it (F5-TTS's network).

    >>> tts = WavCubeCFM(idim=30, odim=32, preset="tiny")
    >>> loss, stats, weight = tts(text, text_lengths, feats, feats_lengths)
    >>> tts.inference(text[0], feats=prompt, frames=80, seed=0)["feat_gen"].shape     # prompt (20, 32)
    torch.Size([60, 32])

    The features must be normalised (`--normalize global_mvn`). The moving average of the weights, which ESPnet's
    trainer does not have, is kept in the model and saved with it; validation and inference use it. The loss of
    validation is comparable between epochs, since its noise depends on the utterance alone.

    Args:
        idim: Size of the vocabulary.
        odim: Channels of the features.
        preset: `base` (337 million parameters), `small` (159) or `tiny` (4).
        steps: Evaluations of the network in inference.
        guidance: Strength of classifier-free guidance in inference.
        sway: Coefficient of sway sampling in inference.
        speed: Of the speech in inference.
        sizes: Any setting of `wavcube_plugins.config.FlowConfig`, instead of the preset's.

    Raises:
        ValueError: an unknown preset or setting, or values that do not fit together.
    """

    # What `Text2Speech` looks for: it needs no speaker and language ids, and no speaker embedding.
    spks = None
    langs = None
    spk_embed_dim = None

    def __init__(
        self,
        idim: int,
        odim: int,
        preset: str = "base",
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        sway: float = SWAY,
        speed: float = 1.0,
        **sizes: Any,
    ):
        super().__init__()
        config = FlowConfig.from_dict({**FlowConfig.preset(preset).to_dict(), **sizes})
        self.flow = FlowMatching(config, idim, odim)
        self.sampling = Sampling(steps, guidance, sway, speed)

    def forward(
        self, text: Tensor, text_lengths: Tensor, feats: Tensor, feats_lengths: Tensor, **_: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of a batch.

        Args:
            text: Token ids (B, N).
            text_lengths: (B,).
            feats: Normalised features (B, L, D).
            feats_lengths: (B,).

        Returns:
            The loss; what to report; and the hidden frames as the weight, so that means over batches do not depend
            on how the utterances were batched.
        """
        out = self.flow(feats, feats_lengths, text, text_lengths)
        stats = {"loss": out.loss.detach()}
        return force_gatherable((out.loss, stats, out.frames.sum()), out.loss.device)

    def inference(
        self,
        text: Tensor,
        feats: Tensor | None = None,
        frames: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sway: float | None = None,
        speed: float | None = None,
        seed: int | None = None,
        use_teacher_forcing: bool = False,
    ) -> dict[str, Tensor]:
        """Synthesise one text; `Text2Speech` of `wavcube_plugins.espnet.inference` is the comfortable way.

        Args:
            text: Token ids (N,), those of the prompt's text first.
            feats: Normalised features of the prompt (P, D), or None.
            frames: Of prompt and new part together; without it, what so many tokens took on average in training.
            steps: Evaluations of the network; like the next three, as in the constructor if not given.
            guidance: Strength of classifier-free guidance.
            sway: Coefficient of sway sampling.
            speed: Above 1 is faster; where `frames` is given it has no effect.
            seed: Makes the result repeatable.
            use_teacher_forcing: There is none.

        Returns:
            `feat_gen`: the normalised features of the new part, (L, D).

        Raises:
            ValueError: see `FlowMatching.sample`; or teacher forcing is wanted.
        """
        if use_teacher_forcing:
            raise ValueError("wavcube_cfm has no teacher forcing; leave --use_teacher_forcing out")
        sampling = self.sampling.replace(steps=steps, guidance=guidance, sway=sway, speed=speed)
        known = 0 if feats is None else len(feats)
        if frames is None:
            frames = max(known + 1, len(text), round(self.flow.tokens_to_frames(len(text)) / sampling.speed))
        latent, _ = self.flow.sample(
            text[None],
            None,
            [frames],
            None if feats is None else feats[None],
            steps=sampling.steps,
            guidance=sampling.guidance,
            sway=sampling.sway,
            seeds=seed,
        )
        return {"feat_gen": latent[0, known:]}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample: evaluations, guidance, sway, and the speed of the speech."""

    steps: int = STEPS
    guidance: float = GUIDANCE
    sway: float = SWAY
    speed: float = 1.0

    def __post_init__(self):
        if not self.speed > 0:
            raise ValueError(f"speed must be positive, got {self.speed}")

    def replace(self, **values: float | None) -> Sampling:
        """Return a copy with those of the values that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})


def extend_tts_inference(module: ModuleType) -> None:
    """Let `espnet2.bin.tts_inference` do zero-shot synthesis; called when that module has been imported."""
    inference = importlib.import_module("wavcube_plugins.espnet.inference")
    # It is only half there if its own import of ESPnet's module brought us here; then it does this itself.
    extend = getattr(inference, "extend", None)
    if extend is not None:
        extend(module)


def __getattr__(name: str) -> Any:
    # ESPnet's tasks ask for the class above while they are being imported, so the task is made later.
    if name in ("WavCubeTTSTask", "Text2Speech"):
        return getattr(importlib.import_module("wavcube_plugins.espnet.inference"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Sampling", "Text2Speech", "WavCubeCFM", "WavCubeTTSTask", "extend_tts_inference"]  # noqa: F822
