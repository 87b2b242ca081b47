"""The `wavcube` command: one module per subcommand.

Each module declares its arguments in `register` and imports what it needs when it runs, so that `--help`, mistyped
arguments and `install-s3prl` take no time.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from wavcube_plugins.cli.common import (
    DEBUG_VARIABLE,
    Parser,
    drop_output,
    explain,
    open_closed_streams,
    plain_warnings,
)
from wavcube_plugins.errors import BAD_INPUT, FAILED, INTERRUPTED, OK

COMMANDS = (
    "encode",
    "decode",
    "reconstruct",
    "extract",
    "convert",
    "manifest",
    "export",
    "info",
    "compare",
    "superb",
    "install-s3prl",
    "uninstall-s3prl",
)

_EPILOG = f"""\
example:
  wavcube reconstruct speech.wav

exit codes:
  {OK}    everything was done
  {FAILED}    something failed, such as some of several files, or the disk is full; the rest was done
  {BAD_INPUT}    an argument or a file cannot be used; nothing was written
  {INTERRUPTED}  stopped with Ctrl-C

An error is one line on stderr. Set {DEBUG_VARIABLE}=1 to see tracebacks.
`wavcube COMMAND --help` explains a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        One of the exit codes in `wavcube_plugins.errors`; all but 0 come with one line on stderr.
    """
    open_closed_streams()
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or OK)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    try:
        with plain_warnings():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone (`wavcube info | head -1`)
        return FAILED
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        code, message = explain(error)
        print(f"{parser.prog} {arguments.command}: error: {' '.join(message.split())}", file=sys.stderr)
        return code
    finally:
        drop_output()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command with all its subcommands."""
    from wavcube_plugins import __version__

    parser = Parser(
        prog="wavcube",
        description="WavCube: speech to a compact continuous latent, and back.",
        epilog=_EPILOG,
    )
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"wavcube {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name in COMMANDS:
        import_module(f"wavcube_plugins.cli.{name.replace('-', '_')}").register(commands)
    return parser
