"""Several processes (ranks) of s3prl's `run_downstream.py`, started by torchrun on CPUs or GPUs.

    torchrun --standalone --nproc_per_node 2 -m wavcube_plugins.s3prl.run run_downstream.py -m train …

s3prl 0.4 was written for an older `torch.distributed.launch`: it wants `--local_rank`, calls CUDA on CPUs too, and lets
replicas exchange buffers while only the first rank evaluates. Only the first rank counts its steps, so that the others
never stop. This module repairs that from outside.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

from wavcube_plugins.s3prl.imports import ModuleFinder
from wavcube_plugins.s3prl.script import RUN_DOWNSTREAM

RUNNER = "s3prl.downstream.runner"
IDENTIFICATION = "s3prl.downstream.voxceleb1.dataset"

# The first rank evaluates alone while the others wait for its gradients, longer than torch's limit of ten minutes.
_TIMEOUT = timedelta(days=7)


def take_launcher_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the option that `torch.distributed.launch` puts before the script.

    Returns:
        s3prl's spelling of it, or nothing; and the other arguments.
    """
    arguments, ranks = list(arguments), []
    while arguments and arguments[0].startswith("--local"):
        ranks.append(arguments.pop(0).replace("--local-rank", "--local_rank"))
    return ranks, arguments


def prepare(script: Path, arguments: Sequence[str], ranks: Sequence[str] = ()) -> list[str]:
    """Make s3prl work as one of several ranks, if a launcher has started this process as one.

    Args:
        script: The script that will run.
        arguments: Its arguments.
        ranks: What `take_launcher_options` found.

    Returns:
        Options to put before the arguments: the rank, and gloo as the backend on a CPU.
    """
    rank = os.environ.get("LOCAL_RANK")
    if script.name != RUN_DOWNSTREAM or not (ranks or rank):
        return list(ranks)
    options = list(ranks or [f"--local_rank={rank}"])
    on_cpu = _value(arguments, "--device", "cuda") == "cpu"
    if on_cpu and _value(arguments, "--backend") is None:
        options.append("--backend=gloo")
    _adapt_torch(on_cpu)
    ModuleFinder(RUNNER, after=lambda module: adapt_runner(module, on_cpu=on_cpu)).install()
    if not options[0].endswith("=0"):
        ModuleFinder(IDENTIFICATION, after=use_private_lists).install()
    return options


def _value(arguments: Sequence[str], name: str, default: str | None = None) -> str | None:
    """Return the value of a long option, written with a space or with `=`."""
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            default = arguments[index + 1]
        elif argument.startswith(f"{name}="):
            default = argument.partition("=")[2]
    return default


def _adapt_torch(on_cpu: bool) -> None:
    """Let ranks wait for each other long enough and, on a CPU, ignore the choice of a GPU."""
    import torch
    import torch.distributed

    distributed: Any = torch.distributed
    start = distributed.init_process_group

    def init_process_group(backend: str | None = None, **options: Any) -> None:
        start(backend, **{"timeout": _TIMEOUT, **options})

    distributed.init_process_group = init_process_group
    if on_cpu:
        torch.cuda.set_device = lambda device: None


def adapt_runner(runner: ModuleType, *, on_cpu: bool) -> None:
    """Let every rank count its steps and the first one evaluate alone and, on a CPU, give the replicas no GPU.

    Args:
        runner: The module `s3prl.downstream.runner`.
        on_cpu: Whether `--device` is the CPU.
    """
    module: Any = runner
    counter = StepCounter(module.is_leader_process)

    class ProgressBar(module.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            counter.notice(self, options.get("desc"))

    module.tqdm, module.is_leader_process = ProgressBar, counter.is_leader
    replicate = module.DDP

    def data_parallel(model, device_ids=None, **options):
        # Replicas would exchange their buffers, the best score on dev among them, in every forward pass; those of an
        # evaluation happen on the first rank only.
        device_ids = None if on_cpu else device_ids
        return replicate(model, device_ids=device_ids, broadcast_buffers=False, **options)

    module.DDP = data_parallel


def use_private_lists(dataset: ModuleType) -> None:
    """Let a rank keep its lists of files to itself, unless they exist: another rank may be writing them.

    Args:
        dataset: The module `s3prl.downstream.voxceleb1.dataset`.
    """
    module: Any = dataset
    shared = Path(module.CACHE_PATH)
    if not all((shared / f"{split}.pkl").is_file() for split in ("train", "dev", "test")):
        folder = tempfile.TemporaryDirectory(prefix="wavcube_lists_")
        module.CACHE_PATH, module.wavcube_lists = f"{folder.name}/", folder


class StepCounter:
    """Advances the bar that counts a training's steps on the ranks whose loop skips it.

    s3prl's loop asks at the end of every step whether it is the leader, and goes on with the next batch if not, before
    the line that advances the bar by which the loop ends. From the moment the loop over batches has its own bar, each
    such question is one step.

    Args:
        is_leader: The runner's question.
    """

    def __init__(self, is_leader: Callable[[], bool]):
        self._ask = is_leader
        self._steps: Any = None
        self._counting = False

    def notice(self, bar: Any, title: str | None) -> None:
        """Take note of a new bar: the one over the whole training, and the one over batches."""
        if title == "overall":
            self._steps = bar
        elif title == "train":
            self._counting = True

    def is_leader(self) -> bool:
        """Answer the question and, on the other ranks, count a step."""
        leader = self._ask()
        if not leader and self._counting and self._steps.n < self._steps.total:
            self._steps.update(1)
        return leader
