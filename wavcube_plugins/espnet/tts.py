"""`tts: wavcube_cfm`: zero-shot TTS by flow matching on the latent, as ESPnet's TTS task trains and saves it."""

from __future__ import annotations

from typing import Any

from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.tts.abs_tts import AbsTTS
from torch import Tensor

from wavcube_plugins.config import FlowConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.tts import FlowMatching, Sampling
from wavcube_plugins.tts.sampling import GUIDANCE, STEPS, SWAY


class WavCubeCFM(AbsTTS):
    """Flow matching that fills in speech, conditioned on text and the surrounding speech (F5-TTS's network).

    >>> tts = WavCubeCFM(idim=30, odim=32, preset="tiny")
    >>> loss, stats, weight = tts(text, text_lengths, feats, feats_lengths)
    >>> tts.inference(text[0], feats=prompt, frames=80, seed=0)["feat_gen"].shape     # prompt (20, 32)
    torch.Size([60, 32])

    The features must be normalised (`--normalize global_mvn`). A moving average of the weights, which ESPnet's trainer
    does not have, is kept in the model and saved with it; validation and inference use it. Validation losses are
    comparable between epochs because their noise depends on the utterance alone.

    Args:
        idim: Size of the vocabulary.
        odim: Channels of the features.
        preset: `base` (337 million parameters), `small` (159) or `tiny` (4).
        steps: Default of inference; for this and the next three see `wavcube_plugins.tts.Sampling`.
        guidance: Default of inference.
        sway: Default of inference.
        speed: Default of inference.
        sizes: Settings of `wavcube_plugins.config.FlowConfig` that override the preset's.

    Raises:
        InputError: A setting is out of range.
        ValueError: The preset or a size is unknown, or sizes do not fit together.
    """

    # `Text2Speech` reads these: no speaker or language ids, and no speaker embedding.
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
            The loss, the statistics to report, and the number of hidden frames as the weight, so that the mean over
            batches does not depend on the batching.
        """
        out = self.flow(feats, feats_lengths, text, text_lengths)
        outputs: Any = force_gatherable((out.loss, {"loss": out.loss.detach()}, out.frames.sum()), out.loss.device)
        return outputs

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
        """Synthesise one tokenised text; `Text2Speech` of `wavcube_plugins.espnet.inference` does the whole path.

        Args:
            text: Token ids (N,), those of the prompt's transcript first.
            feats: Normalised features of the prompt (P, D), or None.
            frames: Frames of the prompt and the new part together; None takes the average rate of training.
            steps: Like the next three, the constructor's if None.
            guidance: See `steps`.
            sway: See `steps`.
            speed: See `steps`; without effect where `frames` is given.
            seed: Makes the result reproducible.
            use_teacher_forcing: Not supported.

        Returns:
            `feat_gen`: the normalised features of the new part, (L, D).

        Raises:
            InputError: Teacher forcing is asked for, or see `FlowMatching.sample`.
        """
        if use_teacher_forcing:
            raise InputError("wavcube_cfm has no teacher forcing; leave --use_teacher_forcing out")
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
