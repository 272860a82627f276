"""`odeddim interpolate`: lines between two latents, grids between four, loops through any number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim import defaults
from odeddim.cli import options, pictures
from odeddim.cli.kinds import Items

if TYPE_CHECKING:
    from odeddim.jobs import Drawing


@click.command("interpolate")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("--pair", type=int, nargs=2, default=None, help="Two latents, by index, for the line between them.")
@click.option("--corners", type=int, nargs=4, default=None, help="Four latents, for the n × n grid between them.")
@click.option(
    "--loop",
    type=Items(click.INT),
    default=None,
    metavar="A,B,...",
    help="Latents, for the loop through all of them and back.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, defaults.MOST_NEW),
    default=11,
    show_default=True,
    help="Points of a line, of each side of a grid, or of each leg of a loop.",
)
@options.wait
@pictures.drawing(
    "The latent file to write, path.h5.", "Decode the path and draw its images, path.png.", pictures.animation
)
def command(
    latents: Path,
    pair: tuple[int, int] | None,
    corners: tuple[int, int, int, int] | None,
    loop: list[int] | None,
    count: int,
    to: Drawing,
    wait: bool,
) -> None:
    """Interpolate between LATENTS on great circles (slerp), as in DDIM's appendix D.5.

    --pair gives a line, --corners a grid, --loop a closed loop. The path is a latent file, which `odeddim decode`
    decodes.

    \b
    Examples:
      odeddim interpolate z.h5 --pair 0 1 -o path.h5 --sheet path.png
      odeddim interpolate z.h5 --corners 0 1 2 3 -n 8 --sheet grid.png
      odeddim interpolate z.h5 --loop 0,1,2,3 -n 30 --animate loop.gif
      odeddim interpolate z.h5 --pair 0 1 -n 48 --animate line.mp4 --fps 24
    """
    from odeddim import jobs

    given = {kind: between for kind, between in (("line", pair), ("grid", corners), ("loop", loop)) if between}
    if len(given) != 1:
        raise click.UsageError("give --pair A B for a line, --corners A B C D for a grid or --loop A,B,... for a loop")
    ((kind, between),) = given.items()
    options.tell(jobs.interpolate(latents, between, count, kind, to=to, wait=wait))
