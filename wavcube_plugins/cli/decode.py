"""`wavcube decode`: latents to audio."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.cli.common import add_command, add_files, add_model, device_of, load
from wavcube_plugins.cli.jobs import Watch, plan, readable, run_jobs
from wavcube_plugins.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def register(commands) -> None:
    command = add_command(
        commands,
        "decode",
        run,
        summary="latents (.npy) to audio",
        description="Decode latents of shape (frames, channels) into audio: 20 ms per frame (40 ms for a 25 Hz model).",
        example="wavcube decode speech.npy -o speech.wav",
    )
    add_files(
        command, ".npy files, or folders of them", "an audio file or a folder; default: FILE.wavcube.wav beside each"
    )
    add_model(command, window=True)


def run(arguments: argparse.Namespace) -> int:
    planned = plan(arguments, ".wav", from_audio=False)
    model = load(arguments)

    import torch

    from wavcube_plugins.audio import write_audio

    def decode(source: Path, destination: Path, watch: Watch) -> str:
        with readable(source) as path:
            latent = torch.from_numpy(_read_latent(path, model.latent_dim)).to(device_of(model))
        seconds = len(latent) / model.frame_rate
        with torch.inference_mode(), watch(seconds, model.decoder):
            waveforms, _ = model.decode(latent[None], window_seconds=arguments.window)
        write_audio(destination, waveforms[0], model.sample_rate)
        return f"{seconds:.2f} s at {model.sample_rate} Hz"

    return run_jobs("decode", planned, model, decode)


def _read_latent(path: Path, latent_dim: int) -> np.ndarray:
    """Read a latent (L, D) from a .npy file as float32.

    Raises:
        InputError: not a .npy file, not a latent of this model, or with values that are not finite.
    """
    from tokenize import TokenError
    from zipfile import BadZipFile

    import numpy as np

    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, BadZipFile, SyntaxError, TokenError) as error:
        raise InputError(f"{path}: not a readable .npy file") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: an .npz archive; expected a .npy file with one latent")
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"{path}: expected a latent of shape (frames, {latent_dim}), found {values.shape}")
    if values.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise InputError(f"{path}: expected a latent of floating point numbers, found {values.dtype}")
    if values.shape[1] != latent_dim:
        raise InputError(
            f"{path}: has {values.shape[1]} channels, the model's latent has {latent_dim}; "
            "choose the --model that made it"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{path}: has values that are NaN or infinite")
    return values.astype(np.float32)
