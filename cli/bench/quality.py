"""`odeddim bench quality`: the quality of samples, DDIM's Tables 1 and 3, for any solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.bench import defaults
from odeddim.cli import options, preparation
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items
from odeddim.defaults import MOST_NEW


@click.command("quality")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(4, MOST_NEW),
    default=defaults.QUALITY.count,
    show_default=True,
    help="The number of samples for each row.",
)
@click.option(
    "--eta",
    type=Items(click.STRING),
    default=None,
    metavar="LIST",
    help=f"Values of DDIM's η; hat stands for σ̂.  [default: {','.join(defaults.ETA)}; none with --solvers]",
)
@shared.solvers(defaults.QUALITY.solvers, "  [default: only DDIM's family]")
@click.option(
    "--grid", default=defaults.GRID, show_default=True, metavar="NAME|FILE", help="The grid of the rows of --eta."
)
@shared.steps(defaults.QUALITY.steps)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    default=None,
    metavar="IMAGES",
    help="Real images to compare with.  [default: for built-in models, 2,048 test images of Fashion-MNIST]",
)
@preparation.prepare
@shared.features
@click.option(
    "--paper",
    type=click.Choice(["cifar10", "celeba", "bedroom", "church"]),
    default=None,
    help="State that the model and --reference are the paper's, for this data set. The table then has the paper's FIDs "
    "beside the rows on linear and quadratic grids. Refused for another shape of images, another schedule, or features "
    "that are not the FID's.",
)
@options.seed
@options.size
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    solvers: list[str] | None,
    settings: dict[str, Any],
    **given: Any,
) -> None:
    """Sample with DDIM's family (η from 0 to 1, and σ̂) and any solver, and compare the samples with real images.

    The table has the Fréchet distance, KID, precision and recall of the features of exactly --count samples. Sample i
    depends only on the seed and on i. For the FID, give the weights of the Inception network, --features
    inception:WEIGHTS.pth. The built-in model comes with a small classifier of Fashion-MNIST; its Fréchet distance is
    not the FID. This command needs torchmetrics: pip install 'odeddim[metrics]'.

    \b
    Examples:
      odeddim bench quality
      odeddim bench quality -n 1000 --eta 0,1 --steps 10,20,50,100
      odeddim bench quality --solvers euler@quadratic,dpmpp-2m,ab3 --steps 10,20
      odeddim bench quality --model MODEL --reference photos/ --features inception:WEIGHTS.pth -n 50000 --grid quadratic
    """
    from odeddim import jobs

    run.print(jobs.bench.quality(run.workbench, solvers=solvers or (), **given, **settings))
