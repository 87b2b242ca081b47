"""`wavcube superb`: SUPERB and SUPERB-SG through s3prl."""

from __future__ import annotations

import argparse
import textwrap

from wavcube_plugins.cli.common import Parser, add_command
from wavcube_plugins.superb.command import EXAMPLE, add_subcommands


def register(commands) -> None:
    command = add_command(
        commands,
        "superb",
        run,
        summary="SUPERB and SUPERB-SG through s3prl: plan, prepare, run, collect, score",
        description="Run tasks of SUPERB and SUPERB-SG with s3prl's own runner on any of its upstreams. A bench file\n"
        "describes the benchmark:\n\n" + textwrap.indent(EXAMPLE, "  "),
        example="wavcube superb plan bench.yaml\nwavcube superb prepare bench.yaml\n"
        "wavcube superb run bench.yaml --gpus 0,1\nwavcube superb collect bench.yaml\nwavcube superb mini superb_mini/",
    )
    add_subcommands(command, Parser)


def run(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.command import main

    return main(arguments)
