"""`odeddim explore`: a page with the square between four latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject


@click.command("explore")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The page to write, explore.html.")
@click.option(
    "--corners",
    type=int,
    nargs=4,
    default=(0, 1, 2, 3),
    show_default=True,
    help="Four latents, by index: top left, top right, bottom left, bottom right.",
)
@click.option(
    "--tiles",
    type=click.IntRange(2, 64),
    default=None,
    help="Tiles on each side of the square.  [default: 9, or as many as fit on a page if the images are large]",
)
@click.option(
    "--levels",
    type=click.IntRange(2),
    default=9,
    show_default=True,
    help="Noise levels of each tile, from noise to image.",
)
@options.its_model
@options.run("as `decode` of what `interpolate` makes", options.plan)
@options.machine
@options.replace
def command(
    latents: Path,
    output: Path,
    corners: tuple[int, int, int, int],
    tiles: int | None,
    levels: int,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    overwrite: bool,
) -> None:
    """Make a page to explore the square between four of LATENTS.

    The page is a single file that opens offline. Every tile of the square is a latent between the four (`odeddim
    interpolate --corners`), decoded. Drag across it to see the image of a tile and its nearest latents in the file;
    a slider shows the state and the predicted image at falling noise levels. Below are the figures of the four latents
    that the file holds, such as their certificates.

    \b
    Examples:
      odeddim explore z.h5 -o explore.html
      odeddim explore z.h5 --corners 4 8 15 16 --tiles 17 -o explore.html
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.explore(
        latents, output, corners=corners, tiles=tiles, levels=levels, model=model, machine=machine,
        overwrite=overwrite, progress=bar, **how,
    )  # fmt: skip
    options.tell(made)
