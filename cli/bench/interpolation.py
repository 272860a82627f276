"""`odeddim bench interpolation`: DDIM's appendix D.5, and how smooth it is."""

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
    help="Lines, each between two latents.",
)
@click.option(
    "-n",
    "--points",
    type=click.IntRange(3, 1000),
    default=defaults.POINTS,
    show_default=True,
    help="Images on each line.",
)
@click.option(
    "--side",
    type=click.IntRange(0, 64),  # as many as a sheet holds
    default=defaults.SIDE,
    show_default=True,
    help="Images along each side of the grid between four latents, of the first solver; 0: no grid.",
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
    """Decode lines and a grid between latents: DDIM's appendix D.5. How smooth are the images along them?

    Length: of the line of images, over the distance of its ends; turn: the mean angle between a step and the next.
    An ODE's images change smoothly; DDPM, here for contrast, adds noise to each image, and its neighbours have little
    in common. For reference, the cross-fade between the first solver's end images, which is straight.

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
