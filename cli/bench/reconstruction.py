"""`odeddim bench reconstruction`: DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.bench import defaults
from odeddim.cli import options, preparation
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items

if TYPE_CHECKING:
    from odeddim.storage.preparation import Preparation


@click.command("reconstruction")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=None,
    help=f"The number of images.  [default: {defaults.RECONSTRUCTION.count}]",
)
@shared.solvers(defaults.RECONSTRUCTION.solvers)
@shared.steps(defaults.RECONSTRUCTION.steps)
@click.option(
    "--labels",
    type=Items(click.Choice(["source", "target"])),
    default=",".join(defaults.LABELS),
    show_default=True,
    metavar="LIST",
    help="Which label t the network gets in an encoding step. source: the label of the step's start, as in eq. 14 "
    "reversed; target: the label of its end, as in much other code, for euler only.",
)
@click.option(
    "--paper",
    is_flag=True,
    help="State that the model is the paper's for CIFAR-10 and that IMAGES are the test images. The table then has the "
    "paper's Table 2 beside the rows of euler, and the mean that the paper reports. Refused for another shape of "
    "images or another schedule.",
)
@preparation.prepare
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    images: Path | None,
    count: int | None,
    solvers: list[str],
    steps: list[int],
    labels: list[str],
    paper: bool,
    prepare: Preparation | None,
    end: str,
    settings: dict[str, Any],
) -> None:
    """Encode IMAGES, decode them again, and print the errors: DDIM's Table 2 for any solver.

    The error of the round trip is the rms over pixels in [-1, 1]. The error of the latent is the distance to the ODE's
    true latent (rms over σ_T): a solver can return exactly from a wrong latent. The table has the medians over the
    images, and the values that one and nine images in ten do not exceed (10 %, 90 %); single images would dominate a
    mean. Use 64 images or more for results that you quote. Evaluations are per image and direction. For a latent model,
    all errors are measured on its data, which are images as its autoencoder encodes them; the table tells separately
    what the autoencoder alone loses of the images. Without IMAGES, the package's sample images are used.

    \b
    Examples:
      odeddim bench reconstruction
      odeddim bench reconstruction --labels source,target --solvers euler@linear,euler@quadratic
      odeddim bench reconstruction photos/ -n 1000 --model MODEL --solvers euler@quadratic,ab3,belm
      odeddim bench reconstruction -n 64 --steps 10,20,50 --csv > table.csv
      odeddim bench reconstruction cifar10-test/ --model MODEL --paper -n 10000 --solvers euler@quadratic
    """
    from odeddim import jobs

    table = jobs.bench.reconstruction(
        run.workbench, images, count=count, solvers=solvers, steps=steps, labels=labels, paper=paper, end=end,
        prepare=prepare, **settings,
    )  # fmt: skip
    run.print(table)
