"""`odeddim bench work-precision`: error against evaluations and seconds, and the cheapest run that keeps an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items, Tolerance


@click.command("work-precision")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 100_000),
    default=defaults.WORK_PRECISION.count,
    show_default=True,
    help="The number of solutions; with --find, the number in each of the two sets.",
)
@shared.solvers(
    (),
    f"  [default: {', '.join(defaults.WORK_PRECISION.solvers)}; with --find, {', '.join(defaults.CANDIDATES)}]",
)
@shared.steps(defaults.WORK_PRECISION.steps)
@click.option(
    "--tolerances",
    type=Items(Tolerance(0, min_open=True)),
    default=",".join(f"{tolerance:g}" for tolerance in defaults.TOLERANCES),
    show_default=True,
    metavar="LIST",
    help="Values of rtol and atol for solvers that choose their own steps, comma-separated.",
)
@click.option(
    "--find",
    type=Tolerance(0, min_open=True),
    default=None,
    metavar="ERROR",
    help="Find the solver, grid and steps that keep this error both ways, for nine images in ten, with the fewest "
    "evaluations. The result goes to plan.json.",
)
@options.seed
@options.size
@options.end
@options.settings_but_tolerances
@shared.common_alone
def command(
    run: shared.Bench,
    count: int,
    solvers: list[str] | None,
    steps: list[int],
    tolerances: list[float],
    find: float | None,
    seed: int,
    size: tuple[int, ...] | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Measure the error of encoding and decoding against evaluations and seconds, for every solver.

    No images are needed: a very accurate run decodes noise, and encodes the resulting images. The small error of that
    run is the floor of the figures. The error of decoding is the rms over pixels in [-1, 1], and the error of encoding
    is the rms over σ_T. The table has the medians, and the values that one and nine images in ten do not exceed.

    --find ERROR looks for the solver, the grid and the number of steps that keep both errors for nine images in ten
    with the fewest evaluations. The search uses the noise of --seed. Equally many images from the noise of the next
    seed check the result. Only a run that keeps the error there too is written to plan.json. The commands encode,
    decode and sample take this file as --plan.

    \b
    Examples:
      odeddim bench work-precision
      odeddim bench work-precision --solvers euler@linear,ab3@karras,dpmpp-2m@karras --steps 5,10,20,50
      odeddim bench work-precision --find 1e-2
      odeddim encode -o z.h5 --plan bench/plan.json
    """
    from odeddim import jobs

    chosen = {**({} if solvers is None else {"solvers": solvers}), **settings}
    if find is None:
        run.print(
            jobs.bench.work_precision(
                run.workbench, count=count, steps=steps, tolerances=tolerances, seed=seed, size=size, end=end, **chosen
            )
        )
        return
    for name in ("steps", "tolerances"):
        if options.is_typed(name):
            raise click.UsageError(f"--find finds the number of steps itself: leave out --{name}")
    table, plan = jobs.bench.find(run.workbench, find, count=count, seed=seed, size=size, end=end, **chosen)
    run.print(table)
    if table.files:
        options.echo(
            f"{plan.solver.name} on {plan.grid} with {plan.steps} steps, {plan.notes['evaluations']:g} evaluations to "
            f"encode and decode: {plan.notes['kept']}; --plan {Path(run.workbench.folder) / defaults.PLAN}",
            err=run.as_csv or run.as_json,
        )
