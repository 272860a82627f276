"""`odeddim shift`: latents moved along the difference of the means of two groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.cli import options
from odeddim.cli.kinds import Indices, Items

if TYPE_CHECKING:
    from odeddim.jobs import Drawing
    from odeddim.latents.group import Group

MOST = 1000.0  # shifts: beyond, nothing but the direction would be left


@click.command("shift")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("--from", "start", type=Indices(), default=None, metavar="GROUP", help="Where the direction begins.")
@click.option("--to", "goal", type=Indices(), default=None, metavar="GROUP", help="Where it leads.")
@click.option(
    "--along", type=click.Path(path_type=Path), default=None, help="A stored direction, instead of --from and --to."
)
@click.option(
    "--of", type=Indices(), default=None, metavar="GROUP", help="What is moved.  [default: --from; with --along, all]"
)
@click.option(
    "--by",
    type=Items(click.FloatRange(-MOST, MOST)),
    default="-1,0,1,2",
    show_default=True,
    metavar="LIST",
    help="How far: 1 is from one mean to the other.",
)
@click.option(
    "--direction", "keep", type=click.Path(path_type=Path), default=None, help="Store means and direction, d.h5."
)
@options.drawing("Latent file, shifted.h5.", "Decode and draw them, a row each.")
def command(
    latents: Path,
    start: Group | None,
    goal: Group | None,
    along: Path | None,
    of: Group | None,
    by: list[float],
    keep: Path | None,
    to: Drawing,
) -> None:
    """Move LATENTS along the difference of the means of two groups of them; each keeps its norm.

    A GROUP is a list of indices and ranges, ends included: 0-9,12,20-29. How far apart the means are is printed, and
    how far those of two such groups of noise would be: where that is as far, the direction says nothing.

    --direction stores both means and their difference as three rows, for --along. They are no noise, and what they
    decode to need not be images.

    \b
    Examples:
      odeddim shift z.h5 --from 0-9 --to 10-19
      odeddim shift z.h5 --from 0-9 --to 10-19,25 --of 3 --by 0,0.5,1 -o shifted.h5 --sheet shifted.png
      odeddim shift z.h5 --from 0-9 --to 10-19 --direction d.h5
      odeddim shift other.h5 --along d.h5 --of 0-7 --sheet other.png
    """
    from odeddim import jobs

    direction = jobs.Direction(start, goal, along, keep)
    for line in jobs.shift(latents, direction, of, by, to=to).words.splitlines():
        options.echo(line)
