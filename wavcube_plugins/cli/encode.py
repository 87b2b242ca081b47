"""`wavcube encode`: audio to latents."""

from __future__ import annotations

import argparse
from pathlib import Path

from wavcube_plugins.cli.common import add_command, add_files, add_model, device_of, load
from wavcube_plugins.cli.jobs import Watch, plan, readable, run_jobs
from wavcube_plugins.errors import InputError


def register(commands) -> None:
    command = add_command(
        commands,
        "encode",
        run,
        summary="audio to latents (.npy)",
        description="Encode audio into latents: one .npy file of shape (frames, channels) per recording.",
        example="wavcube encode speech.wav -o speech.npy\nwavcube encode recordings/ -o latents/",
    )
    add_files(command, "audio files, or folders of them", "a .npy file or a folder; default: FILE.npy beside each")
    command.add_argument("--float16", action="store_true", help="write float16 instead of float32: half the size")
    add_model(command, window=True)


def run(arguments: argparse.Namespace) -> int:
    planned = plan(arguments, ".npy", from_audio=True)
    model = load(arguments)

    import numpy as np
    import torch

    from wavcube_plugins.audio import read_audio
    from wavcube_plugins.files import save_array

    def encode(source: Path, destination: Path, watch: Watch) -> str:
        with readable(source) as path:
            waveform = read_audio(path, model.sample_rate).to(device_of(model))
        seconds = len(waveform) / model.sample_rate
        with torch.inference_mode(), watch(seconds, model.wavlm, model.compressor):
            latent, _ = model.encode(waveform[None], window_seconds=arguments.window)
        values = latent[0].float().cpu().numpy().astype(np.float16 if arguments.float16 else np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{source}: the latent has NaN or infinite values; try --dtype float32")
        save_array(destination, values)
        return f"{values.shape[0]} frames of {values.shape[1]}, {values.dtype}, {seconds:.2f} s"

    return run_jobs("encode", planned, model, encode)
