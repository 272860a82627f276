"""Parts that the benches share: their options, and the printing of a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.bench import defaults
from odeddim.cli import options, sharing
from odeddim.cli.kinds import FigureSize, Items, SolverName
from odeddim.defaults import MOST_STEPS

if TYPE_CHECKING:
    from odeddim.bench.drawing import Layout
    from odeddim.bench.tables import Table
    from odeddim.jobs import Machine, Subject
    from odeddim.jobs.bench import Workbench


class SolverOnGrid(SolverName):
    """The type of an option's value: SOLVER, SOLVER@GRID, or the file of a plan."""

    name = "solver[@grid]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        solver, at, grid = str(value).partition("@")
        if not at and solver.lower().endswith(".json"):
            return solver
        return super().convert(solver, param, ctx) + at + grid


def solvers(usual: Sequence[str], otherwise: str = "") -> Callable[[options.F], options.F]:
    """Make the option --solvers LIST.

    Args:
        usual: The default; empty for no default.
        otherwise: What the help says about the default instead.

    Returns:
        The option, a decorator.
    """
    return click.option(
        "--solvers",
        type=Items(SolverOnGrid()),
        default=",".join(usual) or None,
        show_default=bool(usual),
        metavar="LIST",
        help="Solvers, solver@grid, or files of plans (plan.json), comma-separated. Plans and grid files have their "
        f"own number of steps.{otherwise}",
    )


def steps(usual: Sequence[int]) -> Callable[[options.F], options.F]:
    """Make the option --steps LIST, with the default `usual`."""
    return click.option(
        "--steps",
        type=Items(click.IntRange(1, MOST_STEPS)),
        default=",".join(map(str, usual)),
        show_default=True,
        metavar="LIST",
        help="Numbers of steps, comma-separated.",
    )


features = click.option(
    "--features",
    default=None,
    metavar="NAME|FILE",
    help="The network whose features are compared: fashion-mnist, inception:WEIGHTS.pth (for the FID), or a program, "
    "network.pt2 or network.pt.  [default: for built-in models, fashion-mnist]",
)
folder = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=defaults.FOLDER,
    show_default=True,
    metavar="FOLDER",
    help="Where tables, figures and measurements go.",
)
printed = options.together(
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table."), options.as_json
)


def _layout(own: dict[str, Any]) -> Layout:
    from odeddim.bench.drawing import Layout

    return Layout(own["figure_size"], own["title"])


layout = options.gathered(
    "layout",
    options.together(
        click.option(
            "--figure-size",
            type=FigureSize(),
            default=None,
            metavar="W,H",
            help="The width and height of the figures in inches, as in 6.5,4. A PNG has 150 pixels per inch. A sheet "
            "of images keeps its proportions.  [default: as suits the figure]",
        ),
        click.option(
            "--title/--no-title", default=True, show_default=True, help="Whether figures have a title above them."
        ),
    ),
    _layout,
)
overwrite = click.option(
    "--overwrite",
    is_flag=True,
    help="Measure everything again, and replace existing files.  [default: measure what is missing]",
)


@dataclass(frozen=True)
class Bench:
    """The options that every bench has.

    Attributes:
        workbench: The model, the device it runs on, and the folder.
        as_csv: Whether to print CSV instead of a table.
        as_json: Whether to print JSON instead of a table.
    """

    workbench: Workbench
    as_csv: bool
    as_json: bool

    def print(self, table: Table, short: Table | None = None, below: Sequence[str] = ()) -> None:
        """Print a table and the names of its files. Of several processes, only the first prints.

        Args:
            table: The table.
            short: What is printed in its place unless CSV or JSON is.
            below: Sentences that are printed below it.
        """
        if not table.files:
            return
        if self.as_json:
            options.echo_json(table.to_json())
        elif self.as_csv:
            click.echo(table.to_csv(), nl=False)
        else:
            show(short or table, below)
        names: dict[str, list[str]] = {}
        for path in table.files:
            names.setdefault(path.stem, []).append(path.suffix)
        told = ", ".join(f"{stem}{' '.join(kinds)}" for stem, kinds in names.items())
        options.echo(f"in {self.workbench.folder}: {told}", err=True)


def _shared(machine: Callable[[options.F], options.F], *, still: bool) -> Callable[[options.F], options.F]:
    """Make the options that every bench has. The command gets them as one argument, `run`.

    Args:
        machine: The options about the device.
        still: Whether to draw no progress bar while a run is timed.

    Returns:
        The options, a decorator.
    """

    def decorate(function: options.F) -> options.F:
        @functools.wraps(function)
        def command(
            *,
            model: Subject,
            machine: Machine,
            output: Path,
            layout: Layout,
            overwrite: bool,
            as_csv: bool,
            as_json: bool,
            **own: Any,
        ) -> Any:
            from odeddim.cli.progress import Bar
            from odeddim.jobs.bench import Workbench

            if as_csv and as_json:
                raise click.UsageError("--csv and --json exclude each other: give only one of them")
            workbench = Workbench(model, machine, output, overwrite, Bar(still=still), layout)
            return function(Bench(workbench, as_csv, as_json), **own)

        return options.together(options.model, machine, folder, layout, overwrite, printed)(command)  # type: ignore[arg-type]

    return decorate


common = _shared(sharing.of_processes, still=False)
common_alone = _shared(options.machine, still=False)
"""Of a bench that measures seconds, which other processes would disturb."""
# `time` sets the batch size of the network itself (--batches), so it has no --batch-size and --network-batch.
common_but_batches = _shared(options.machine_with_threads(1), still=True)


def show(table: Table, below: Sequence[str] = ()) -> None:
    """Print a table to the terminal, and below it the remarks of its rows and further sentences."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from odeddim.storage.atomic import printable

    shown = [column for column in table.columns if column.name != "remark"]
    meanings = dict.fromkeys(f"{column.heading}: {column.meaning}" for column in shown if column.meaning)
    caption = "; ".join([*meanings, *table.notes])
    printed = RichTable(title=Text(printable(table.title)), caption=Text(printable(caption)))
    for column in shown:
        printed.add_column(column.heading, justify="left" if column.words else "right", no_wrap=True)
    last = None
    for row in table.rows:
        group = tuple(row[name] for name in table.group)
        if last not in (None, group):
            printed.add_section()
        last = group
        printed.add_row(*(Text(printable(column.show(row[column.name]))) for column in shown))
    console = Console()
    # Numbers are never cut off: a table that is wider than the terminal runs over its edge.
    width = Console(width=1000).measure(printed).maximum
    console = Console(width=max(console.width, width))
    console.print(printed)
    for row in table.rows:
        if row.get("remark"):
            which = [row.get(name) for name in ("eta", "solver", "grid", "labels", "batch", "steps")]
            words = ", ".join(str(value) for value in which if value not in (None, "", "-"))
            console.print(printable(f"{words}: {row['remark']}"), highlight=False, markup=False)
    for sentence in below:
        console.print(printable(sentence), highlight=False, markup=False)
