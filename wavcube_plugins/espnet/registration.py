"""Registers `wavcube` and `wavcube_cfm` with ESPnet's tasks, without any change to ESPnet.

Each task module of ESPnet has `ClassChoices` objects that map names to classes. A finder in `sys.meta_path` adds ours
right after such a module has been executed, so modules that nobody imports cost nothing. Choices are recognised by
their base class, which covers tasks that do not exist yet.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

# Modules that are extended by a function `extend(module)` of ours.
_EXTENSIONS = {"espnet2.bin.tts_inference": "wavcube_plugins.espnet.zero_shot"}

# Frontends of this task take token ids rather than speech.
_TEXT_ONLY = ("espnet2.tasks.mt",)

_FRONTEND = ("wavcube", "wavcube_plugins.espnet.frontend", "WavCubeFrontend")
# Name and base class of a ClassChoices: our name in it, and our class.
_CLASSES = {
    ("frontend", "AbsFrontend"): _FRONTEND,
    ("diar_frontend", "AbsFrontend"): _FRONTEND,
    ("feats_extract", "AbsFeatsExtract"): ("wavcube", "wavcube_plugins.espnet.features", "WavCubeFeatsExtract"),
    ("tgt_feats_extract", "AbsTgtFeatsExtract"): (
        "wavcube",
        "wavcube_plugins.espnet.tgt_features",
        "WavCubeTgtFeatsExtract",
    ),
    ("tts", "AbsTTS"): ("wavcube_cfm", "wavcube_plugins.espnet.tts", "WavCubeCFM"),
}


def register() -> None:
    """Add the WavCube classes to ESPnet's task modules, those already imported and those imported later.

    Calling it again has no effect.
    """
    if ESPnetFinder not in sys.meta_path:
        sys.meta_path.insert(0, ESPnetFinder)
    for name, module in list(sys.modules.items()):
        if _is_wanted(name) and module is not None and not _is_being_imported(module):
            extend(module)


class ESPnetFinder:
    """A finder for `sys.meta_path` that leaves finding to the others and extends ESPnet's modules once executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Return another finder's spec of a module of ESPnet, its loader extended; None for any other module."""
        if not _is_wanted(name):
            return None
        for finder in sys.meta_path:
            if finder is ESPnetFinder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    _extend_after(spec.loader)
                return spec
        return None


def extend(module: ModuleType) -> None:
    """Add what belongs into one of ESPnet's modules, already executed."""
    if module.__name__ in _EXTENSIONS:
        importlib.import_module(_EXTENSIONS[module.__name__]).extend(module)
        return
    for value in list(vars(module).values()):
        _add_class(module, value)
        if isinstance(value, type) and "build_vocoder_from_file" in vars(value):
            _wrap_vocoder(value)


def _add_class(module: ModuleType, choices: Any) -> None:
    """Add our class to a ClassChoices that has a place for it; do nothing with any other object."""
    base = getattr(choices, "base_type", None)
    if not isinstance(base, type):
        return
    entry = _CLASSES.get((getattr(choices, "name", ""), base.__name__))
    if entry is None or (entry == _FRONTEND and module.__name__ in _TEXT_ONLY) or entry[0] in choices.classes:
        return
    name, where, class_name = entry
    kind = getattr(importlib.import_module(where), class_name)
    # ClassChoices checks this in its constructor, which is over.
    if not issubclass(kind, base):
        raise TypeError(f"{kind.__name__} must be a subclass of {base.__name__} to be a --{choices.name}")
    choices.classes[name] = kind


def _wrap_vocoder(task: type) -> None:
    """Let a task's `build_vocoder_from_file` build the WavCube decoder where it is asked for."""
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

    build_vocoder_from_file._wavcube = True  # type: ignore[attr-defined]
    setattr(task, "build_vocoder_from_file", classmethod(build_vocoder_from_file))  # noqa: B010


def _is_wanted(name: str) -> bool:
    # ESPnet3 keeps tasks of its own, such as espnet3.systems.asr.task.
    task_of_espnet3 = name.startswith("espnet3.systems.") and name.endswith("task")
    return name in _EXTENSIONS or name.startswith("espnet2.tasks.") or task_of_espnet3


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _extend_after(loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        extend(module)

    loader.exec_module = exec_module
