#!/usr/bin/env python
"""Trains speech separation: the latent of two talkers at once to that of each, in whatever order, with masks beside."""

from __future__ import annotations

import sys

try:
    import speechbrain  # noqa: F401
except ImportError:
    sys.exit("separate/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch

from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.restoration import RestorationRecipe


class Separation(RestorationRecipe):
    """Two sources; the score beside the plain ones is the improvement over the mixture."""

    needs = ("wav", "source_1", "source_2")
    inputs = ("wav", "source_1", "source_2")
    targets = ("source_1", "source_2")
    model_name = "separator"

    def scores(self, stage):
        scores = super().scores(stage)
        for name in ("masks", "latents"):
            if f"si_sdr_{name}" in scores:
                scores[f"si_sdr_improvement_{name}"] = scores[f"si_sdr_{name}"] - scores["si_sdr_input"]
        return scores


if __name__ == "__main__":
    status = main(Separation, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
