"""`wavcube uninstall-s3prl`: undo `wavcube install-s3prl`."""

from __future__ import annotations

import argparse

from wavcube_plugins.cli.common import add_command, say
from wavcube_plugins.errors import OK


def register(commands) -> None:
    command = add_command(
        commands,
        "uninstall-s3prl",
        run,
        summary="undo install-s3prl",
        description="Remove what `wavcube install-s3prl` installed: the hook and the folder.",
        example="wavcube uninstall-s3prl",
    )
    command.add_argument("--folder", metavar="S3PRL", help="remove the folder from this s3prl, and nothing else")


def run(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.s3prl.install import uninstall

    say("\n".join(uninstall(arguments.folder)))
    return OK
