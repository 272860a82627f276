"""`odeddim diagnose`: why images do not come back, or latents do not look like noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, preparation

if TYPE_CHECKING:
    from odeddim.checks.diagnosis import Diagnosis
    from odeddim.jobs import Machine, Subject
    from odeddim.storage.preparation import Preparation

SHOWN = ("residual", "slope", "best", "amplification", "unguided", "gap")


@click.command("diagnose")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-n",
    "--count",
    type=click.IntRange(2),
    default=defaults.DIAGNOSE_IMAGES,
    show_default=True,
    help="How many images to take, from the first.",
)
@options.model
@preparation.prepare
@options.run(
    defaults.SOLVE, options.end, options.plan, steps=options.steps_by(str(defaults.DIAGNOSE_STEPS)),
)  # fmt: skip
@click.option(
    "--figure",
    type=click.Path(path_type=Path),
    default=None,
    help="Draw the table as a figure, NAME.png or NAME.svg.",
)
@options.machine
@options.as_json
@options.replace
def command(
    images: Path | None,
    count: int,
    model: Subject,
    prepare: Preparation | None,
    how: dict[str, Any],
    figure: Path | None,
    machine: Machine,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Find out why IMAGES do not come back, or their latents do not look like noise.

    IMAGES should be like those of the model's training; the default is the sample images of the package. Noise is added
    to them at 8 noise levels, and the network is asked for it: as the model's files say, and under other conventions of
    what it predicts, its schedule and its labels. The right convention is nearest to the noise.

    The table has, for each noise level σ: the label t; the residual of the noise, rms (zeros would have 1); the slope
    of the noise over the answer, which is 1 for a network that is asked as it was trained; the least residual under
    another convention, and that convention; by how much an error grows for each factor e of σ, at the guidance given
    and at guidance 1; and the gap between the way up and the way down of a round trip, rms of x. Below stand an answer
    to each question and the most likely cause. What these images cannot tell is said to be so.

    \b
    Examples:
      odeddim diagnose photos/ --model MODEL
      odeddim diagnose photos/ --model M --label 207 --guidance 4 --figure diagnosis.png
      odeddim diagnose -n 8 --solver euler --grid linear --steps 10
      odeddim diagnose photos/ --model MODEL --json
    """
    from odeddim import jobs

    found = jobs.diagnose(
        images, model=model, count=count, figure=figure, prepare=prepare, machine=machine, overwrite=overwrite, **how
    )
    if as_json:
        options.echo_json(found.to_json())
        return
    _print(found)


def _print(found: Diagnosis) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from odeddim.storage.atomic import printable

    options.echo(f"{found.model}, {found.images} images; round trip: {found.plan}")
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    known = [name for name in SHOWN if any(getattr(level, name) is not None for level in found.levels)]
    for name in ("σ", "t", *known):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best convention")
    for level in found.levels:
        values = [getattr(level, name) for name in known]
        figures = ["" if value is None else f"{value:.3g}" for value in values]
        table.add_row(f"{level.sigma:.3g}", f"{level.label:.4g}", *figures, printable(level.convention))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    for it in found.verdicts:
        options.echo(f"{it.question}: {it.answer} ({it.words})")
    options.echo()
    options.echo(found.words[:1].upper() + found.words[1:] + ".")
