"""What the benches have in common: their options, the stand they measure on, and what becomes of a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.bench.features import Features
    from odeddim.bench.stand import Stand
    from odeddim.bench.tables import Table
    from odeddim.cli.running import Machine
    from odeddim.field import VectorField

FOLDER = "bench"
# Of adaptive solvers, unless given: so that they take about as many evaluations as the others.
TOLERANCE = 1e-3


class SolverOnGrid(options.SolverName):
    """SOLVER or SOLVER@GRID."""

    name = "solver[@grid]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        solver, at, grid = str(value).partition("@")
        return super().convert(solver, param, ctx) + at + grid


def solvers(default: str | None, otherwise: str = "") -> Callable[[options.F], options.F]:
    """--solvers LIST. otherwise: what happens without it, if there is no default."""
    return click.option(
        "--solvers",
        type=options.Items(SolverOnGrid()),
        default=default,
        show_default=default is not None,
        metavar="LIST",
        help=f"Solvers, or solver@grid, comma-separated; a grid file runs with its own steps.{otherwise}",
    )


def steps(default: str) -> Callable[[options.F], options.F]:
    """--steps LIST."""
    return click.option(
        "--steps",
        type=options.Items(click.IntRange(1)),
        default=default,
        show_default=True,
        metavar="LIST",
        help="Numbers of steps, comma-separated.",
    )


features = click.option(
    "--features",
    default=None,
    metavar="NAME|FILE",
    help="A network whose features tell images apart: fashion-mnist, inception:WEIGHTS.pth (the FID's), or a program, "
    "network.pt2 or network.pt.  [default: of built-in models fashion-mnist]",
)
folder = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Where tables, figures and measurements go.",
)
printed = options.together(
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table."), options.as_json
)
overwrite = click.option("--overwrite", is_flag=True, help="Measure everything anew.  [default: what is missing]")
to_folder = options.together(folder, overwrite, printed)
common = options.together(options.model, options.machine, options.network_batch, to_folder)


def settings_given(settings: dict[str, Any]) -> dict[str, Any]:
    """The solvers' settings, with tolerances that make a comparison fair where none are given."""
    given = {key: value for key, value in settings.items() if value is not None}
    return {"rtol": TOLERANCE, "atol": TOLERANCE, **given}


def features_for(which: str | None, model: str, shape: tuple[int, ...], where: Machine) -> Features | None:
    """The network of --features; without it that of the built-in models, for images that it takes."""
    from odeddim.bench.features import DEFAULT, load_features
    from odeddim.models import BUILT_IN

    if which is None and model not in BUILT_IN:
        return None
    network = load_features(which or DEFAULT, device=where.device)
    return None if which is None and network.shape not in (None, tuple(shape)) else network


@contextlib.contextmanager
def stand_on(
    field: VectorField,
    where: Machine,
    output: Path,
    total: float,
    *,
    images: int | None = None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> Iterator[Stand]:
    """The stand of a model, with a progress bar of so many evaluations (of one image each).

    images: how many there are. The network sees no more at once: filling up would cost the same again.
    """
    from odeddim.bench.stand import Stand
    from odeddim.cli.running import at_once, details_of, in_blocks, progress
    from odeddim.parts import rank

    def fit(row: Any) -> dict[str, Any]:
        in_blocks(field, row, where, network_batch, threads)
        if network_batch is None and images is not None:
            field.network_batch = min(field.network_batch or images, images)
        return details_of(field, row, where, at_once(row, batch_size))

    if overwrite and rank()[1] > 1:
        raise click.UsageError("--overwrite with several processes: each would begin anew; run it with one first")
    with progress(int(total), "evaluations") as advance:
        yield Stand(
            field, output, where.state, batch_size=at_once_of(batch_size), fit=fit, advance=advance, overwrite=overwrite
        )


def at_once_of(batch_size: int | None) -> int:
    """Images in work at once."""
    from odeddim.cli.running import BATCH

    return batch_size or BATCH


def check_folder(output: Path, bench: str, field: VectorField, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be one, or that holds a table of another model, before anything is measured."""
    from odeddim.bench.tables import load
    from odeddim.types import InputError

    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: give a folder with -o")
    there = output / f"{bench}.h5"
    if overwrite or not there.exists():
        return
    try:
        model, sha256 = (load(there).settings.get(key) for key in ("model", "sha256"))
    except InputError as error:
        raise InputError(f"{error}; --overwrite replaces it") from None
    if (sha256 or model) != (field.sha256 or field.name):
        raise InputError(
            f"{there} is a table of the model {model!r}: give another folder with -o, or --overwrite to replace it"
        )


def first() -> bool:
    """Whether this is the process that tells, of several under torchrun."""
    from odeddim.parts import rank

    return rank()[0] == 0


def deliver(table: Table, output: Path, *, as_csv: bool, as_json: bool) -> None:
    """Print a table and leave it with its figures in the folder; of several processes, the first does."""
    from odeddim.bench import figures

    if not first():
        return
    paths = [*table.save(output), *figures.save(table, output)]
    if as_json:
        click.echo(table.to_json())
    elif as_csv:
        click.echo(table.to_csv(), nl=False)
    else:
        show(table)
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(path.stem, []).append(path.suffix)
    told = ", ".join(f"{stem}{' '.join(kinds)}" for stem, kinds in names.items())
    click.echo(f"in {output}: {told}", err=True)


def show(table: Table) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = [column for column in table.columns if column.name != "remark"]
    caption = "; ".join([f"{c.heading}: {c.meaning}" for c in shown if c.meaning] + list(table.notes))
    printed = RichTable(title=table.title, caption=caption)
    for column in shown:
        printed.add_column(column.heading, justify="left" if column.words else "right", no_wrap=True)
    last = None
    for row in table.rows:
        group = tuple(row[name] for name in table.group)
        if last not in (None, group):
            printed.add_section()
        last = group
        printed.add_row(*(column.show(row[column.name]) for column in shown))
    console = Console()
    # Figures are never cut short: a table wider than the terminal runs over its edge.
    width = Console(width=1000).measure(printed).maximum
    console = Console(width=max(console.width, width))
    console.print(printed)
    for row in table.rows:
        if row.get("remark"):
            words = ", ".join(str(row[name]) for name in (*table.group, "steps") if row.get(name) is not None)
            console.print(f"{words}: {row['remark']}", highlight=False, markup=False)
