"""Run by `python tts_ranks.py RANK FOLDER`: one of two processes that train the TTS model together on a CPU."""

import dataclasses
import sys
from pathlib import Path

import torch

from wavcube_plugins.tts import FlowConfig, FlowMatching

RANKS, STEPS = 2, 8


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    # Different starts, which the first process's must replace; and different data and draws afterwards.
    torch.manual_seed(rank)
    # Everything is dropped in half of the steps.
    config = dataclasses.replace(FlowConfig.preset("tiny"), dim=64, num_layers=1, num_heads=2, both_drop=0.5)
    model = FlowMatching(config, 30, 8)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    for _ in range(STEPS):
        latent, tokens = torch.randn(2, 30, 8), torch.randint(30, (2, 7))
        parallel(latent, torch.tensor([30, 21]), tokens, torch.tensor([7, 5])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
