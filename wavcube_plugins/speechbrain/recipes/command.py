"""The command line of the recipes: settings, their checks, data preparation, and errors in one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.checkpoints import METAFNAME
from speechbrain.utils.distributed import ddp_init_group, get_rank, if_main_process

from wavcube_plugins.speechbrain import corpora
from wavcube_plugins.speechbrain.manifests import PREPARED_NAME, write_json
from wavcube_plugins.speechbrain.recipes.brain import INFERENCE_NAME, Recipe, TrainingError
from wavcube_plugins.speechbrain.recipes.data import DataError, read_manifest

# SpeechBrain's run options that would do nothing here, and what to use instead.
WITHOUT_EFFECT = {
    "skip_nonfinite_grads": "it is always done",
    "nonfinite_patience": "a run ends by itself after twenty such steps",
    "data_parallel_backend": "start it with torchrun",
    "remove_vector_weight_decay": "use --weight_decay",
    "auto_mix_prec": "use --precision fp16 or bf16",
    "bfloat16_mix_prec": "use --precision bf16",
    "jit": "use --compile",
}

# Whole numbers that must not be 0.
_POSITIVE = {"number_of_epochs", "batch_size", "valid_batch_size"}
_SWITCHES = ("--mini", "--cache")

# What a folder's weights were trained with, and the settings that may change nevertheless: places, what is made of
# data (the manifests themselves are compared), and what only scores depend on.
TRAINING_NAME = "training.json"
_FREE = {
    "output_folder", "data_folder", "manifests", "prepare", "resample", "mini", "mini_folder", "mini_data",
    "mini_settings", "cache", "cache_folder", "evaluate", "verify", "asr", "examples", "valid_batch_size",
    "num_workers", "ckpt_interval_minutes",
}  # fmt: skip
_OPTIONS_OF_TRAINING = ("precision", "max_grad_norm", "grad_accumulation_factor")


def main(recipe: type[Recipe], script: str, arguments: list[str]) -> int:
    """Run a recipe as a command and return its exit code: 0, 1 for failed training, 2 for bad input, 130 for Ctrl-C.

    Args:
        recipe: What to train.
        script: Path of the `train.py`; its folder's name is that of the task.
        arguments: What follows it on the command line.
    """
    script = Path(script)
    task = script.parent.name
    usage = (
        f"usage: python {task}/train.py {task}/train.yaml (--mini | --data_folder CORPUS) [--cache] [--device cpu] "
        "[--SETTING VALUE ...]"
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{sys.modules[recipe.__module__].__doc__.strip()}\n\n{usage}\n\n{_OPTIONS}")
        return 0
    name = f"{task}/{script.name}"
    brain = None
    try:
        settings, run_opts, path, overrides = read_settings(arguments, usage)
        ddp_init_group(run_opts)
        training = _in_main_process(_begin, settings, run_opts, path, overrides, script)
        _in_main_process(_prepare, settings, training)
        manifests = _read_manifests(settings, recipe)
        brain = recipe(settings, run_opts, manifests)
        results = brain.train_and_evaluate()
    except (TrainingError, torch.OutOfMemoryError) as error:
        complain(name, error, alone=isinstance(error, torch.OutOfMemoryError))
        return 1
    except (ValueError, OSError, ImportError) as error:
        complain(name, error, alone=brain is not None and brain.alone)
        return 2
    except KeyboardInterrupt:
        complain(name, "interrupted; the same command goes on from the last checkpoint")
        return 130
    if if_main_process():
        for split, scores in results.items():
            print(f"{split}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        print(f"results in {settings['output_folder']}, for inference in {settings['output_folder']}/{INFERENCE_NAME}")
    return 0


_OPTIONS = """  --mini              make a small set of synthesised speech and train on it; no network, minutes on a CPU
  --data_folder DIR   the corpus; its manifests are made first
  --manifests DIR     instead: your own train.json, valid.json and so on
  --cache             keep the latents on disk, computed once
  --evaluate "[test]" splits that are scored in the end
  --debug             a few batches only, in the folder `debug` of the output folder
Everything in the YAML file can be set like this, and SpeechBrain's own options too (--device, --precision bf16,
--ckpt_interval_steps, ...). Stopped, the same command goes on where it was. On several GPUs:
torchrun --standalone --nproc_per_node=8 train.py ...; on a CPU add --device cpu --distributed_backend gloo."""


def read_settings(arguments: list[str], usage: str = "") -> tuple[dict, object, Path, dict]:
    """Return the settings with their objects, SpeechBrain's run options, the YAML file, and what was set beside it.

    Raises:
        ValueError: one of them is unknown, or has a value that cannot be used.
    """
    path, run_opts, overrides = parse_command_line(_with_values(arguments), f"train.yaml ({usage})")
    _check_options(run_opts)
    text = path.read_text(encoding="utf-8")
    plain = _plain(text, path)
    unknown = [key for key in overrides if key not in plain]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r}; {path} lists and explains them all")
    _check_values(overrides, plain)
    if overrides.get("mini", plain["mini"]):
        overrides = {**plain["mini_settings"], **overrides}
    _check_places(_plain(resolve_references(text, dict(overrides)).getvalue(), path))
    try:
        settings = load_hyperpyyaml(text, overrides)
    except ValueError:
        raise  # one sentence of the lobe's or a head's
    except Exception as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    settings.pop("mini_settings")
    if run_opts.ckpt_interval_steps > 0 and "ckpt_interval_minutes" not in run_opts.overridden_args:
        settings["ckpt_interval_minutes"] = 0
    if run_opts.debug:
        # What a real run left in its folder stays; the cache serves both.
        settings["cache_folder"] = settings.get("cache_folder") or f"{settings['output_folder']}/latents"
        settings["output_folder"] = f"{settings['output_folder']}/debug"
    return settings, run_opts, path, overrides


def parse_command_line(arguments: list[str], example: str) -> tuple[Path, object, dict]:
    """Return the path of the YAML file, SpeechBrain's run options, and the settings that were given beside it.

    Args:
        arguments: Of the command.
        example: Of such a file, for whoever named none.

    Raises:
        ValueError: SpeechBrain refuses an option, there is no such file, or a value stands without its setting.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            path, run_opts, overrides = sb.parse_arguments(arguments)
    except SystemExit:
        # argparse has printed all options and then the reason.
        raise ValueError(complaint.getvalue().strip().split("error: ")[-1]) from None
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}; the settings come first, such as {example}")
    try:
        overrides = yaml.safe_load(overrides) if overrides else {}
    except yaml.YAMLError:
        overrides = overrides.split("\n")[0]
    if not isinstance(overrides, dict):
        raise ValueError(f"expected --setting value, found {overrides!r} without a --setting that takes it")
    return path, run_opts, overrides


def _with_values(arguments: list[str]) -> list[str]:
    """Let switches stand alone: `--mini` for `--mini True`."""
    result = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        result += [word, "True"] if word in _SWITCHES and following not in ("True", "False") else [word]
    return result


class _Plain(yaml.SafeLoader):
    """Reads the plain values of a HyperPyYAML file; what is made by a tag is {tag: what stands below it}."""


def _tagged(loader: _Plain, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.MappingNode):
        return {suffix: loader.construct_mapping(node, deep=True)}
    return {suffix: loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value}


_Plain.add_multi_constructor("!", _tagged)


def _plain(text: str, path: Path) -> dict:
    try:
        plain = yaml.load(text, Loader=_Plain)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML, {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or "mini_settings" not in plain:
        raise ValueError(f"{path}: not a file of settings for this script, it has no 'mini_settings'")
    return plain


def _check_values(overrides: dict, plain: dict) -> None:
    for name, value in overrides.items():
        default = plain[name]
        if default is None or isinstance(default, dict) or (value is None and default is None):
            continue
        if isinstance(default, bool):
            good, expected = isinstance(value, bool), "True or False"
        elif isinstance(default, int):
            least = 1 if name in _POSITIVE else 0
            good = isinstance(value, int) and not isinstance(value, bool) and value >= least
            expected = f"a whole number of at least {least}"
        elif isinstance(default, float):
            with contextlib.suppress(ValueError):  # for YAML, 1e-4 is text
                value = overrides[name] = float(value) if isinstance(value, str) else value
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
            good = good and math.isfinite(value) and value >= 0
            expected = "a number of at least 0"
        elif isinstance(default, list):
            good, expected = isinstance(value, list), "a list, such as '[valid, test]'"
        else:
            good, expected = isinstance(value, str) and value != "", "text"
        if not good:
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def _check_places(plain: dict) -> None:
    """Look for the data before anything is loaded."""
    if plain["mini"]:
        return
    if plain["data_folder"] is not None:
        if not Path(plain["data_folder"]).is_dir():
            raise DataError(f"{plain['data_folder']}: no such folder; --data_folder is where the corpus lies")
    elif not Path(plain["manifests"], "train.json").is_file():
        raise DataError(
            f"{plain['manifests']}/train.json: no such manifest; name a corpus with --data_folder, a folder of "
            "your own manifests with --manifests, or try --mini"
        )


def _check_options(run_opts) -> None:
    check_run_options(run_opts, WITHOUT_EFFECT)
    if run_opts.max_grad_norm <= 0:
        raise ValueError(f"--max_grad_norm must be above 0, got {run_opts.max_grad_norm}; a large one clips nothing")
    if run_opts.grad_accumulation_factor < 1:
        raise ValueError(f"--grad_accumulation_factor must be at least 1, got {run_opts.grad_accumulation_factor}")


def check_run_options(run_opts, without_effect: Mapping[str, str]) -> None:
    """Check SpeechBrain's run options that every training here has in common.

    Args:
        run_opts: From `parse_command_line`.
        without_effect: Options that would do nothing, with what to do instead.

    Raises:
        ValueError: one of these was given, two intervals of checkpoints, or a device that is not there.
    """
    for name in sorted(run_opts.overridden_args):
        if name in without_effect:
            raise ValueError(f"--{name} has no effect here; {without_effect[name]}")
    if run_opts.ckpt_interval_steps > 0 and run_opts.ckpt_interval_minutes > 0:
        raise ValueError("give either --ckpt_interval_steps or --ckpt_interval_minutes")
    if "LOCAL_RANK" in os.environ and run_opts.distributed_backend != "gloo" and not torch.cuda.is_available():
        raise ValueError("several processes without GPUs need --device cpu --distributed_backend gloo")
    if run_opts.device is None:
        return
    try:
        torch.empty(1, device=torch.device(run_opts.device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {run_opts.device}: not available here, {str(error).splitlines()[0]}") from error


def _in_main_process(work: Callable, *arguments) -> Any:
    """Call a function in the main process and return its result in all; its error is raised in all."""
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


def _begin(settings: dict, run_opts, path: Path, overrides: dict, script: Path) -> dict[str, Any]:
    """Make the output folder with the settings, the script and a log, and return what training depends on."""
    folder = Path(settings["output_folder"])
    with path.open(encoding="utf-8") as file:
        resolved = resolve_references(file, dict(overrides)).getvalue()
    training = {name: value for name, value in _plain(resolved, path).items() if name not in _FREE}
    training |= {name: run_opts[name] for name in _OPTIONS_OF_TRAINING}
    _check_training(folder, training)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.yaml").write_text(resolved, encoding="utf-8")
    shutil.copy(script, folder / script.name)
    handlers = {"handlers": {"file_handler": {"filename": str(folder / "log.txt")}}}
    sb.utils.logger.setup_logging(sb.core.DEFAULT_LOG_CONFIG, handlers)
    logging.getLogger(__name__).info("settings: %s with %s", path, overrides)
    return training


def _prepare(settings: dict, training: dict[str, Any]) -> None:
    """Make the manifests, and note that the output folder is trained on them."""
    manifests, folder = Path(settings["manifests"]), Path(settings["output_folder"])
    # Manifests that were not made here are somebody's own, and are taken as they are.
    if not (manifests / "train.json").is_file() or (manifests / PREPARED_NAME).is_file():
        if settings["mini"]:
            corpora.prepare_mini(settings["mini_folder"], manifests, **settings["mini_data"])
        elif settings["data_folder"] is not None and settings["prepare"] is not None:
            settings["prepare"](settings["data_folder"], manifests, resample=settings["resample"])
    for path in (manifests / "train.json", manifests / "valid.json"):
        if path.is_file():
            training = {**training, path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    _check_training(folder, training)
    if (folder / TRAINING_NAME).is_file() or not _has_checkpoints(folder):
        write_json(folder / TRAINING_NAME, training)


def _check_training(folder: Path, training: dict[str, Any]) -> None:
    """Refuse settings and data that a folder's checkpoints were not trained with, where that is known."""
    path = folder / TRAINING_NAME
    if not path.is_file() or not _has_checkpoints(folder):
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(training))
    # Settings with a value of their own come before what is made of them.
    for name in sorted(wanted, key=lambda name: isinstance(wanted[name], dict)):
        before, now = known.get(name, wanted[name]), wanted[name]
        if before == now or (name == "number_of_epochs" and before < now):
            continue
        what = f"another {name}" if name.endswith(".json") or isinstance(now, dict) else f"{name} {before}, not {now}"
        raise DataError(f"{folder}: was trained with {what}; choose another --output_folder, or remove it")


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "save").glob(f"*/{METAFNAME}"))


def _read_manifests(settings: dict, recipe: type[Recipe]) -> dict[str, dict[str, dict]]:
    folder, root = Path(settings["manifests"]), _root(settings)
    splits = dict.fromkeys(recipe.splits(settings))
    return {split: read_manifest(folder / f"{split}.json", root, recipe.needs) for split in splits}


def _root(settings: dict) -> str | None:
    return settings["mini_folder"] if settings["mini"] else settings["data_folder"]


def complain(name: str, error: Exception | str, more: str = "", *, alone: bool = False) -> None:
    """Print an error as one sentence, once.

    Args:
        name: Of the command.
        error: What happened, or what to say.
        more: Put behind it.
        alone: It may have happened in this process alone, so that no other one says it.
    """
    rank = get_rank() or 0
    # What all processes find is said by the first one of every machine: a folder may be missing on one of them.
    if int(os.environ.get("LOCAL_RANK", rank)) != 0 and not alone:
        return
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {(error.strerror or message).lower()}"
    if "Original Traceback" in message:
        # It comes from a worker process; the last line is what was raised there.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    where = f" in process {rank}" if rank else ""
    print(f"{name}: error{where}: {' '.join(message.split())}{more}", file=sys.stderr)
