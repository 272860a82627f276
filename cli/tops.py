"""--top: what carries latents where noise is highest."""

from __future__ import annotations

import click

top = click.option(
    "--top",
    default=None,
    metavar="gaussian[:σ]",
    help="Solve up to the noise level σ only: from there to σ_T the Gaussian of the model's data carries latents, at "
    "no evaluation (`odeddim moments`). Without a number, σ suits the number of evaluations, and where no σ gains the "
    "solver goes up to σ_T. model: it does so always.  [default: model; to decode, as encoded]",
)
