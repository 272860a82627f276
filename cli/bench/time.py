"""`odeddim bench time`: seconds over steps, DDIM's Figure 4, and the solver's own share."""

from __future__ import annotations

from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items


@click.command("time")
@shared.solvers(defaults.TIMING.solvers)
@shared.steps(defaults.TIMING.steps)
@click.option(
    "--batches",
    type=Items(click.IntRange(1, options.MOST_AT_ONCE)),
    default=",".join(map(str, defaults.BATCHES)),
    show_default=True,
    metavar="LIST",
    help="Numbers of images to decode together, comma-separated. The network gets them as one batch.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 10_000),
    default=defaults.TIMING.count,
    show_default=True,
    help="How many times each run is timed.",
)
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common_but_batches
def command(
    run: shared.Bench,
    solvers: list[str],
    steps: list[int],
    batches: list[int],
    repeats: int,
    seed: int,
    size: tuple[int, ...] | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Time the decoding of noise: DDIM's Figure 4, seconds over steps, for each batch size.

    After a warm-up, each run is timed several times, and the runs take turns. A row has the median, and the line fitted
    to the medians over steps: milliseconds per step, and the quality of the fit (R²). Own is the share of the time that
    is not spent inside the network. Nothing else should run on the machine at the same time.

    \b
    Examples:
      odeddim bench time
      odeddim bench time --solvers euler,heun,belm --batches 8 --repeats 9
      odeddim bench time --model MODEL --device cuda --batches 1,64,512
    """
    from odeddim import jobs

    table = jobs.bench.timing(
        run.workbench, solvers=solvers, steps=steps, batches=batches, repeats=repeats, seed=seed, size=size, end=end,
        **settings,
    )  # fmt: skip
    run.print(table)
