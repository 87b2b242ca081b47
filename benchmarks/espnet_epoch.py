"""How much sooner an epoch of ESPnet ends when latents come from disk instead of waveforms.

    python benchmarks/espnet_epoch.py            # a few minutes on one core, 8 GB of memory
    python benchmarks/espnet_epoch.py --only nano

An epoch from waveforms encodes each batch with the frozen WavCube and then trains on the latent; one from disk reads
the latent instead. Both parts are measured for the networks of the recipes' configurations, with random weights, in
seconds of processor time of one thread per second of speech, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from wavcube_plugins import WavCubeConfig
from wavcube_plugins.models.wavcube import WavCube

RECIPES = Path(__file__).parents[1] / "espnet_recipe"
SECONDS, UTTERANCES, LETTERS = 4, 2, 50
RATE = 16000

# What is trained, by which task, on which configuration's latent.
CASES = {
    "nano: TTS tiny": ("nano", "tts", RECIPES / "tts1/conf/tuning/train_mini.yaml"),
    "nano: ASR mini": ("nano", "asr", RECIPES / "asr1/conf/tuning/train_mini.yaml"),
    "full size: ASR conformer": ("wavcube", "asr", RECIPES / "asr1/conf/train.yaml"),
    "full size: TTS base": ("wavcube", "tts", RECIPES / "tts1/conf/train.yaml"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    only = parser.parse_args().only
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| seconds per second of speech | encode | read from disk | train | an epoch from disk is faster by |")
    print("| --- | --- | --- | --- | --- |")
    encoders: dict[str, float] = {}
    for name, (preset, task, config) in CASES.items():
        if only not in name:
            continue
        if preset not in encoders:
            encoders[preset] = encode_time(preset)
        dim = WavCubeConfig.preset(preset).bottleneck.latent_dim
        read, train = read_time(dim), train_time(task, config, dim)
        factor = (encoders[preset] + train) / (read + train)
        print(f"| {name} | {encoders[preset]:.4f} | {read:.5f} | {train:.4f} | {factor:.2f} x |", flush=True)


def encode_time(preset: str) -> float:
    config = WavCubeConfig.preset(preset)
    model = WavCube(config).eval().requires_grad_(False)
    model.decoder = model.restorer = None
    waveforms = torch.randn(UTTERANCES, SECONDS * RATE)
    with torch.no_grad():
        return measure(lambda: model.encode(waveforms))


def read_time(dim: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latent.npy"
        np.save(path, np.zeros((50 * SECONDS, dim), np.float16))
        return measure(lambda: [np.load(path).astype(np.float32) for _ in range(UTTERANCES)])


def train_time(task: str, config: Path, dim: int) -> float:
    from wavcube_plugins.espnet import register

    register()
    letters = ["<blank>", "<unk>", *map(chr, range(97, 123)), "<sos/eos>"]
    if task == "tts":
        from espnet2.tasks.tts import TTSTask as Task

        more = ["--odim", str(dim), "--normalize", "none"]
    else:
        from espnet2.tasks.asr import ASRTask as Task

        more = ["--input_size", str(dim)]
    arguments = Task.get_parser().parse_args(["--config", str(config), *more])
    arguments.token_list = letters
    model = Task.build_model(arguments).train()
    batch = {
        "speech": torch.randn(UTTERANCES, 50 * SECONDS, dim),
        "speech_lengths": torch.full((UTTERANCES,), 50 * SECONDS),
        "text": torch.randint(2, len(letters) - 1, (UTTERANCES, LETTERS)),
        "text_lengths": torch.full((UTTERANCES,), LETTERS),
    }

    def step() -> None:
        model.zero_grad()
        model(**{name: value.clone() for name, value in batch.items()})[0].backward()

    return measure(step)


def measure(work, repeats: int = 3) -> float:
    """Return the least processor time of several runs, per second of speech."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times) / (UTTERANCES * SECONDS)


if __name__ == "__main__":
    sys.exit(main())
