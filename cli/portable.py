"""--portable of the commands that run a model: the same bits on any machine."""

from __future__ import annotations

import click

option = click.option(
    "--portable",
    is_flag=True,
    help="Make the same bits with any number of threads, batch, backend and machine, and certify it for each image. "
    "The network runs in float64; for solvers with fixed steps.",
)
as_encoded = click.option(
    "--portable/--no-portable",
    default=None,
    help="Make the same bits with any number of threads, batch, backend and machine, and certify it for each image.  "
    "[default: as encoded]",
)
