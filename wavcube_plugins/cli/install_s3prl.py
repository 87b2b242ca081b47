"""`wavcube install-s3prl`: make `-u wavcube` known to s3prl."""

from __future__ import annotations

import argparse

from wavcube_plugins.cli.common import add_command, say
from wavcube_plugins.errors import OK


def register(commands) -> None:
    command = add_command(
        commands,
        "install-s3prl",
        run,
        summary="make `-u wavcube` known to s3prl",
        description="Make the WavCube upstreams known to the s3prl of this Python environment, without editing it.",
        example="wavcube install-s3prl\nwavcube install-s3prl --folder ~/s3prl",
    )
    command.add_argument(
        "--folder",
        nargs="?",
        const="",
        metavar="S3PRL",
        help="instead, put an upstream folder into this s3prl, a checkout or an installed package; without a value: "
        "into the one that Python imports",
    )


def run(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.s3prl.install import install_folder, install_hook

    say(install_hook() if arguments.folder is None else install_folder(arguments.folder or None))
    return OK
