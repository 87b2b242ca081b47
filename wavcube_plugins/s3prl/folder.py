"""s3prl's own way to add an upstream: a folder in `s3prl/upstream` and one line in `s3prl/hub.py`."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from wavcube_plugins.s3prl.replace import InstallError, replace_file
from wavcube_plugins.s3prl.script import MISSING

FOLDER_NAME = "wavcube"
STAMP_NAME = ".wavcube_plugins.json"
HUB_IMPORT = b"from s3prl.upstream.wavcube.hubconf import *"
HUB_LINE = HUB_IMPORT + b"  # added by wavcube-plugins"
_STAR_IMPORTS = re.compile(rb"^from s3prl\.upstream\.[\w.]+ import \*.*$", re.MULTILINE)


def install_folder(s3prl_dir: str | Path | None = None) -> str:
    """Copy the upstream folder into s3prl and add its line to `hub.py`; repeating this is harmless.

    Args:
        s3prl_dir: s3prl's package folder or a clone that contains it; None means the one Python imports.

    Returns:
        What was done, as a sentence.

    Raises:
        InstallError: no s3prl there, or an `upstream/wavcube` that is not ours.
    """
    package = find_s3prl(s3prl_dir)
    folder, hub = package / "upstream" / FOLDER_NAME, package / "hub.py"
    if (folder.exists() or folder.is_symlink()) and not (folder / STAMP_NAME).is_file():
        raise InstallError(f"{folder}: exists and was not put there by this command; move it away first")
    text = hub.read_bytes()
    edited = _with_line(text, hub)
    sources = [path for path in sorted(upstream_folder().iterdir()) if path.is_file() and not path.name.startswith(".")]
    # The stamp comes first and hub.py last: an interruption anywhere leaves s3prl working and us able to tidy up.
    replace_file(folder / STAMP_NAME, json.dumps({"files": [path.name for path in sources]}).encode() + b"\n")
    for path in sources:
        replace_file(folder / path.name, path.read_bytes())
    if edited != text:
        replace_file(hub, edited)
    imported, note = imported_s3prl(), ""
    if imported is None:
        note = "; Python does not find this s3prl yet: pip install it"
    elif not imported.samefile(package):
        note = f"; note that Python imports another s3prl, {imported}"
    return f"the upstream folder is installed and listed in hub.py: {folder}{note}"


def remove_folder(package: Path) -> list[str]:
    """Remove our folder and line from an s3prl package; return what was done, as sentences.

    Raises:
        InstallError: `hub.py` has a line for the folder that `install_folder` did not write.
    """
    folder, hub, done = package / "upstream" / FOLDER_NAME, package / "hub.py", []
    stamp = folder / STAMP_NAME
    text = hub.read_bytes()
    restored = re.sub(rb"^" + re.escape(HUB_LINE) + rb"\r?\n", b"", text, flags=re.MULTILINE)
    if stamp.is_file() and re.search(rb"^" + re.escape(HUB_IMPORT), restored, flags=re.MULTILINE):
        raise InstallError(f"{hub}: the line that imports {FOLDER_NAME} was changed or added by hand; remove it first")
    if restored != text:
        replace_file(hub, restored)
        done.append(f"restored {hub}")
    if stamp.is_file():
        for name in json.loads(stamp.read_text(encoding="utf-8"))["files"]:
            (folder / Path(name).name).unlink(missing_ok=True)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        stamp.unlink()
        if any(folder.iterdir()):
            done.append(f"removed our files from {folder}; the others in it are not ours and stay")
        else:
            folder.rmdir()
            done.append(f"removed {folder}")
    return done


def upstream_folder() -> Path:
    """Return the folder `s3prl_upstream`, as installed or in the source tree."""
    spec = find_spec("wavcube_plugins.s3prl.upstream_folder")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parents[2] / "s3prl_upstream"  # a source tree on PYTHONPATH


def imported_s3prl() -> Path | None:
    """Return the folder of the s3prl that Python imports; a mere folder of that name on the path does not count."""
    spec = find_spec("s3prl")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def find_s3prl(s3prl_dir: str | Path | None) -> Path:
    """Return s3prl's package folder: the one named, or the one Python imports.

    Raises:
        InstallError: it is not there.
    """
    imported = imported_s3prl()
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
    imports = list(_STAR_IMPORTS.finditer(text))
    if any(found[0].startswith(HUB_IMPORT) for found in imports):
        return text
    if not imports:
        raise InstallError(f"{hub}: no line that imports an upstream, as in s3prl 0.4; this version is unknown")
    start = imports[-1].start()
    end = b"\r\n" if b"\r\n" in text else b"\n"
    return text[:start] + HUB_LINE + end + text[start:]
