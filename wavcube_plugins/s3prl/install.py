"""`wavcube install-s3prl` and `wavcube uninstall-s3prl`: makes s3prl know WavCube, and undoes it.

There are two ways. The hook is a `.pth` file in site-packages and leaves s3prl's files alone; a wheel of this package
brings it, an editable install does not. The folder is s3prl's own convention: a copy in `s3prl/upstream/wavcube` and
one line in `s3prl/hub.py`.
"""

from __future__ import annotations

from pathlib import Path

from wavcube_plugins.s3prl.folder import find_s3prl, imported_s3prl, install_folder, remove_folder
from wavcube_plugins.s3prl.hook_file import install_hook, remove_hook
from wavcube_plugins.s3prl.replace import InstallError

__all__ = ["InstallError", "install_folder", "install_hook", "uninstall"]


def uninstall(s3prl_dir: str | Path | None = None) -> list[str]:
    """Remove the hook and the upstream folder, whichever are installed; s3prl's files are what they were before.

    Args:
        s3prl_dir: As in `install_folder`; if given, only the folder there is removed.

    Returns:
        What was done, as sentences.

    Raises:
        InstallError: `s3prl_dir` is not an s3prl, or `hub.py` has a line for the folder that we did not write.
    """
    if s3prl_dir is not None:
        return remove_folder(find_s3prl(s3prl_dir)) or [f"nothing to remove: no folder is installed in {s3prl_dir}"]
    done = remove_hook()
    if imported_s3prl() is not None:
        done += remove_folder(find_s3prl(None))
    return done or ["nothing to remove: neither hook nor folder is installed"]
