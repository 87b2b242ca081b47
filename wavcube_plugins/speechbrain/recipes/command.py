"""Command lines of trainings: arguments, SpeechBrain's run options, exit codes, and errors in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.distributed import get_rank, if_main_process

from wavcube_plugins.errors import BAD_INPUT, FAILED, INTERRUPTED, OK, InputError
from wavcube_plugins.speechbrain.recipes.brain import TrainingError
from wavcube_plugins.speechbrain.recipes.export import INFERENCE_NAME

_SWITCHES = ("--mini", "--cache")

_OPTIONS = """  --mini              synthesise a small corpus and train on it; no network, minutes on a CPU
  --data_folder DIR   the corpus; its manifests are made first
  --manifests DIR     instead: your own train.json, valid.json and so on
  --cache             encode every utterance once and keep the latents on disk
  --evaluate "[test]" splits to score in the end
  --debug             a few batches only, in the folder `debug` of the output folder
Every key of the YAML file can be set like this, and so can SpeechBrain's own options (--device, --precision bf16,
--ckpt_interval_steps, ...). The same command resumes a training that was stopped. On several GPUs:
torchrun --standalone --nproc_per_node=8 train.py ...; on a CPU add --device cpu --distributed_backend gloo."""


def run(main: Callable[[Path, Any, dict], dict[str, Any]], script: str, arguments: list[str] | None = None) -> int:
    """Run a training script and return its exit code: 0, 1 for failed training, 2 for bad input, 130 for Ctrl-C.

    Args:
        main: Takes the hyperparameter file, SpeechBrain's run options and the overrides from the command line; returns
            `output_folder` and the scores of each split under `results`.
        script: Path of the script; its folder has the name of the task.
        arguments: Arguments of the command; None takes those of the process.
    """
    task = Path(script).resolve().parent.name
    name = f"{task}/{Path(script).name}"
    arguments = sys.argv[1:] if arguments is None else arguments
    usage = f"usage: python {name} {task}/hparams/train.yaml (--mini | --data_folder CORPUS) [--KEY VALUE ...]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{(sys.modules[main.__module__].__doc__ or '').strip()}\n\n{usage}\n\n{_OPTIONS}")
        return OK
    try:
        arguments = [_moved(arguments[0], name), *_with_values(arguments[1:])]
        hparams_file, run_opts, overrides = parse_command_line(arguments, f"train.yaml ({usage})")
        outcome = main(hparams_file, run_opts, overrides)
    except (TrainingError, torch.OutOfMemoryError) as error:
        complain(name, error, alone=isinstance(error, torch.OutOfMemoryError))
        return FAILED
    except (InputError, OSError, ImportError) as error:
        complain(name, error, alone=getattr(error, "alone", False))
        return BAD_INPUT
    except KeyboardInterrupt:
        complain(name, "interrupted; the same command resumes from the last checkpoint")
        return INTERRUPTED
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if if_main_process():
        for split, scores in outcome["results"].items():
            print(f"{split}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        folder = outcome["output_folder"]
        print(f"results in {folder}, for inference in {folder}/{INFERENCE_NAME}")
    return OK


def parse_command_line(arguments: list[str], example: str) -> tuple[Path, Any, dict]:
    """Return the path of the hyperparameter file, SpeechBrain's run options, and the overrides beside it.

    Args:
        arguments: Arguments of the command.
        example: An example of such a file, for the message when there is none.

    Raises:
        InputError: SpeechBrain refuses an option, the file does not exist, or a value has no key before it.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            path, run_opts, overrides = sb.parse_arguments(arguments)
    except SystemExit:
        # argparse has printed all options, and then the reason.
        raise InputError(complaint.getvalue().strip().split("error: ")[-1]) from None
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; the hyperparameter file comes first, such as {example}")
    try:
        overrides = yaml.safe_load(overrides) if overrides else {}
    except yaml.YAMLError:
        overrides = overrides.split("\n")[0]
    if not isinstance(overrides, dict):
        raise InputError(f"expected --setting value, found {overrides!r} without a --setting that takes it")
    return path, run_opts, overrides


def check_run_options(run_opts: Any, without_effect: Mapping[str, str]) -> None:
    """Check SpeechBrain's run options.

    Args:
        run_opts: From `parse_command_line`.
        without_effect: Options that would be ignored, with what to do instead.

    Raises:
        InputError: an option that would be ignored, two intervals of checkpoints, or a device that is not there.
    """
    for name in sorted(run_opts.overridden_args):
        if name in without_effect:
            raise InputError(f"--{name} has no effect here; {without_effect[name]}")
    if run_opts.ckpt_interval_steps > 0 and run_opts.ckpt_interval_minutes > 0:
        raise InputError("give either --ckpt_interval_steps or --ckpt_interval_minutes")
    if "LOCAL_RANK" in os.environ and run_opts.distributed_backend != "gloo" and not torch.cuda.is_available():
        raise InputError("several processes without GPUs need --device cpu --distributed_backend gloo")
    if run_opts.device is None:
        return
    try:
        torch.empty(1, device=torch.device(run_opts.device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {run_opts.device}: not available here, {str(error).splitlines()[0]}") from error


def complain(name: str, error: BaseException | str, more: str = "", *, alone: bool = False) -> None:
    """Print an error as one sentence, once.

    Args:
        name: Name of the command.
        error: The exception, or the sentence.
        more: Text to put behind it.
        alone: The error may have occurred in this process alone, so no other process reports it.
    """
    rank = get_rank() or 0
    # The first process of each machine reports what all processes find: a folder may be missing on one machine only.
    if int(os.environ.get("LOCAL_RANK", rank)) != 0 and not alone:
        return
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {(error.strerror or message).lower()}"
    if "Original Traceback" in message:
        # From a worker process; the last line is what was raised there.
        message = message.strip().splitlines()[-1].partition(": ")[2]
    where = f" in process {rank}" if rank else ""
    print(f"{name}: error{where}: {' '.join(message.split())}{more}", file=sys.stderr)


def _moved(path: str, name: str) -> str:
    """Return where a hyperparameter file is now if it stands under the name that earlier releases gave it."""
    place = Path(path).parent / "hparams" / Path(path).name
    if Path(path).exists() or not place.is_file():
        return path
    print(f"{name}: {path} is now {place}; the old name will be removed in the next release", file=sys.stderr)
    return str(place)


def _with_values(arguments: list[str]) -> list[str]:
    """Let switches stand alone: `--mini` for `--mini True`."""
    result: list[str] = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        result += [word, "True"] if word in _SWITCHES and following not in ("True", "False") else [word]
    return result
