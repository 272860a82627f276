"""`odeddim bench reconstruction`: DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared


@click.command("reconstruction")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(1), default=4, show_default=True, help="How many images.")
@shared.solvers("euler@linear,euler@quadratic,ab3,belm")
@shared.steps("10,20,50,100,200,500,1000")
@click.option(
    "--labels",
    type=options.Items(click.Choice(["source", "target"])),
    default="source",
    show_default=True,
    metavar="LIST",
    help="Where encoding takes the network's label t. source: as eq. 14 reversed says; target: of euler only, as much "
    "other code has it.",
)
@options.end
@options.tolerances
@shared.common
def command(
    run: shared.Bench,
    images: Path | None,
    count: int,
    solvers: list[str],
    steps: list[int],
    labels: list[str],
    end: str,
    **settings: Any,
) -> None:
    """Encode IMAGES, decode them again, and print how far off they are: DDIM's Table 2.

    Round trip: mean squared error per dimension on the [0, 1] scale. Latent: distance to the ODE's true latent (rms
    over σ): a solver can come back exactly from a latent that is wrong. Evaluations are per image and direction.
    Of a latent model, all of it is of its data: what its autoencoder alone loses of the images is said apart.
    Without IMAGES, the package's sample images; with the model and the test images of CIFAR-10, the paper's table.

    \b
    Examples:
      odeddim bench reconstruction
      odeddim bench reconstruction --labels source,target --solvers euler@linear,euler@quadratic
      odeddim bench reconstruction photos/ -n 1000 --model MODEL --solvers euler@quadratic,ab3,belm
      odeddim bench reconstruction --steps 10,20,50 --csv > table.csv
    """
    import statistics

    from odeddim.api import to_data
    from odeddim.bench import reconstruction as bench
    from odeddim.cli.running import data_and_floor, images_for, warn_of_count

    run.check_folder("reconstruction")
    source = images_for(run.whole, images)
    run.measure_data()
    warn_of_count(count, len(source), images)
    count = min(count, len(source))
    runs = run.runs(solvers, steps, end, settings)
    with run.stand(count * bench.expected_evaluations(runs, labels), count) as stand:
        table = bench.reconstruction(
            stand,
            lambda start, stop: to_data(run.whole, source[start:stop].to(run.machine.state)),
            count,
            runs,
            end=end,
            labels=labels,
            source={"path": str(images or "the package's sample")},
        )
    floor = None
    if run.whole.codec is not None:  # image by image, as it works itself
        floor = statistics.fmean(float(data_and_floor(run.whole, source[i : i + 1])[1]["floor"]) for i in range(count))
    run.deliver(table, floor)
