"""`odeddim bench consistency`: the same x_T decoded by every solver with every number of steps, DDIM's Figure 5."""

from __future__ import annotations

from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("consistency")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(2, 100_000),
    default=defaults.CONSISTENCY.count,
    show_default=True,
    help="The number of x_T.",
)
@shared.solvers(defaults.CONSISTENCY.solvers)
@shared.steps(defaults.CONSISTENCY.steps)
@shared.features
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    count: int,
    solvers: list[str],
    steps: list[int],
    features: str | None,
    seed: int,
    size: tuple[int, ...] | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Decode the same x_T by every solver with every number of steps, and compare the images: DDIM's Figure 5.

    Each image is compared with the image that a very accurate run makes of the same x_T, in pixels and in the features
    of a network. The table has the median of the distances, the values that one and nine x_T in ten do not exceed
    (10 %, 90 %), and the median relative to the distance between different x_T (share). A sheet for each solver shows
    the first images.

    \b
    Examples:
      odeddim bench consistency
      odeddim bench consistency --solvers euler@linear,ddpm,unipc-2 --steps 10,20,50
      odeddim bench consistency --model MODEL --features network.pt2 -n 64
    """
    from odeddim import jobs

    table = jobs.bench.consistency(
        run.workbench, count=count, solvers=solvers, steps=steps, features=features, seed=seed, size=size, end=end,
        **settings,
    )  # fmt: skip
    run.print(table)
