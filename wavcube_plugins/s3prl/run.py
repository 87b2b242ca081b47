"""Runs an unedited s3prl script with the WavCube upstreams registered and `shims` applied.

    python -m wavcube_plugins.s3prl.run run_downstream.py -m train -u wavcube -k nano -d example -n try

is `python run_downstream.py …` for an environment where the import hook is not active (`python -S`, PYTHONPATH only) or
the libraries are newer than s3prl. The script is looked for as given, then in the installed s3prl package.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

USAGE = "usage: python -m wavcube_plugins.s3prl.run run_downstream.py -m train -u wavcube -d TASK …"
MISSING = "s3prl is not installed in this Python; from a clone: pip install '.[s3prl]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script named by the first argument with the rest of them, in this process, as `__main__`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # torch.distributed.launch puts its own option first, and s3prl knows it by its older spelling.
    ranks = []
    while arguments and arguments[0].startswith("--local"):
        ranks.append(arguments.pop(0).replace("--local-rank", "--local_rank"))
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if arguments else 2)
    # `python -m` puts the current folder on the path, a script its own. A clone of s3prl in the current folder would
    # hide the package, as it has the same name.
    own_folder_first = not getattr(sys.flags, "safe_path", False)
    if own_folder_first:
        del sys.path[0]
    script = find_script(arguments[0])

    from wavcube_plugins.s3prl import hook, shims, stand_ins

    mended = [shim.__name__ for shim in shims.ALL if shim()]
    if mended:
        print(f"wavcube: shims in use: {', '.join(mended)}", file=sys.stderr)
    stand_ins.offer()
    hook.register()
    sys.argv = [str(script), *ranks, *arguments[1:]]
    if own_folder_first:
        sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def find_script(name: str) -> Path:
    """Return the script as given or, if there is none, the one of that name in the installed s3prl.

    Raises:
        SystemExit: s3prl is not installed, or neither exists; one sentence.
    """
    spec = find_spec("s3prl")
    if spec is None or spec.origin is None:
        raise SystemExit(MISSING)
    package = Path(spec.origin).parent
    for script in (Path(name), package / name):
        if script.is_file():
            return script.resolve()
    raise SystemExit(f"{name}: no such script, neither here nor in {package}")


if __name__ == "__main__":
    main()
