"""SpeechBrain's loop as all recipes use it: exact resuming, a schedule in steps, safe steps, scores and checkpoints."""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import speechbrain as sb
import torch
import yaml
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import METAFNAME, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, get_rank, if_main_process
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from torch import Tensor, nn

from wavcube_plugins.checkpoints import NAMES
from wavcube_plugins.config import WavCubeConfig
from wavcube_plugins.files import atomic_path
from wavcube_plugins.pretraining.step import seed_step
from wavcube_plugins.speechbrain.manifests import write_json
from wavcube_plugins.speechbrain.recipes import data

# Steps in a row without finite gradients that end a run.
_MOST_SKIPPED = 20

INFERENCE_NAME = "inference"

# YAML text of a lobe with a head on it.
ON_WAVCUBE = "!new:wavcube_plugins.speechbrain.OnWavCube\n    wavcube: !ref <wavcube>\n    head: !ref <head>"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


class AtomicCheckpointer(Checkpointer):
    """Names a checkpoint as one only when all of it is on the disk, so that a kill never leaves half of one."""

    def recover_if_possible(self, *arguments, **keywords):
        try:
            return super().recover_if_possible(*arguments, **keywords)
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise data.DataError(
                f"{self.checkpoints_dir}: holds checkpoints that do not fit these settings and data "
                f"({reason}); choose another --output_folder, or remove it"
            ) from error

    def save_checkpoint(self, *arguments, **keywords):
        checkpoint = super().save_checkpoint(*arguments, **keywords)
        if checkpoint is not None:  # in the main process
            os.replace(checkpoint.path / f"{METAFNAME}.part", checkpoint.path / METAFNAME)
        ddp_barrier()
        return checkpoint

    def _save_checkpoint_metafile(self, fpath, *arguments, **keywords):
        return super()._save_checkpoint_metafile(fpath.with_name(f"{METAFNAME}.part"), *arguments, **keywords)


class Recipe(sb.Brain):
    """A recipe: data, model, losses and scores of one task around SpeechBrain's loop.

    A recipe defines `needs`, `build`, `dataset`, `compute_forward`, `compute_objectives` and `scores`, and, for
    inference, `export`.

    * Resumed mid-epoch, a run ends with the weights of one left alone: the order of the data and, by a seed for each
      step, everything random follow from the seed and the step.
    * Steps whose gradients are not finite are left out; many in a row end the run.
    * The learning rate is warmed up and falls along a cosine to a hundredth; the lobe, if it is trained, has its own.

    Args:
        settings: What the hyperparameter file says, objects included.
        run_opts: SpeechBrain's run options.
        manifests: Entries by id, by split.

    Attributes:
        alone: Training on this process's own share of the data, in which others may find no error.
    """

    # Keys that every entry of a manifest must have, audio among them; the score that chooses checkpoints, and whether
    # the highest or the lowest is best.
    needs: ClassVar[tuple[str, ...]] = ("wav",)
    monitor: ClassVar[tuple[str, str]] = ("loss", "min")
    # Audio keys whose latents are used, and so can be cached.
    inputs: ClassVar[tuple[str, ...]] = ("wav",)

    def __init__(self, settings: dict, run_opts, manifests: dict[str, dict[str, dict]]):
        self.settings = settings
        self.folder = Path(settings["output_folder"])
        self.manifests = manifests
        self.lobe = settings["wavcube"]
        cache = None
        if settings.get("cache"):
            cache = settings["cache_folder"] or self.folder / "latents"
        self.speech = data.Speech(self.lobe, resample=settings["resample"], cache=cache)
        self._place_lobe(settings, run_opts)
        for key in self.inputs if cache is not None else ():
            self.speech.fill(manifests, key, progress=not settings.get("noprogressbar", False))
        self.results: dict[str, dict[str, float]] = {}
        self.alone = False
        self.skipped_in_a_row = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])  # the model begins the same, whatever the cache had to compute
            modules = self.build()
        self.epochs = EpochCounter(settings["number_of_epochs"])
        recoverables = {**modules, "epochs": self.epochs}
        checkpointer = AtomicCheckpointer(self.folder / "save", recoverables)
        super().__init__(modules, None, {**settings, "output_folder": str(self.folder)}, run_opts, checkpointer)
        # Called in all processes: it writes in the main one and lets the others wait.
        self.logger = FileTrainLogger(self.folder / "train_log.txt")

    # What a recipe defines --------------------------------------------------------------------------------------------

    def build(self) -> dict[str, nn.Module]:
        """Return the modules; `self.manifests`, `self.settings`, `self.lobe` and `self.speech` are there."""
        raise NotImplementedError

    def dataset(self, split: str, manifest: dict[str, dict]):
        """Return the data set of a split."""
        raise NotImplementedError

    @classmethod
    def splits(cls, settings: dict) -> list[str]:
        """Return the names of the manifests that are needed."""
        return ["train", "valid", *settings["evaluate"]]

    def more_results(self) -> dict[str, dict[str, float]]:
        """Return scores of the best checkpoint beside those of the splits."""
        return {}

    def start_scores(self, stage: sb.Stage) -> None:
        """Begin to collect what `scores` sums up."""

    def scores(self, stage: sb.Stage) -> dict[str, float]:
        """Return the scores of a validation or a test, by name."""
        return {}

    def export(self, folder: Path) -> None:
        """Write what inference needs into a folder."""

    # The loop ---------------------------------------------------------------------------------------------------------

    def train_and_evaluate(self) -> dict[str, dict[str, float]]:
        """Train to the end, going on from the last checkpoint; score the best; write the folder for inference.

        Returns:
            The scores of each split that `evaluate` names.
        """
        settings = self.settings
        loader = {"batch_size": settings["batch_size"], "num_workers": settings["num_workers"]}
        train = self.dataset("train", self.manifests["train"])
        valid = self.dataset("valid", self.manifests["valid"])
        train_loader = self.make_dataloader(train, sb.Stage.TRAIN, shuffle=True, **loader)
        self.batches_per_epoch = len(train_loader)
        self.steps_per_epoch = len(train_loader) // self.grad_accumulation_factor
        if not self.steps_per_epoch:
            raise data.DataError(
                f"--grad_accumulation_factor {self.grad_accumulation_factor} is more than the "
                f"{len(train_loader)} batches of an epoch, so that no step would ever be made; lower it"
            )
        valid_loader = {"batch_size": settings["valid_batch_size"], "num_workers": settings["num_workers"]}
        self.fit(self.epochs, train_loader, valid, valid_loader_kwargs=valid_loader)
        name, best = self.monitor
        for split in settings["evaluate"]:
            dataset = self.dataset(split, self.manifests[split])
            self.split = split
            self.evaluate(dataset, test_loader_kwargs=dict(valid_loader), **{f"{best}_key": name})
        if not settings["evaluate"]:
            self.on_evaluate_start(**{f"{best}_key": name})
            self.modules.eval()
        self.results |= self.more_results()
        if if_main_process():
            write_json(self.folder / "results.json", self.results)
            self.export(self.folder / INFERENCE_NAME)
        ddp_barrier()
        return self.results

    def init_optimizers(self):
        settings = self.settings
        own = {id(weight) for weight in self.lobe.parameters()}
        weights = [weight for weight in self.modules.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if id(weight) not in own], "peak": settings["lr"]},
            {"params": [weight for weight in weights if id(weight) in own], "peak": settings.get("wavcube_lr", 0.0)},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings["lr"],
            betas=(0.9, 0.98),
            weight_decay=settings["weight_decay"],
        )
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_fit_batch_start(self, batch, should_step):
        # Not one generator that runs on: its state is not in checkpoints, and workers and ranks have others.
        self.seed_batch(self.batches_before(self.epochs.current) + self.step)
        total = self.steps_per_epoch * self.settings["number_of_epochs"]
        factor = learning_rate(self.optimizer_step, total, self.settings["warmup_steps"])
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def check_loss_isfinite(self, loss):
        # `optimizers_step` looks at the gradients, which tells more and is the same in all processes.
        return

    def optimizers_step(self):
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
        if torch.isfinite(norm):
            self.skipped_in_a_row = 0
            self.scaler.step(self.optimizer)
        else:
            self.skipped_in_a_row += 1
            logging.getLogger(__name__).warning("a step without finite gradients was left out")
            if self.skipped_in_a_row >= _MOST_SKIPPED:
                raise TrainingError(f"the gradients of {_MOST_SKIPPED} steps in a row were not finite; lower --lr")
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def on_stage_start(self, stage, epoch=None):
        self.alone = stage == sb.Stage.TRAIN
        if stage != sb.Stage.TRAIN:
            self.start_scores(stage)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.alone = False
        if stage == sb.Stage.TRAIN:
            self.train_loss = float(stage_loss)
            return
        scores = {"loss": float(stage_loss), **{name: float(value) for name, value in self.scores(stage).items()}}
        if stage == sb.Stage.VALID:
            self.logger.log_stats({"epoch": epoch}, {"loss": self.train_loss}, scores)
            name, best = self.monitor
            self.checkpointer.save_and_keep_only(
                meta=scores, num_to_keep=1, importance_keys=[], **{f"{best}_keys": [name]}
            )
        else:
            self.results[self.split] = scores
            self.logger.log_stats({"split": self.split}, test_stats=scores)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Checkpoints have no gradients, so what is due waits for the end of a step.
        whole = self.step % self.grad_accumulation_factor == 0
        return whole and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self):
        self.checkpointer.save_and_keep_only(
            end_of_epoch=False,
            num_to_keep=1,
            importance_keys=[],  # SpeechBrain's default is one list that grows with every call
            ckpt_predicate=lambda checkpoint: INTRA_EPOCH_CKPT_FLAG in checkpoint.meta,
            meta={INTRA_EPOCH_CKPT_FLAG: True},
            verbosity=logging.DEBUG,
        )

    def _place_lobe(self, settings: dict, run_opts) -> None:
        # The cache is filled before SpeechBrain's constructor moves modules to their device.
        device = run_opts.device if run_opts is not None and run_opts.device else sb.utils.distributed.infer_device()
        self.lobe.to(device)

    def seed_batch(self, number: int) -> None:
        """Set PyTorch's random generator for a batch, counted from the beginning of the training."""
        seed_step(self.settings["seed"], number, get_rank() or 0)

    def batches_before(self, epoch: int) -> int:
        """Return how many batches there are before an epoch, which is counted from 1."""
        return (epoch - 1) * self.batches_per_epoch

    # Help for recipes -------------------------------------------------------------------------------------------------

    def to_latents(self, speech: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (B, L, D) and their frames (B,), of waveforms (B, T) or of cached latents."""
        if speech.ndim == 2:
            speech, lens = self.lobe.encode(speech, lens)
        return speech, (lens * speech.shape[1]).round().long()

    @property
    def raw(self):
        """The modules without DDP around them, for what needs no gradient."""
        return {name: getattr(module, "module", module) for name, module in self.modules.items()}

    def write_inference(
        self, folder: Path, modules: Mapping[str, Any], loadables: Mapping[str, nn.Module | None], more: str = ""
    ) -> None:
        """Write `hyperparams.yaml` and the weights beside it, for SpeechBrain's `from_hparams(folder)`.

        Args:
            folder: Made if missing.
            modules: YAML text of the value of each key.
            loadables: Keys whose weights are loaded, with the module to save; None where the recipe wrote the file.
            more: YAML text at the end: keys that are not loaded.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, module in loadables.items():
            if module is not None:
                with atomic_path(folder / f"{name}.ckpt") as path:
                    torch.save({key: value.cpu() for key, value in module.state_dict().items()}, path)
        text = "".join(f"{name}: {value}\n" for name, value in modules.items()) + more
        text += "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n    loadables:\n"
        text += "".join(f"        {name}: !ref <{name}>\n" for name in loadables)
        with atomic_path(folder / "hyperparams.yaml") as path:
            path.write_text(text, encoding="utf-8")

    def lobe_yaml(self, decoder: bool = False) -> str:
        """Return YAML text that makes the lobe anew, frozen; what was trained of it comes from the weights."""
        source = self.lobe.source
        if source not in NAMES and Path(source).exists():
            source = os.path.abspath(source)
        options = {
            "source": source,
            "revision": self.lobe.revision,
            "config": self.lobe.config.to_dict() if isinstance(self.lobe.config, WavCubeConfig) else self.lobe.config,
            "features": self.lobe.features,
            "output_all_hiddens": self.lobe.output_all_hiddens,
            "output_norm": self.lobe.output_norm,
            "decoder": decoder,
            "freeze": True,
        }
        return f"!new:wavcube_plugins.speechbrain.WavCube\n{indented(options)}"


def head_yaml(head: partial, in_dim: int, out_dim, depth: int = 4) -> str:
    """Return YAML text that makes a head anew, of `!name:` and its two sizes."""
    options = {"in_dim": in_dim, "out_dim": out_dim, **head.keywords}
    return f"!new:{head.func.__module__}.{head.func.__qualname__}\n{indented(options, depth)}"


def indented(options: Mapping[str, Any], depth: int = 4) -> str:
    """Return a mapping as indented YAML text without a last line break."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=False)
    return "\n".join(" " * depth + line for line in text.strip().splitlines())


def learning_rate(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak: a rise to 1 over the warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def crop(batch: list[Tensor], lens: Tensor, frames: int, hops: list[int]) -> tuple[list[Tensor], Tensor]:
    """Cut the same random piece out of several views of each item of a batch.

    Args:
        batch: Views of the same audio, (B, T, ...) each, aligned at their beginnings.
        lens: (B,) relative lengths of the first view.
        frames: Length of a piece, in units that every hop counts.
        hops: How many steps of each view make one unit.

    Returns:
        The pieces of each view, and their relative lengths (B,); a shorter item is kept whole.
    """
    first, hop = batch[0], hops[0]
    units = (lens.double().cpu() * first.shape[1] / hop).round().long().clamp(min=1)
    starts = [int(torch.randint(0, max(1, int(count) - frames + 1), ())) for count in units]
    longest = min(frames, int(units.max()))
    pieces = []
    for view, size in zip(batch, hops, strict=True):
        rows = []
        for row, start in zip(view, starts, strict=True):
            piece = row[start * size : (start + longest) * size]
            missing = longest * size - len(piece)
            rows.append(nn.functional.pad(piece, (0,) * (2 * (piece.ndim - 1)) + (0, missing)))
        pieces.append(torch.stack(rows))
    return pieces, (units.clamp(max=longest).float() / longest).to(lens.device)
