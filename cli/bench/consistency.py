"""`odeddim bench consistency`: one x_T through every solver and number of steps, DDIM's Figure 5."""

from __future__ import annotations

from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("consistency")
@click.option("-n", "--count", type=click.IntRange(2, 100_000), default=16, show_default=True, help="How many x_T.")
@shared.solvers("euler@linear,dpmpp-2m,ab3,belm")
@shared.steps("10,20,50,100")
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
    from odeddim.bench import consistency as bench
    from odeddim.bench.harness import expected
    from odeddim.bench.work_precision import references
    from odeddim.jobs.sample import shape_for

    run.check_folder("consistency")
    shape = shape_for(run.field, size)
    network = run.features(features, run.field.image_shape or shape)
    runs = run.runs(solvers, steps, end, settings)
    total = count * sum(expected(each) for each in (*runs, *references(run.field, end)))
    with run.stand(total, count) as stand:
        table = bench.consistency(stand, runs, count, shape, seed=seed, end=end, features=network)
    run.deliver(table)
