"""`odeddim bench`: solvers compared by reconstruction, the paper's Table 2 and more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from odeddim.cli import options

# Of adaptive solvers, unless given: so that they take about as many evaluations as the others.
TOLERANCE = 1e-3


class SolverOnGrid(options.SolverName):
    """SOLVER or SOLVER@GRID."""

    name = "solver[@grid]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        solver, at, grid = str(value).partition("@")
        return super().convert(solver, param, ctx) + at + grid


@click.command("bench")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(1), default=8, show_default=True, help="How many images.")
@click.option(
    "--solvers",
    type=options.Items(SolverOnGrid()),
    default=None,
    metavar="LIST",
    help="Solvers, or solver@grid, comma-separated; a grid file runs with its own steps.  [default: a selection]",
)
@click.option("--steps", type=options.Items(click.IntRange(1)), default="10,20,50", show_default=True, metavar="LIST")
@options.model
@options.end
@options.tolerances
@options.machine
@click.option(
    "--plot", type=click.Path(path_type=Path), default=None, help="Work-precision figure: .png, .svg or .pdf."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@options.as_json
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="The table as HDF5, bench.h5.")
def command(
    images: Path | None,
    count: int,
    solvers: list[str] | None,
    steps: list[int],
    model: str,
    end: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    plot: Path | None,
    as_csv: bool,
    as_json: bool,
    output: Path | None,
    **settings: Any,
) -> None:
    """Compare solvers: encode IMAGES, decode them again, and print how far off they are.

    Round trip: mean squared error per dimension on the [0, 1] scale, as in DDIM's Table 2. Latent: distance to the
    ODE's true latent (rms over σ_T): a solver can come back exactly from a latent that is wrong. Evaluations are per
    image and direction. Without IMAGES, the package's sample images.

    \b
    Examples:
      odeddim bench
      odeddim bench --solvers euler@linear,ab2@karras:5 --steps 10,20,50,100 --plot bench.svg
      odeddim bench photos/ --model MODEL --csv > table.csv
    """
    from odeddim.bench import reconstruction as bench
    from odeddim.bench.figures import figure_kind, work_precision
    from odeddim.cli.running import BATCH, field_on, images_for, machine, progress, warn_of_grid
    from odeddim.files import check_place
    from odeddim.hdf5 import SUFFIXES

    if as_csv and as_json:
        raise click.UsageError("--csv and --json: give one of them")
    if plot is not None:
        figure_kind(plot)
    if output is not None:
        check_place(output, images, plot, suffixes=SUFFIXES)
        if plot is not None and os.path.realpath(plot) == os.path.realpath(output):
            raise click.UsageError("--plot and --output name the same file")
    where = machine(device, dtype)
    field = field_on(model, where)
    source = images_for(field, images)
    x_0 = source[0 : min(count, len(source))].to(where.state)
    settings = {
        "rtol": TOLERANCE,
        "atol": TOLERANCE,
        **{key: value for key, value in settings.items() if value is not None},
    }
    entries = [bench.Entry.parse(text) for text in solvers or bench.DEFAULT_ENTRIES]
    planned = bench.runs(field, entries, steps, end, settings)
    for grid, row in {(entry.grid, row.name): row for entry, _, row, _ in planned}.items():
        warn_of_grid(grid[0], field, row)
    total = bench.reference_evaluations() + sum(bench.expected_evaluations(row, nodes) for _, _, row, nodes in planned)
    rows: list[bench.Row] = []
    reference, floor = "", 0.0
    with progress(total, "evaluations") as advance:
        for item in bench.reconstruction(field, x_0, planned, end=end, batch_size=batch_size or BATCH, advance=advance):
            if isinstance(item, bench.Row):
                rows.append(item)
            else:
                reference, floor = item
    table = bench.Table(
        model=field.name,
        sha256=field.sha256,
        images=len(x_0),
        end=end,
        dtype=where.dtype_name,
        device=str(where.device),
        reference=reference,
        reference_error=floor,
        rows=tuple(rows),
    )
    if as_json:
        click.echo(table.to_json())
    elif as_csv:
        click.echo(table.to_csv(), nl=False)
    else:
        _print(table)
    if output is not None:
        table.save(output)
        click.echo(f"table in {output}", err=True)
    if plot is not None:
        work_precision(table, plot)
        click.echo(f"figure in {plot}", err=True)


def _print(table: Any) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(
        title=f"{table.model}: {table.images} images, end at {table.end}, {table.dtype} on {table.device}",
        caption="round trip: MSE per dimension on [0, 1]; latent: rms distance to the true latent / σ_T; "
        f"the true latent is {table.reference}, itself known to {table.reference_error:.1e}",
    )
    for name in ("solver", "grid", "steps", "evals", "round trip", "latent", "seconds"):
        shown.add_column(name, justify="left" if name in ("solver", "grid") else "right")
    last = None
    for row in table.rows:
        if last is not None and (row.solver, row.grid) != last:
            shown.add_section()
        last = (row.solver, row.grid)
        shown.add_row(
            row.solver,
            row.grid,
            "adaptive" if row.steps is None else str(row.steps),
            f"{row.evaluations:g}",
            "failed" if row.round_trip is None else f"{row.round_trip:.2e}",
            "failed" if row.latent is None else f"{row.latent:.2e}",
            f"{row.seconds:.1f}",
        )
    console = Console()
    console.print(shown)
    for row in table.rows:
        for words in filter(None, (row.failure, row.note)):
            console.print(f"{row.solver}, {row.steps or 'adaptive'}: {words}", highlight=False, markup=False)
