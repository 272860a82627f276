"""What the benches have in common: their options, the stand they measure on, and what becomes of a table."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options
from odeddim.cli.kinds import Items, SolverName

if TYPE_CHECKING:
    from odeddim.bench.features import Features
    from odeddim.bench.harness import Stand
    from odeddim.bench.tables import Table
    from odeddim.jobs import Machine, Subject
    from odeddim.jobs.machine import Place
    from odeddim.ode.field import VectorField
    from odeddim.plans import Plan
    from odeddim.types import Solver

FOLDER = "bench"
# Of adaptive solvers, unless given: so that they take about as many evaluations as the others.
TOLERANCE = 1e-3


class SolverOnGrid(SolverName):
    """SOLVER or SOLVER@GRID."""

    name = "solver[@grid]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        solver, at, grid = str(value).partition("@")
        return super().convert(solver, param, ctx) + at + grid


def solvers(default: str | None, otherwise: str = "") -> Callable[[options.F], options.F]:
    """--solvers LIST. otherwise: what happens without it, if there is no default."""
    return click.option(
        "--solvers",
        type=Items(SolverOnGrid()),
        default=default,
        show_default=default is not None,
        metavar="LIST",
        help=f"Solvers, or solver@grid, comma-separated; a grid file runs with its own steps.{otherwise}",
    )


def steps(default: str) -> Callable[[options.F], options.F]:
    """--steps LIST."""
    return click.option(
        "--steps",
        type=Items(click.IntRange(1, options.MOST_STEPS)),
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
overwrite = click.option(
    "--overwrite",
    is_flag=True,
    help="Measure everything anew, and replace what is there.  [default: measure what is missing]",
)


@dataclass
class Bench:
    """What every bench is told on the command line, and what it does with it."""

    model: Subject
    machine: Machine
    output: Path
    overwrite: bool
    as_csv: bool
    as_json: bool

    @functools.cached_property
    def place(self) -> Place:
        """Where the model runs."""
        return self.machine.at()

    @functools.cached_property
    def field(self) -> VectorField:
        """The model that is measured."""
        return self.whole

    @functools.cached_property
    def whole(self) -> VectorField:
        """The model, with its autoencoder if it is a latent one."""
        from odeddim.jobs.subject import subject_on

        return subject_on(self.place, self.model)

    def measure_data(self) -> None:
        """Measure the ODE alone, of a latent model on its data; the table will say so."""
        self.field = self.whole.on_data()

    def check_folder(self, name: str, also: Sequence[str] = ()) -> None:
        """Refuse a folder that cannot be one, or has a table of another model under this name, before it is long.

        Or where somebody else's files are in the place of the table's, or of `also`.
        """
        from odeddim.bench.tables import check_files, load
        from odeddim.types import InputError

        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"{self.output} is a file: give a folder with -o")
        there = self.output / f"{name}.h5"
        if self.overwrite:
            return
        check_files(self.output, name, also)
        if not there.exists():
            return
        try:
            model, sha256, condition = (load(there).settings.get(key, "") for key in ("model", "sha256", "condition"))
        except InputError as error:
            raise InputError(f"{error}; --overwrite replaces it") from error
        if (sha256 or model, condition) != (self.field.sha256 or self.field.name, self.field.condition.words):
            under = f" under {condition}" if condition else ""
            raise InputError(
                f"{there} is a table of the model {model!r}{under}: "
                "give another folder with -o, or --overwrite to replace it"
            )

    def runs(self, names: Sequence[str], steps: Sequence[int], end: str, settings: Mapping[str, Any]) -> list[Plan]:
        """What SOLVER[@GRID]s run, with tolerances that make a comparison fair where none are given."""
        from odeddim.bench.harness import Entry, planned
        from odeddim.jobs.subject import warn_of_plan

        given = {key: value for key, value in settings.items() if value is not None}
        entries = [Entry.parse(name) for name in names]
        runs = planned(self.field, entries, steps, end, {"rtol": TOLERANCE, "atol": TOLERANCE, **given})
        for run in {(run.grid, run.solver.name): run for run in runs}.values():
            warn_of_plan(run, self.field)
        return runs

    def features(self, which: str | None, shape: tuple[int, ...]) -> Features | None:
        """The network of --features; without it that of the built-in models, for images that it takes."""
        from odeddim.bench.features import DEFAULT, load_features
        from odeddim.models import BUILT_IN

        if which is None and self.model.name not in BUILT_IN:
            return None
        network = load_features(which or DEFAULT, device=self.place.device)
        return None if which is None and network.shape not in (None, tuple(shape)) else network

    @contextlib.contextmanager
    def stand(
        self, total: float, images: int | None = None, *, unit: str = "evaluations", still: bool = False
    ) -> Iterator[Stand]:
        """The stand of the model, with a progress bar of so many evaluations (of one image each), or whatever.

        images: how many there are. The network sees no more at once: filling up would cost the same again. still: the
        bar is drawn between two runs only, and not by a thread beside what is timed.
        """
        from odeddim.bench.harness import Stand
        from odeddim.cli.progress import bar
        from odeddim.jobs.machine import QUEUE, in_work
        from odeddim.storage.workers import rank

        place, given = self.place, self.machine
        size = given.batch_size or in_work(given.network_batch or place.usual_network_batch)

        def fit(row: Solver) -> dict[str, Any]:
            place.fit(self.field, row)
            if given.network_batch is None and images is not None:
                self.field.network_batch = min(self.field.network_batch or images, images)
            return place.details(self.field, row, size * (QUEUE if row.queued else 1))

        if self.overwrite and rank()[1] > 1:
            raise click.UsageError("--overwrite with several processes: each would begin anew; run it with one first")
        with bar(int(total), unit, still=still) as advance:
            yield Stand(self.field, self.output, place.state, size, fit, advance, self.overwrite)

    def deliver(self, table: Table, floor: float | None = None, beside: Mapping[str, bytes] | None = None) -> None:
        """Print a table and leave it with its figures in the folder; of several processes, the first does.

        floor: what a latent model's autoencoder alone loses of the images, rms over pixels in [-1, 1], their median.
        beside: other files that belong to it, name -> content.
        """
        from odeddim.bench import figures

        if not first():
            return
        if self.whole.codec is not None and self.field.codec is None:
            lost = "" if floor is None else f"; its autoencoder alone loses {floor:.3g} of the images (rms, median)"
            table = replace(table, notes=(*table.notes, f"all of the latent model's data in place of images{lost}"))
        paths = table.save(self.output, {**figures.files(table), **(beside or {})})
        if self.as_json:
            options.echo_json(table.to_json())
        elif self.as_csv:
            click.echo(table.to_csv(), nl=False)
        else:
            show(table)
        names: dict[str, list[str]] = {}
        for path in paths:
            names.setdefault(path.stem, []).append(path.suffix)
        told = ", ".join(f"{stem}{' '.join(kinds)}" for stem, kinds in names.items())
        options.echo(f"in {self.output}: {told}", err=True)


def first() -> bool:
    """Whether this is the process that tells, of several under torchrun."""
    from odeddim.storage.workers import rank

    return rank()[0] == 0


def as_bench(decorator: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Any]:
    """Options that a command gets as one `Bench`, its first argument."""
    names = {item.name for item in fields(Bench)}

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            if given["as_csv"] and given["as_json"]:
                raise click.UsageError("--csv and --json: give one of them")
            shared = {name: given.pop(name) for name in names & set(given)}
            return function(Bench(**shared), **given)

        return decorator(command)

    return decorate


_to_folder = options.together(folder, overwrite, printed)
common = as_bench(options.together(options.model, options.machine, _to_folder))
# What is timed decides itself how many images the network sees at once.
common_but_batches = as_bench(
    options.together(
        options.model,
        options.machine_with_threads(1),
        _to_folder,
    )
)


def show(table: Table) -> None:
    """Print a table."""
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
    # Figures are never cut short: a table wider than the terminal runs over its edge.
    width = Console(width=1000).measure(printed).maximum
    console = Console(width=max(console.width, width))
    console.print(printed)
    for row in table.rows:
        if row.get("remark"):
            which = [row.get(name) for name in ("eta", "solver", "grid", "labels", "batch", "steps")]
            words = ", ".join(str(value) for value in which if value not in (None, "", "-"))
            console.print(printable(f"{words}: {row['remark']}"), highlight=False, markup=False)
