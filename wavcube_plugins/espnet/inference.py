"""Inference with WavCube models in Python, with ESPnet's own classes.

>>> from wavcube_plugins.espnet.inference import Speech2Text, Text2Speech
>>> text2speech = Text2Speech(model_file="exp/…/valid.loss.best.pth")
>>> text2speech("a text", prompt_speech=waveform, prompt_text="its transcript", seed=0)["wav"]
>>> speech2text = Speech2Text("exp/…/config.yaml", "exp/…/valid.loss.best.pth")

Without a prompt the voice is random. On the command line:

    python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_inference --model_file exp/…/valid.loss.best.pth \\
        --data_path_and_name_and_type data/test/text,text,text \\
        --data_path_and_name_and_type data/test/prompt_text,prompt_text,text \\
        --data_path_and_name_and_type data/test/prompt.scp,prompt_speech,sound \\
        --steps 32 --guidance 2 --sway -1 --speed 1 --seed 0 --output_dir exp/…/decode
"""

from importlib import import_module
from typing import Any

from wavcube_plugins.espnet.registration import register

register()

_CLASSES = {
    "Speech2Text": "espnet2.bin.asr_inference",
    "Text2Speech": "espnet2.bin.tts_inference",
    "WavCubeTTSTask": "wavcube_plugins.espnet.tts_task",
}

__all__ = [*_CLASSES]


def __getattr__(name: str) -> Any:
    # Each takes many seconds to import.
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
