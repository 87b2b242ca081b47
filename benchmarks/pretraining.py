"""Seconds and peak memory of a pretraining step, done our way and done the reference implementation's way.

    python benchmarks/pretraining.py                        # on a CPU the size nano, on a GPU the published size
    python benchmarks/pretraining.py --device cpu --threads 2 --rounds 5
    python benchmarks/pretraining.py --device cuda --compile --json pretraining.json

The reference steps the discriminators on the output of one pass through teacher and generator, and the generator on
that of another one, in float32. Ours makes one pass of each per step, and can work in bfloat16. Both run here on the
same modules of this package, so that nothing but the step differs; discriminators have their published width. Weights
are random. Each measurement is a process of its own, since peaks of memory cannot be reset on a CPU, and the ways take
turns, since other work on the machine comes and goes; the least of all times counts. Memory is the peak of the process
on a CPU (with some 400 MiB of libraries) and of PyTorch's tensors on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wavcube_plugins import WavCube, WavCubeConfig
from wavcube_plugins.pretraining.discriminators import Discriminators
from wavcube_plugins.pretraining.losses import (
    STAGE_WEIGHTS,
    LogMel,
    LossWeights,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mel_loss,
)
from wavcube_plugins.pretraining.step import (
    BETAS,
    WEIGHT_DECAY,
    Generator,
    PretrainingStep,
    Schedule,
    StepResult,
    frozen,
)

REFERENCE = "reference's way, float32"
WAYS = {
    REFERENCE: None,
    "ours, float32": None,
    "ours, bfloat16": torch.bfloat16,
    "ours, bfloat16, compiled": torch.bfloat16,
    "ours, bfloat16, checkpointing": torch.bfloat16,
}

# The paper's batches at full size; what a laptop trains with at the size nano.
BATCHES = {"wavcube": {1: (14, 10.0), 2: (8, 10.0)}}
SMALL_BATCH = (4, 1.28)


class ReferenceStep:
    """A step as the reference does it: a pass for the discriminators, and another one for the generator.

    Args:
        generator: A `Generator`.
        discriminators: `Discriminators`.
        weights: Of the losses.
        schedule: Of both learning rates.
    """

    def __init__(self, generator: Generator, discriminators: Discriminators, weights: LossWeights, schedule: Schedule):
        self.generator, self.discriminators = generator, discriminators
        self.weights, self.schedule = weights, schedule
        self.log_mel = LogMel().to(next(generator.parameters()).device)
        self.optimizers = [
            torch.optim.AdamW(
                [parameter for parameter in module.parameters() if parameter.requires_grad],
                betas=BETAS,
                weight_decay=WEIGHT_DECAY,
            )
            for module in (generator, discriminators)
        ]

    def __call__(self, waveforms: Tensor, step: int) -> StepResult:
        weights, losses = self.weights, {}
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.schedule(step)

        with torch.no_grad():
            fake = self.generator(waveforms).reconstruction
        real_results, fake_results = self.discriminators(waveforms), self.discriminators(fake)
        for kind in ("mp", "mrd"):
            losses[f"disc_{kind}"] = discriminator_loss(real_results[kind][0], fake_results[kind][0])
        losses["disc_total"] = weights.adversarial * (losses["disc_mp"] + losses["disc_mrd"])
        self._optimise(1, losses["disc_total"])

        output = self.generator(waveforms)
        losses["mel"] = mel_loss(self.log_mel, waveforms, output.reconstruction)
        losses["semantic"] = sum(value for name, value in output.losses.items() if name.startswith("semantic_"))
        total = weights.mel * losses["mel"] + weights.semantic * losses["semantic"]
        with frozen(self.discriminators):
            real_results, fake_results = self.discriminators(waveforms), self.discriminators(output.reconstruction)
        for kind in ("mp", "mrd"):
            losses[f"gen_{kind}"] = generator_loss(fake_results[kind][0])
            losses[f"fm_{kind}"] = feature_matching_loss(real_results[kind][1], fake_results[kind][1])
            total = total + weights.adversarial * (losses[f"gen_{kind}"] + losses[f"fm_{kind}"])
        losses["gen_total"] = total
        self._optimise(0, total)
        return StepResult({name: value.detach() for name, value in losses.items()}, {}, self.schedule(step), ())

    def _optimise(self, index: int, loss: Tensor) -> None:
        self.optimizers[index].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[index].step()


def build_step(
    way: str, stage: int, config: WavCubeConfig, width: float, device: torch.device, dropout: float | None = None
) -> ReferenceStep | PretrainingStep:
    """Build one of WAYS with random weights and the discriminators in from the first step."""
    if dropout is not None:
        config = dataclasses.replace(config, bottleneck=dataclasses.replace(config.bottleneck, dropout=dropout))
    torch.manual_seed(0)
    model, discriminators = WavCube(config), Discriminators(width)
    teacher = copy.deepcopy(model.wavlm) if stage == 2 else None
    generator = Generator(model, stage, teacher, checkpointing="checkpointing" in way)
    modules = nn.ModuleList([generator, discriminators]).to(device).train()
    weights = dataclasses.replace(STAGE_WEIGHTS[stage], adversarial_from=0)
    schedule = Schedule(1e-5, 0, 1_000_000)
    if way == REFERENCE:
        return ReferenceStep(*modules, weights, schedule)
    if "compiled" in way:
        generator.compile()
    return PretrainingStep(*modules, weights, schedule, autocast=WAYS[way])


def measure(way: str, stage: int, options: argparse.Namespace) -> dict:
    """Return seconds of each step and the peak of memory in bytes; meant to be all that a process does."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    size, seconds = batch_of(stage, options)
    step = build_step(way, stage, WavCubeConfig.preset(options.size), options.width, device)
    waveforms = 0.1 * torch.randn(size, round(seconds * 16000), device=device)

    def once(number: int) -> float:
        begin = time.perf_counter()
        result = step(waveforms, number)
        if not math.isfinite(result.losses["gen_total"].item()):
            raise RuntimeError(f"{way}: the losses are not finite, which says nothing about speed")
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for number in range(options.warmup):
        once(number)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [once(options.warmup + number) for number in range(options.steps)]
    return {"seconds": times, "bytes": peak_memory(device)}


def batch_of(stage: int, options: argparse.Namespace) -> tuple[int, float]:
    size, seconds = BATCHES.get(options.size, {}).get(stage, SMALL_BATCH)
    return options.batch or size, options.seconds or seconds


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def measure_apart(way: str, stage: int, arguments: list[str]) -> dict:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--only", way, str(stage)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{way}, stage {stage}: the measurement failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
    """Return a Markdown table; ratios are to the reference's way of the same stage."""
    lines = [
        "| stage | batch | step | s per step | speed | peak MiB | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        base = next(other for other in rows if other["stage"] == row["stage"] and other["way"] == REFERENCE)
        lines.append(
            f"| {row['stage']} | {row['batch']} x {row['crop']:g} s | {row['way']} | {row['seconds']:.3f} | "
            f"{base['seconds'] / row['seconds']:.2f}x | {row['mib']:,.0f} | {row['mib'] / base['mib']:.2f}x |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["nano", "wavcube", "tiny"], help="default: nano on a CPU, wavcube elsewhere")
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2], choices=[1, 2])
    parser.add_argument("--batch", type=int, help="crops; default: the paper's at full size, else 4")
    parser.add_argument("--seconds", type=float, help="of a crop; default: the paper's at full size, else 1.28")
    parser.add_argument("--width", type=float, default=1.0, help="of the discriminators")
    parser.add_argument("--steps", type=int, default=3, help="that are measured in each process")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--checkpointing", action="store_true", help="measure recomputation as well")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--only", nargs=2, metavar=("WAY", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.size = options.size or ("nano" if options.device == "cpu" else "wavcube")
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # names, memory and waiting below are those of the current one
    if options.only:
        warnings.filterwarnings("ignore")
        print(json.dumps(measure(options.only[0], int(options.only[1]), options)))
        return 0

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {options.threads} threads"
    load = f"; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    print(f"{name}; torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}{load}; {options.size}\n")
    wanted = {"compiled": options.compile, "checkpointing": options.checkpointing}
    ways = [way for way in WAYS if all(given or word not in way for word, given in wanted.items())]
    jobs = [(stage, way) for _ in range(options.rounds) for stage in options.stages for way in ways]
    found: dict[tuple[int, str], list[dict]] = {}
    for stage, way in tqdm(jobs, unit="process", file=sys.stderr, disable=not sys.stderr.isatty()):
        found.setdefault((stage, way), []).append(measure_apart(way, stage, arguments))
    rows = []
    for (stage, way), results in found.items():
        size, seconds = batch_of(stage, options)
        least = min(min(result["seconds"]) for result in results)
        peak = min(result["bytes"] for result in results) / 2**20
        rows.append({"stage": stage, "way": way, "batch": size, "crop": seconds, "seconds": least, "mib": peak})
    print(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": name, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
