"""`odeddim shift`: latents moved along the difference of the means of two groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.cli import options, pictures
from odeddim.cli.kinds import Indices, Items

if TYPE_CHECKING:
    from odeddim.jobs import Drawing
    from odeddim.latents.group import Group

MOST = 1000.0  # shifts: beyond, nothing but the direction would be left


@click.command("shift")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "start",
    type=Indices(),
    default=None,
    metavar="GROUP",
    help="The group whose mean the direction begins at.",
)
@click.option(
    "--to", "goal", type=Indices(), default=None, metavar="GROUP", help="The group whose mean the direction leads to."
)
@click.option(
    "--along", type=click.Path(path_type=Path), default=None, help="A stored direction, in place of --from and --to."
)
@click.option(
    "--of",
    type=Indices(),
    default=None,
    metavar="GROUP",
    help="The latents that are moved.  [default: --from; with --along, all]",
)
@click.option(
    "--by",
    type=Items(click.FloatRange(-MOST, MOST)),
    default="-1,0,1,2",
    show_default=True,
    metavar="LIST",
    help="How far they are moved: 1 is the distance from one mean to the other.",
)
@click.option(
    "--direction",
    "keep",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to store both means and their difference, d.h5.",
)
@options.wait
@pictures.drawing("The latent file to write, shifted.h5.", "Decode and draw them, shifted.png: a row for each latent.")
def command(
    latents: Path,
    start: Group | None,
    goal: Group | None,
    along: Path | None,
    of: Group | None,
    by: list[float],
    keep: Path | None,
    to: Drawing,
    wait: bool,
) -> None:
    """Move LATENTS along the difference of the means of two groups of them. Each latent keeps its norm.

    A GROUP is a list of indices and of ranges with both ends: 0-9,12,20-29. The command prints the distance between the
    means, and the distance between the means of two such groups of noise. If the two are alike, the direction has no
    meaning.

    --direction stores both means and their difference as three rows of a file, for --along. These rows do not look like
    noise, so they need not decode to images.

    \b
    Examples:
      odeddim shift z.h5 --from 0-9 --to 10-19
      odeddim shift z.h5 --from 0-9 --to 10-19,25 --of 3 --by 0,0.5,1 -o shifted.h5 --sheet shifted.png
      odeddim shift z.h5 --from 0-9 --to 10-19 --direction d.h5
      odeddim shift other.h5 --along d.h5 --of 0-7 --sheet other.png
    """
    from odeddim import jobs

    direction = jobs.Direction(start, goal, along, keep)
    options.tell(jobs.shift(latents, direction, of, by, to=to, wait=wait))
