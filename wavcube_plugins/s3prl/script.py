"""s3prl's script `run_downstream.py`: where it is, whether this process runs it, and what its command line asks for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from wavcube_plugins.s3prl.names import FEATURE_KEYS

RUN_DOWNSTREAM = "run_downstream.py"
MISSING = "s3prl is not installed in this Python; from a clone: pip install '.[s3prl]'"


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


def runs_downstream() -> bool:
    """Return whether this process is s3prl's `run_downstream.py`."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and Path(script).name == RUN_DOWNSTREAM


def ignored_choices(arguments: Sequence[str], *, layers: bool, only_hidden_states: bool) -> list[str]:
    """Return a warning for each choice on s3prl's command line that has no effect on this upstream.

    s3prl does not pass `-s` and `-l` to an upstream, and does not use `-l` where there is one layer to choose from.

    Args:
        arguments: What follows `run_downstream.py`.
        layers: Whether `hidden_states` holds every layer of WavLM.
        only_hidden_states: The option of that name.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-s", "--upstream_feature_selection", dest="key", default="hidden_states")
    parser.add_argument("-l", "--upstream_layer_selection", dest="layer")
    try:
        chosen, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return []  # s3prl's own parser has refused it already
    # For a key that does not exist s3prl takes hidden_states, and says so.
    found, key = [], chosen.key if chosen.key in FEATURE_KEYS else "hidden_states"
    used = "every layer of WavLM" if layers else "the latent"
    if only_hidden_states and key in FEATURE_KEYS[2:]:
        found.append(f"-s {key} has no effect, since -g sets only_hidden_states: hidden_states are used, {used}")
        key = "hidden_states"
    if chosen.layer is not None and key != "wavlm" and not (layers and key == "hidden_states"):
        used = used if key == "hidden_states" else key
        found.append(
            f"-l {chosen.layer} has no effect, since there is one layer to choose from: {used} is used; "
            f"for layer {chosen.layer} of WavLM give -u wavcube_layers, or -s wavlm"
        )
    return found
