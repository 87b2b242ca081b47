"""WavCube itself behind SpeechBrain's interface for trained models: speech to the latent and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import FetchConfig, FetchSource
from torch import Tensor

from wavcube_plugins.audio import check_suffix, write_audio
from wavcube_plugins.data.speech import read_speech
from wavcube_plugins.speechbrain.lobe import WavCube

HPARAMS_NAME = "hyperparams.yaml"


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

    With files, `codec.encode_file("speech.wav")` returns (L, latent_dim), and
    `codec.reconstruct_file("speech.wav", "copy.wav")` writes what the latent preserves.

    The constructor is that of SpeechBrain's `Pretrained`; `modules` must contain a `wavcube`, the lobe.
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
            source: A model as the lobe takes it (`wavcube`, `wavcube_pro`, `nano`, a hub name, a native folder, a
                checkpoint file), or a folder with a hyperparameter file, as for all of SpeechBrain's interfaces.
            hparams_file: Name of that file if it is not `hyperparams.yaml`, or if `source` is a hub name or URL to take
                one from.
            savedir: Folder for downloads and links; None is the hub's own cache.
            fetch_config: SpeechBrain's `FetchConfig`; `revision` and `allow_network` apply to a model alone, too.
            **kwargs: Arguments of the constructor, such as `run_opts={"device": "cuda"}`; with a hyperparameter file
                also those of `pretrained_from_hparams`, such as `overrides`.

        Raises:
            ValueError: nothing by that name can be loaded.
        """
        fetch_config = fetch_config or FetchConfig()
        if (
            hparams_file is not None
            or isinstance(source, FetchSource)
            or Path(source).expanduser().joinpath(HPARAMS_NAME).is_file()
        ):
            source = source if isinstance(source, FetchSource) else os.path.expanduser(source)
            model = super().from_hparams(
                source, hparams_file or HPARAMS_NAME, savedir=savedir, fetch_config=fetch_config, **kwargs
            )
            return cast(WavCubeCodec, model)
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
        return self._lobe.sample_rate

    @property
    def _lobe(self) -> WavCube:
        return cast(WavCube, self.mods["wavcube"])

    def encode_file(
        self, path: str | os.PathLike, *, resample: bool = False, window_seconds: float | None = None
    ) -> Tensor:
        """Turn an audio file into its latent.

        Args:
            path: Any format libsndfile reads; several channels are averaged, with a warning.
            resample: Convert a file whose sample rate is not the model's; False refuses it.
            window_seconds: Work in overlapping windows of this length, for hours of audio.

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
        """Encode an audio file and decode it again; arguments and errors as in `encode_file`.

        Args:
            output: Audio file to write at the model's sample rate, such as .wav or .flac; None writes nothing.

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
            latents, latent_lens = self._lobe.encode(wavs.to(self.device), wav_lens, window_seconds=window_seconds)
        return latents.float(), latent_lens

    def decode_batch(
        self, latents: Tensor, latent_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Turn latents (B, L, latent_dim) into waveforms (B, T); as `WavCube.decode`."""
        with torch.no_grad(), self.inference_ctx:
            wavs = self._lobe.decode(latents.to(self.device), latent_lens, window_seconds=window_seconds)
        return wavs.float()

    def reconstruct_batch(
        self, wavs: Tensor, wav_lens: Tensor | None = None, *, window_seconds: float | None = None
    ) -> Tensor:
        """Encode waveforms (B, T) and decode them to the same shape; as `WavCube.reconstruct`."""
        with torch.no_grad(), self.inference_ctx:
            wavs = self._lobe.reconstruct(wavs.to(self.device), wav_lens, window_seconds=window_seconds)
        return wavs.float()

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Run the whole model, as `reconstruct_batch` does."""
        return self.reconstruct_batch(wavs, wav_lens)

    def _read(self, path: str | os.PathLike, resample: bool) -> Tensor:
        return read_speech(path, self.sample_rate, resample=resample)
