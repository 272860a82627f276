"""`odeddim bench time`: DDIM's Figure 4, and the solver's own share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared

if TYPE_CHECKING:
    from odeddim.types import Solver


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], Any]]:
    """A progress bar that is drawn between two runs, and not by a thread beside what is timed."""
    from rich.progress import Progress, TimeElapsedColumn

    from odeddim.cli.running import errors

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    hidden = not errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=hidden, auto_refresh=False) as bars:
        task = bars.add_task("evaluations", total=total)
        yield lambda count: bars.update(task, advance=count, refresh=True)


@click.command("time")
@shared.solvers("euler")
@shared.steps("10,20,50,100")
@click.option(
    "--batches",
    type=options.Items(click.IntRange(1)),
    default="1,4,16",
    show_default=True,
    metavar="LIST",
    help="How many images to decode together, comma-separated. The network sees them as one batch.",
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Times that each run is timed.")
@options.seed
@options.size
@options.end
@options.tolerances
@options.model
@options.place
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a CPU.")
@shared.to_folder
def command(
    solvers: list[str],
    steps: list[int],
    batches: list[int],
    repeats: int,
    seed: int,
    size: str | None,
    end: str,
    model: str,
    device: str | None,
    dtype: str | None,
    threads: int,
    output: Path,
    overwrite: bool,
    as_csv: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Time the decoding of noise: DDIM's Figure 4, seconds over steps, for each batch size.

    Each run is timed several times, all of them in turns, after a warm-up; a row has the median, and the line through
    the medians over steps: milliseconds per step, and how straight it is (R²). Own: what is not spent inside the
    network. Nothing else should run on the machine meanwhile.

    \b
    Examples:
      odeddim bench time
      odeddim bench time --solvers euler,heun,belm --batches 8 --repeats 9
      odeddim bench time --model MODEL --device cuda --batches 1,64,512
    """
    from odeddim.bench import timing as bench
    from odeddim.bench.stand import Entry, Stand, planned
    from odeddim.cli.running import details_of, field_on, in_blocks, machine, shape_for
    from odeddim.parts import rank

    if rank()[1] > 1:
        raise click.UsageError("several processes would time each other: run `odeddim bench time` without torchrun")
    where = machine(device, dtype)
    field = field_on(model, where)
    shared.check_folder(output, "time", field, overwrite=overwrite)
    shape = shape_for(field, size)
    entries = [Entry.parse(text) for text in solvers]
    runs = planned(field, entries, steps, end, shared.settings_given(settings))

    def fit(row: Solver) -> dict[str, Any]:
        in_blocks(field, row, where, None, threads)
        return details_of(field, row, where, max(batches))

    with _bar(repeats * sum(batch * run.evaluations for run in runs for batch in {*batches})) as advance:
        stand = Stand(field, output, where.state, fit=fit, advance=advance, overwrite=overwrite)
        table = bench.timing(stand, runs, shape, batches=batches, repeats=repeats, seed=seed)
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
