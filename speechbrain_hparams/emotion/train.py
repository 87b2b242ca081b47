#!/usr/bin/env python
"""Trains emotion recognition: one of a few classes per utterance, from pooled WavCube features."""

from __future__ import annotations

import sys

try:
    import speechbrain  # noqa: F401
except ImportError:
    sys.exit("emotion/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch

from wavcube_plugins.speechbrain.recipes.classification import ClassificationRecipe
from wavcube_plugins.speechbrain.recipes.command import main


class Emotions(ClassificationRecipe):
    """The key `emotion` of the manifests."""

    needs = ("wav", "emotion")
    label = "emotion"


if __name__ == "__main__":
    status = main(Emotions, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
