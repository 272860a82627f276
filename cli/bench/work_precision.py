"""`odeddim bench work-precision`: error against evaluations and seconds, and the cheapest run that keeps an error."""

from __future__ import annotations

from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items, Tolerance

PLAN = "plan.json"
SOLVERS = ("euler@linear", "euler@log", "heun", "ab2", "ab3", "dpmpp-2m", "unipc-2", "belm", "dopri5")
# The likely ones first: what cannot beat them is given up after one run.
CANDIDATES = ("dpmpp-3m", "unipc-2", "ab3", "dpmpp-2m", "ab2", "unipc-1", "belm", "deis-tab2", "bdia", "heun", "euler")


@click.command("work-precision")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 100_000),
    default=16,
    show_default=True,
    help="How many solutions; with --find as many in each of two sets.",
)
@shared.solvers(None, f"  [default: {', '.join(SOLVERS)}; with --find {', '.join(CANDIDATES)}]")
@shared.steps("5,10,20,40,80")
@click.option(
    "--tolerances",
    type=Items(Tolerance(0, min_open=True)),
    default="1e-2,1e-3,1e-4",
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
    from odeddim.bench import cheapest as search
    from odeddim.bench import work_precision as bench
    from odeddim.bench.harness import Entry, expected
    from odeddim.jobs.sample import shape_for

    run.check_folder("work-precision" if find is None else "cheapest", [] if find is None else [PLAN])
    shape = shape_for(run.whole, size)
    run.measure_data()
    given = {key: value for key, value in settings.items() if value is not None}
    if find is None:
        entries = [Entry.parse(text) for text in solvers or SOLVERS]
        runs = bench.runs_of(run.field, entries, steps, tolerances, end, given)
        total = bench.truth_evaluations() + sum(2 * expected(each) for each in runs)
        with run.stand(count * total, count) as stand:
            exact = bench.truth(stand, count, shape, seed=seed, end=end)
            table = bench.work_precision(stand, runs, exact)
    else:
        for name in ("steps", "tolerances"):
            if options.is_given(name):
                raise click.UsageError(f"--find finds the steps: leave out --{name}")
        entries = search.candidates(solvers or CANDIDATES)
        # How many evaluations it takes nobody knows beforehand: solvers on grids are counted, both sets, and the check.
        with run.stand(len(entries) + 3, count, unit="solvers") as stand:
            done, stand.advance = stand.advance, lambda evaluations: None
            sets = []
            for its_seed in (seed, seed + 1):
                sets.append(bench.truth_for(stand, find, count, shape, seed=its_seed, end=end))
                done(1)
            table, plan = search.cheapest(stand, find, entries, *sets, settings=given, advance=done)
    run.deliver(table, beside={} if find is None else {PLAN: plan.to_json().encode()})
    if find is not None and shared.first():
        options.echo(
            f"{plan.solver.name} on {plan.grid} with {plan.steps} steps, {plan.notes['evaluations']:g} evaluations to "
            f"encode and decode: {plan.notes['kept']}; --plan {run.output / PLAN}",
            err=run.as_csv or run.as_json,
        )
