"""`odeddim bench consistency`: one x_T through every solver and number of steps, DDIM's Figure 5."""

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
    help="How many x_T.",
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

    Each image is set beside the one that a tight run makes of the same x_T, in pixels and in the features of a network,
    and the median of the distances beside the distance between different x_T (share). Beside each median stands what
    one and nine x_T in ten keep (10 %, 90 %). A sheet for each solver shows the first.

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
