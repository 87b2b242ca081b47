"""Loading and saving models: our own folders, the public Lightning files, and the Hugging Face hub.

Files of others are read with `weights_only=True`, so no code in a pickle ever runs.
"""

from wavcube_plugins.checkpoints.lightning import LIGHTNING_SUFFIXES, convert, load_discriminators, load_teacher
from wavcube_plugins.checkpoints.loading import load_model
from wavcube_plugins.checkpoints.names import ASSETS, NAMES, PUBLISHED, CheckpointError
from wavcube_plugins.checkpoints.native import CONFIG_NAME, FORMAT, WEIGHTS_NAME, save_model

__all__ = [
    "ASSETS",
    "CONFIG_NAME",
    "FORMAT",
    "LIGHTNING_SUFFIXES",
    "NAMES",
    "PUBLISHED",
    "WEIGHTS_NAME",
    "CheckpointError",
    "convert",
    "load_discriminators",
    "load_model",
    "load_teacher",
    "save_model",
]
