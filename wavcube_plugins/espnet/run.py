"""Runs a tool of ESPnet with the WavCube classes registered, in spawned worker processes too.

    python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_train --feats_extract wavcube …

stands for `python -m espnet2.bin.tts_train …`. Recipes use it as their Python:
`tts.sh --python "python3 -m wavcube_plugins.espnet.run"`. `-c CODE` and a script's path work as with Python itself.

Importing this module registers the classes. That makes training on several GPUs work: ESPnet spawns a process for each,
and a spawned process imports its parent's main module, which is this one.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from wavcube_plugins.errors import BAD_INPUT, OK, InputError
from wavcube_plugins.espnet.registration import register

USAGE = "usage: python -m wavcube_plugins.espnet.run -m espnet2.bin.TOOL [OPTIONS]\n\nexample:\n  " + (
    "python -m wavcube_plugins.espnet.run -m espnet2.bin.tts_train --config conf/train.yaml --feats_extract wavcube"
)
DEBUG_VARIABLE = "WAVCUBE_DEBUG"

register()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments name, in this process.

    Args:
        arguments: As after `python`; None takes the process's.

    Returns:
        0, or 2 with one line on stderr if an option or a file cannot be used. ESPnet's own exceptions pass through.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return OK if arguments else BAD_INPUT
    try:
        return _run(arguments)
    except InputError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _complain(str(error))


def _run(arguments: list[str]) -> int:
    kind, rest = arguments[0], arguments[1:]
    if kind in ("-m", "-c") and not rest:
        return _complain(f"{kind} needs a value")
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        return OK
    if kind != "-m":
        if kind.startswith("-") or not Path(kind).is_file():
            return _complain(f"{kind}: no such script; expected -m MODULE, -c CODE or a script's path")
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")
        return OK
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
        return OK
    # Called rather than executed again as `__main__`, so that the registered classes are there, and those of the module
    # can be pickled for other processes.
    sys.argv = [module.__file__ or name, *rest[1:]]
    result = module.main()
    return result if isinstance(result, int) else OK


def _complain(message: str) -> int:
    print(f"wavcube_plugins.espnet.run: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
