"""`odeddim grid`: a plan whose noise levels are computed from the model's own error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim import defaults
from odeddim.cli import options, preparation

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject
    from odeddim.jobs.grid import Computed
    from odeddim.storage.preparation import Preparation


@click.command("grid")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The plan file to write, plan.json."
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=None,
    help=f"How many images to measure on, from the last.  [default: {defaults.GRID_IMAGES}]",
)
@options.model
@preparation.prepare
@options.solver(defaults.ENCODE)
@options.steps
@options.end
@options.machine_without_network_batch
@options.replace
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    model: Subject,
    solver: str | None,
    steps: int | None,
    end: str,
    prepare: Preparation | None,
    machine: Machine,
    overwrite: bool,
) -> None:
    """Compute the noise levels that give a solver the smallest errors, for a number of steps, and write a plan.

    The errors of single steps are measured on the last of IMAGES (`odeddim bench` takes the first); round trips then
    refine the grid. The default of IMAGES is the sample images of the package. The command prints the errors on these
    images, on the solver's own grid and on the computed one.

    A plan is a JSON file with a solver, its settings, the nodes and the end. --plan plan.json of encode, decode, sample
    and explain runs it. --grid plan.json takes its nodes for another solver, and so does SOLVER@plan.json in
    `odeddim bench --solvers`.

    \b
    Examples:
      odeddim grid --solver dpmpp-2m --steps 20 -o plan.json
      odeddim encode -o z.h5 --plan plan.json
      odeddim bench --solvers dpmpp-2m,dpmpp-2m@plan.json --steps 20
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.grid(
        images, output, solver or defaults.ENCODE, **({} if steps is None else {"steps": steps}), end=end, count=count,
        model=model, prepare=prepare, machine=machine, overwrite=overwrite, progress=bar,
    )  # fmt: skip
    _print(made)
    if made.found.best is made.found.own:
        options.echo(f"nothing better than the {made.plan.grid} grid was found: the file holds that one", err=True)
    options.tell(made)


def _print(made: Computed) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    caption = "round trip: rms over pixels in [-1, 1]; latent: rms distance to the true latent / σ_T"
    shown = Table(title=Text(printable(made.title)), caption=caption)
    for name in ("grid", "round trip", "latent"):
        shown.add_column(name, justify="left" if name == "grid" else "right")
    for name, measured in ((made.plan.solver.grid, made.found.own), ("computed", made.found.best)):
        shown.add_row(name, f"{measured.round_trip:.2e}", f"{measured.latent:.2e}")
    Console().print(shown)
