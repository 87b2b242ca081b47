"""Makes s3prl know WavCube, and undoes it: `wavcube install-s3prl` and `wavcube uninstall-s3prl`.

Two ways. The hook is a `.pth` file in site-packages and leaves s3prl's files alone; a wheel of this package brings it,
an editable install does not. The folder is s3prl's own convention: a copy in `s3prl/upstream/wavcube` and one line in
`s3prl/hub.py`.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import site
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.s3prl.run import MISSING

PROJECT = "wavcube-plugins"
HOOK_NAME = "wavcube_s3prl_hook.pth"
HOOK_SOURCE = Path(__file__).parent / HOOK_NAME

FOLDER_NAME = "wavcube"
STAMP_NAME = ".wavcube_plugins.json"
HUB_IMPORT = b"from s3prl.upstream.wavcube.hubconf import *"
HUB_LINE = HUB_IMPORT + b"  # added by wavcube-plugins"
_HUB_STAR_IMPORTS = re.compile(rb"^from s3prl\.upstream\.[\w.]+ import \*.*$", re.MULTILINE)


class InstallError(InputError):
    """Nothing was changed; the message says why and what to do."""


def install_hook() -> str:
    """Write the import hook into site-packages and into this package's list of installed files.

    Returns:
        What was done, as a sentence.

    Raises:
        InstallError: this package is not installed, or not where Python looks for such files.
    """
    distribution = _distribution()
    target = Path(distribution.locate_file(HOOK_NAME))
    content = HOOK_SOURCE.read_bytes()
    records = _records(distribution)
    listed = _hook_record(content)
    if target.is_file() and target.read_bytes() == content and listed in records.read_bytes().splitlines():
        return f"the hook is in place already, s3prl knows -u wavcube: {target}"
    # Listed first: a file that is listed and missing harms nobody, the other way round it would stay behind.
    _unlist_hook(records)
    text = records.read_bytes()
    end = b"\r\n" if b"\r\n" in text else b"\n"
    _write(records, text + (b"" if not text or text.endswith(b"\n") else end) + listed + end)
    _write(target, content)
    return f"the hook is installed, s3prl knows -u wavcube from the next start of Python on: {target}"


def install_folder(s3prl_dir: str | Path | None = None) -> str:
    """Copy the upstream folder into s3prl and add its line to `hub.py`; again and again is harmless.

    Args:
        s3prl_dir: s3prl's package folder or a clone that holds it; None takes the one Python imports.

    Returns:
        What was done, as a sentence.

    Raises:
        InstallError: no s3prl there, or an `upstream/wavcube` that is not ours.
    """
    package = _find_s3prl(s3prl_dir)
    folder, hub = package / "upstream" / FOLDER_NAME, package / "hub.py"
    if (folder.exists() or folder.is_symlink()) and not (folder / STAMP_NAME).is_file():
        raise InstallError(f"{folder}: exists and was not put there by this command; move it away first")
    text = hub.read_bytes()
    edited = _with_line(text, hub)
    sources = [path for path in sorted(upstream_folder().iterdir()) if path.is_file() and not path.name.startswith(".")]
    # The stamp comes first and hub.py last, so that breaking off anywhere leaves s3prl working and us able to tidy up.
    _write(folder / STAMP_NAME, json.dumps({"files": [path.name for path in sources]}).encode() + b"\n")
    for path in sources:
        _write(folder / path.name, path.read_bytes())
    if edited != text:
        _write(hub, edited)
    imported, note = _imported_s3prl(), ""
    if imported is None:
        note = "; Python does not find this s3prl yet: pip install it"
    elif not imported.samefile(package):
        note = f"; mind that Python imports another s3prl, {imported}"
    return f"the upstream folder is installed and listed in hub.py: {folder}{note}"


def uninstall(s3prl_dir: str | Path | None = None) -> list[str]:
    """Remove the hook and the upstream folder, whichever are there; s3prl's files are what they were before.

    Args:
        s3prl_dir: As in `install_folder`; if given, only the folder there is removed.

    Returns:
        What was done, as sentences.

    Raises:
        InstallError: `s3prl_dir` is no s3prl, or `hub.py` has a line for the folder that this command did not write.
    """
    if s3prl_dir is not None:
        return _remove_folder(_find_s3prl(s3prl_dir)) or [f"nothing to remove: no folder is installed in {s3prl_dir}"]
    done = _remove_hook()
    if _imported_s3prl() is not None:
        done += _remove_folder(_find_s3prl(None))
    return done or ["nothing to remove: neither hook nor folder is installed"]


def _remove_hook() -> list[str]:
    try:
        distribution = _distribution()
    except InstallError:
        return []  # then there is no hook either
    hook = Path(distribution.locate_file(HOOK_NAME))
    found = hook.is_file()
    hook.unlink(missing_ok=True)
    _unlist_hook(_records(distribution))
    return [f"removed the hook {hook}"] if found else []


# The hook -------------------------------------------------------------------------------------------------------------


def _distribution() -> Distribution:
    """Return the installation of this package that Python uses and pip can remove.

    A source tree's egg-info has no list of files, and what other environments on the path hold is theirs.
    """
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    folders = [Path(folder).resolve() for folder in folders]
    installed = [found for found in distributions(name=PROJECT) if _records(found)]
    for distribution in installed:
        if Path(distribution.locate_file("")).resolve() in folders:
            return distribution
    if installed:
        where = f"{PROJECT} is installed in {installed[0].locate_file('')}, where Python reads no .pth files"
    else:
        where = f"{PROJECT} is not installed in this Python, only on its path"
    raise InstallError(f"{where}; pip install it, or start s3prl with python -m wavcube_plugins.s3prl.run")


def _records(distribution: Distribution) -> Path | None:
    """Return pip's list of the installed files: `pip uninstall` removes what it names."""
    for file in distribution.files or []:
        if file.name == "RECORD" and file.parent.suffix == ".dist-info":
            return Path(file.locate())
    return None


def _hook_record(content: bytes) -> bytes:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{HOOK_NAME},sha256={digest},{len(content)}".encode()


def _unlist_hook(records: Path) -> None:
    lines = records.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if next(csv.reader([line.decode()]), [""])[:1] != [HOOK_NAME]]
    if kept != lines:
        _write(records, b"".join(kept))


# The folder -----------------------------------------------------------------------------------------------------------


def upstream_folder() -> Path:
    """Return the folder `s3prl_upstream`, as installed or in the source tree."""
    spec = find_spec("wavcube_plugins.s3prl.upstream_folder")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[2] / "s3prl_upstream"  # a source tree on PYTHONPATH


def _imported_s3prl() -> Path | None:
    """Return the folder of the s3prl that Python imports; a mere folder of that name on the path is none."""
    spec = find_spec("s3prl")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _find_s3prl(s3prl_dir: str | Path | None) -> Path:
    imported = _imported_s3prl()
    if s3prl_dir is not None:
        candidates = [Path(s3prl_dir), Path(s3prl_dir) / "s3prl"]
    elif imported is not None:
        candidates = [imported]
    else:
        raise InstallError(MISSING)
    for package in candidates:
        if (package / "hub.py").is_file() and (package / "upstream").is_dir():
            return package
    raise InstallError(f"{candidates[0]}: no s3prl there, expected hub.py and upstream/ in it")


def _with_line(text: bytes, hub: Path) -> bytes:
    imports = list(_HUB_STAR_IMPORTS.finditer(text))
    if any(found[0].startswith(HUB_IMPORT) for found in imports):
        return text
    if not imports:
        raise InstallError(f"{hub}: no line that imports an upstream, as in s3prl 0.4; this version is unknown")
    start = imports[-1].start()
    end = b"\r\n" if b"\r\n" in text else b"\n"
    return text[:start] + HUB_LINE + end + text[start:]


def _remove_folder(package: Path) -> list[str]:
    folder, hub, done = package / "upstream" / FOLDER_NAME, package / "hub.py", []
    stamp = folder / STAMP_NAME
    text = hub.read_bytes()
    restored = re.sub(rb"^" + re.escape(HUB_LINE) + rb"\r?\n", b"", text, flags=re.MULTILINE)
    if stamp.is_file() and re.search(rb"^" + re.escape(HUB_IMPORT), restored, flags=re.MULTILINE):
        raise InstallError(f"{hub}: the line that imports {FOLDER_NAME} was changed or added by hand; remove it first")
    if restored != text:
        _write(hub, restored)
        done.append(f"restored {hub}")
    if stamp.is_file():
        for name in json.loads(stamp.read_text())["files"]:
            (folder / Path(name).name).unlink(missing_ok=True)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        stamp.unlink()
        if any(folder.iterdir()):
            done.append(f"removed our files from {folder}; the others in it are not ours and stay")
        else:
            folder.rmdir()
            done.append(f"removed {folder}")
    return done


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that no reader sees half of it and hard links of it elsewhere stay as they are."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            if path.exists():
                shutil.copymode(path, temporary)
    except OSError as error:
        raise InstallError(f"{path}: cannot be written, {error.strerror or error}") from error
