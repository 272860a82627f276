"""`odeddim bench interpolation`: DDIM's appendix D.5, and how smooth it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("interpolation")
@click.option("--pairs", type=click.IntRange(1), default=4, show_default=True, help="Lines, each between two latents.")
@click.option("-n", "--points", type=click.IntRange(3), default=11, show_default=True, help="Images on each line.")
@click.option(
    "--side",
    type=click.IntRange(0),
    default=6,
    show_default=True,
    help="Images along each side of the grid between four latents, of the first solver; 0: no grid.",
)
@shared.solvers("euler@linear,ab3,ddpm")
@shared.steps("50")
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    pairs: int,
    points: int,
    side: int,
    solvers: list[str],
    steps: list[int],
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
    from odeddim.bench import interpolation as bench
    from odeddim.bench.stand import Entry, planned
    from odeddim.cli.running import field_on, machine, shape_for, warn_of_grid

    where = machine(device, dtype)
    field = field_on(model, where)
    shared.check_folder(output, "interpolation", field, overwrite=overwrite)
    shape = shape_for(field, size)
    entries = [Entry.parse(text) for text in solvers]
    runs = planned(field, entries, steps, end, shared.settings_given(settings))
    for grid, row in {(run.grid, run.solver.name): run.solver for run in runs}.items():
        warn_of_grid(grid[0] if grid[0] != "-" else None, field, row)
    total = pairs * points * sum(run.evaluations for run in runs) + side**2 * runs[0].evaluations
    with shared.stand_on(
        field, where, output, total,
        batch_size=batch_size, network_batch=network_batch, threads=threads, overwrite=overwrite,
    ) as stand:  # fmt: skip
        table = bench.interpolation(stand, runs, shape, pairs=pairs, points=points, side=side, seed=seed)
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
