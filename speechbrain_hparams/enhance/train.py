#!/usr/bin/env python
"""Trains speech enhancement: the latent of noisy speech to that of clean speech, with a mask for the noisy spectrum."""

from __future__ import annotations

import sys

try:
    import speechbrain  # noqa: F401
except ImportError:
    sys.exit("enhance/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch

from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.restoration import RestorationRecipe


class Enhancement(RestorationRecipe):
    """One source, `clean`."""

    needs = ("wav", "clean")
    inputs = ("wav", "clean")
    targets = ("clean",)
    model_name = "enhance_model"


if __name__ == "__main__":
    status = main(Enhancement, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
