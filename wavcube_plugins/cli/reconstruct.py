"""`wavcube reconstruct`: audio to audio, through the latent."""

from __future__ import annotations

import argparse
from pathlib import Path

from wavcube_plugins.cli.common import add_command, add_files, add_model, device_of, load
from wavcube_plugins.cli.jobs import Watch, plan, readable, run_jobs


def register(commands) -> None:
    command = add_command(
        commands,
        "reconstruct",
        run,
        summary="audio to audio, through the latent",
        description="Encode audio and decode it again, to hear what the latent preserves.",
        example="wavcube reconstruct speech.wav -o reconstructed.wav",
    )
    add_files(
        command, "audio files, or folders of them", "an audio file or a folder; default: FILE.wavcube.wav beside each"
    )
    add_model(command, window=True)


def run(arguments: argparse.Namespace) -> int:
    planned = plan(arguments, ".wav", from_audio=True)
    model = load(arguments)

    import torch

    from wavcube_plugins.audio import read_audio, write_audio

    def reconstruct(source: Path, destination: Path, watch: Watch) -> str:
        with readable(source) as path:
            waveform = read_audio(path, model.sample_rate).to(device_of(model))
        seconds = len(waveform) / model.sample_rate
        with torch.inference_mode(), watch(seconds, model.wavlm, model.compressor, model.decoder):
            waveforms, _ = model.reconstruct(waveform[None], window_seconds=arguments.window)
        write_audio(destination, waveforms[0], model.sample_rate)
        return f"{seconds:.2f} s at {model.sample_rate} Hz"

    return run_jobs("reconstruct", planned, model, reconstruct)
