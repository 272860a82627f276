"""`odeddim bench interpolation`: lines and grids between latents, DDIM's appendix D.5, and their smoothness."""

from __future__ import annotations

from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("interpolation")
@click.option(
    "--pairs",
    type=click.IntRange(1, 1000),
    default=defaults.INTERPOLATION.count,
    show_default=True,
    help="The number of lines, each between two latents.",
)
@click.option(
    "-n",
    "--points",
    type=click.IntRange(3, 1000),
    default=defaults.POINTS,
    show_default=True,
    help="The number of images on each line.",
)
@click.option(
    "--side",
    type=click.IntRange(0, 64),  # the most that a sheet can hold
    default=defaults.SIDE,
    show_default=True,
    help="The number of images along each side of the grid between four latents, for the first solver; 0: no grid.",
)
@shared.solvers(defaults.INTERPOLATION.solvers)
@shared.steps(defaults.INTERPOLATION.steps)
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    pairs: int,
    points: int,
    side: int,
    solvers: list[str],
    steps: list[int],
    seed: int,
    size: tuple[int, ...] | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Decode lines and a grid between latents, and measure how smooth the images are: DDIM's appendix D.5.

    Length is the length of the line of images, divided by the distance between its ends. Turn is the mean angle between
    a step and the next step. The images of an ODE change smoothly. DDPM, for contrast, adds noise to each image, so
    its neighbouring images have little in common. For reference, the table has the cross-fade between the end images of
    the first solver, which is straight.

    \b
    Examples:
      odeddim bench interpolation
      odeddim bench interpolation --solvers euler@linear,ddpm --pairs 8 --points 21
      odeddim bench interpolation --model MODEL --steps 10,50 --side 0
    """
    from odeddim import jobs

    table = jobs.bench.interpolation(
        run.workbench, pairs=pairs, points=points, side=side, solvers=solvers, steps=steps, seed=seed, size=size,
        end=end, **settings,
    )  # fmt: skip
    run.print(table)
