"""Adds the WavCube entries to `s3prl.hub` when it is imported, without touching s3prl's files.

Python runs `wavcube_s3prl_hook.pth` at every start. It adds a function to `sys.meta_path` that knows one name,
s3prl.hub, and imports this module when asked for it. WAVCUBE_S3PRL_HOOK=0 (or false, no, off, empty) disables it.
"""

import os
import sys
import warnings
from importlib.util import find_spec

from wavcube_plugins.s3prl.imports import ModuleFinder, WrappedLoader

HUB = "s3prl.hub"
SWITCH = "WAVCUBE_S3PRL_HOOK"
_OFF = ("", "0", "false", "no", "off")


def enabled() -> bool:
    """Return whether the environment leaves the hook on."""
    return os.environ.get(SWITCH, "on").strip().lower() not in _OFF


def active() -> bool:
    """Return whether `s3prl.hub` has the WavCube entries in this process, or will have when it is imported.

    Raises:
        ModuleNotFoundError: s3prl is not installed.
    """
    if HUB in sys.modules:
        return hasattr(sys.modules[HUB], "wavcube")
    spec = find_spec(HUB)
    return spec is not None and isinstance(spec.loader, WrappedLoader)


def find_hub(path, target):
    """Find `s3prl.hub` on behalf of the `.pth` file's function, unless the hook is disabled."""
    return _FINDER.find_spec(HUB, path, target) if enabled() else None


def register() -> None:
    """Give `s3prl.hub` the WavCube entries, now if it is loaded and whenever it will be, with or without the `.pth`."""
    _FINDER.install()


def add_entries(hub) -> None:
    """Add the WavCube entries to the loaded module `s3prl.hub`; names it already has stay as they are.

    Failures are only warnings: this package must not stop people who use another upstream.
    """
    try:
        from wavcube_plugins.s3prl import hubconf

        for name in hubconf.__all__:
            if not hasattr(hub, name):
                setattr(hub, name, getattr(hubconf, name))
        allow_saved_arguments_in_runner()
    except Exception as error:
        warnings.warn(f"wavcube_plugins could not add its upstreams to s3prl: {error}", stacklevel=2)


def restore_torchaudio() -> None:
    """Add the functions that torchaudio dropped in 2.9, without which s3prl 0.4 cannot be imported.

    Does nothing with an older torchaudio. Failures are only warnings, as in `add_entries`.
    """
    try:
        from wavcube_plugins.s3prl import torchaudio_shims

        torchaudio_shims.restore()
    except Exception as error:
        warnings.warn(f"wavcube_plugins could not prepare torchaudio for s3prl: {error}", stacklevel=2)


def allow_saved_arguments_in_runner() -> None:
    """Call `allow_saved_arguments` if this process is s3prl's `run_downstream.py`, and only then."""
    from wavcube_plugins.s3prl.script import runs_downstream

    if runs_downstream():
        allow_saved_arguments()


def allow_saved_arguments() -> None:
    """Let torch.load read s3prl's checkpoints, which hold the command line as an `argparse.Namespace`.

    Since torch 2.6 only classes on its list are read by default; a namespace holds values and runs nothing.
    """
    from argparse import Namespace

    from torch.serialization import add_safe_globals

    add_safe_globals([Namespace])


_FINDER = ModuleFinder(HUB, before=restore_torchaudio, after=add_entries)
