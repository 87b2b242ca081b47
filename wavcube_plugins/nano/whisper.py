"""What a Whisper encoder hears in the utterances of a corpus: the teacher's targets, computed once and kept on disk.

Whisper's encoder has 50 frames a second, as WavCube's does. Its frame i is centred at 320 i samples, the frame of a
WavLM in the middle of its receptive field of 400, so that Whisper gets the audio from sample 200 on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path

SAMPLE_RATE = 16000
HOP_LENGTH = 320
_N_FFT, _MEL_HOP = 400, 160
_PREFIXES = ("model.encoder.", "encoder.")


class WhisperStates(nn.Module):
    """Inner hidden states of a Whisper encoder, for audio of any length up to 30 seconds.

    >>> whisper = WhisperStates.load("openai/whisper-base", [4, 6])  # downloads
    >>> whisper(torch.zeros(32000)).shape
    torch.Size([100, 2, 512])

    Args:
        encoder: A `transformers` WhisperEncoder.
        layers: Which hidden states to return, 1 for the first layer's output.

    Raises:
        InputError: the encoder has no such layer.
    """

    encoder: Any
    filters: Tensor
    window: Tensor

    def __init__(self, encoder: Any, layers: Sequence[int]):
        super().__init__()
        if not layers or not all(1 <= layer <= len(encoder.layers) for layer in layers):
            raise InputError(f"Whisper's layers must lie in 1 … {len(encoder.layers)}, got {list(layers)}")
        self.encoder, self.layers = encoder.eval().requires_grad_(False), tuple(layers)
        bands = encoder.conv1.in_channels
        filters = torchaudio.functional.melscale_fbanks(
            _N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, bands, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(_N_FFT), persistent=False)

    @classmethod
    def load(cls, source: str | os.PathLike, layers: Sequence[int]) -> WhisperStates:
        """Load an encoder.

        Args:
            source: A `.safetensors` file with the encoder's weights, a folder as `transformers` has it, or a name on
                the Hugging Face hub, which is downloaded unless HF_HUB_OFFLINE is set.
            layers: As above.

        Raises:
            InputError: nothing loadable by that name.
            ImportError: transformers is missing.
        """
        try:
            from transformers import WhisperModel
        except ImportError as error:
            raise ImportError("Whisper needs transformers; from a clone: pip install '.[natural]'") from error
        path = Path(source).expanduser()
        if path.suffix == ".safetensors":
            return cls(_read_encoder(path), layers)
        try:
            return cls(WhisperModel.from_pretrained(os.fspath(source)).encoder, layers)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{source}: neither a folder nor a hub name of a Whisper model ({reason})") from error

    @torch.inference_mode()
    def forward(self, waveform: Tensor) -> Tensor:
        """Return hidden states (L, layers, C) of a waveform (T,) at 16 kHz, L = T / 320 rounded up."""
        mel = self._log_mel(waveform)[None]
        encoder = self.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)  # (1, L, C)
        positions = encoder.embed_positions.weight
        if hidden.shape[1] > len(positions):
            raise InputError(f"Whisper hears at most {len(positions) / 50:g} s, got {len(waveform) / SAMPLE_RATE:.1f}")
        # The table of positions is cut rather than the audio padded to 30 seconds.
        hidden = hidden + positions[: hidden.shape[1]]
        states = []
        for layer in encoder.layers[: max(self.layers)]:
            hidden = layer(hidden, attention_mask=None, layer_head_mask=None)[0]
            states.append(hidden[0])
        return torch.stack([states[layer - 1] for layer in self.layers], dim=1)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, _N_FFT, _MEL_HOP, window=self.window, return_complex=True)[:, :-1]
        mel = (spectrum.abs().square().T @ self.filters).T.clamp_min(1e-10).log10()
        return (torch.maximum(mel, mel.max() - 8) + 4) / 4  # (bands, 2 L)


def _read_encoder(path: Path) -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors, {error}") from error
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    try:
        dim, bands = state["conv1.weight"].shape[:2]
        config = WhisperConfig(
            num_mel_bins=bands,
            d_model=dim,
            encoder_layers=sum(name.endswith(".fc1.weight") for name in state),
            # Every published Whisper has heads of 64 channels.
            encoder_attention_heads=dim // 64,
            encoder_ffn_dim=len(state["layers.0.fc1.weight"]),
            max_source_positions=len(state["embed_positions.weight"]),
        )
        encoder = WhisperEncoder(config)
        encoder.load_state_dict({name: value.float() for name, value in state.items()})
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: not the weights of a Whisper encoder, {error}") from error
    return encoder


class Targets:
    """Whisper's hidden states of a corpus on disk, a file per utterance, each frame normalised.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Return the file of an utterance."""
        return self.folder / f"{name}.npy"

    def write(self, name: str, waveform: np.ndarray, whisper: WhisperStates, offset: int) -> None:
        """Compute and write what Whisper hears in a waveform (T,) from the sample `offset` on."""
        states = whisper(torch.from_numpy(waveform[offset:]).to(whisper.window.device)).cpu()
        states = F.layer_norm(states, states.shape[-1:])
        with atomic_path(self.path(name)) as path:
            np.save(path, states.half().numpy())

    def read(self, name: str, start: int, frames: int) -> Tensor:
        """Return frames (L, layers, C) from `start` on, fewer where the utterance ends."""
        try:
            states = np.load(self.path(name), mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path(name)}: not readable as targets, {error}") from error
        return torch.from_numpy(states[start : start + frames].astype(np.float32))
