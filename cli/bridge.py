"""`odeddim bridge`: images of one model made images of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options
from odeddim.cli.kinds import Interval

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject


def _target(own: dict[str, Any]) -> Subject:
    """The model that decodes, under its own condition."""
    from odeddim.jobs import Subject

    condition = {
        "label": own["to_label"],
        "prompt": own["to_prompt"],
        "negative_prompt": own["to_negative_prompt"],
        "guidance": own["to_guidance"],
        "interval": own["to_guidance_interval"],
    }
    return Subject(own["to"], condition, options.of_model().get("allow_pickle", False))


target = options.gathered(
    "target",
    options.together(
        click.option("--to", required=True, metavar="NAME|PATH", help="The model that decodes; --model encodes."),
        click.option("--to-label", type=click.IntRange(0), default=None, help="Its class."),
        click.option("--to-prompt", metavar="TEXT", default=None, help="Its prompt."),
        click.option("--to-negative-prompt", metavar="TEXT", default=None, help="What its guidance leads away from."),
        click.option("--to-guidance", type=float, metavar="W", default=1.0, help="Its guidance.  [default: 1]"),
        click.option(
            "--to-guidance-interval", type=Interval(), metavar="LOW,HIGH", default=None, help="Where that holds."
        ),
    ),
    _target,
)


@click.command("bridge")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder for PNGs, a sheet.png or a file.h5.",
)
@click.option("-n", "--count", type=click.IntRange(1), default=None, help="Only the first so many images.")
@target
@click.option("--cycle/--no-cycle", default=True, help="Go back too, for the cycle error: 3 times the evaluations.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the cycle errors of all images as CSV.")
@options.model
@options.run(defaults.BRIDGE, options.end)
@options.machine
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    target: Subject,
    cycle: bool,
    as_csv: bool,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    overwrite: bool,
) -> None:
    """Encode IMAGES with one model (--model) and decode them with another (--to): a dual diffusion implicit bridge.

    The state x̄ is handed over at the lower of the two σ_T. Both models may be one under two conditions: --label names
    the source's class and --to-label the target's. A diffusion model and a rectified flow meet as well.

    The cycle error of an image is the rms over its pixels, in [-1, 1], between it and itself there and back. Each PNG
    and a file.h5 keep it (cycle_error), --csv prints them all. A sheet shows each image, what became of it, and what
    came back. IMAGES and resuming are as of `odeddim encode`.

    \b
    Examples:
      odeddim bridge -n 16 --to fashion-mnist-flow -o sheet.png
      odeddim bridge photos/ --model A --to B -o out/ --steps 100
      odeddim bridge photos/ --model A --to B -o out/ --steps 100 --csv > errors.csv
      odeddim bridge photos/ --model M --label 207 --to M --to-label 281 -o out/
    """
    import csv
    import sys

    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.bridge(
        images, output, target, model=model, count=count, cycle=cycle, machine=machine, overwrite=overwrite,
        progress=bar, **how,
    )  # fmt: skip
    options.echo(made.words, err=as_csv)
    if as_csv and cycle:
        table = csv.writer(sys.stdout)
        table.writerow(["name", "cycle_error"])
        table.writerows(made.cycle_errors)
    elif made.cycle_words:
        options.echo(made.cycle_words)
