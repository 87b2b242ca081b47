"""Zero-shot synthesis with a `wavcube_cfm` model, from the command line and in Python.

    python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_inference --model_file exp/…/valid.loss.best.pth \\
        --data_path_and_name_and_type data/test/text,text,text \\
        --data_path_and_name_and_type data/test/prompt_text,prompt_text,text \\
        --data_path_and_name_and_type data/test/prompt.scp,prompt_speech,sound \\
        --steps 32 --guidance 2 --sway -1 --speed 1 --seed 0 --output_dir exp/…/decode

>>> from wavcube_plugins.espnet.inference import Text2Speech
>>> text2speech = Text2Speech(model_file="exp/…/valid.loss.best.pth")
>>> text2speech("what to say", prompt_speech=waveform, prompt_text="what is said there", seed=0)["wav"]

Without a prompt the model speaks with a voice of its own choice.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from espnet2.bin import tts_inference
from espnet2.tasks.tts import TTSTask
from torch import Tensor

from wavcube_plugins.audio import AudioError, read_info
from wavcube_plugins.data.kaldi import read_table
from wavcube_plugins.espnet.registration import register
from wavcube_plugins.espnet.tts import WavCubeCFM
from wavcube_plugins.tts import cross_fade, new_frames, split_text
from wavcube_plugins.tts.plan import FADE_SECONDS, PIECE_SECONDS, utf8_bytes

# Seconds of a prompt: the shortest and longest that training sees, and what F5-TTS cuts prompts to.
SHORTEST_PROMPT, LONGEST_PROMPT, PROMPT_SECONDS = 0.3, 30.0, 12.0
# Pieces that are sampled together.
BATCH_SIZE = 8

_OPTIONS = {
    "steps": (int, "Evaluations of the network; fewer are faster"),
    "guidance": (float, "Strength of classifier-free guidance; 0 is none and halves the time"),
    "sway": (float, "Coefficient of sway sampling; 0 spaces the steps evenly"),
    "speed": (float, "Speed of the speech; 2 is twice as fast"),
}
_CALL = ("text", "prompt_speech", "prompt_text", *_OPTIONS, "seed")
# ESPnet's function builds its `Text2Speech` from options of its own alone.
_command_line: ContextVar[dict[str, Any] | None] = ContextVar("wavcube_command_line", default=None)

_Stock = tts_inference.Text2Speech


class WavCubeTTSTask(TTSTask):
    """ESPnet's TTS task with WavCube's names registered and as defaults, for Python users.

    >>> WavCubeTTSTask.main(cmd=["--config", "conf/train.yaml", …])
    """

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        register()
        super().add_task_arguments(parser)
        parser.set_defaults(feats_extract="wavcube", tts="wavcube_cfm")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Return ESPnet's names, and in inference those of the prompt."""
        names = super().optional_data_names(train, inference)
        return (*names, "prompt_text", "prompt_speech") if inference else names


class _InferenceTask(WavCubeTTSTask):
    """What `espnet2.bin.tts_inference` takes its model and data from."""

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Callable | None:
        """Keep the texts of a `wavcube_cfm` model as they are: the length rule and cutting need them."""
        return _keep_text if args.tts == "wavcube_cfm" else super().build_preprocess_fn(args, train)


def _keep_text(uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
    # ESPnet's loader stacks arrays, so a text travels as its bytes.
    return {
        **{f"{name}_utf8": np.frombuffer(value.encode(), np.uint8).astype(np.int64)
           for name, value in data.items() if isinstance(value, str)},
        **{name: value for name, value in data.items() if not isinstance(value, str)},
    }  # fmt: skip


@dataclass
class _Piece:
    """A part of a text that is sampled at once: which text it belongs to, its tokens, and how many frames it takes."""

    text: int
    tokens: Tensor
    frames: int
    prompt: Tensor


class Text2Speech(_Stock):
    """ESPnet's `Text2Speech` with prompts, batches and long texts for `wavcube_cfm`; as it was for other models.

    Args:
        args: As ESPnet's class takes them: `train_config`, `model_file`, …
        steps: Evaluations of the network; like the next three, as in the model's configuration if not given.
        guidance: Strength of classifier-free guidance.
        sway: Coefficient of sway sampling.
        speed: Of the speech.
        kwargs: As ESPnet's class takes them.

    Raises:
        ValueError: options out of range.
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
        if not isinstance(self.tts, WavCubeCFM):
            return
        self.preprocess_fn = TTSTask.build_preprocess_fn(self.train_args, False)
        given = {"steps": steps, "guidance": guidance, "sway": sway, "speed": speed}
        options = _command_line.get() or {}
        self.sampling = self.tts.sampling.replace(**{**options, **{k: v for k, v in given.items() if v is not None}})
        # From the command line every utterance gets ESPnet's --seed, so that none depends on those before it.
        self.default_seed = None if _command_line.get() is None else self.seed

    @torch.no_grad()
    def __call__(self, text: str | None = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Synthesise a text.

        Args:
            text: What to say. A long one is cut at punctuation, and the pieces are faded into each other.
            args: For other models than `wavcube_cfm`, as ESPnet's class takes them; so are other `kwargs` than these:
            prompt_speech: The voice to speak with: a waveform (T,) at the model's rate, or features (P, D).
            prompt_text: What is said there.
            steps, guidance, sway, speed: Instead of those given at the beginning.
            seed: Makes the result repeatable, whatever else is synthesised in the same process or batch.

        Returns:
            `wav` (T,), if there is a vocoder, and `feat_gen` and `feat_gen_denorm` (L, D), normalised and not, all
            without the prompt.

        Raises:
            ValueError: an empty text, text with tokens that the model does not know, a prompt without its text or the
                other way round, a prompt that is too short or too long, or options out of range; one sentence.
        """
        if not isinstance(self.tts, WavCubeCFM):
            return super().__call__(text, *args, **kwargs)
        if args:
            raise ValueError("wavcube_cfm takes the text alone by position; name the rest, such as prompt_speech=")
        # What the command line's loader hands over.
        texts = {name: kwargs.pop(f"{name}_utf8") for name in ("text", "prompt_text") if f"{name}_utf8" in kwargs}
        texts = {name: bytes(codes.tolist()).decode() for name, codes in texts.items()}
        # ESPnet's own way of passing options for one call.
        settings = {"text": text, **kwargs.pop("decode_conf", {}), **kwargs, **texts}
        unknown = sorted(settings.keys() - _CALL)
        if unknown:
            raise ValueError(f"wavcube_cfm does not take {unknown[0]}=; it takes {', '.join(_CALL)}")
        said = [settings.pop(name, None) for name in ("text", "prompt_speech", "prompt_text")]
        return self.many(*([value] for value in said), **settings)[0]

    @torch.no_grad()
    def many(
        self,
        texts: Sequence[str],
        prompt_speech: Sequence[Tensor | np.ndarray | None] | None = None,
        prompt_text: Sequence[str | None] | None = None,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sway: float | None = None,
        speed: float | None = None,
        seed: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[dict[str, Tensor]]:
        """Synthesise several texts in batches; arguments, results and errors are those of a call, one per text."""
        sampling = self.sampling.replace(steps=steps, guidance=guidance, sway=sway, speed=speed)
        seed = self.default_seed if seed is None else seed
        nothing = [None] * len(texts)
        speech, said = prompt_speech or nothing, prompt_text or nothing
        if not len(texts) == len(speech) == len(said):
            raise ValueError(f"got {len(texts)} texts, {len(speech)} prompts and {len(said)} texts of prompts")
        pieces = [
            piece
            for index, (text, *prompt) in enumerate(zip(texts, speech, said, strict=True))
            for piece in self._plan(index, text, *prompt, sampling.speed)
        ]
        # Like lengths together: what an item gives does not depend on its batch.
        order = sorted(range(len(pieces)), key=lambda position: pieces[position].frames)
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for position, latent in zip(
                chosen, self._sample([pieces[position] for position in chosen], sampling, seed), strict=True
            ):
                found[position] = latent
        results: list[list[Tensor]] = [[] for _ in texts]
        for position, piece in enumerate(pieces):
            results[piece.text].append(found[position])
        return [self._assemble(latents) for latents in results]

    @property
    def frame_rate(self) -> float:
        """Frames of features per second."""
        about = {} if self.feats_extract is None else self.feats_extract.get_parameters()
        rate, hop = about.get("sample_rate", about.get("fs")), about.get("hop_length", about.get("n_shift"))
        return rate / hop if rate and hop else 50.0

    def _plan(self, index: int, text: str, speech: Any, said: str | None, speed: float) -> list[_Piece]:
        """Work out the pieces of one text."""
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the text is empty; there is nothing to say")
        text = text.strip()
        if speech is None and said:
            raise ValueError("there is a text of a prompt but no prompt; give prompt_speech, or leave prompt_text out")
        if speech is not None and (said is None or not said.strip()):
            raise ValueError(
                "the prompt's transcript is missing; give what is said in it as prompt_text, without it the model "
                "cannot tell where the prompt ends"
            )
        if speech is None:
            said, prompt = "", torch.zeros(0, self.tts.flow.latent_dim, device=self.device)
            rate = self.tts.flow.tokens_to_frames(len(self._tokens(text))) / utf8_bytes(text)
            seconds = PIECE_SECONDS
        else:
            prompt, said = self._prompt(speech, said.strip())
            rate = len(prompt) / utf8_bytes(said)
            seconds = PIECE_SECONDS - len(prompt) / self.frame_rate
            # Characters of one byte are joined by a space, Chinese ones are not.
            said += " " if utf8_bytes(said[-1]) == 1 else ""
        longest = max(1, int(seconds * self.frame_rate * speed / rate))
        pieces = []
        for part in split_text(text, longest):
            tokens = self._tokens(said + part)
            frames = new_frames(rate, part, speed)
            count = len(self._tokens(part))
            if count > frames:
                raise ValueError(
                    f"{frames} frames are too few for the {count} tokens of {part!r}; lower the speed of {speed:g}, or "
                    "see whether the prompt's text is what its speech says"
                )
            pieces.append(_Piece(index, tokens, len(prompt) + frames, prompt))
        return pieces

    def _prompt(self, speech: Tensor | np.ndarray, said: str) -> tuple[Tensor, str]:
        """Return the normalised features (P, D) of a prompt, and its text, both cut if it is long."""
        speech = torch.as_tensor(speech)
        if speech.ndim not in (1, 2) or not len(speech):
            raise ValueError(f"a prompt must be a waveform (samples,) or features (frames, channels), got "
                             f"{tuple(speech.shape)}")  # fmt: skip
        if speech.ndim == 1 and not speech.is_floating_point():
            raise ValueError(f"the prompt's waveform must be floating point in -1 … 1, got {speech.dtype}")
        if speech.ndim == 1 and self.feats_extract is None:
            raise ValueError("this model was trained on features from disk, so its prompts must be features as well")
        fs = self.fs or 16000
        seconds = len(speech) / (fs if speech.ndim == 1 else self.frame_rate)
        if not SHORTEST_PROMPT <= seconds <= LONGEST_PROMPT:
            raise ValueError(
                f"the prompt lasts {seconds:.2f} s; it must last {SHORTEST_PROMPT} to {LONGEST_PROMPT:.0f} s, and 4 to "
                "10 s are best"
            )
        features = speech[None].to(self.device, getattr(torch, self.dtype))
        if self.feats_extract is not None:
            lengths = torch.tensor([len(speech)], device=self.device)
            features, _ = self.feats_extract(features, lengths)
        if self.normalize is not None:
            # ESPnet's normalisation works in place.
            features, _ = self.normalize(features.clone())
        features = features[0]
        if seconds > PROMPT_SECONDS:
            said = _first_part(said, PROMPT_SECONDS / seconds)
            features = features[: int(PROMPT_SECONDS * self.frame_rate)]
            logging.warning(
                f"the prompt lasts {seconds:.1f} s and was cut to {PROMPT_SECONDS:.0f} s, its text to {said!r}; "
                "better cut both yourself"
            )
        return features, said

    def _tokens(self, text: str) -> Tensor:
        """Return the token ids (N,) of a text."""
        process = self.preprocess_fn
        if process is None:
            raise ValueError("the model was trained with --use_preprocessor false, so it cannot read texts")
        known = process.token_id_converter.token2id
        tokens = process.tokenizer.text2tokens(process.text_cleaner(text))
        unknown = list(dict.fromkeys(token for token in tokens if token not in known))
        if unknown:
            listed = ", ".join(map(repr, unknown[:8]))
            raise ValueError(
                f"the text {text!r} has what the model has no token for: {listed}; write it with the tokens of the "
                "training text"
            )
        if not tokens:
            raise ValueError(f"nothing is left to say of the text {text!r} after ESPnet's text cleaner")
        ids = process.token_id_converter.tokens2ids(tokens)
        return torch.tensor(ids, device=self.device)

    def _sample(self, pieces: Sequence[_Piece], sampling: Any, seed: int | None) -> list[Tensor]:
        pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        prompts = torch.tensor([len(piece.prompt) for piece in pieces], device=self.device)
        latent, lengths = self.tts.flow.sample(
            pad([piece.tokens for piece in pieces]),
            torch.tensor([len(piece.tokens) for piece in pieces], device=self.device),
            torch.tensor([piece.frames for piece in pieces], device=self.device),
            pad([piece.prompt for piece in pieces]),
            prompts,
            steps=sampling.steps,
            guidance=sampling.guidance,
            sway=sampling.sway,
            seeds=seed,
        )
        ends = zip(latent, prompts.tolist(), lengths.tolist(), strict=True)
        return [item[start:end] for item, start, end in ends]

    def _assemble(self, latents: Sequence[Tensor]) -> dict[str, Tensor]:
        """Join the pieces of one text."""
        result = {"feat_gen": torch.cat(list(latents))}
        features = list(latents)
        if self.normalize is not None:
            features = [self.normalize.inverse(latent.clone()[None])[0][0] for latent in latents]
            result["feat_gen_denorm"] = torch.cat(features)
        if self.vocoder is not None:
            chosen = latents if self.prefer_normalized_feats else features
            waveforms = [self.vocoder(part) for part in chosen]
            result["wav"] = cross_fade(waveforms, round(FADE_SECONDS * (self.fs or 16000)))
        return result


def _first_part(text: str, part: float) -> str:
    """Return about this part of a text, whole words, at least one."""
    words = text.split()
    kept = words[:1]
    for word in words[1:]:
        if utf8_bytes(" ".join([*kept, word])) > part * utf8_bytes(text):
            break
        kept.append(word)
    return " ".join(kept)


def extend(module: ModuleType) -> None:
    """Add prompts and sampling options to `espnet2.bin.tts_inference`; again does nothing."""
    if module.Text2Speech is Text2Speech:
        return
    module.Text2Speech = Text2Speech
    module.TTSTask = _InferenceTask
    get_parser, inference = module.get_parser, module.inference

    @functools.wraps(get_parser)
    def get_extended_parser() -> argparse.ArgumentParser:
        parser = get_parser()
        group = parser.add_argument_group("wavcube_cfm; where not given, as in the model's tts_conf")
        for name, (kind, text) in _OPTIONS.items():
            group.add_argument(f"--{name}", type=kind, default=None, help=text)
        return parser

    @functools.wraps(inference)
    def extended_inference(**settings: Any) -> None:
        options = {name: settings.pop(name, None) for name in _OPTIONS}
        settings["data_path_and_name_and_type"] = _check_data(settings["data_path_and_name_and_type"], _rate(settings))
        token = _command_line.set(options)
        try:
            inference(**settings)
        finally:
            _command_line.reset(token)

    module.get_parser, module.inference = get_extended_parser, extended_inference


def _rate(settings: dict[str, Any]) -> int | None:
    """Return the sample rate in Hz of the model that is to be loaded, if its configuration tells."""
    config, model = settings.get("train_config"), settings.get("model_file")
    path = Path(config) if config else Path(model).parent / "config.yaml" if model else None
    if path is None or not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        trained = yaml.safe_load(file)
    if trained.get("feats_extract") == "wavcube":
        return 16000
    rate = (trained.get("feats_extract_conf") or {}).get("fs")
    return rate if isinstance(rate, int) else None


def _check_data(data: Sequence[tuple[str, str, str]], wanted: int | None) -> Sequence[tuple[str, str, str]]:
    """See that every text has its prompt and the prompts have the model's rate, before it is loaded."""
    files = {name: path for path, name, _ in data}
    if not files.keys() & {"prompt_text", "prompt_speech"}:
        return data
    for name, other in (("prompt_text", "prompt_speech"), ("prompt_speech", "prompt_text")):
        if name not in files:
            raise ValueError(
                f"there is {other} but no {name}; a prompt needs speech and transcript: add "
                f"--data_path_and_name_and_type FILE,{name},{'text' if name == 'prompt_text' else 'sound'}"
            )
    keys = {name: read_table(files[name]) for name in ("text", "prompt_text", "prompt_speech") if name in files}
    for name in ("prompt_text", "prompt_speech"):
        for key in keys.get("text", {}):
            if key not in keys[name]:
                raise ValueError(f"{files[name]}: has nothing for the utterance {key}, which {files['text']} has")
    kinds = {name: kind for _, name, kind in data}
    if kinds["prompt_speech"] == "sound":
        rates = {}
        for key, path in keys["prompt_speech"].items():
            try:
                info = read_info(path)
            except AudioError as error:
                raise ValueError(f"{files['prompt_speech']}, utterance {key}: {error}") from error
            if info.num_channels != 1:
                raise ValueError(f"{path}: {info.num_channels} channels; a prompt must have one")
            rates.setdefault(info.sample_rate, path)
        for rate, path in rates.items():
            if wanted is not None and rate != wanted:
                raise ValueError(f"{path}: {rate} Hz, but the model works at {wanted} Hz; resample the prompts")
    # The utterance's own recording, which stock recipes pass along, is no prompt.
    return [entry for entry in data if entry[1] != "speech"]


register()
extend(tts_inference)
