"""`odeddim bench reconstruction`: DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from odeddim.cli import options
from odeddim.cli.bench import shared
from odeddim.cli.kinds import Items


@click.command("reconstruction")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(1), default=24, show_default=True, help="How many images.")
@shared.solvers("euler@linear,euler@quadratic,ab3,belm")
@shared.steps("10,20,50,100")
@click.option(
    "--labels",
    type=Items(click.Choice(["source", "target"])),
    default="source",
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
    count: int,
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
    import statistics

    from odeddim.api import to_data
    from odeddim.bench import reconstruction as bench
    from odeddim.jobs.subject import data_and_floor, images_for, warn_of_count

    run.check_folder("reconstruction")
    source = images_for(run.whole, images)
    run.measure_data()
    if options.is_given("count"):
        warn_of_count(count, len(source), images)
    count = min(count, len(source))
    runs = run.runs(solvers, steps, end, settings)
    with run.stand(count * bench.expected_evaluations(runs, labels), count) as stand:
        table = bench.reconstruction(
            stand,
            lambda start, stop: to_data(run.whole, source[start:stop].to(run.place.state)),
            count,
            runs,
            end=end,
            labels=labels,
            source={"path": str(images or "the package's sample")},
            paper=paper,
        )
    floor = None
    if run.whole.codec is not None:  # image by image, as it works itself
        floor = statistics.median(float(data_and_floor(run.whole, source[i : i + 1])[1]["floor"]) for i in range(count))
    run.deliver(table, floor)
