"""The options of commands whose work others can share: --workers, --engine and --address."""

from __future__ import annotations

import click

from odeddim.cli import options
from odeddim.cli.kinds import Workers

workers = click.option(
    "--workers",
    type=Workers(options.MOST_THREADS),
    default=None,
    metavar="N|auto",
    help="Processes that share the work, each with the model in its memory; auto for one on each core or GPU. The "
    "result is the same, bit for bit.  [default: 1]",
)
engines = options.together(
    click.option(
        "--engine",
        type=click.Choice(["processes", "torchrun", "ray"]),
        default=None,
        help="Who shares the work: processes of this machine, those of torchrun, or a cluster of Ray.  [default: "
        "torchrun where it has started this process, else processes]",
    ),
    click.option(
        "--address", default=None, metavar="HOST:PORT", help="The cluster of Ray.  [default: one of this machine]"
    ),
)
machine = options.gathered("machine", options.together(options.whole_machine, workers, engines), options.machine_of)
"""Where to run, and who shares the work."""
of_processes = options.gathered("machine", options.together(options.whole_machine, workers), options.machine_of)
"""The same where only processes of this machine share it."""
