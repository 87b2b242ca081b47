"""Output folders: one training each, with its settings, script and log; checked before anything expensive starts."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import METAFNAME
from speechbrain.utils.distributed import ddp_barrier, ddp_init_group, if_main_process, infer_device

from wavcube_plugins.errors import InputError
from wavcube_plugins.speechbrain.manifests import PREPARED_NAME, write_json
from wavcube_plugins.speechbrain.recipes.command import check_run_options
from wavcube_plugins.speechbrain.recipes.data import DataError, read_manifest
from wavcube_plugins.speechbrain.recipes.export import INFERENCE_NAME
from wavcube_plugins.speechbrain.recipes.settings import load_hparams, read_settings, resolved_text

# Options of SpeechBrain that would be ignored, and what to use instead.
WITHOUT_EFFECT = {
    "data_parallel_backend": "start it with torchrun",
    "remove_vector_weight_decay": "use --weight_decay",
    "auto_mix_prec": "use --precision fp16 or bf16",
    "bfloat16_mix_prec": "use --precision bf16",
    "jit": "use --compile",
}

# What a folder's weights were trained with.
TRAINING_NAME = "training.json"
# Settings that may change while a training goes on: places, what is made of data (the manifests themselves are
# compared), how things are computed, and what only scores depend on.
_FREE = {
    "output_folder", "save_folder", "train_log", "data_folder", "manifests", "resample", "mini", "mini_folder",
    "mini_data", "mini_settings", "cache", "cache_folder", "speech", "evaluate", "verify", "asr", "examples",
    "valid_batch_size", "num_workers", "train_dataloader_opts", "valid_dataloader_opts", "checkpointer",
    "train_logger", "ckpt_interval_minutes", "ckpt_interval_steps", "nonfinite_patience", "skip_nonfinite_grads",
}  # fmt: skip
_RUN_OPTIONS = ("precision", "max_grad_norm", "grad_accumulation_factor")


class Experiment:
    """A training in its output folder.

    Making it initialises DDP, checks the settings, creates the folder with `hyperparams.yaml`, the script and a log,
    and refuses a folder whose checkpoints were trained with other settings.

    Args:
        hparams_file: The hyperparameter file.
        overrides: Values that replace those of the file.
        run_opts: SpeechBrain's run options.
        script: The training script.

    Attributes:
        settings: Plain values by key, as `read_settings` returns them.
        folder: The output folder.
        device: Where the training runs.

    Raises:
        InputError: a setting or an option that cannot be used, no data, or a folder of another training.
    """

    def __init__(self, hparams_file: Path, overrides: Mapping[str, Any], run_opts: Any, script: str):
        check_run_options(run_opts, WITHOUT_EFFECT)
        self.hparams_file, self.overrides, self.run_opts = hparams_file, dict(overrides), run_opts
        settings = read_settings(hparams_file, self.overrides, script)
        if run_opts.ckpt_interval_steps > 0 and "ckpt_interval_minutes" not in run_opts.overridden_args:
            self.overrides["ckpt_interval_minutes"] = 0
        if run_opts.debug:
            # What a real run has left in its folder stays; the cache serves both.
            if "cache_folder" in settings:
                self.overrides["cache_folder"] = settings["cache_folder"]
            self.overrides["output_folder"] = f"{settings['output_folder']}/debug"
        self.settings = read_settings(hparams_file, self.overrides, script)
        self._check_numbers()
        self._check_places()
        self.folder = Path(self.settings["output_folder"])
        ddp_init_group(run_opts)
        self.device = run_opts.device or infer_device()
        self.training = self._describe()
        on_main(self._begin, script)

    def option(self, name: str) -> Any:
        """Return a run option of SpeechBrain: from the command line, else from the hyperparameter file."""
        if name in self.run_opts.overridden_args:
            return self.run_opts[name]
        return self.settings.get(name, self.run_opts[name])

    def prepare(self, make: Callable[[dict[str, Any]], None]) -> None:
        """Make the manifests in the main process, and note that the folder is trained on them.

        Manifests that were not made here are somebody's own, and are taken as they are.

        Args:
            make: Called with the settings if there are manifests to make.
        """
        on_main(self._prepare, make)

    def manifests(self, splits: list[str], keys: list[str]) -> dict[str, dict[str, dict]]:
        """Read and check the manifests of some splits; every entry must have the keys."""
        settings = self.settings
        root = settings["mini_folder"] if settings["mini"] else settings["data_folder"]
        folder = Path(settings["manifests"])
        return {split: read_manifest(folder / f"{split}.json", root, keys) for split in dict.fromkeys(splits)}

    def load(self, **sizes: Any) -> dict[str, Any]:
        """Load the hyperparameter file with its objects; the sizes are those of its keys that follow from the data."""
        return load_hparams(self.hparams_file, {**self.overrides, **sizes})

    def finish(self, results: dict[str, dict[str, float]], export: Callable[[Path], None]) -> dict[str, Any]:
        """Write `results.json` and the folder for inference in the main process, and return what `run` prints."""
        if if_main_process():
            write_json(self.folder / "results.json", results)
            export(self.folder / INFERENCE_NAME)
        ddp_barrier()
        return {"output_folder": str(self.folder), "results": results}

    def _check_numbers(self) -> None:
        norm, factor = self.option("max_grad_norm"), self.option("grad_accumulation_factor")
        if norm <= 0:
            raise InputError(f"--max_grad_norm must be above 0, got {norm}; a large one clips nothing")
        if factor < 1:
            raise InputError(f"--grad_accumulation_factor must be at least 1, got {factor}")
        sorting = self.settings.get("sorting", "random")
        if sorting not in ("random", "ascending", "descending"):
            raise InputError(f"sorting must be random, ascending or descending, got {sorting!r}")

    def _check_places(self) -> None:
        settings = self.settings
        if settings["mini"]:
            return
        if settings["data_folder"] is not None:
            if not Path(settings["data_folder"]).is_dir():
                raise DataError(f"{settings['data_folder']}: no such folder; --data_folder is the folder of the corpus")
        elif not Path(settings["manifests"], "train.json").is_file():
            raise DataError(
                f"{settings['manifests']}/train.json: no such manifest; name a corpus with --data_folder, a folder of "
                "your own manifests with --manifests, or try --mini"
            )

    def _describe(self) -> dict[str, Any]:
        """Return what the weights depend on."""
        free = {key for key in self.settings if key in _FREE or key.startswith("_")}
        training = {key: value for key, value in self.settings.items() if key not in free}
        return training | {name: self.option(name) for name in _RUN_OPTIONS}

    def _begin(self, script: str) -> None:
        self._check_training(self.training)
        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = resolved_text(self.hparams_file, self.overrides)
        (self.folder / "hyperparams.yaml").write_text(resolved, encoding="utf-8")
        shutil.copy(script, self.folder / Path(script).name)
        handlers = {"handlers": {"file_handler": {"filename": str(self.folder / "log.txt")}}}
        sb.utils.logger.setup_logging(sb.core.DEFAULT_LOG_CONFIG, handlers)  # type: ignore[attr-defined]
        logging.getLogger(__name__).info("settings: %s with %s", self.hparams_file, self.overrides)

    def _prepare(self, make: Callable[[dict[str, Any]], None]) -> None:
        folder = Path(self.settings["manifests"])
        if not (folder / "train.json").is_file() or (folder / PREPARED_NAME).is_file():
            make(self.settings)
        training = dict(self.training)
        for path in (folder / "train.json", folder / "valid.json"):
            if path.is_file():
                training[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._check_training(training)
        if (self.folder / TRAINING_NAME).is_file() or not self._has_checkpoints():
            write_json(self.folder / TRAINING_NAME, training)

    def _check_training(self, training: Mapping[str, Any]) -> None:
        """Refuse settings and data that the checkpoints of the folder were not trained with, if that is known."""
        path = self.folder / TRAINING_NAME
        if not path.is_file() or not self._has_checkpoints():
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(training))
        # Plain settings first, then the objects made of them.
        for name in sorted(wanted, key=lambda name: isinstance(wanted[name], dict)):
            before, now = known.get(name, wanted[name]), wanted[name]
            if before == now or name == "epoch_counter" or (name == "number_of_epochs" and before < now):
                continue
            compound = name.endswith(".json") or isinstance(now, dict)
            what = f"another {name}" if compound else f"{name} {before}, not {now}"
            raise DataError(f"{self.folder}: was trained with {what}; choose another --output_folder, or remove it")

    def _has_checkpoints(self) -> bool:
        return any((self.folder / "save").glob(f"*/{METAFNAME}"))


def on_main(work: Callable, *arguments: Any) -> Any:
    """Call a function in the main process and return its result in all processes, which also raise its errors."""
    outcome: list = [None, None]
    if if_main_process():
        try:
            outcome[0] = work(*arguments)
        except (ValueError, OSError, ImportError) as problem:
            outcome[1] = problem
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
