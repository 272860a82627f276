"""`odeddim decode`: a latent file to images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options, parallel, pictures, portable, recording, sharing, tops

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Pictures, Recording, Subject


def _noise(function: options.F) -> options.F:
    """--seed and --eta of stochastic solvers, among their settings."""
    return options.together(
        click.option(
            "--seed",
            type=click.IntRange(0, options.MOST_SEED),
            default=None,
            help="The seed of the noise of a stochastic solver.  [default: 0]",
        ),
        click.option(
            "--eta",
            type=click.FloatRange(0),
            default=None,
            help="How much noise a stochastic solver adds, 0 for none: DDIM's η, SA-Solver's τ.  "
            "[default: 0.5 for ddim-eta, else 1]",
        ),
    )(function)


@click.command("decode")
@click.argument("latents", type=click.Path(path_type=Path))
@pictures.output("Where images go: a folder for PNGs (MP4s of videos), a sheet.png, a file.h5 or a file.npz.")
@options.its_model
@options.run("the one that encoded", _noise, tops.top, options.plan, parallel.option, portable.as_encoded)
@sharing.machine
@options.tol
@recording.trajectory
@options.wait
@options.overwrite
def command(
    latents: Path,
    output: Pictures,
    model: Subject,
    how: dict[str, Any],
    machine: Machine,
    tol: float | None,
    trajectory: Recording | None,
    wait: bool,
    overwrite: bool,
) -> None:
    """Decode LATENTS to images by integrating the ODE from σ_T down, with the solver that encoded or another.

    Without options, the run is the one that encoded, with the noise levels in reverse order. --plan, or --solver,
    --grid and --steps, choose another. The model must be the one that encoded: the hash of its weights is compared.

    A folder gets a file for each image: the latent of photos/cat/1.jpg becomes out/cat/1.png. PNGs hold 8 bits of each
    pixel; JPEGs and WebPs (--format) do not hold the pixels exactly. file.h5 and file.npz hold the array `images` of
    floats in [-1, 1], which nothing has rounded or clipped. A run that was stopped
    goes on with the same command, which names each file that is damaged or that it did not write. The same command
    also adds the images of latents by which LATENTS was extended since, except to a sheet. Files that the same
    command did not write are replaced only with --overwrite.

    Videos become NAME.mp4, --format webp or png keeps every value of 8 bits: png is a folder of frames for each.

    Latents that were encoded with --tol are decoded with the steps that each of them took. --tol of this command
    doubles the steps for each image until its distance (rms) to the image of a more accurate run, with twice the
    evaluations, is below the tolerance. For latent models it compares the data that the autoencoder decodes, not the
    images.

    --trajectory keeps the points of each image's run, at the nodes or at noise levels between them, for `odeddim
    trajectory` and `odeddim.Trajectory.load`. The images are the same, bit for bit.

    \b
    Examples:
      odeddim decode z.h5 -o out/
      odeddim decode z.h5 -o sheet.png --scale 8
      odeddim decode z.h5 -o out/ --format jpeg
      odeddim decode z.h5 -o out/ --wait                  while another process encodes
      odeddim decode z.h5 -o images.h5 --solver rk4 --steps 100
      odeddim decode z.h5 -o planned/ --plan plan.json
      odeddim decode z.h5 -o fine/ --tol 1e-3
      odeddim decode z.h5 -o noisy/ --solver ddpm --seed 1
      odeddim decode z.h5 -o out/ --trajectory t.h5 --trajectory-at 0.1,1,10
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.decode(
        latents, output, model=model, tol=tol, trajectory=trajectory, machine=machine, wait=wait,
        overwrite=overwrite, progress=bar, **how,
    )  # fmt: skip
    options.tell(made)
