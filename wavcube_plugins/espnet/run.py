"""Runs a tool of ESPnet with the WavCube classes registered, in its spawned worker processes too.

    python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_train --feats_extract wavcube …

is `python -m espnet2.bin.tts_train …`; recipes take it whole:
`tts.sh --python "python3 -m wavcube_plugins.espnet.run"`. `-c CODE` and a script's path work as with python itself.

Importing this module registers. That is what makes it work with several GPUs: ESPnet spawns a process for each, and a
spawned process imports its parent's main module, which is this one.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from wavcube_plugins.espnet.registration import register

USAGE = "usage: python -m wavcube_plugins.espnet.run -m espnet2.bin.TOOL [OPTIONS]\n\nexample:\n  " + (
    "python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_train --config conf/train.yaml --feats_extract wavcube"
)
DEBUG_VARIABLE = "WAVCUBE_DEBUG"
BAD_INPUT = 2

_PACKAGE = Path(__file__).resolve().parents[1]

register()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments name, in this process.

    Args:
        arguments: As behind `python`; None takes the process's.

    Returns:
        0, or 2 with one line on stderr where something given cannot be used; what ESPnet itself raises goes through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else BAD_INPUT
    try:
        return _run(arguments)
    except (ValueError, ImportError, FileNotFoundError) as error:
        if os.environ.get(DEBUG_VARIABLE) or not _is_ours(error):
            raise
        return _complain(str(error))


def _run(arguments: list[str]) -> int:
    kind, rest = arguments[0], arguments[1:]
    if kind in ("-m", "-c") and not rest:
        return _complain(f"{kind} needs a value")
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        return 0
    if kind != "-m":
        if kind.startswith("-") or not Path(kind).is_file():
            return _complain(f"{kind}: no such script; expected -m MODULE, -c CODE or a script's path")
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")
        return 0
    name = rest[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        return _complain(f"-m {name}: no module of that name in this Python environment")
    if not hasattr(module, "main"):
        sys.argv = rest
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    # Called, not executed anew as `__main__`: so what is registered in the module is there, and its classes can be
    # pickled for other processes.
    sys.argv = [module.__file__ or name, *rest[1:]]
    result = module.main()
    return result if isinstance(result, int) else 0


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by this package's own code, and so is a sentence for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(_PACKAGE)


def _complain(message: str) -> int:
    print(f"wavcube_plugins.espnet.run: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
