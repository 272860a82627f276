"""`odeddim bench consistency`: one x_T through every solver and number of steps, DDIM's Figure 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("consistency")
@click.option("-n", "--count", type=click.IntRange(2), default=6, show_default=True, help="How many x_T.")
@shared.solvers("euler@linear,dpmpp-2m,ab3,belm")
@shared.steps("10,20,50,100,1000")
@shared.features
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    count: int,
    solvers: list[str],
    steps: list[int],
    features: str | None,
    seed: int,
    size: str | None,
    end: str,
    model: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    output: Path,
    overwrite: bool,
    as_csv: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Decode the same x_T by every solver with every number of steps, and compare the images: DDIM's Figure 5.

    Each image is set beside the one that a tight run makes of the same x_T, in pixels and in the features of a network,
    and the distance beside the one between different x_T. A sheet for each solver shows them.

    \b
    Examples:
      odeddim bench consistency
      odeddim bench consistency --solvers euler@linear,ddpm,unipc-2 --steps 10,20,50
      odeddim bench consistency --model MODEL --features network.pt2 -n 16
    """
    from odeddim.bench import consistency as bench
    from odeddim.bench.stand import Entry, planned
    from odeddim.cli.running import field_on, machine, shape_for, warn_of_grid

    where = machine(device, dtype)
    field = field_on(model, where)
    shared.check_folder(output, "consistency", field, overwrite=overwrite)
    shape = shape_for(field, size)
    network = shared.features_for(features, model, shape, where)
    entries = [Entry.parse(text) for text in solvers]
    runs = planned(field, entries, steps, end, shared.settings_given(settings))
    for grid, row in {(run.grid, run.solver.name): run.solver for run in runs}.items():
        warn_of_grid(grid[0] if grid[0] != "-" else None, field, row)
    total = count * (bench.reference_evaluations() + sum(run.evaluations for run in runs))
    with shared.stand_on(
        field, where, output, total, images=count,
        batch_size=batch_size, network_batch=network_batch, threads=threads, overwrite=overwrite,
    ) as stand:  # fmt: skip
        table = bench.consistency(stand, runs, count, shape, seed=seed, end=end, features=network)
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
