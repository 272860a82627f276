"""`odeddim bench reconstruction`: DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items


@click.command("reconstruction")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    default=None,
    help=f"How many images.  [default: {defaults.RECONSTRUCTION.count}]",
)
@shared.solvers(defaults.RECONSTRUCTION.solvers)
@shared.steps(defaults.RECONSTRUCTION.steps)
@click.option(
    "--labels",
    type=Items(click.Choice(["source", "target"])),
    default=",".join(defaults.LABELS),
    show_default=True,
    metavar="LIST",
    help="Where encoding takes the network's label t. source: as eq. 14 reversed says; target: of euler only, as much "
    "other code has it.",
)
@click.option(
    "--paper",
    is_flag=True,
    help="Say that the model is the paper's of CIFAR-10 and IMAGES are its test images: the paper's Table 2 stands "
    "beside the rows of euler, and the mean that it reports is computed. Refused for another shape or schedule.",
)
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
    end: str,
    settings: dict[str, Any],
) -> None:
    """Encode IMAGES, decode them again, and print how far off they are: DDIM's Table 2 for any solver.

    Round trip: rms over pixels in [-1, 1]. Latent: distance to the ODE's true latent (rms over σ_T): a solver can come
    back exactly from a latent that is wrong. Both are medians over the images, with what one and nine images in ten
    keep beside them (10 %, 90 %): a mean is ruled by single images. For figures to be quoted take 64 images or more.
    Evaluations are per image and direction. Of a latent model, all of it is of its data: what its autoencoder alone
    loses of the images is said apart. Without IMAGES, the package's sample images.

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
        **settings,
    )  # fmt: skip
    run.print(table)
