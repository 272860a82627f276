"""`odeddim verify`: how good the latents of a file are."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options, pictures, sharing
from odeddim.cli.telling import telling
from odeddim.storage.atomic import printable

if TYPE_CHECKING:
    import torch

    from odeddim.jobs import Machine, Pictures, Subject
    from odeddim.jobs.verify import Verified

NAME = 24  # letters of a name in the table, its last
WIDE = 110  # columns where nobody looks
HEADINGS = {
    "round_trip": "trip",
    "latent_error": "error",
    "evaluations": "evals",
    "variance": "var",
    "kurtosis": "kurt",
    "autocorrelation": "corr",
    "normality": "p",
}

sought = options.gathered(
    "sought",
    options.together(
        click.option(
            "--against",
            type=click.Path(path_type=Path),
            default=None,
            metavar="OTHER.h5",
            help="Compare the latents with those of another file of the same images, in place of all else.",
        ),
        click.option(
            "--by",
            default=None,
            metavar="FIGURE",
            help="The figure that the latents are sorted by.  [default: latent_error; with --against rms]",
        ),
    ),
    dict,
)
"""What the latents are compared with, and sorted by."""


@click.command("verify")
@click.argument("latents", type=click.Path(path_type=Path))
@click.argument("images", required=False, type=click.Path(path_type=Path))
@sought
@click.option(
    "--worst", "shown", type=click.IntRange(1), default=10, show_default=True, help="How many latents to show."
)
@pictures.sheet("Draw the worst latents on a sheet, worst.png.")
@options.form
@options.its_model
@sharing.machine
@options.wait
@options.replace
def command(
    latents: Path,
    images: Path | None,
    sought: dict[str, Any],
    shown: int,
    sheet: Pictures | None,
    form: str | None,
    model: Subject,
    machine: Machine,
    wait: bool,
    overwrite: bool,
) -> None:
    """Compare every latent of a file with its checksum, and show how good each latent is, the worst first.

    The figures are those that `odeddim encode --certify` stores. For a file without them, the command computes and
    stores them. This needs the IMAGES that were encoded (by default those at the path that the file names) and three
    times the evaluations of encoding. A run that was stopped goes on with the same command.

    round_trip is the rms over pixels, in [-1, 1], of the image decoded again minus the image. latent_error estimates
    the distance (rms) of x_T to the ODE's x_T: it is the distance to the x_T that unipc-3 finds with twice the
    evaluations, at least 40, over even steps in log σ. norm, mean, variance, kurtosis, autocorrelation and normality
    (the p-value of the Kolmogorov-Smirnov test) say whether x_T is white noise. For white noise they are 1, 0, 1, 3, 0
    and above 0.001. For latent models, both errors are those of the autoencoder's data, and the error of the
    autoencoder is printed apart.

    The sheet shows for each latent the image, the image decoded again, and ten times their difference, with the name,
    the round trip and the latent error.

    --against OTHER.h5 says how far the latents of two files are apart (rms and the largest difference over x_T, images
    matched by their names), how many are the same bits, and what differs in how they were made: plan, model, PyTorch,
    threads, network batch, device, dtype, processor. It needs neither images nor model.

    \b
    Examples:
      odeddim verify z.h5
      odeddim verify z.h5 photos/ --by round_trip --worst 20 --sheet worst.png
      odeddim verify z.h5 --csv > figures.csv
      odeddim verify z.h5 --against y.h5
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar
    from odeddim.storage.workers import rank

    found = jobs.verify(
        latents, images, sheet=sheet, shown=shown, model=model, machine=machine, wait=wait,
        overwrite=overwrite, progress=bar, **sought,
    )  # fmt: skip
    if not found.figures:
        line = f"{latents}: others are at work on the rest of its certificates, or run it again"
        if telling.log_json != "-":
            click.echo(printable(line), err=True)
        code = 0 if rank()[1] > 1 else 1  # torchrun would end the others for a process that fails
        telling.end(code, line)
        sys.exit(code)
    telling.figures = {"latents": len(found.names), "median": found.medians}
    if form is not None:
        _print(found, as_json=form == "json")
        return
    _show(found, shown, sought["by"] or ("latent_error" if found.against is None else "rms"))
    if found.against is not None:
        for line in found.against.words.splitlines():
            options.echo(line)
    if found.floor is not None:
        options.echo(
            "all in the units of the latent model's data; its autoencoder alone loses "
            f"{float(found.floor.median()):.3g} of an image (rms, the median), {float(found.floor.max()):.3g} at most"
        )


def _print(found: Verified, as_json: bool) -> None:
    lines = (
        {"index": i, "name": found.names[i], **{name: float(values[i]) for name, values in found.figures.items()}}
        for i in found.order.tolist()
    )
    if as_json:
        known = [{key: None if value != value else value for key, value in line.items()} for line in lines]  # no NaN
        options.echo_json(json.dumps({"file": str(found.path), "latents": known}, indent=1, ensure_ascii=False))
        return
    table = csv.DictWriter(sys.stdout, ["index", "name", *found.figures])
    table.writeheader()
    table.writerows({**line, "name": printable(line["name"])} for line in lines)


def _show(found: Verified, count: int, by: str) -> None:
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Brackets in names are no markup.
    title = Text(printable(f"{found.path}: {len(found.names)} latents, the worst by {by} first"))
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True)
    for name in found.figures:
        table.add_column(HEADINGS.get(name, name), justify="right", no_wrap=True, min_width=7)
    for i in found.order[:count].tolist():
        table.add_row(
            str(i),
            Text(printable(found.names[i])[-NAME:]),
            *(f"{float(values[i]):.3g}" for values in found.figures.values()),
        )
    table.add_section()
    known = {name: values[~values.isnan()] for name, values in found.figures.items()}
    middle = {name: float(torch.median(values)) for name, values in known.items() if len(values)}
    last = {name: float(known[name][_worst(known, name)]) for name in middle}
    for words, of_all in (("median", middle), ("worst", last)):
        table.add_row("", words, *(f"{of_all[name]:.3g}" if name in of_all else "-" for name in found.figures))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _worst(figures: Mapping[str, torch.Tensor], by: str) -> int:
    """The place of the worst value of a figure, of a certificate or of a comparison."""
    from odeddim.checks.certificate import BADNESS, worst

    return int(worst(figures, by)[0] if by in BADNESS else figures[by].argmax())
