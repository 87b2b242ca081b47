"""Run by `wavcube_plugins.espnet.run -m espnet_spawn CONFIG`: ASR training in spawned processes, as with several GPUs.

ESPnet spawns a process per GPU and needs GPUs for that; this does the same on a CPU, with two.
"""

import argparse
import sys

import torch
import yaml
from espnet2.tasks.asr import ASRTask

RANKS = 2


def main():
    with open(sys.argv[1]) as file:
        options = yaml.safe_load(file)
    arguments = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            arguments += [f"--{name}", str(one)]
    parsed = ASRTask.get_parser().parse_args(arguments)
    parsed.version, parsed.distributed, parsed.dist_world_size = "", True, RANKS
    context = torch.multiprocessing.get_context("spawn")
    processes = []
    for rank in range(RANKS):
        own = argparse.Namespace(**vars(parsed))
        own.dist_rank, own.local_rank = rank, None
        processes.append(context.Process(target=ASRTask.main_worker, args=(own,)))
        processes[-1].start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode) for process in processes)
