"""`odeddim score`: how far images are from those of a reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, preparation, sharing

if TYPE_CHECKING:
    from odeddim.jobs import Calibration, Machine, Scored, Subject
    from odeddim.storage.preparation import Preparation

NAME = 60  # letters of a name in the table, its last
SHARE = 0.05


def _reference(own: dict[str, Any]) -> Path | Calibration | None:
    """What images are compared with."""
    if own["calibrate"] is None:
        if own["false_positives"] is not None:
            raise click.UsageError("--false-positives is fixed when a reference is made: give --calibrate IMAGES too")
        path: Path | None = own["reference"]
        return path
    from odeddim.jobs import Calibration

    share = SHARE if own["false_positives"] is None else own["false_positives"]
    return Calibration(own["calibrate"], share, own["reference"])


reference = options.gathered(
    "reference",
    options.together(
        click.option(
            "--reference",
            type=click.Path(path_type=Path),
            default=None,
            help="The reference to compare with, reference.json; with --calibrate, where to keep it.  [default: the "
            "sample images of the package, for the built-in models of clothes]",
        ),
        click.option(
            "--calibrate",
            type=click.Path(path_type=Path),
            default=None,
            metavar="IMAGES",
            help="Make the reference of these images, which are as they should be.",
        ),
        click.option(
            "--false-positives",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=None,
            metavar="SHARE",
            help=f"The share of images like those of --calibrate that is to be called strange.  [default: {SHARE}]",
        ),
    ),
    _reference,
)
more = options.gathered(
    "more",
    options.together(
        click.option(
            "--round-trip",
            is_flag=True,
            help="Decode each latent again, and store the error of the image: twice the work.",
        ),
        click.option(
            "--density",
            is_flag=True,
            help="Measure the log density of each image too, in bits per dimension: 42 evaluations and 42 "
            "products with the Jacobian more.",
        ),
    ),
    dict,
)
form = options.gathered(
    "worst",
    options.together(
        click.option("--worst", type=click.IntRange(1), default=10, show_default=True, help="How many images to show."),
        click.option("--json", "as_json", is_flag=True, help="Print the scores of all images as JSON."),
    ),
    lambda own: None if own["as_json"] else own["worst"],
)


@click.command("score")
@click.argument("images", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="The file of scores to write: scores.csv, scores.json, or scores.h5.",
)
@reference
@options.model
@preparation.prepare
@options.run(
    f"{defaults.SCORE}, or as the reference was made",
    options.end,
    options.plan,
    steps=options.steps_by(f"{defaults.SCORE_STEPS}, or as the reference was made"),
    grid=options.grid_by(f"{defaults.SCORE_GRID}, or as the reference was made"),
)
@more
@sharing.machine
@form
@options.overwrite
def command(
    images: Path,
    output: Path | None,
    reference: Path | Calibration | None,
    model: Subject,
    prepare: Preparation | None,
    how: dict[str, Any],
    more: dict[str, Any],
    machine: Machine,
    worst: int | None,
    overwrite: bool,
) -> None:
    """Show how far each of IMAGES is from the images of a reference, the strangest first.

    Each image is encoded in 10 evaluations. Its profile (the mean, the mean cube, the size, the roughness and the
    change of ε along the way) is compared with those of the reference: the score is the distance to the nearest of
    them. Images whose score is above a threshold are strange. Of images like those of the reference, about the share
    --false-positives is strange. Do not score the images of the reference themselves: their score is 0.

    --calibrate makes a reference from images that are as they should be; a thousand give a share of 5% to ±0.7%. With
    --reference it is kept in a file, which later calls take without --calibrate, for the same model and the same run.

    The file of scores has, for each image, the score, whether it is strange, DiffPath's six sums over the path, and
    statistics of the latent, as in `odeddim verify`. scores.h5 has the profiles of the paths too. A run that was
    stopped goes on with the same command.

    \b
    Examples:
      odeddim score photos/ --model MODEL --calibrate photos32/
      odeddim score photos/ --model MODEL --calibrate photos32/ --reference reference.json -o scores.csv
      odeddim score photos/ --model MODEL --reference reference.json -o scores.h5
      odeddim score t10k-images-idx3-ubyte.gz --worst 20
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    found = jobs.score(
        images, output, model=model, reference=reference, prepare=prepare, machine=machine,
        overwrite=overwrite, progress=bar, **more, **how,
    )  # fmt: skip
    if found.names:
        _print_json(found) if worst is None else _print(found, worst)
    options.echo(found.words, err=worst is None)


def _print(found: Scored, count: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("file", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("strange")
    for i in found.order[:count].tolist():
        name = Text(printable(found.names[i])[-NAME:])
        table.add_row(name, f"{float(found.score[i]):.4g}", "yes" if found.strange[i] else "no")
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _print_json(found: Scored) -> None:
    import json

    rows = zip(found.names, found.score.tolist(), found.strange.tolist(), strict=True)
    lines = [{"file": name, "score": score, "strange": strange} for name, score, strange in rows]
    content = {"threshold": found.reference.threshold, "images": lines}
    options.echo_json(json.dumps(content, indent=1, ensure_ascii=False))
