"""SpeechBrain's loop, resumable to the same weights, with learning rates per step and checkpoints that are whole."""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import speechbrain as sb
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import METAFNAME, Checkpointer
from speechbrain.utils.distributed import ddp_barrier, get_rank
from torch import nn

from wavcube_plugins.pretraining.step import seed_step
from wavcube_plugins.speechbrain.recipes.data import DataError
from wavcube_plugins.speechbrain.recipes.schedule import WarmupCosine


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


class AtomicCheckpointer(Checkpointer):
    """A checkpointer whose checkpoints count only once they are complete, so that a kill never leaves half of one."""

    def recover_if_possible(self, *arguments: Any, **keywords: Any):
        """Do what `Checkpointer` does, and name the folder if its checkpoints do not fit.

        Raises:
            DataError: the checkpoints belong to other settings or data.
        """
        try:
            return super().recover_if_possible(*arguments, **keywords)
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise DataError(
                f"{self.checkpoints_dir}: holds checkpoints that do not fit these settings and data "
                f"({reason}); choose another --output_folder, or remove it"
            ) from error

    def save_checkpoint(self, *arguments: Any, **keywords: Any):
        """Do what `Checkpointer` does; the file that makes a folder a checkpoint is renamed into place last."""
        checkpoint = super().save_checkpoint(*arguments, **keywords)
        if checkpoint is not None:  # in the main process
            os.replace(checkpoint.path / f"{METAFNAME}.part", checkpoint.path / METAFNAME)
        ddp_barrier()
        return checkpoint

    def save_and_keep_only(self, *arguments: Any, **keywords: Any):
        """Do what `Checkpointer` does, without its default list of importance keys, which grows with every call."""
        return super().save_and_keep_only(*arguments, **{"importance_keys": [], **keywords})

    def _save_checkpoint_metafile(self, fpath, *arguments, **keywords):
        return super()._save_checkpoint_metafile(fpath.with_name(f"{METAFNAME}.part"), *arguments, **keywords)


class RecipeBrain(sb.Brain):
    """A Brain whose training, resumed at any batch, ends with the weights of an uninterrupted one.

    SpeechBrain's checkpoints do not contain the state of random generators. Here everything random in a batch follows
    from the seed, the number of the batch and the rank instead.

    It reads these hyperparameters: `seed`; `epoch_counter`; `wavcube`, the lobe; `lr_annealing` (and
    `wavcube_lr_annealing`), schedulers that are called with the optimiser before each step.

    Args:
        modules: As for `sb.Brain`.
        opt_class: Makes the optimiser of all weights but the lobe's.
        hparams: As for `sb.Brain`.
        run_opts: As for `sb.Brain`.
        checkpointer: As for `sb.Brain`.
        wavcube_opt_class: Makes the optimiser of the lobe, where it is fine-tuned.

    Attributes:
        results: Scores by split, for `on_stage_end` to fill.
        split: Name of the split that is evaluated.
        alone: Whether this process works on its own share of the data, so that other processes may see no error.
    """

    grad_accumulation_factor: int  # SpeechBrain sets this from the run options

    def __init__(
        self,
        modules: dict[str, nn.Module] | None = None,
        opt_class: Callable | None = None,
        hparams: dict[str, Any] | None = None,
        run_opts: Any = None,
        checkpointer: Checkpointer | None = None,
        *,
        wavcube_opt_class: Callable | None = None,
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.wavcube_opt_class = wavcube_opt_class
        self.results: dict[str, dict[str, float]] = {}
        self.split = ""
        self.alone = False
        self.batches_per_epoch = 0

    def module(self, name: str) -> Any:
        """Return a module without DDP around it, for what needs no gradient."""
        wrapped = self.modules[name]
        return getattr(wrapped, "module", wrapped)

    def fit(self, epoch_counter, train_set, valid_set=None, *arguments: Any, **keywords: Any) -> None:
        """Do what `sb.Brain.fit` does, after telling schedulers how many steps there will be.

        Raises:
            DataError: an epoch has fewer batches than one step accumulates.
            TrainingError: too many losses were not finite.
        """
        options = keywords.pop("train_loader_kwargs", {})
        loader = self.make_dataloader(train_set, sb.Stage.TRAIN, **options)
        self.batches_per_epoch = len(loader)
        steps = self.batches_per_epoch // self.grad_accumulation_factor
        if not steps:
            raise DataError(
                f"--grad_accumulation_factor {self.grad_accumulation_factor} is more than the "
                f"{self.batches_per_epoch} batches of an epoch, so no step would ever be made; lower it"
            )
        for name in ("lr_annealing", "wavcube_lr_annealing"):
            scheduler = getattr(self.hparams, name, None)
            if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
                scheduler.total_steps = steps * epoch_counter.limit
        try:
            super().fit(epoch_counter, loader, valid_set, *arguments, **keywords)
        except Exception as error:
            error.alone = self.alone  # type: ignore[attr-defined]
            raise
        finally:
            self.alone = False

    def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **loader_kwargs):
        """Do what `sb.Brain` does, and let a batch sampler know the epoch in a single process, too."""
        if stage == sb.Stage.TRAIN and not self.distributed_launch and "batch_sampler" in loader_kwargs:
            self.train_sampler = loader_kwargs["batch_sampler"]
        return super().make_dataloader(dataset, stage, ckpt_prefix, **loader_kwargs)

    def init_optimizers(self) -> None:
        """Make the optimisers, and let the checkpointer know them."""
        lobe = {id(weight) for weight in self.hparams.wavcube.parameters()}
        weights = [weight for weight in self.modules.parameters() if weight.requires_grad]
        groups = {
            "optimizer": (self.opt_class, [weight for weight in weights if id(weight) not in lobe]),
            "wavcube_optimizer": (self.wavcube_opt_class, [weight for weight in weights if id(weight) in lobe]),
        }
        self.optimizers_dict = {}
        for name, (make, group) in groups.items():
            if group and make is None:
                raise DataError("this recipe trains a head on a frozen encoder: it needs freeze: True")
            if group:
                self.optimizers_dict[name] = make(group)
                assert self.checkpointer is not None
                self.checkpointer.add_recoverable(name, self.optimizers_dict[name])
        self.optimizer = self.optimizers_dict["optimizer"]

    def on_fit_batch_start(self, batch, should_step) -> None:
        """Seed the random generators for this batch, and set the learning rates of the coming step."""
        number = self.batches_before(self.hparams.epoch_counter.current) + self.step
        self.seed_batch(number)
        if should_step:
            for name, optimizer in self.optimizers_dict.items():
                scheduler = {"optimizer": "lr_annealing", "wavcube_optimizer": "wavcube_lr_annealing"}[name]
                getattr(self.hparams, scheduler)(optimizer)

    def seed_batch(self, number: int) -> None:
        """Seed all random generators for a batch, counted from the beginning of the training."""
        random.seed(f"{self.hparams.seed}/{number}/{get_rank() or 0}")
        seed_step(self.hparams.seed, number, get_rank() or 0)

    def batches_before(self, epoch: int) -> int:
        """Return the number of batches before an epoch, which is counted from 1."""
        return (epoch - 1) * self.batches_per_epoch

    def check_loss_isfinite(self, loss) -> None:
        """Count losses that are not finite, as `sb.Brain` does, up to `nonfinite_patience` per epoch.

        Raises:
            TrainingError: there were more.
        """
        try:
            super().check_loss_isfinite(loss)
        except ValueError as error:
            raise TrainingError(
                f"the losses of {self.nonfinite_count} batches of an epoch were not finite; lower --lr, look for "
                "broken audio, or raise --nonfinite_patience"
            ) from error

    def on_stage_start(self, stage, epoch=None) -> None:
        """Note that training works on this process's own share of the data."""
        self.alone = stage == sb.Stage.TRAIN

    def evaluate_best(self, datasets: dict[str, Any], loader_opts: dict[str, Any], **key: str) -> None:
        """Load the best checkpoint and score it.

        Args:
            datasets: The data set of each split to score; without any, the checkpoint is only loaded.
            loader_opts: Options of the data loader.
            **key: How to choose the checkpoint: `min_key="WER"` or `max_key="accuracy"`.
        """
        if not datasets:
            self.on_evaluate_start(**key)
            self.modules.eval()
        for self.split, dataset in datasets.items():
            self.evaluate(dataset, test_loader_kwargs=dict(loader_opts), **key)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Checkpoints contain no gradients, so one that is due waits until the accumulated ones were used.
        whole = self.step % self.grad_accumulation_factor == 0
        return whole and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def _save_intra_epoch_ckpt(self):
        assert self.checkpointer is not None
        self.checkpointer.save_and_keep_only(
            end_of_epoch=False,
            num_to_keep=1,
            importance_keys=[],  # the default is one list that grows with every call
            ckpt_predicate=lambda checkpoint: INTRA_EPOCH_CKPT_FLAG in checkpoint.meta,
            meta={INTRA_EPOCH_CKPT_FLAG: True},
            verbosity=logging.DEBUG,
        )
