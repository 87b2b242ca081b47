#!/usr/bin/env python
"""Trains WavCube with SpeechBrain: `python train.py stage1.yaml --train SPEECH`, then the same with stage2.yaml.

On several GPUs: `torchrun --standalone --nproc_per_node=8 -- train.py …`. Everything in the YAML file can be given on
the command line, and SpeechBrain's own options too (`--device cpu`, `--precision bf16`). What is computed lies in
`wavcube_plugins.pretraining`; here SpeechBrain provides the loop, checkpoints, precision and several processes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

try:
    import speechbrain as sb
except ImportError:
    sys.exit("train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import (
    MainProcessContext,
    ddp_init_group,
    get_rank,
    if_main_process,
    main_process_only,
)
from torch.utils.data import DataLoader
from tqdm import tqdm

from wavcube_plugins.pretraining import data, runs
from wavcube_plugins.pretraining.losses import STAGE_WEIGHTS
from wavcube_plugins.pretraining.reports import Report
from wavcube_plugins.pretraining.step import Generator, NonFiniteError, PretrainingStep, Schedule
from wavcube_plugins.speechbrain.recipes.brain import AtomicCheckpointer
from wavcube_plugins.speechbrain.recipes.command import check_run_options, complain, parse_command_line
from wavcube_plugins.speechbrain.recipes.data import DataError as UnfitError

USAGE = "python train.py stage1.yaml --train SPEECH [--preset nano] [--device cpu] [--precision bf16]"

# SpeechBrain's run options that would do nothing here, and what to use instead.
WITHOUT_EFFECT = {
    "max_grad_norm": "use --max_gradient_norm",
    "grad_accumulation_factor": "use a larger --batch_size, or more processes",
    "skip_nonfinite_grads": "it is always done",
    "nonfinite_patience": "use --most_skipped",
    "optimizer_step_limit": "use --stop_at",
    "remove_vector_weight_decay": "use --weight_decay",
    "test_only": "use `wavcube reconstruct` or `wavcube compare`",
    "data_parallel_backend": "start it with torchrun",
    "jit": "use --compile",
    "jit_module_keys": "use --compile",
    "compile_module_keys": "the generator is compiled, by --compile",
    "eval_precision": "validation has the precision of training, --precision",
    "log_config": "logs go to log.txt in the --output_folder",
    "auto_mix_prec": "use --precision bf16",
    "bfloat16_mix_prec": "use --precision bf16",
}

# What settings must be: whole numbers and others with the least value, switches, and text; and which may be null.
WHOLE = {
    "batch_size": 1, "num_workers": 0, "valid_size": 1, "total_steps": 1, "stop_at": 1, "warmup_steps": 0, "keep": 1,
    "validate_every": 1, "log_every": 1, "examples": 0, "most_skipped": 1, "adversarial_from": 0, "seed": 0, "stage": 1,
    "latent_dim": 1, "frame_rate": 1, "wavlm_layer": -1,
}  # fmt: skip
NUMBERS = {
    "crop_seconds": 0.1, "valid_seconds": 0.1, "discriminator_width": 0.001, "lr": 0.0, "weight_decay": 0.0,
    "beta1": 0.0, "beta2": 0.0, "mel_weight": 0.0, "adversarial_weight": 0.0, "semantic_weight": 0.0, "kl_weight": 0.0,
    "phase_weight": 0.0, "max_gradient_norm": 1e-6, "ckpt_interval_minutes": 0, "discriminator_lr": 0.0,
    "ema_decay": 0.0, "time_limit": 0.001,
}  # fmt: skip
FLAGS = ("disturb", "init_adapters", "compile", "checkpointing", "dnsmos", "voice_similarity", "utmos")
TEXTS = ("output_folder", "train", "valid", "root", "size", "backbone", "start", "bottleneck", "wer")
OPTIONAL = (
    "valid", "root", "backbone", "start", "latent_dim", "mel_weight", "adversarial_weight", "semantic_weight",
    "kl_weight", "phase_weight", "adversarial_from", "max_gradient_norm", "stop_at", "discriminator_lr", "ema_decay",
    "train_weights", "wer", "time_limit",
)  # fmt: skip

NEVER = "never"

# What a run keeps from its beginning to its end.
FIXED = (
    "stage", "size", "backbone", "start", "init_adapters", "bottleneck", "latent_dim", "frame_rate", "wavlm_layer",
    "discriminator_width", "seed",
)  # fmt: skip

# What `--start` has settled already.
OF_THE_START = ("size", "bottleneck", "latent_dim", "frame_rate", "wavlm_layer", "init_adapters")

# What may change in a run without a word: nothing that is learnt depends on it.
OF_NO_CONSEQUENCE = {
    "output_folder", "preset", "num_workers", "stop_at", "most_skipped", "compile", "checkpointing", "validate_every",
    "keep", "ckpt_interval_minutes", "log_every", "examples", "dnsmos", "voice_similarity",
    "utmos", "wer", "valid_seconds",
}  # fmt: skip


class PretrainingBrain(sb.Brain):
    """SpeechBrain's loop around `PretrainingStep`; an epoch is the steps from one validation to the next."""

    def __init__(self, start: runs.Start, train: data.Crops, valid: data.Beginnings, settings: dict, run_opts: dict):
        self.settings, self.stage_number = settings, settings["stage"]
        self.start = start
        teacher = start.teacher if self.stage_number == 2 else None
        generator = Generator(start.model, self.stage_number, teacher, checkpointing=settings["checkpointing"])
        self.folder = Path(settings["output_folder"])
        checkpointer = AtomicCheckpointer(self.folder / runs.SAVE_NAME)
        modules = {"generator": generator, "discriminators": start.discriminators}
        super().__init__(modules, hparams=settings, run_opts=run_opts, checkpointer=checkpointer)
        if self.compile:
            # In place, the generator alone; SpeechBrain would wrap all modules once more.
            generator.compile(
                mode=run_opts.compile_mode,
                fullgraph=run_opts.compile_using_fullgraph,
                dynamic=run_opts.compile_using_dynamic_shape_tracing,
            )
            self.compile = False
        self.world_size = torch.distributed.get_world_size() if self.distributed_launch else 1
        self.total = settings["stop_at"] or settings["total_steps"]
        self.every = settings["validate_every"]
        self.done = 0
        self.clock = Clock(settings["time_limit"])
        if settings["time_limit"] is not None and self.world_size > 1:
            raise ValueError("a time_limit holds for one process; with several, give --total_steps")
        self.sampler = data.StepSampler(
            len(train), settings["batch_size"], settings["seed"], get_rank() or 0, self.world_size, train.mixture
        )
        self.valid_size = len(valid)
        workers = settings["num_workers"]
        collate = data.collate
        if settings["disturb"]:
            collate = partial(data.collate_disturbed, sample_rate=start.model.sample_rate)
        self.train_loader = DataLoader(
            train,
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.device_type == "cuda",
        )
        share = [(index, 0) for index in range(get_rank() or 0, len(valid), self.world_size)]
        self.valid_loader = DataLoader(
            valid,
            sampler=share,
            batch_size=settings["batch_size"],
            collate_fn=data.collate,
            num_workers=min(workers, 4),
        )
        self.report = Report(self.folder, start.model.sample_rate, settings) if if_main_process() else None
        self.progress: tqdm | None = None
        self.skipped: dict[str, str] = {}
        checkpointer.add_recoverable("model", _Recoverable(self._weights, self._load_weights))
        checkpointer.add_recoverable("discriminators", start.discriminators)
        if self.clock.limit is not None:
            checkpointer.add_recoverable("clock", _Recoverable(self.clock.state_dict, self.clock.load_state_dict))

    def train(self) -> None:
        """Train to the end, going on from the last checkpoint if there is one."""
        try:
            self.fit(self._epochs(), self.train_loader, self.valid_loader, progressbar=False)
        finally:
            if self.progress is not None:
                self.progress.close()  # what is said next gets a line of its own
            if self.report:
                self.report.close()

    def on_fit_start(self):
        super().on_fit_start()
        checkpoint = self.checkpointer.find_checkpoint()
        if checkpoint is not None:
            self.done = checkpoint.meta["step"]
        if self.clock.share >= 1:
            self.total = self.done

    def _epochs(self) -> Iterator[int]:
        # Counted in steps, not in epochs, so that a resumed run may validate more often or end later than before. An
        # epoch that was begun ends with its validation, even if no step of it is left.
        number = 0
        while self.done < self.total or self.step:
            number += 1
            yield number

    def init_optimizers(self):
        settings = self.settings
        own = STAGE_WEIGHTS[self.stage_number]
        given = {
            "mel": settings["mel_weight"],
            "adversarial": settings["adversarial_weight"],
            "semantic": settings["semantic_weight"],
            "adversarial_from": math.inf if settings["adversarial_from"] == NEVER else settings["adversarial_from"],
            "kl": settings["kl_weight"],
            "phase": settings["phase_weight"],
        }
        weights = type(own)(**{name: getattr(own, name) if value is None else value for name, value in given.items()})
        self.pretraining = PretrainingStep(
            self.modules.generator,
            self.modules.discriminators,
            weights,
            Schedule(settings["lr"], settings["warmup_steps"], settings["total_steps"]),
            seed=settings["seed"],
            rank=get_rank() or 0,
            autocast={"fp32": None, "bf16": torch.bfloat16}[self.precision],
            max_gradient_norm=settings["max_gradient_norm"],
            most_skipped=settings["most_skipped"],
            sample_rate=self.start.model.sample_rate,
            mel_windows=settings["mel_windows"],
            betas=(settings["beta1"], settings["beta2"]),
            weight_decay=settings["weight_decay"],
            discriminator_schedule=self._discriminator_schedule(weights.adversarial_from),
            ema_decay=settings["ema_decay"],
        )
        if self.pretraining.average is not None:
            average = self.pretraining.average
            self.checkpointer.add_recoverable("average", _Recoverable(average.state_dict, average.load_state_dict))
        state = _Recoverable(self.pretraining.state_dict, self.pretraining.load_state_dict)
        self.checkpointer.add_recoverable("training", state)

    def _discriminator_schedule(self, begin: float) -> Schedule | None:
        settings = self.settings
        if settings["discriminator_lr"] is None or not math.isfinite(begin):
            return None
        steps = max(1, settings["total_steps"] - int(begin))
        return Schedule(settings["discriminator_lr"], min(settings["warmup_steps"], steps // 10), steps)

    def on_stage_start(self, stage, epoch=None):
        if stage == sb.Stage.TRAIN:
            begun = self.done - self.step
            self.sampler.steps = range(self.done, min((begun // self.every + 1) * self.every, self.total))
            self.progress = tqdm(
                total=self.total,
                initial=self.done,
                desc=f"stage {self.stage_number}",
                unit="step",
                dynamic_ncols=True,
                disable=not if_main_process() or self.noprogressbar,
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
            self.last_log = (time.monotonic(), self.done)
            self.clock.start()
        else:
            self.sums, self.count, self.examples = {}, 0, []

    def fit_batch(self, batch):
        step = self.done
        self._note_skipped(batch.skipped)
        result = self.pretraining(batch.waveforms, step, self.clock.scheduled(step, self.settings["total_steps"]))
        self.done = step + 1
        if self.clock.share >= 1:
            # What was read ahead is still trained on, at a learning rate of nothing.
            self.sampler.stopped, self.total = True, self.done
        self.progress.update()
        if result.skipped:
            logging.getLogger(__name__).warning(
                "step %d: the gradients of %s were not finite; the step was skipped (%d so far)",
                step,
                " and ".join(result.skipped),
                self.pretraining.skipped,
            )
        if self.report and (step + 1) % self.settings["log_every"] == 0:
            values = {name: float(value) for name, value in result.losses.items()}
            self.progress.set_postfix(self.report.shorten(values))
            now, (then, before) = time.monotonic(), self.last_log
            values |= {f"gradient norm/{name}": float(value) for name, value in result.gradient_norms.items()}
            values |= {
                "learning rate": result.learning_rate,
                "epoch": self.sampler.epoch(step + 1),
                "skipped steps": self.pretraining.skipped,
                "seconds per step": (now - then) / max(1, step + 1 - before),
            }
            self.report.training(step + 1, values)
            self.last_log = (now, step + 1)
        return result.losses["gen_total"]

    def evaluate_batch(self, batch, stage):
        self._note_skipped(batch.skipped)
        losses, reconstruction = self.pretraining.validate(batch.waveforms)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * len(batch)
        self.count += len(batch)
        if self.report and len(self.examples) < self.settings["examples"]:
            pairs = zip(batch.ids, batch.waveforms, reconstruction.float().cpu(), strict=True)
            self.examples += list(pairs)[: self.settings["examples"] - len(self.examples)]
        return losses["mel"]

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.progress.close()
            self.clock.stop()
            return
        scores = self._averages()
        if self.report:
            with MainProcessContext():  # metrics that SpeechBrain loads must not wait for the other processes
                self.report.validation(self.done, scores, self.examples)
        scores = {name: value for name, value in scores.items() if math.isfinite(value)}
        self.checkpointer.save_and_keep_only(
            meta={"step": self.done, **scores}, num_to_keep=self.settings["keep"], importance_keys=[], min_keys=["mel"]
        )

    def _save_intra_epoch_ckpt(self):
        flag = sb.core.INTRA_EPOCH_CKPT_FLAG
        self.checkpointer.save_and_keep_only(
            end_of_epoch=False,
            num_to_keep=1,
            importance_keys=[],  # SpeechBrain's default is one list that grows with every call
            ckpt_predicate=lambda checkpoint: flag in checkpoint.meta,
            meta={flag: True, "step": self.done},
            verbosity=logging.DEBUG,
        )

    def _averages(self) -> dict[str, float]:
        names = sorted(self.sums) if self.sums else []
        if self.world_size > 1:
            # A process may have had nothing to validate.
            shared = [None] * self.world_size
            torch.distributed.all_gather_object(shared, (self.sums, self.count))
            names = sorted({name for sums, _ in shared for name in sums})
            self.sums = {name: sum(sums.get(name, 0.0) for sums, _ in shared) for name in names}
            self.count = sum(count for _, count in shared)
        return {name: self.sums[name] / self.count for name in names}

    def all_skipped(self) -> set[str]:
        """Return the utterances that could not be used, of all processes."""
        names = [list(self.skipped)]
        if self.world_size > 1:
            names = [None] * self.world_size
            torch.distributed.all_gather_object(names, list(self.skipped))
        return set().union(*names)

    def _note_skipped(self, skipped: list[data.Skipped]) -> None:
        new = {entry.id: entry.reason for entry in skipped if entry.id not in self.skipped}
        if not new:
            return
        self.skipped |= new
        with open(self.folder / f"skipped.{get_rank() or 0}.tsv", "a", encoding="utf-8", errors="replace") as file:
            for name, reason in new.items():
                logging.getLogger(__name__).warning("skipped %s: %s", name, reason)
                file.write(f"{name}\t{reason}\n")

    def _weights(self) -> dict:
        return runs.trained_weights(self.start.model, self.stage_number)

    def _load_weights(self, state: dict) -> None:
        runs.load_weights(self.start.model, state, self.stage_number)


class Clock:
    """Counts the time that a run has trained, over all of its starts; without a limit it changes nothing.

    Args:
        limit: In minutes, or None.
    """

    now = staticmethod(time.monotonic)

    def __init__(self, limit: float | None):
        self.limit = limit
        self._before, self._started = 0.0, None

    def start(self) -> None:
        """Go on counting."""
        self._started = self.now()

    def stop(self) -> None:
        """Stop counting, as while a validation runs."""
        self._before, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        """What was counted so far."""
        return self._before + (0.0 if self._started is None else self.now() - self._started)

    @property
    def share(self) -> float:
        """Which part of the limit is used up, 0 without one."""
        return 0.0 if self.limit is None else self.seconds / (60 * self.limit)

    def scheduled(self, step: int, total: int) -> int | None:
        """Return the step at which a schedule of so many steps stands by the clock, None without a limit."""
        return None if self.limit is None else max(step, min(total, int(self.share * total)))

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._before, self._started = state["seconds"], None


@register_checkpoint_hooks
class _Recoverable:
    """A part of the training state for SpeechBrain's checkpointer: a pair of functions."""

    def __init__(self, get, put):
        self.get, self.put = get, put

    @mark_as_saver
    def save(self, path):
        torch.save(self.get(), path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.put(torch.load(path, map_location="cpu", weights_only=True))


def read_settings(arguments: list[str]) -> tuple[dict, dict, str, dict]:
    """Return the settings, SpeechBrain's run options, the path of the YAML file, and what was set beside it.

    Raises:
        ValueError: one of them is unknown, or has a value that cannot be used.
    """
    path, run_opts, parsed = parse_command_line(arguments, f"stage1.yaml ({USAGE})")
    _check_options(run_opts)
    text = path.read_text(encoding="utf-8")
    try:
        settings = load_hyperpyyaml(text)
        presets, preset = settings["presets"], parsed.get("preset", settings["preset"])
    except Exception as error:  # a file of another kind makes the parser fail in ways that nothing lists
        reason = f"it has no setting {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise ValueError(f"{path}: not a file of settings for train.py, {reason}") from error
    unknown = [name for name in parsed if name not in settings]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r}; {path} lists and explains them all")
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; {path} has {', '.join(presets)}")
    overrides = {**presets[preset], **parsed}
    settings = load_hyperpyyaml(text, overrides)
    settings.pop("presets")
    given = [name for name in OF_THE_START if name in parsed]
    if settings["start"] is not None and given:
        raise ValueError(f"--{given[0]} has no effect on what --start brings with it; leave out one of the two")
    if settings["train"] is None:
        raise ValueError("name the speech to train on: --train FOLDER_OR_MANIFEST")
    _check_settings(settings)
    if run_opts.ckpt_interval_steps > 0 and "ckpt_interval_minutes" not in run_opts.overridden_args:
        settings["ckpt_interval_minutes"] = 0
    return settings, run_opts, path, overrides


def _check_options(run_opts) -> None:
    check_run_options(run_opts, WITHOUT_EFFECT)
    if run_opts.precision == "fp16":
        raise ValueError("--precision fp16 is not supported; use bf16, which has the range that losses need")


def _check_settings(settings: dict) -> None:
    for name, value in settings.items():
        if (value is None and name in OPTIONAL) or (value == NEVER and name == "adversarial_from"):
            continue
        if name in WHOLE:
            least, expected = WHOLE[name], "a whole number"
            good = isinstance(value, int) and not isinstance(value, bool)
        elif name in NUMBERS:
            least, expected = NUMBERS[name], "a number"
            with contextlib.suppress(ValueError):  # for YAML, 1e-4 is text
                value = settings[name] = float(value) if isinstance(value, str) else value
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        elif name in FLAGS:
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
            continue
        elif name in TEXTS:
            several = name in ("train", "valid") and isinstance(value, list) and value
            if not all(isinstance(part, str) and part for part in (value if several else [value])):
                raise ValueError(f"{name} must be text, got {value!r}")
            continue
        else:
            continue
        if not good or value < least:
            raise ValueError(f"{name} must be {expected} of at least {least}, got {value!r}")
    weights, sources = settings["train_weights"], settings["train"]
    if weights is not None:
        numbers = isinstance(weights, list) and all(_is_number(weight) and weight > 0 for weight in weights)
        if not numbers or not isinstance(sources, list) or len(sources) != len(weights):
            raise ValueError(f"train_weights must have one positive number for each source in train, got {weights!r}")
    for name in ("beta1", "beta2", "ema_decay"):
        if settings[name] is not None and settings[name] >= 1:
            raise ValueError(f"{name} must be below 1, got {settings[name]}")
    windows = settings["mel_windows"]
    if not isinstance(windows, list) or not windows or not all(isinstance(n, int) and n >= 16 for n in windows):
        raise ValueError(f"mel_windows must be a list of lengths in samples, got {windows!r}")
    if settings["stage"] > 2:
        raise ValueError(f"stage must be 1 or 2, got {settings['stage']}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_data(settings: dict, sample_rate: int) -> tuple[data.Crops, data.Beginnings]:
    """Return the crops to train on and those to validate on, after a look whether they can be read."""
    root = settings["root"]
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"--root {root}: no such folder")
    # Each source is a part of its own where they are drawn by weight.
    weights = settings["train_weights"]
    parts = [
        data.open_utterances(part, root) for part in ([settings["train"]] if weights is None else settings["train"])
    ]
    if settings["valid"] is None:
        pairs = [data.hold_out(part, max(1, settings["valid_size"] // len(parts))) for part in parts]
        parts, held_out = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        valid = data.chain(held_out)
    else:
        valid = data.take(data.open_utterances(settings["valid"], root), settings["valid_size"])
    mixture = None if weights is None else data.Mixture([len(part) for part in parts], weights)
    crops = data.Crops(data.chain(parts), settings["crop_seconds"], sample_rate, settings["seed"], mixture)
    beginnings = data.Beginnings(valid, settings["valid_seconds"], sample_rate, settings["seed"])
    data.check_data(crops)
    data.check_data(beginnings)
    return crops, beginnings


def prepare(settings: dict) -> runs.Start:
    """Return what the run begins with: what its folder says if there is a checkpoint, else what the settings say."""
    folder = Path(settings["output_folder"])
    stage = settings["stage"]
    if runs.checkpoints(folder):
        _check_same_run(folder, settings)
        return runs.open_run(folder)
    width, seed = settings["discriminator_width"], settings["seed"]
    if settings["start"] is not None:
        # In stage 1 it stands in place of the backbone, which is then not even downloaded.
        teacher = None if stage == 1 or settings["backbone"] is None else runs.load_backbone(settings["backbone"])
        return runs.start_from(settings["start"], stage, teacher=teacher, discriminator_width=width, seed=seed)
    if stage == 2:
        raise ValueError("stage 2 starts from stage 1: name its run, or a public checkpoint, with --start")
    if settings["backbone"] is None:
        raise ValueError("stage 1 needs a --backbone, or a run or checkpoint to --start from")
    backbone = runs.load_backbone(settings["backbone"])
    config = runs.configure(
        settings["size"],
        backbone,
        bottleneck=settings["bottleneck"],
        latent_dim=settings["latent_dim"],
        frame_rate=settings["frame_rate"],
        wavlm_layer=settings["wavlm_layer"],
    )
    return runs.start_stage1(config, backbone, adapters=settings["init_adapters"], discriminator_width=width, seed=seed)


def _check_same_run(folder: Path, settings: dict) -> None:
    description = runs.read_run(folder)
    before = {**description["settings"], "stage": description["stage"]}
    for name in FIXED:
        if name in settings and name in before and settings[name] != before[name]:
            raise ValueError(
                f"{folder}: holds a run with {name} {before[name]}, and not {settings[name]}; "
                "choose another --output_folder, or remove it to start anew"
            )


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nusage: {USAGE}")
        return 0
    try:
        settings, run_opts, path, overrides = read_settings(arguments)
        ddp_init_group(run_opts)
        folder = Path(settings["output_folder"])
        start = prepare(settings)
        train, valid = read_data(settings, start.model.sample_rate)
        sb.create_experiment_directory(
            folder, hyperparams_to_save=path, overrides=overrides, save_env_desc=if_main_process()
        )
        _write_run(folder, start, {**settings, "utterances": len(train)})
        brain = PretrainingBrain(start, train, valid, settings, run_opts)
    except (ValueError, OSError, ImportError) as error:
        _complain(error)
        return 2
    try:
        brain.train()
        skipped = brain.all_skipped()
    except NonFiniteError as error:
        _complain(error, _last_checkpoint(folder))
        return 1
    except (data.DataError, UnfitError, OSError, torch.OutOfMemoryError) as error:
        _complain(error, _last_checkpoint(folder), alone=True)
        return 1
    except KeyboardInterrupt:
        _complain("interrupted", _last_checkpoint(folder))
        return 130
    if brain.report:
        print(f"done: {brain.done} steps, {brain.pretraining.skipped} of them skipped, in {folder}")
        if skipped:
            print(f"utterances that could not be used: {len(skipped)}, see {folder}/skipped.*.tsv", file=sys.stderr)
    return 0


def _last_checkpoint(folder: Path) -> str:
    found = runs.checkpoints(folder)
    return f"; the last good checkpoint is {found[-1]}" if found else "; there is no checkpoint yet"


_complain = partial(complain, "train.py")


@main_process_only
def _write_run(folder: Path, start: runs.Start, settings: dict) -> None:
    """Describe the run at its beginning; when it goes on, note which settings are other ones from this step on."""
    runs.remove_unfinished(folder)
    found = runs.checkpoints(folder)
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    settings = {**settings, "processes": world_size}
    if not found:
        runs.write_run(folder, start, settings["stage"], settings)
        return
    changes = runs.change_settings(folder, settings, runs.read_meta(found[-1])["step"], OF_NO_CONSEQUENCE)
    if changes:
        words = ", ".join(f"{name} {new} ({old} before)" for name, (old, new) in changes.items())
        logging.getLogger(__name__).warning("the run goes on with %s", words)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
