"""`odeddim sample`: new images from noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import condition, options, parallel, pictures, portable, sharing, tops

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Pictures, Subject


found = options.gathered(
    "found",
    options.together(
        click.option(
            "--density",
            is_flag=True,
            help="Store the log density of each image in bits per dimension, in HDF5, NPZ or the PNGs: see `odeddim "
            "density`. The default of --end is then sigma_min.",
        ),
        *condition.each(""),
    ),
    dict,
)
"""What each image is told, and what else is found out of it."""


@click.command("sample")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, defaults.MOST_NEW),
    default=None,
    help=f"How many images to make.  [default: {defaults.NEW}, or the rows of --labels-from or --prompts-from]",
)
@pictures.output("Where images go: a sheet.png, a file.h5, a file.npz or a folder for PNGs.")
@options.seed
@click.option(
    "--eta",
    type=click.FloatRange(0),
    default=None,
    help="How much noise a stochastic solver adds: DDIM's η, SA-Solver's τ.  [default: 0 for euler, which is the ODE; "
    "0.5 for ddim-eta, else 1]",
)
@options.size
@options.model
@options.run(
    f"{defaults.SAMPLE}; with --eta {defaults.SAMPLE_WITH_ETA}",
    options.end,
    tops.top,
    options.plan,
    parallel.option,
    portable.option,
)
@sharing.machine
@found
@options.overwrite
def command(
    count: int | None,
    output: Pictures,
    seed: int,
    eta: float | None,
    size: tuple[int, ...] | None,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    found: dict[str, Any],
    overwrite: bool,
) -> None:
    """Sample images from noise.

    Image i depends on the seed and on i only, not on the count or the batch size. A run that was stopped goes on with
    the same command. A larger -n extends a file or a folder of images. --plan runs a plan file in place of --solver,
    --grid, --steps, --end and settings.

    --labels-from and --prompts-from give each image a class or a text of its own, in the order of the rows or lines.
    The names of image files tell it. In a file.h5 or a file.npz, condition is the place of each image's own in the
    list of conditions of the provenance.

    \b
    Examples:
      odeddim sample -o sheet.png
      odeddim sample -n 1000 --seed 1 -o images.h5 --solver dpmpp-2m --grid karras --steps 20
      odeddim sample -o ddpm.png --solver ddpm --steps 100
      odeddim sample -o half.png --eta 0.5
      odeddim sample -n 1 -o one.png --parallel 50:1e-3
      odeddim sample -o planned.png --plan plan.json
      odeddim sample -o classes/ --model M --labels-from labels.csv:class
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.sample(
        count, output, seed=seed, eta=eta, shape=size, model=model, machine=machine, overwrite=overwrite, progress=bar,
        **found, **how,
    )  # fmt: skip
    options.tell(made)
