"""Runs an unedited s3prl script with the WavCube upstreams registered and `shims` applied.

    python -m wavcube_plugins.s3prl.run run_downstream.py -m train -u wavcube -k nano -d example -n try

does what `python run_downstream.py …` does, where the import hook is not active (`python -S`, PYTHONPATH only), where
libraries are newer than s3prl, and in several processes (see `ranks`). The script is looked for as given, then in the
installed s3prl package.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from wavcube_plugins.s3prl.script import find_script

USAGE = "usage: python -m wavcube_plugins.s3prl.run run_downstream.py -m train -u wavcube -d TASK …"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script named by the first argument with the rest of them, in this process, as `__main__`."""
    from wavcube_plugins.s3prl import ranks

    launched, arguments = ranks.take_launcher_options(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if arguments else 2)
    # `python -m` puts the current folder on the path, a script its own. A clone of s3prl in the current folder would
    # hide the package, as it has the same name.
    own_folder_first = not getattr(sys.flags, "safe_path", False)
    if own_folder_first:
        del sys.path[0]
    script = find_script(arguments[0])
    apply_shims()
    launched = ranks.prepare(script, arguments[1:], launched)
    sys.argv = [str(script), *launched, *arguments[1:]]
    if own_folder_first:
        sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def apply_shims() -> None:
    """Register the upstreams, apply every shim that is needed, offer the stand-ins, and say which shims are in use."""
    from wavcube_plugins.s3prl import hook, shims, stand_ins

    used = [shim.__name__ for shim in shims.ALL if shim()]
    if used:
        print(f"wavcube: shims in use: {', '.join(used)}", file=sys.stderr)
    stand_ins.offer()
    hook.register()
    hook.allow_saved_arguments()


if __name__ == "__main__":
    main()
