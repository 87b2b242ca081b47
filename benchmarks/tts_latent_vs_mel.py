r"""Does a TTS model learn faster on the WavCube latent than on log-mel? The paper's claim, in miniature.

    python benchmarks/tts_latent_vs_mel.py --out results/latent_vs_mel
    python benchmarks/tts_latent_vs_mel.py --out results/seen --seen --train 6 --speakers 2 --steps 240 --every 40 \
        --rate 2e-3 --warmup 20 --seeds 0 --text-layout filler

The same flow-matching network (preset tiny, text stretched over the frames) is trained on the same synthesised
sentences in the same order with the same seeds, once on latents of WavCube-nano and once on log-mel spectrograms of 100
bands, both at 50 frames per second and normalised per channel. Every evaluation measures

* the validation loss: mean squared error of the predicted flow on held-out utterances with fixed noise. The flow has
  variance 2 per channel in both cases, so an untrained model has a loss of 2;
* the phone error of new sentences, by the project's own recogniser. They are spoken without a prompt, because a model
  trained on single sentences cannot continue one. Latents are decoded by nano, spectrograms by Griffin-Lim. With
  --seen both are measured on the training sentences at their own lengths; a few of them are overfitted in minutes.

Writes `curves.json`, `loss.png` and `phone_error.png` to --out. A stopped run resumes from its last evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from wavcube_plugins import load_model
from wavcube_plugins.audio import read_audio
from wavcube_plugins.evaluation.plots import save_curves
from wavcube_plugins.evaluation.recogniser import PhoneRecogniser, load_recogniser
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.mel import BANDS, mel_spectrogram, mel_to_waveform
from wavcube_plugins.synthetic.mini import make_mini, read_mini
from wavcube_plugins.tts import FlowConfig, FlowMatching, LatentNorm

CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
NAMES = ("latent", "mel")


@dataclass(frozen=True)
class Settings:
    """What is compared, and for how long."""

    steps: int = 2000
    every: int = 250
    seeds: tuple[int, ...] = (0, 1)
    train: int = 300
    valid: int = 24
    test: int = 12
    speakers: int = 4
    frames: int = 1200
    rate: float = 1e-3
    warmup: int = 200
    sampling_steps: int = 12
    precision: str = "bf16"
    seen: bool = False
    text_layout: str = "stretched"


@dataclass
class Representation:
    """One way to write speech: to features (L, C), and back to a waveform (T,)."""

    name: str
    channels: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass
class Item:
    """An utterance: normalised features (L, C), token ids (N,), and what was said."""

    features: Tensor
    tokens: Tensor
    record: dict


def representations() -> list[Representation]:
    model = load_model("nano")
    return [
        Representation(
            "latent",
            model.latent_dim,
            lambda waveform: model.encode(waveform[None])[0][0],
            lambda features: model.decode(features[None])[0][0],
        ),
        Representation("mel", BANDS, mel_spectrogram, mel_to_waveform),
    ]


def prepare(
    representation: Representation, folder: Path, settings: Settings
) -> tuple[LatentNorm, dict[str, list[Item]]]:
    """Return the normalisation, and the items of every split."""
    sizes = {"train": settings.train, "valid": settings.valid, "test": settings.test}
    parts, norm = {}, LatentNorm(representation.channels)
    with torch.no_grad():
        for split, size in sizes.items():
            records = read_mini(folder, split)[:size]
            waveforms = (read_audio(folder / record["path"]) for record in records)
            bar = tqdm(waveforms, desc=f"{representation.name}: {split}", total=size, unit="utterance")
            features = [representation.encode(waveform) for waveform in bar]
            if split == "train":
                norm.fit(features)
            parts[split] = [
                Item(norm(one[None])[0], tokenise(record["text"]), record)
                for one, record in zip(features, records, strict=True)
            ]
    return norm, parts


def tokenise(text: str) -> Tensor:
    return torch.tensor([CHARACTERS.index(character) for character in text])


def stack(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True), torch.tensor([len(part) for part in parts])


def batches(items: Sequence[Item], frames: int, order: random.Random) -> list[list[Item]]:
    """Return batches of at most so many frames with padding, utterances of like length together, in random order."""
    found: list[list[Item]] = [[]]
    for item in sorted(items, key=lambda item: len(item.features)):
        if found[-1] and (len(found[-1]) + 1) * len(item.features) > frames:
            found.append([])
        found[-1].append(item)
    order.shuffle(found)
    return found


def evaluate(
    model: FlowMatching,
    representation: Representation,
    norm: LatentNorm,
    parts: dict[str, list[Item]],
    recogniser: PhoneRecogniser,
    settings: Settings,
) -> tuple[float, float]:
    """Return validation loss and phone error rate."""
    model.eval()
    total = frames = 0.0
    with torch.no_grad(), autocast(settings):
        for batch in batches(parts["train" if settings.seen else "valid"], settings.frames, random.Random(0)):
            out = model(*stack([item.features for item in batch]), *stack([item.tokens for item in batch]))
            total, frames = total + float(out.loss) * int(out.frames.sum()), frames + int(out.frames.sum())
    pairs = []
    for item in parts["train" if settings.seen else "test"]:
        wanted = len(item.features) if settings.seen else round(model.tokens_to_frames(len(item.tokens)))
        latent, _ = model.sample(item.tokens[None], None, [wanted], steps=settings.sampling_steps, seeds=0)
        with torch.no_grad():
            waveform = representation.decode(norm.inverse(latent)[0])
        pairs.append((waveform, phones(item)))
    return total / frames, recogniser.error_rate(pairs)


def phones(item: Item) -> list[str]:
    return [label for label, _, _ in item.record["phones"]]


def autocast(settings: Settings):
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16")


def run(settings: Settings, out: Path, recogniser: PhoneRecogniser | None = None) -> dict[str, dict]:
    """Train and evaluate everything that is not done yet, and return the curves.

    Args:
        settings: The comparison.
        out: Where everything goes.
        recogniser: For the phone error; the default one if not given.
    """
    make_mini(
        out / "speech",
        "read",
        {"train": settings.train, "valid": settings.valid, "test": settings.test},
        speakers=settings.speakers,
    )
    recogniser = load_recogniser() if recogniser is None else recogniser
    curves: dict[str, dict] = {}
    for representation in representations():
        norm, parts = prepare(representation, out / "speech", settings)
        with torch.no_grad():
            copies = [
                (representation.decode(norm.inverse(item.features[None])[0]), phones(item))
                for item in parts["train" if settings.seen else "test"]
            ]
        found = curves[representation.name] = {"copy": recogniser.error_rate(copies), "seeds": {}}
        for seed in settings.seeds:
            found["seeds"][seed] = train(representation, norm, parts, recogniser, settings, seed, out)
            report(curves, out)
    return curves


def train(
    representation: Representation,
    norm: LatentNorm,
    parts: dict[str, list[Item]],
    recogniser: PhoneRecogniser,
    settings: Settings,
    seed: int,
    out: Path,
) -> list[tuple[int, float, float]]:
    """Return (step, validation loss, phone error rate) of every evaluation."""
    torch.manual_seed(seed)
    config = dataclasses.replace(FlowConfig.preset("tiny"), text_layout=settings.text_layout)
    model = FlowMatching(config, len(CHARACTERS), representation.channels)
    optimizer = torch.optim.AdamW(model.network.parameters(), settings.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / settings.warmup, (settings.steps - step) / max(1, settings.steps - settings.warmup)
        ),
    )
    order, queue, points, step = random.Random(seed), [], [], 0
    path = out / f"{representation.name}_{seed}.pt"
    if path.is_file():
        state = torch.load(path, weights_only=False)
        if state["settings"] != settings:
            raise SystemExit(f"{out} belongs to other settings; take another --out")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        points, step = state["points"], state["step"]
        order.setstate(state["order"])
        queue = [[parts["train"][index] for index in batch] for batch in state["queue"]]
        torch.set_rng_state(state["random"])
    places = {id(item): index for index, item in enumerate(parts["train"])}
    with tqdm(total=settings.steps, initial=step, desc=f"{representation.name}, seed {seed}", unit="step") as bar:
        while step < settings.steps:
            model.train()
            if not queue:
                queue = batches(parts["train"], settings.frames, order)
            batch = queue.pop()
            with autocast(settings):
                out_of = model(*stack([item.features for item in batch]), *stack([item.tokens for item in batch]))
            out_of.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            bar.update()
            if step % settings.every == 0 or step == settings.steps:
                loss, error = evaluate(model, representation, norm, parts, recogniser, settings)
                points.append((step, loss, error))
                bar.write(f"{representation.name}, seed {seed}, step {step}: loss {loss:.3f}, phone error {error:.1%}")
                state = {
                    "settings": settings,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "points": points,
                    "step": step,
                    "order": order.getstate(),
                    "queue": [[places[id(item)] for item in waiting] for waiting in queue],
                    "random": torch.get_rng_state(),
                }
                with atomic_path(path) as temporary:
                    torch.save(state, temporary)
    return points


def report(curves: dict[str, dict], out: Path) -> None:
    """Write the numbers and the pictures."""
    with atomic_path(out / "curves.json") as path:
        path.write_text(json.dumps(curves, indent=1))
    for file, column, label in (("loss.png", 1, "validation loss"), ("phone_error.png", 2, "phone error rate")):
        lines = {
            f"{name}, seed {seed}": [(point[0], point[column]) for point in points]
            for name, found in curves.items()
            for seed, points in found["seeds"].items()
        }
        save_curves(out / file, lines, ylabel=label, title="Flow-matching TTS on latents and on log-mel")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--every", type=int, default=Settings.every, help="steps between evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Settings.seeds))
    parser.add_argument("--train", type=int, default=Settings.train, help="training utterances")
    parser.add_argument("--speakers", type=int, default=Settings.speakers)
    parser.add_argument("--test", type=int, default=Settings.test, help="sentences to synthesise")
    parser.add_argument("--frames", type=int, default=Settings.frames, help="frames of a batch")
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate")
    parser.add_argument(
        "--text-layout", choices=("stretched", "filler"), default=Settings.text_layout, help="filler is F5-TTS's own"
    )
    parser.add_argument("--precision", choices=("bf16", "float32"), default=Settings.precision)
    parser.add_argument("--seen", action="store_true", help="measure on the training sentences, not on new ones")
    parser.add_argument("--warmup", type=int, default=Settings.warmup, help="steps until the learning rate is reached")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    curves = run(Settings(**{**options, "seeds": tuple(options["seeds"])}), out)
    print(f"{'':16}{'step':>6}{'loss':>8}{'phone error':>13}")
    for name, found in curves.items():
        print(f"{name + ', copied':16}{'':14}{found['copy']:13.1%}")
        for seed, points in found["seeds"].items():
            for step, loss, error in points:
                print(f"{f'{name}, seed {seed}':16}{step:6}{loss:8.3f}{error:13.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
