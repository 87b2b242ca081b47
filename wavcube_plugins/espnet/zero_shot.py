"""Prompts, batches and long texts for ESPnet's `Text2Speech` and `espnet2.bin.tts_inference`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from espnet2.tasks.tts import TTSTask
from torch import Tensor

from wavcube_plugins.errors import InputError
from wavcube_plugins.espnet.parts import ESPnetCodec, ESPnetNormaliser, Tokeniser
from wavcube_plugins.espnet.prompts import check_prompt_lists, check_prompt_rates, without_speech
from wavcube_plugins.espnet.tts import WavCubeCFM
from wavcube_plugins.espnet.tts_task import PromptedTTSTask, bytes_to_texts
from wavcube_plugins.tts.synthesiser import BATCH_SIZE, Synthesiser

_OPTIONS = {
    "steps": (int, "network evaluations; fewer are faster"),
    "guidance": (float, "strength of classifier-free guidance; 0 disables it and halves the time"),
    "sway": (float, "sway sampling coefficient; 0 spaces the steps evenly"),
    "speed": (float, "speaking rate; 2 is twice as fast"),
}
_CALL = ("text", "prompt_speech", "prompt_text", *_OPTIONS, "seed")
# What the command line was given, while `inference` runs; it builds its `Text2Speech` from ESPnet's options alone.
_command_line: ContextVar[dict[str, Any] | None] = ContextVar("wavcube_command_line", default=None)


class ZeroShot:
    """Mixed into ESPnet's `Text2Speech`: prompts, batches and long texts for `wavcube_cfm`; other models are unchanged.

    Args:
        args: As ESPnet's class takes them: `train_config`, `model_file`, …
        steps: Default for all calls, the model configuration's if None; for this and the next three see
            `wavcube_plugins.tts.Sampling`.
        guidance: See `steps`.
        sway: See `steps`.
        speed: See `steps`.
        kwargs: As ESPnet's class takes them.

    Raises:
        InputError: A setting is out of range, or the sample rate or frame rate of the features is unknown.
    """

    def __init__(
        self,
        *args: Any,
        steps: int | None = None,
        guidance: float | None = None,
        sway: float | None = None,
        speed: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.synthesiser: Synthesiser | None = None
        model: Any = self
        if not isinstance(model.tts, WavCubeCFM):
            return
        command_line = _command_line.get()
        given = {"steps": steps, "guidance": guidance, "sway": sway, "speed": speed}
        options = {} if command_line is None else {name: command_line[name] for name in _OPTIONS}
        sampling = model.tts.sampling.replace(**options).replace(**given)
        codec = ESPnetCodec(model.feats_extract, model.vocoder, getattr(torch, model.dtype))
        if command_line is not None:
            check_prompt_rates(command_line["data"], codec.sample_rate)
        self.synthesiser = Synthesiser(
            model.tts.flow,
            codec,
            Tokeniser(TTSTask.build_preprocess_fn(model.train_args, False)),
            norm=None if model.normalize is None else ESPnetNormaliser(model.normalize),
            sampling=sampling,
            decode=model.vocoder is not None,
        )
        codec.normalised = self.synthesiser.norm if model.prefer_normalized_feats else None
        # On the command line every utterance gets ESPnet's --seed, so that none depends on those before it.
        self.default_seed = None if command_line is None else model.seed

    @torch.no_grad()
    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Synthesise a text.

        Args:
            text: The text to speak; a long one is split at punctuation and the pieces are cross-faded.
            args: For models other than `wavcube_cfm`, as ESPnet's class takes them.
            kwargs: For `wavcube_cfm`: `prompt_speech`, a waveform (T,) at the model's rate or features (P, D);
                `prompt_text`, its transcript; `steps`, `guidance`, `sway`, `speed`; and `seed`, which makes the result
                reproducible. For other models, as ESPnet's class takes them.

        Returns:
            `wav` (T,) if there is a vocoder, and `feat_gen` and `feat_gen_denorm` (L, D), normalised and not, all
            without the prompt.

        Raises:
            InputError: An argument is unknown or out of range, or see `Synthesiser`.
        """
        if self.synthesiser is None:
            return super().__call__(text, *args, **kwargs)  # type: ignore[misc]
        if args:
            raise InputError("wavcube_cfm takes only the text by position; name the others, such as prompt_speech=")
        # `decode_conf` is ESPnet's own way of passing options for one call.
        settings = {"text": text, **kwargs.pop("decode_conf", {}), **bytes_to_texts(kwargs)}
        unknown = sorted(settings.keys() - _CALL)
        if unknown:
            raise InputError(f"wavcube_cfm does not take {unknown[0]}=; it takes {', '.join(_CALL)}")
        item = [[settings.pop(name, None)] for name in ("text", "prompt_speech", "prompt_text")]
        return self.many(*item, **settings)[0]  # type: ignore[arg-type]

    def many(
        self,
        texts: Sequence[str],
        prompt_speech: Sequence[Tensor | np.ndarray | None] | None = None,
        prompt_text: Sequence[str | None] | None = None,
        *,
        seed: int | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> list[dict[str, Tensor]]:
        """Synthesise several texts in batches; arguments, results and errors are those of a call, one per text."""
        if self.synthesiser is None:
            raise InputError("many() is for wavcube_cfm models")
        results = self.synthesiser.many(
            texts,
            prompt_speech,
            prompt_text,
            sampling=self.synthesiser.sampling.replace(**options),
            seed=self.default_seed if seed is None else seed,
            batch_size=batch_size,
        )
        found = []
        for one in results:
            outputs = {"feat_gen": one.normalised, "feat_gen_denorm": one.latent, "wav": one.waveform}
            if self.synthesiser.norm is None:
                del outputs["feat_gen_denorm"]
            found.append({name: value for name, value in outputs.items() if value is not None})
        return found

    @property
    def frame_rate(self) -> float:
        """Frames of features per second."""
        if self.synthesiser is None:
            raise AttributeError("frame_rate is known for wavcube_cfm models only")
        return self.synthesiser.codec.frame_rate


def extend(module: Any) -> None:
    """Add prompts and sampling options to `espnet2.bin.tts_inference`; calling it again has no effect."""
    stock = module.Text2Speech
    if issubclass(stock, ZeroShot):
        return
    # In its module, ESPnet's name means our class from now on, so that it can be pickled.
    module.Text2Speech = type(
        "Text2Speech", (ZeroShot, stock), {"__module__": module.__name__, "__doc__": stock.__doc__}
    )
    module.TTSTask = PromptedTTSTask
    get_parser, inference = module.get_parser, module.inference

    @functools.wraps(get_parser)
    def get_extended_parser() -> argparse.ArgumentParser:
        parser = get_parser()
        group = parser.add_argument_group("wavcube_cfm; defaults are those of the model's tts_conf")
        for name, (kind, text) in _OPTIONS.items():
            group.add_argument(f"--{name}", type=kind, default=None, help=text)
        return parser

    @functools.wraps(inference)
    def extended_inference(**settings: Any) -> None:
        options = {name: settings.pop(name, None) for name in _OPTIONS}
        data = settings["data_path_and_name_and_type"]
        check_prompt_lists(data)
        settings["data_path_and_name_and_type"] = without_speech(data)
        token = _command_line.set({**options, "data": data})
        try:
            inference(**settings)
        finally:
            _command_line.reset(token)

    module.get_parser, module.inference = get_extended_parser, extended_inference
