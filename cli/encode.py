"""`odeddim encode`: images to a latent file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject


@click.command("encode")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The latent file, z.h5.")
@click.option("-n", "--count", type=click.IntRange(1), default=None, help="Only the first so many images.")
@options.model
@options.run(f"{defaults.ENCODE}; with --tol {defaults.TOLERANCE}", options.end, options.plan)
@options.machine
@options.tol
@click.option("--certify", is_flag=True, help="Store with each latent how good it is; 4 times the evaluations.")
@options.overwrite
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    tol: float | None,
    certify: bool,
    overwrite: bool,
) -> None:
    """Encode IMAGES to latents by integrating the ODE from the image up to σ_T.

    IMAGES is a folder, an image file, .npz, .npy, IDX (MNIST's format, gzip or not) or HDF5, or - for a list of image
    files on standard input; without it, the 256 sample images of the package. The file holds all that decoding needs.

    --certify decodes each image again and encodes it by a more accurate run: round trip and distance to the ODE's
    latent, besides statistics of the latent, are stored with it (`odeddim verify`). --tol finds the steps that
    each image needs; unless told otherwise, images then lie at σ_1: the step at 0 has an error that no steps reduce.

    Of a latent model, images go through its autoencoder first. What that loses of each image, whatever the solver, is
    stored as report/floor (rms over pixels); all other errors are of the data that it makes, in their units.

    A run that was stopped, by whatever, goes on with the same command, as long as the images have the same names and
    every byte of them is the same. Several processes share the work: start the command under torchrun, or as often as
    you like.

    What is transparent in an image is laid on white, and of a file with several pictures, an animation say, the first
    is taken; a warning says of how many images that is true.

    \b
    Examples:
      odeddim encode -o z.h5                              the sample images, the built-in model
      odeddim encode photos/ -o z.h5 --model MODEL
      odeddim encode -o z.h5 --solver euler --grid linear --steps 100     DDIM, as in the paper
      odeddim encode -o z.h5 --solver dopri5 --rtol 1e-5
      odeddim encode photos/ -o z.h5 --model MODEL --certify
      odeddim encode photos/ -o z.h5 --model MODEL --tol 1e-3
      odeddim encode photos/ -o z.h5 --model MODEL --plan bench/plan.json
      find photos -name '*.png' | odeddim encode - -o z.h5 --model MODEL
      torchrun --nproc-per-node 4 -m odeddim encode photos/ -o z.h5 --model MODEL
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.encode(
        images, output, model=model, count=count, tol=tol, certify=certify, machine=machine, overwrite=overwrite,
        progress=bar, **how,
    )  # fmt: skip
    options.echo(made.words)
