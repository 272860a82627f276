"""`odeddim fit`: a solver fitted to a model, as a plan: nodes and weights, or the nodes of a solver of the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, preparation
from odeddim.cli.kinds import Shape, SolverName

if TYPE_CHECKING:
    from odeddim.jobs import Found, Machine, Subject
    from odeddim.storage.preparation import Preparation

aim = options.gathered(
    "aim",
    options.together(
        options.steps_by(f"{defaults.FIT_STEPS}, at most 20; 50 with --solver"),
        click.option(
            "--direction",
            type=click.Choice(["encode", "decode", "both"]),
            default=None,
            help="What the solver is fitted to; both is one plan with the same nodes in both directions.  "
            "[default: decode]",
        ),
        click.option(
            "--solver",
            type=SolverName(),
            default=None,
            help="Find nodes for this solver, and no weights.",
        ),
        options.end,
        click.option(
            "--top",
            type=click.Choice(["gaussian", "model"]),
            default=None,
            help="What lies between the last node and σ_T: the exact flow of the Gaussian of the model's data, which "
            "costs nothing, or no gap.  [default: gaussian if the model has one]",
        ),
        click.option(
            "-n",
            "--count",
            type=click.IntRange(1),
            default=None,
            help="How many noises, or images from the last, to fit to; further ones are held out.  "
            f"[default: {defaults.FIT_COUNT}; {defaults.GRID_IMAGES} with --solver]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, options.MOST_SEED),
            default=None,
            help="The seed of the noises.  [default: 0]",
        ),
        click.option(
            "--size",
            "shape",
            type=Shape(),
            default=None,
            metavar="C,H,W",
            help="The shape of the images of noises, for models that take several sizes or any.  "
            "[default: the model's own]",
        ),
    ),
    dict,
)
"""What is to be found."""


@click.command("fit")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The plan file to write, plan.json."
)
@aim
@options.model
@preparation.prepare
@options.machine_with_threads(None, options.batch_size)
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    aim: dict[str, Any],
    model: Subject,
    prepare: Preparation | None,
    machine: Machine,
    overwrite: bool,
) -> None:
    """Fit a solver to a model: the noise levels and the weights with which it errs least, for a number of steps.

    The solver is a linear multistep rule, `fitted` in `odeddim solvers`: each step uses the state and the last three
    answers of the network, at one evaluation a step. Where the Gaussian of the model's data is known, it corrects these
    answers. All is found from the model's own fine solutions of noises, or of IMAGES, by least squares; no network is
    trained. The command prints the errors on 64 others, and those of the best solver with named nodes.

    The plan is a JSON file. --plan plan.json of encode, decode, sample and explain runs it. It belongs to the model and
    to its direction: a solver fitted to decode does not encode.

    --solver NAME finds nodes alone, for a solver of the table. The errors of its single steps are measured on the last
    of IMAGES (`odeddim bench` takes the first), by default of the sample images of the package; round trips then refine
    the nodes. --grid plan.json takes them for another solver, and so does SOLVER@plan.json in `odeddim bench
    --solvers`.

    A run that was stopped goes on with the same command: what it has found is kept in plan.json.fit until then.

    \b
    Examples:
      odeddim fit --steps 5 -o plan.json
      odeddim sample -n 4 -o out/ --plan plan.json
      odeddim fit --steps 10 --direction encode -o up.json
      odeddim fit photos/ --model MODEL --resize model --steps 8 --direction both -o plan.json
      odeddim fit --solver dpmpp-2m --steps 20 -o nodes.json
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.fit(
        images, output, **aim, model=model, prepare=prepare, machine=machine, overwrite=overwrite, progress=bar
    )
    _print(made)
    if not made.gains:
        options.echo("nothing better was found", err=True)
    options.tell(made)


def _print(made: Found) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    shown = Table(title=Text(printable(made.title)), caption=made.caption)
    header, *rows = made.figures
    for name in header:
        shown.add_column(name, justify="left" if name in ("grid", "error", "solver") else "right")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
