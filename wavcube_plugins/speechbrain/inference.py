"""WavCube, and what our recipes train on it, behind SpeechBrain's interface for trained models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, FetchSource
from torch import Tensor

from wavcube_plugins.audio import check_suffix, write_audio
from wavcube_plugins.data.speech import read_speech
from wavcube_plugins.heads.slots import read_tags
from wavcube_plugins.speechbrain.lobe import WavCube

HPARAMS_NAME = "hyperparams.yaml"


class _OnFiles(Pretrained):
    """What the interfaces for folders that our recipes write have in common."""

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
    """Separates talkers; `from_hparams` takes the folder that the recipe `separate` writes for inference."""

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
            output: Name of what is written: `out.wav` gives `out_1.wav`, `out_2.wav`; None writes nothing.
            resample: Convert a file of another sample rate than the model's; False refuses it.

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
    """Removes noise; `from_hparams` takes the folder that the recipe `enhance` writes for inference.

    SpeechBrain's own `WaveformEnhancement` takes it too.
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
    """Lets one utterance sound like the speaker of another; for the folder that `voice_conversion` writes."""

    MODULES_NEEDED: ClassVar = ["voice_converter"]

    def convert_batch(
        self, wavs: Tensor, targets: Tensor, wav_lens: Tensor | None = None, target_lens: Tensor | None = None
    ) -> Tensor:
        """Convert waveforms (B, T) to the voices of others (B, T'), both with relative lengths; returns (B, T)."""
        return self._run("voice_converter", wavs, targets, wav_lens, target_lens).float()

    def convert_file(
        self,
        path: str | os.PathLike,
        target: str | os.PathLike,
        output: str | os.PathLike | None = None,
        *,
        resample: bool = False,
    ) -> Tensor:
        """Convert an audio file to the voice of another one.

        Args:
            path: What is said.
            target: Who shall say it, a few seconds of speech.
            output: What is written; None writes nothing.
            resample: Convert files of another sample rate than the model's; False refuses them.

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
    """Hears words, slots and the intent; `from_hparams` takes the folder that the recipe `slu` writes for inference."""

    MODULES_NEEDED: ClassVar = ["model"]
    HPARAMS_NEEDED: ClassVar = ["tokenizer", "intents"]

    def understand_batch(self, wavs: Tensor, lens: Tensor | None = None) -> list[dict[str, Any]]:
        """Understand waveforms (B, T) with relative lengths (B,).

        Returns:
            For each, `text`, `slots` [(name, words), ...] and `intent` {part: class}.
        """
        result = self._run("model", wavs, lens)
        units = result["units"]
        frames = self.mods.model.frame_counts(wavs.to(self.device), lens)
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


class WavCubeCodec(Pretrained):
    """Speech to the latent and back, ready to use.

    >>> import torch
    >>> from wavcube_plugins.speechbrain import WavCubeCodec
    >>> codec = WavCubeCodec.from_hparams("nano")
    >>> wavs, wav_lens = torch.randn(2, 16000), torch.tensor([1.0, 0.5])
    >>> latents, latent_lens = codec.encode_batch(wavs, wav_lens)
    >>> latents.shape
    torch.Size([2, 49, 32])
    >>> codec.decode_batch(latents, latent_lens).shape
    torch.Size([2, 15680])
    >>> codec.reconstruct_batch(wavs, wav_lens).shape
    torch.Size([2, 16000])

    Files go the same way: `codec.encode_file("speech.wav")` gives (L, latent_dim),
    `codec.reconstruct_file("speech.wav", "copy.wav")` writes what the latent keeps.

    Arguments are those of SpeechBrain's `Pretrained`; `modules` must have a `wavcube`, the lobe.
    """

    MODULES_NEEDED: ClassVar = ["wavcube"]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if "wavcube" not in self.mods:
            raise ValueError(f"the modules must have a 'wavcube', the lobe; found {', '.join(self.mods) or 'none'}")

    @classmethod
    def from_hparams(
        cls,
        source: str | os.PathLike | FetchSource,
        hparams_file: str | None = None,
        savedir: str | os.PathLike | None = None,
        fetch_config: FetchConfig | None = None,
        **kwargs: Any,
    ) -> WavCubeCodec:
        """Load a model, with or without a hyperparameter file.

        Args:
            source: What the lobe takes: `nano`, `wavcube`, `wavcube_pro`, a hub name, a native folder or a checkpoint
                file. Or a folder with a hyperparameter file, as for all of SpeechBrain's interfaces.
            hparams_file: Name of that file, where it is another than `hyperparams.yaml`, or where `source` is a hub
                name or URL to take one from.
            savedir: Folder for what is downloaded or linked; None is the hub's own cache.
            fetch_config: SpeechBrain's `FetchConfig`; `revision` and `allow_network` count for a model alone, too.
            **kwargs: For the constructor, say `run_opts={"device": "cuda"}`; with a hyperparameter file also those of
                `pretrained_from_hparams`, such as `overrides`.

        Raises:
            ValueError: nothing loadable by that name.
        """
        fetch_config = fetch_config or FetchConfig()
        if (
            hparams_file is not None
            or isinstance(source, FetchSource)
            or Path(source).expanduser().joinpath(HPARAMS_NAME).is_file()
        ):
            source = source if isinstance(source, FetchSource) else os.path.expanduser(source)
            return super().from_hparams(
                source, hparams_file or HPARAMS_NAME, savedir=savedir, fetch_config=fetch_config, **kwargs
            )
        lobe = WavCube(
            source,
            savedir or fetch_config.huggingface_cache_dir,
            freeze=True,
            revision=fetch_config.revision,
            local_files_only=not fetch_config.allow_network,
        )
        hparams = {"savedir": savedir, "audio_normalizer": AudioNormalizer(lobe.sample_rate)}
        return cls(modules={"wavcube": lobe}, hparams=hparams, **kwargs)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waveforms."""
        return self.mods.wavcube.sample_rate

    def encode_file(
        self, path: str | os.PathLike, *, resample: bool = False, window_seconds: float | None = None
    ) -> Tensor:
        """Turn an audio file into its latent.

        Args:
            path: Any format libsndfile reads; several channels are averaged, with a warning.
            resample: Convert a file of another sample rate than the model's; False refuses it.
            window_seconds: Work in overlapping windows of this length, for audio of hours.

        Returns:
            The latent (L, latent_dim), float32.

        Raises:
            AudioError: an unreadable or broken file, or another sample rate; the message names the file.
        """
        wav = self._read(path, resample)
        return self.encode_batch(wav[None], window_seconds=window_seconds)[0][0]

    def reconstruct_file(
        self,
        path: str | os.PathLike,
        output: str | os.PathLike | None = None,
        *,
        resample: bool = False,
        window_seconds: float | None = None,
    ) -> Tensor:
        """Send an audio file through the latent and back; arguments and errors as in `encode_file`.

        Args:
            output: Audio file to write at the model's sample rate, .wav or .flac for instance; None writes none.

        Returns:
            The waveform (T,) at the model's sample rate, as long as the input.
        """
        if output is not None:
            check_suffix(output)
        wav = self.reconstruct_batch(self._read(path, resample)[None], window_seconds=window_seconds)[0]
        if output is not None:
            write_audio(output, wav, self.sample_rate)
        return wav

    def encode_batch(
        self, wavs: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn waveforms (B, T) into latents (B, L, latent_dim) and their relative lengths; as `WavCube.encode`."""
        with torch.no_grad(), self.inference_ctx:
            latents, latent_lens = self.mods.wavcube.encode(
                wavs.to(self.device), wav_lens, window_seconds=window_seconds
            )
        return latents.float(), latent_lens

    def decode_batch(
        self, latents: Tensor, latent_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Turn latents (B, L, latent_dim) into waveforms (B, T); as `WavCube.decode`."""
        with torch.no_grad(), self.inference_ctx:
            wavs = self.mods.wavcube.decode(latents.to(self.device), latent_lens, window_seconds=window_seconds)
        return wavs.float()

    def reconstruct_batch(
        self, wavs: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Send waveforms (B, T) through the latent and back, to the same shape; as `WavCube.reconstruct`."""
        with torch.no_grad(), self.inference_ctx:
            wavs = self.mods.wavcube.reconstruct(wavs.to(self.device), wav_lens, window_seconds=window_seconds)
        return wavs.float()

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Run the whole model, as `reconstruct_batch` does."""
        return self.reconstruct_batch(wavs, wav_lens)

    def _read(self, path: str | os.PathLike, resample: bool) -> Tensor:
        return read_speech(path, self.sample_rate, resample=resample)
