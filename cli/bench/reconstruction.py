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
    images: Path | None,
    count: int,
    solvers: list[str],
    steps: list[int],
    labels: list[str],
    end: str,
    model: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    output: Path,
    overwrite: bool,
    as_csv: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Encode IMAGES, decode them again, and print how far off they are: DDIM's Table 2.

    Round trip: mean squared error per dimension on the [0, 1] scale. Latent: distance to the ODE's true latent (rms
    over σ): a solver can come back exactly from a latent that is wrong. Evaluations are per image and direction.
    Without IMAGES, the package's sample images; with the model and the test images of CIFAR-10, the paper's table.

    \b
    Examples:
      odeddim bench reconstruction
      odeddim bench reconstruction --labels source,target --solvers euler@linear,euler@quadratic
      odeddim bench reconstruction photos/ -n 1000 --model MODEL --solvers euler@quadratic,ab3,belm
      odeddim bench reconstruction --steps 10,20,50 --csv > table.csv
    """
    from odeddim.bench import reconstruction as bench
    from odeddim.bench.stand import Entry, planned
    from odeddim.cli.running import field_on, images_for, machine, warn_of_grid

    where = machine(device, dtype)
    field = field_on(model, where)
    shared.check_folder(output, "reconstruction", field, overwrite=overwrite)
    source = images_for(field, images)
    count = min(count, len(source))
    entries = [Entry.parse(text) for text in solvers]
    runs = planned(field, entries, steps, end, shared.settings_given(settings))
    for grid, row in {(run.grid, run.solver.name): run.solver for run in runs}.items():
        warn_of_grid(grid[0] if grid[0] != "-" else None, field, row)
    total = count * (bench.reference_evaluations() + sum(2 * run.evaluations for run in runs))
    with shared.stand_on(
        field, where, output, total, images=count,
        batch_size=batch_size, network_batch=network_batch, threads=threads, overwrite=overwrite,
    ) as stand:  # fmt: skip
        table = bench.reconstruction(
            stand,
            lambda start, stop: source[start:stop].to(where.state),
            count,
            runs,
            end=end,
            labels=labels,
            source={"path": str(images or "the package's sample"), "images_sha256": source.fingerprint()},
        )
    shared.deliver(table, output, as_csv=as_csv, as_json=as_json)
