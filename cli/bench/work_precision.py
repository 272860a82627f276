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
    help="How many solutions; with --find as many in each of two sets.",
)
@shared.solvers(
    (),
    f"  [default: {', '.join(defaults.WORK_PRECISION.solvers)}; with --find {', '.join(defaults.CANDIDATES)}]",
)
@shared.steps(defaults.WORK_PRECISION.steps)
@click.option(
    "--tolerances",
    type=Items(Tolerance(0, min_open=True)),
    default=",".join(f"{tolerance:g}" for tolerance in defaults.TOLERANCES),
    show_default=True,
    metavar="LIST",
    help="rtol and atol of solvers that choose their steps.",
)
@click.option(
    "--find",
    type=Tolerance(0, min_open=True),
    default=None,
    metavar="ERROR",
    help="Which solver, grid and steps keep this error both ways, for nine images in ten, with the fewest evaluations? "
    "The answer goes to plan.json.",
)
@options.seed
@options.size
@options.end
@options.settings_but_tolerances
@shared.common
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
    """Error against evaluations and seconds, encoding and decoding, of every solver. No images are needed.

    Noise is decoded, and what comes out encoded, by a run so fine that its own error is small; that error is the floor
    of the figures. Decoded: rms over pixels in [-1, 1]. Encoded: rms over σ_T. Both are medians, with what one and nine
    images in ten keep beside them.

    --find ERROR looks for the solver, the grid and the number of steps that keep both errors for nine images in ten
    with the fewest evaluations. What is found on the noise of --seed is checked on as many images from the noise of the
    next seed; only a setting that keeps the error there too is written to plan.json, which encode, decode and sample
    take as --plan.

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
        if options.is_given(name):
            raise click.UsageError(f"--find finds the steps: leave out --{name}")
    table, plan = jobs.bench.find(run.workbench, find, count=count, seed=seed, size=size, end=end, **chosen)
    run.print(table)
    if table.files:
        options.echo(
            f"{plan.solver.name} on {plan.grid} with {plan.steps} steps, {plan.notes['evaluations']:g} evaluations to "
            f"encode and decode: {plan.notes['kept']}; --plan {Path(run.workbench.folder) / defaults.PLAN}",
            err=run.as_csv or run.as_json,
        )
