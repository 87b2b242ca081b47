"""Makes ESPnet know the names `wavcube` and `wavcube_cfm`, without a change to it.

ESPnet's tasks look classes up in `ClassChoices` objects of their modules. A finder in `sys.meta_path` waits for these
modules and adds to each, right after it was executed, what it has a place for; a module that nobody imports costs
nothing. The lists are found by the base class they ask for, so tasks that come later are served as well.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

TASKS = "espnet2.tasks."
TTS_INFERENCE = "espnet2.bin.tts_inference"

# Modules with a list of frontends that take token ids, not speech.
_TEXT_ONLY = ("espnet2.tasks.mt",)

# Name of the list and of the base class it asks for: the name we add, where it is.
_CLASSES = {
    ("frontend", "AbsFrontend"): ("wavcube", "wavcube_plugins.espnet.frontend", "WavCubeFrontend"),
    ("diar_frontend", "AbsFrontend"): ("wavcube", "wavcube_plugins.espnet.frontend", "WavCubeFrontend"),
    ("feats_extract", "AbsFeatsExtract"): ("wavcube", "wavcube_plugins.espnet.features", "WavCubeFeatures"),
    ("tts", "AbsTTS"): ("wavcube_cfm", "wavcube_plugins.espnet.tts", "WavCubeCFM"),
}


def register() -> None:
    """Add the WavCube classes to ESPnet's tasks: to those that are imported now, and to the others when they will be.

    Calling it again changes nothing.
    """
    if WavCubeHook not in sys.meta_path:
        sys.meta_path.insert(0, WavCubeHook)
    for name, module in list(sys.modules.items()):
        if _is_wanted(name) and module is not None and not _is_being_imported(module):
            extend(module)


class WavCubeHook:
    """A finder for `sys.meta_path` that lets the others find ESPnet's modules and adds a step after their execution."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if not _is_wanted(name):
            return None
        for finder in sys.meta_path:
            if finder is WavCubeHook or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    _extend_after(spec.loader)
                return spec
        return None


def extend(module: ModuleType) -> None:
    """Add what belongs there to one of ESPnet's modules, already executed."""
    if module.__name__ == TTS_INFERENCE:
        tts = importlib.import_module("wavcube_plugins.espnet.tts")
        tts.extend_tts_inference(module)
        return
    for choices in list(vars(module).values()):
        base = getattr(choices, "base_type", None)
        entry = _CLASSES.get((getattr(choices, "name", None), getattr(base, "__name__", None)))
        if entry is None or (entry[0] == "wavcube" and module.__name__ in _TEXT_ONLY):
            continue
        name, where, class_name = entry
        if name in choices.classes:
            continue
        kind = getattr(importlib.import_module(where), class_name)
        # ClassChoices checks this when it is made, and we come later.
        if not issubclass(kind, base):
            raise TypeError(f"{kind.__name__} must be a subclass of {base.__name__} to be a --{choices.name}")
        choices.classes[name] = kind
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and "build_vocoder_from_file" in vars(kind):
            _wrap_vocoder(kind)


def _wrap_vocoder(task: type) -> None:
    """Let a task's `build_vocoder_from_file` build the WavCube decoder where that is meant."""
    original = vars(task)["build_vocoder_from_file"].__func__
    if hasattr(original, "_wavcube"):
        return

    @functools.wraps(original)
    def build_vocoder_from_file(
        cls, vocoder_config_file=None, vocoder_file=None, model: Any = None, device: str = "cpu"
    ):
        from wavcube_plugins.espnet.vocoder import build_vocoder

        vocoder = build_vocoder(vocoder_file, model, device)
        return original(cls, vocoder_config_file, vocoder_file, model, device) if vocoder is None else vocoder

    build_vocoder_from_file._wavcube = True
    task.build_vocoder_from_file = classmethod(build_vocoder_from_file)


def _is_wanted(name: str) -> bool:
    return name.startswith(TASKS) or name == TTS_INFERENCE


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _extend_after(loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        extend(module)

    loader.exec_module = exec_module
