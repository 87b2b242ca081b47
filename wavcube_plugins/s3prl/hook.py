"""Adds the WavCube entries to `s3prl.hub` at the moment it is imported, without touching s3prl's files.

Python runs `wavcube_s3prl_hook.pth` at every start. It puts a finder into `sys.meta_path` that knows one name,
s3prl.hub, and imports this module when asked for that. WAVCUBE_S3PRL_HOOK=0 in the environment switches it off.
"""

import os
import sys

HUB = "s3prl.hub"
SWITCH = "WAVCUBE_S3PRL_HOOK"


class WavCubeHook:
    """A finder for `sys.meta_path` that lets the others find `s3prl.hub` and wraps its loader."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != HUB:
            return None
        for finder in sys.meta_path:
            if _is_ours(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _HubLoader(spec.loader)
                return spec
        return None


def find_hub(path, target):
    """Find `s3prl.hub` on behalf of the `.pth` file's finder, unless the hook is switched off."""
    return None if os.environ.get(SWITCH) == "0" else WavCubeHook.find_spec(HUB, path, target)


def register() -> None:
    """Give `s3prl.hub` the WavCube entries, now if it is loaded and whenever it will be, `.pth` file or not."""
    if WavCubeHook not in sys.meta_path:
        sys.meta_path.insert(0, WavCubeHook)
    if HUB in sys.modules:
        add_entries(sys.modules[HUB])


def add_entries(hub) -> None:
    """Add the WavCube entries to the loaded module `s3prl.hub`; names it has already stay as they are.

    Whatever goes wrong is a warning: somebody who uses another upstream must not be stopped by this one.
    """
    try:
        from wavcube_plugins.s3prl import hubconf

        for name in hubconf.__all__:
            if not hasattr(hub, name):
                setattr(hub, name, getattr(hubconf, name))
        allow_saved_arguments()
    except Exception as error:
        import warnings

        warnings.warn(f"wavcube_plugins could not add its upstreams to s3prl: {error}", stacklevel=2)


def allow_saved_arguments() -> None:
    """Let torch.load read s3prl's checkpoints, which hold the command line as an `argparse.Namespace`.

    Since torch 2.6 it refuses every class that is not on its list; a namespace only holds values and runs nothing.
    """
    from argparse import Namespace

    from torch.serialization import add_safe_globals

    add_safe_globals([Namespace])


class _HubLoader:
    """The module's own loader, followed by `add_entries`."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        if name == "_loader":  # not set yet, as while being copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        add_entries(module)


def _is_ours(finder) -> bool:
    # The .pth file's finder is a class of its own with the same name: this module is not loaded when it is made.
    return getattr(finder, "__name__", None) == WavCubeHook.__name__
