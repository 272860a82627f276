"""`odeddim decode`: a latent file to images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject


def _noise(function: options.F) -> options.F:
    """--seed and --eta of stochastic solvers, among their settings."""
    return options.together(
        click.option(
            "--seed",
            type=click.IntRange(0, options.MOST_SEED),
            default=None,
            help="Of stochastic solvers' noise.  [default: 0]",
        ),
        click.option("--eta", type=click.FloatRange(0), default=None, help="DDIM's η, of ddim-eta.  [default: 0.5]"),
    )(function)


@click.command("decode")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder for PNGs, a sheet.png or a file.h5.",
)
@options.its_model
@options.run("the one that encoded", _noise, options.plan)
@options.machine
@options.tol
@options.overwrite
def command(
    latents: Path,
    output: Path,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    tol: float | None,
    overwrite: bool,
) -> None:
    """Decode LATENTS to images by integrating the ODE from σ_T down, with the solver that encoded or another.

    A folder gets a PNG for each image, out/cat/1.png of photos/cat/1.jpg. No file is replaced that the same command has
    not written, unless --overwrite says so.

    Without options the noise levels of the file are walked in reverse, by the same solver. The model must be the
    one that encoded: its weights' hash is compared. A run that was stopped goes on with the same command; a PNG that is
    damaged, or another than it has written, it names.

    Latents that were encoded with --tol are decoded with the steps of each. --tol here doubles the steps for each image
    until it is no further (rms) than the tolerance from the image of a more accurate run, of twice the
    evaluations; of a latent model it is not the image but its data that count.

    \b
    Examples:
      odeddim decode z.h5 -o out/
      odeddim decode z.h5 -o sheet.png
      odeddim decode z.h5 -o images.h5 --solver rk4 --steps 100
      odeddim decode z.h5 -o fine/ --tol 1e-3
      odeddim decode z.h5 -o noisy/ --solver ddpm --seed 1
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.decode(latents, output, model=model, tol=tol, machine=machine, overwrite=overwrite, progress=bar, **how)
    options.echo(made.words)
