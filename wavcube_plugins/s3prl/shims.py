"""Small repairs that let s3prl 0.4 run with libraries that have moved on since its release.

Each function repairs one thing, does nothing where that thing works, and returns whether it did something. They are
applied by `wavcube_plugins.s3prl.run` and by nothing else; the import hook only restores what torchaudio dropped.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.imports import ModuleFinder
from wavcube_plugins.s3prl.torchaudio_shims import audio_backend, audio_files, sox_effects

# Environment variables that `wavcube superb` sets for its processes.
WORKERS, WHOLE = "WAVCUBE_S3PRL_WORKERS", "WAVCUBE_S3PRL_WHOLE"


def hub_functions() -> bool:
    """Restore what s3prl's `--hub huggingface` calls in huggingface_hub: login by password, positional arguments.

    The token is the one stored by `hf auth login`; public models need none.
    """
    import huggingface_hub

    added: dict[str, Any] = {}
    if not hasattr(huggingface_hub, "HfFolder"):
        added["HfFolder"] = type("HfFolder", (), {"get_token": staticmethod(huggingface_hub.get_token)})
    if not hasattr(huggingface_hub, "Repository"):
        added["Repository"] = _Repository
    download = huggingface_hub.snapshot_download
    if inspect.signature(download).parameters["revision"].kind is inspect.Parameter.KEYWORD_ONLY:

        def snapshot_download(repo_id, revision=None, use_auth_token=None, **arguments):
            return download(repo_id, revision=revision, **arguments)

        added["snapshot_download"] = snapshot_download
    for name, value in added.items():
        setattr(huggingface_hub, name, value)
    if hasattr(huggingface_hub.HfApi, "login"):
        return bool(added)
    hub: Any = huggingface_hub
    hub.HfApi.login = lambda self, username=None, password=None: huggingface_hub.get_token()
    hub.HfFolder.save_token = staticmethod(lambda token: None)  # it is stored already
    return True


def verification_device() -> bool:
    """Keep the tensors of speaker verification on the device of its features when that is the CPU.

    Its code calls `.cuda()` whatever `--device` says. `Tensor.cuda` is replaced only while that code runs.
    """
    ModuleFinder("s3prl.downstream.sv_voxceleb1.expert", after=_stay_on_device).install()
    return False  # so far nothing has been changed


def _stay_on_device(module: ModuleType) -> None:
    expert: Any = module.DownstreamExpert
    if getattr(expert.forward, "by_wavcube", False):
        return
    forward = expert.forward

    @functools.wraps(forward)
    def on_features_device(self, mode, features, *arguments, **options):
        if features[0].is_cuda:
            return forward(self, mode, features, *arguments, **options)
        cuda = Tensor.cuda
        Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        try:
            return forward(self, mode, features, *arguments, **options)
        finally:
            Tensor.cuda = cuda  # type: ignore[method-assign]

    expert.forward = _marked(on_features_device)


def loader_workers() -> bool:
    """Start at most WAVCUBE_S3PRL_WORKERS processes per data loader, if that is set in the environment.

    The configurations ask for many, and some of s3prl's tasks for twelve whatever the configuration says.
    """
    most = os.environ.get(WORKERS)
    if not most or getattr(DataLoader.__init__, "by_wavcube", False):
        return False
    initialise = DataLoader.__init__
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def limited(self, *arguments, **options):
        bound = signature.bind(self, *arguments, **options)
        bound.arguments["num_workers"] = min(bound.arguments.get("num_workers", 0), int(most))
        initialise(*bound.args, **bound.kwargs)

    DataLoader.__init__ = _marked(limited)  # type: ignore[method-assign]
    return True


def whole_checkpoints() -> bool:
    """Make `torch.save` write to another name first, if WAVCUBE_S3PRL_WHOLE is set in the environment.

    s3prl resumes from the newest checkpoint; a process killed while saving would leave half of one.
    """
    if not os.environ.get(WHOLE) or getattr(torch.save, "by_wavcube", False):
        return False
    write = torch.save

    @functools.wraps(write)
    def save(obj, f, *arguments, **options):
        if not isinstance(f, (str, os.PathLike)):
            return write(obj, f, *arguments, **options)
        with atomic_path(f) as temporary:
            write(obj, os.fspath(temporary), *arguments, **options)

    torch.save = _marked(save)
    return True


ALL = (
    audio_backend,
    audio_files,
    sox_effects,
    hub_functions,
    verification_device,
    loader_workers,
    whole_checkpoints,
)


def _marked(function: Callable) -> Any:
    """Mark a replacement, so that it is made once."""
    function.by_wavcube = True  # type: ignore[attr-defined]
    return function


class _Repository:
    def __init__(self, *arguments, **named):
        raise RuntimeError("--push_to_hf_hub needs huggingface_hub below 1.0: pip install 'huggingface_hub<1'")
