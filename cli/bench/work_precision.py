"""`odeddim bench work-precision`: error against evaluations and seconds, and the cheapest run that keeps an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared

PRESET = "preset.json"
SOLVERS = ("euler@linear", "euler@log", "heun", "ab2", "ab3", "dpmpp-2m", "unipc-2", "belm", "dopri5")
CANDIDATES = ("euler", "ab2", "ab3", "dpmpp-2m", "dpmpp-3m", "unipc-1", "unipc-2", "deis-tab2", "bdia", "belm", "heun")


@click.command("work-precision")
@click.option("-n", "--count", type=click.IntRange(1), default=8, show_default=True, help="How many solutions.")
@shared.solvers(None, f"  [default: {', '.join(SOLVERS)}; with --find {', '.join(CANDIDATES)}]")
@shared.steps("5,10,20,40,80,160")
@click.option(
    "--tolerances",
    type=options.Items(options.Tolerance(0, min_open=True)),
    default="1e-2,1e-3,1e-4",
    show_default=True,
    metavar="LIST",
    help="rtol and atol of solvers that choose their steps.",
)
@click.option(
    "--find",
    type=options.Tolerance(0, min_open=True),
    default=None,
    metavar="ERROR",
    help="Which solver, grid and steps keep this error both ways with the fewest evaluations? The answer goes to "
    "preset.json.",
)
@options.seed
@options.size
@options.end
@options.assigned
@click.option("--max-nfe", type=click.IntRange(1), default=None, help="Adaptive: most evaluations per run.")
@shared.common
def command(
    count: int,
    solvers: list[str] | None,
    steps: list[int],
    tolerances: list[float],
    find: float | None,
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
    """Error against evaluations and seconds, encoding and decoding, of every solver. No images are needed.

    Noise is decoded, and what comes out encoded, by a run so fine that its own error is small; that error is the floor
    of the figures. Decoded: rms over pixels in [-1, 1]. Encoded: rms over σ_T.

    --find ERROR looks for the solver, the grid and the number of steps that keep both errors with the fewest
    evaluations, and writes them to preset.json, which encode, decode and sample take as --preset.

    \b
    Examples:
      odeddim bench work-precision
      odeddim bench work-precision --solvers euler@linear,ab3@karras,dpmpp-2m@karras --steps 5,10,20,50
      odeddim bench work-precision --find 1e-2
      odeddim encode -o z.h5 --preset bench/preset.json
    """
    from odeddim.bench import work_precision as bench
    from odeddim.bench.stand import Entry
    from odeddim.cli.running import field_on, machine, shape_for

    where = machine(device, dtype)
    field = field_on(model, where)
    name = "work-precision" if find is None else "cheapest"
    shared.check_folder(output, name, field, overwrite=overwrite)
    shape = shape_for(field, size)
    given = {key: value for key, value in settings.items() if value is not None}
    if find is None:
        entries = [Entry.parse(text) for text in solvers or SOLVERS]
        runs = bench.runs_of(field, entries, steps, tolerances, end, given)
        total = sum(2 * run.evaluations for run in runs)
    else:
        entries = bench.candidates(solvers or CANDIDATES)
        total = sum(2 * 160 for _ in entries)  # a guess: nobody knows beforehand
    with shared.stand_on(
        field, where, output, count * (bench.truth_evaluations() + total), images=count,
        batch_size=batch_size, network_batch=network_batch, threads=threads, overwrite=overwrite,
    ) as stand:  # fmt: skip
        if find is None:
            exact = bench.truth(stand, count, shape, seed=seed, end=end)
            table = bench.work_precision(stand, runs, exact)
        else:
            exact = bench.truth_for(stand, find, count, shape, seed=seed, end=end)
            table, preset = bench.cheapest(stand, find, entries, exact, settings=given)
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
    if find is not None and shared.first():
        preset.save(output / PRESET)
        click.echo(
            f"{preset.solver} on {preset.grid} with {preset.steps} steps: {preset.evaluations:g} evaluations to encode "
            f"and decode, errors up to {preset.error:.2e}; --preset {output / PRESET}",
            err=as_csv or as_json,
        )
