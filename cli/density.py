"""`odeddim density`: how probable a model makes images."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, preparation, sharing
from odeddim.cli.telling import telling
from odeddim.storage.atomic import printable

if TYPE_CHECKING:
    from odeddim.jobs import Densities, Machine, Subject
    from odeddim.storage.preparation import Preparation


class Probes(click.ParamType[Any]):
    """A number of probes, or "exact"."""

    name = "n|exact"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "exact" or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number nor 'exact'", param, ctx)
        return int(value)


measured = options.gathered(
    "measured",
    options.together(
        click.option(
            "--probes",
            type=Probes(),
            default=None,
            metavar="N|exact",
            help="Probes of the trace at each node, a power of two; or the exact trace, by as many products as an "
            f"image has numbers.  [default: {defaults.DENSITY_PROBES}]",
        ),
        click.option(
            "--dequantise",
            type=click.Choice(["uniform", "normal", "none"]),
            default=None,
            help="The noise within the bins of pixels of whole numbers; none for continuous data.  [default: uniform; "
            "for latent models none]",
        ),
        click.option("--bits", type=click.IntRange(1, 16), default=8, show_default=True, help="The bits of a pixel."),
        click.option(
            "--draws",
            type=click.IntRange(1),
            default=None,
            help=f"Runs with noises of their own, whose mean is taken.  [default: {defaults.DENSITY_DRAWS}; without "
            "noise 1]",
        ),
        options.seed,
    ),
    dict,
)


@click.command("density")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write, d.h5.")
@options.count
@measured
@options.model
@preparation.prepare
@options.run(f"{defaults.DENSITY}, {defaults.DENSITY_STEPS} steps", options.plan)
@sharing.machine
@options.form
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    measured: dict[str, Any],
    model: Subject,
    how: dict[str, Any],
    prepare: Preparation | None,
    machine: Machine,
    form: str | None,
    overwrite: bool,
) -> None:
    """Measure how probable a model makes IMAGES, in bits per dimension, with an error for each image.

    IMAGES is what `odeddim encode` takes; the default is the 256 sample images of the package. The file has a row for
    each image: bits_per_dim and its standard_error, nats, the terms of log p (prior, divergence, path, dequantisation;
    in nats) and the parts of the error (probes, solver, dequantisation; in bits per dimension).

    The density is that of the model's ODE at its lowest noise level σ_1. With dequantisation the figure is an upper
    bound of the bits that a coder with this model needs. Pixels of --bits bits lie evenly from -1 to 1. Under --label,
    --prompt and --guidance the density is that of the guided field, and of a latent model that of the data that its
    autoencoder makes. It does not find strange images, because simple ones have high densities: see `odeddim score`.

    Each draw is a run. With the default solver it takes two evaluations a step, and at each node a product with the
    Jacobian for each probe. A run that was stopped goes on with the same command; a larger -n extends a finished file;
    several processes share the work.

    \b
    Examples:
      odeddim density -o d.h5
      odeddim density photos/ -o d.h5 --model MODEL --draws 1 --csv > d.csv
      odeddim density -o d.h5 --steps 50 --probes 16 --dequantise normal
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.density(
        images, output, model=model, count=count, prepare=prepare, machine=machine, overwrite=overwrite, progress=bar,
        **measured, **how,
    )  # fmt: skip
    if form is None:
        options.tell(made)
        return
    telling.figures = {"path": str(made.path), "done": made.done, "total": made.total, "words": made.words}
    _print(made, as_json=form == "json")


def _print(made: Densities, as_json: bool) -> None:
    lines = [
        {"index": i, "name": name, **{key: float(values[i]) for key, values in made.figures.items()}}
        for i, name in enumerate(made.names)
    ]
    if as_json:
        known = [{key: None if it != it else it for key, it in line.items()} for line in lines]  # JSON has no NaN
        text = {"file": str(made.path), "images": known}
        options.echo_json(json.dumps(text, indent=1, ensure_ascii=False))
        return
    table = csv.DictWriter(sys.stdout, ["index", "name", *made.figures])
    table.writeheader()
    table.writerows({**line, "name": printable(str(line["name"]))} for line in lines)
