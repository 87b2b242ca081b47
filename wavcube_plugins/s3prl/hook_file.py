"""The hook's `.pth` file in site-packages, listed among this package's files so that pip removes it."""

from __future__ import annotations

import base64
import csv
import hashlib
import site
from importlib.metadata import Distribution, distributions
from pathlib import Path

from wavcube_plugins.s3prl.replace import InstallError, replace_file

PROJECT = "wavcube-plugins"
HOOK_NAME = "wavcube_s3prl_hook.pth"
HOOK_SOURCE = Path(__file__).parent / HOOK_NAME


def install_hook() -> str:
    """Write the import hook into site-packages and into the list of this package's installed files.

    Returns:
        What was done, as a sentence.

    Raises:
        InstallError: this package is not installed, or not where Python reads such files.
    """
    distribution, records = _installation()
    target = Path(str(distribution.locate_file(HOOK_NAME)))
    content = HOOK_SOURCE.read_bytes()
    listed = _record(content)
    if target.is_file() and target.read_bytes() == content and listed in records.read_bytes().splitlines():
        return f"the hook is in place already, s3prl knows -u wavcube: {target}"
    # List first: a listed file that is missing does no harm, but an unlisted one would stay behind.
    _unlist(records)
    text = records.read_bytes()
    end = b"\r\n" if b"\r\n" in text else b"\n"
    replace_file(records, text + (b"" if not text or text.endswith(b"\n") else end) + listed + end)
    replace_file(target, content)
    return f"the hook is installed, s3prl knows -u wavcube from the next start of Python: {target}"


def remove_hook() -> list[str]:
    """Remove the file and its entry in the list; return what was done, as sentences."""
    try:
        distribution, records = _installation()
    except InstallError:
        return []  # then there is no hook either
    hook = Path(str(distribution.locate_file(HOOK_NAME)))
    found = hook.is_file()
    hook.unlink(missing_ok=True)
    _unlist(records)
    return [f"removed the hook {hook}"] if found else []


def _installation() -> tuple[Distribution, Path]:
    """Return the installation of this package that Python uses and pip can remove, and its list of files.

    A source tree's egg-info has no such list, and installations in other environments on the path are left alone.
    """
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    folders = [Path(folder).resolve() for folder in folders]
    elsewhere = None
    for distribution in distributions(name=PROJECT):
        records = _records(distribution)
        if records is None:
            continue
        place = Path(str(distribution.locate_file(""))).resolve()
        if place in folders:
            return distribution, records
        elsewhere = elsewhere or place
    if elsewhere is not None:
        where = f"{PROJECT} is installed in {elsewhere}, where Python reads no .pth files"
    else:
        where = f"{PROJECT} is not installed in this Python, only on its path"
    raise InstallError(f"{where}; pip install it, or start s3prl with python -m wavcube_plugins.s3prl.run")


def _records(distribution: Distribution) -> Path | None:
    """Return pip's list of the installed files: `pip uninstall` removes what it names."""
    for file in distribution.files or []:
        if file.name == "RECORD" and file.parent.suffix == ".dist-info":
            return Path(str(file.locate()))
    return None


def _record(content: bytes) -> bytes:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{HOOK_NAME},sha256={digest},{len(content)}".encode()


def _unlist(records: Path) -> None:
    lines = records.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if next(csv.reader([line.decode()]), [""])[:1] != [HOOK_NAME]]
    if kept != lines:
        replace_file(records, b"".join(kept))
