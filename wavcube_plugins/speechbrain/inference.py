"""SpeechBrain interfaces for the models our recipes train: separation, enhancement, conversion, understanding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.interfaces import Pretrained
from torch import Tensor

from wavcube_plugins.audio import check_suffix, write_audio
from wavcube_plugins.data.speech import read_speech
from wavcube_plugins.heads.slots import read_tags
from wavcube_plugins.speechbrain.modules import OnWavCube


class _OnFiles(Pretrained):
    """What the interfaces of all our recipes share."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.hparams.wavcube.sample_rate

    def _read(self, path: str | os.PathLike, resample: bool) -> Tensor:
        return read_speech(path, self.sample_rate, resample=resample)

    def _run(self, name: str, *arguments: Tensor | None):
        with torch.no_grad(), self.inference_ctx:
            return self.mods[name](*(None if one is None else one.to(self.device) for one in arguments))


class SpeechSeparator(_OnFiles):
    """Separates talkers; `from_hparams` takes the `inference` folder of the recipe `separate`."""

    MODULES_NEEDED: ClassVar = ["separator"]

    def separate_batch(self, mixtures: Tensor, lens: Tensor | None = None) -> Tensor:
        """Separate mixtures (B, T) with relative lengths (B,) into sources (B, S, T)."""
        return self._run("separator", mixtures, lens)[0].float()

    def separate_file(
        self, path: str | os.PathLike, output: str | os.PathLike | None = None, *, resample: bool = False
    ):
        """Separate an audio file.

        Args:
            path: Any format libsndfile reads.
            output: Pattern of the files to write: `out.wav` gives `out_1.wav`, `out_2.wav`; None writes nothing.
            resample: Convert a file whose sample rate is not the model's; False refuses it.

        Returns:
            Sources (S, T).

        Raises:
            AudioError: an unreadable or broken file, or another sample rate; the message names the file.
        """
        if output is not None:
            check_suffix(output)
        sources = self.separate_batch(self._read(path, resample)[None])[0]
        if output is not None:
            output = Path(output)
            for number, source in enumerate(sources, 1):
                write_audio(output.with_name(f"{output.stem}_{number}{output.suffix}"), source, self.sample_rate)
        return sources

    def forward(self, mixtures: Tensor, lens: Tensor | None = None) -> Tensor:
        """Separate mixtures, as `separate_batch` does."""
        return self.separate_batch(mixtures, lens)


class SpeechEnhancer(_OnFiles):
    """Removes noise; `from_hparams` takes the `inference` folder of the recipe `enhance`.

    SpeechBrain's own `WaveformEnhancement` loads it too.
    """

    MODULES_NEEDED: ClassVar = ["enhance_model"]

    def enhance_batch(self, noisy: Tensor, lens: Tensor | None = None) -> Tensor:
        """Enhance waveforms (B, T) with relative lengths (B,)."""
        return self._run("enhance_model", noisy, lens)[0].float()

    def enhance_file(
        self, path: str | os.PathLike, output: str | os.PathLike | None = None, *, resample: bool = False
    ) -> Tensor:
        """Enhance an audio file; arguments and errors as in `SpeechSeparator.separate_file`, returns (T,)."""
        if output is not None:
            check_suffix(output)
        clean = self.enhance_batch(self._read(path, resample)[None])[0]
        if output is not None:
            write_audio(output, clean, self.sample_rate)
        return clean

    def forward(self, noisy: Tensor, lens: Tensor | None = None) -> Tensor:
        """Enhance waveforms, as `enhance_batch` does."""
        return self.enhance_batch(noisy, lens)


class VoiceConversion(_OnFiles):
    """Converts voices; `from_hparams` takes the `inference` folder of the recipe `voice_conversion`."""

    MODULES_NEEDED: ClassVar = ["voice_converter"]

    def convert_batch(
        self, wavs: Tensor, targets: Tensor, wav_lens: Tensor | None = None, target_lens: Tensor | None = None
    ) -> Tensor:
        """Convert waveforms (B, T) to the voices in others (B, T'), both with relative lengths; returns (B, T)."""
        return self._run("voice_converter", wavs, targets, wav_lens, target_lens).float()

    def convert_file(
        self,
        path: str | os.PathLike,
        target: str | os.PathLike,
        output: str | os.PathLike | None = None,
        *,
        resample: bool = False,
    ) -> Tensor:
        """Convert an audio file to the voice in another one.

        Args:
            path: The speech to convert.
            target: A few seconds of speech in the wanted voice.
            output: Audio file to write; None writes nothing.
            resample: Convert files whose sample rate is not the model's; False refuses them.

        Returns:
            The waveform (T,).

        Raises:
            AudioError: an unreadable or broken file, or another sample rate; the message names the file.
        """
        if output is not None:
            check_suffix(output)
        wav, voice = (self._read(one, resample)[None] for one in (path, target))
        converted = self.convert_batch(wav, voice)[0]
        if output is not None:
            write_audio(output, converted, self.sample_rate)
        return converted

    def forward(self, wavs: Tensor, targets: Tensor) -> Tensor:
        """Convert waveforms, as `convert_batch` does."""
        return self.convert_batch(wavs, targets)


class SpokenLanguage(_OnFiles):
    """Recognises words, slots and the intent; `from_hparams` takes the `inference` folder of the recipe `slu`."""

    MODULES_NEEDED: ClassVar = ["model"]
    HPARAMS_NEEDED: ClassVar = ["tokenizer", "intents"]

    def understand_batch(self, wavs: Tensor, lens: Tensor | None = None) -> list[dict[str, Any]]:
        """Understand waveforms (B, T) with relative lengths (B,).

        Returns:
            For each waveform `text`, `slots` [(name, words), ...] and `intent` {part: class}.
        """
        result = self._run("model", wavs, lens)
        units = result["units"]
        frames = cast(OnWavCube, self.mods["model"]).frame_counts(wavs.to(self.device), lens)
        best = ctc_greedy_decode(units, frames / units.shape[1], blank_id=0)
        answers = []
        for row, numbers in enumerate(best):
            text, slots = read_tags([self.hparams.tokenizer.ind2lab[number] for number in numbers])
            intent = {part: names[int(result[part][row].argmax())] for part, names in self.hparams.intents.items()}
            answers.append({"text": text, "slots": slots, "intent": intent})
        return answers

    def understand_file(self, path: str | os.PathLike, *, resample: bool = False) -> dict[str, Any]:
        """Understand an audio file; errors as in `SpeechSeparator.separate_file`."""
        return self.understand_batch(self._read(path, resample)[None])[0]

    def forward(self, wavs: Tensor, lens: Tensor | None = None) -> list[dict[str, Any]]:
        """Understand waveforms, as `understand_batch` does."""
        return self.understand_batch(wavs, lens)
