"""`odeddim sample`: new images from noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, parallel, pictures, portable, sharing, tops

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Pictures, Subject


@click.command("sample")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, defaults.MOST_NEW),
    default=64,
    show_default=True,
    help="How many images to make.",
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
@click.option(
    "--density",
    is_flag=True,
    help="Store the log density of each image in bits per dimension, in HDF5, NPZ or the PNGs: see `odeddim density`. "
    "The default of --end is then sigma_min.",
)
@options.overwrite
def command(
    count: int,
    output: Pictures,
    seed: int,
    eta: float | None,
    size: tuple[int, ...] | None,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    density: bool,
    overwrite: bool,
) -> None:
    """Sample images from noise.

    Image i depends on the seed and on i only, not on the count or the batch size. A run that was stopped goes on with
    the same command. A larger -n extends a file or a folder of images. --plan runs a plan file in place of --solver,
    --grid, --steps, --end and settings.

    \b
    Examples:
      odeddim sample -o sheet.png
      odeddim sample -n 1000 --seed 1 -o images.h5 --solver dpmpp-2m --grid karras --steps 20
      odeddim sample -o ddpm.png --solver ddpm --steps 100
      odeddim sample -o half.png --eta 0.5
      odeddim sample -n 1 -o one.png --parallel 50:1e-3
      odeddim sample -o planned.png --plan plan.json
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.sample(
        count, output, seed=seed, eta=eta, shape=size, model=model, density=density, machine=machine,
        overwrite=overwrite, progress=bar, **how,
    )  # fmt: skip
    options.tell(made)
