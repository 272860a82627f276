"""`odeddim moments`: the Gaussian of a model's data, for runs of few evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.cli import options, preparation

if TYPE_CHECKING:
    from odeddim.jobs import Machine, Subject
    from odeddim.storage.preparation import Preparation


@click.command("moments")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="The file to write, NAME.safetensors.  [default: beside the model, where it is found]",
)
@click.option(
    "--samples", type=click.IntRange(8), default=None, help="Take so many samples of the model in place of IMAGES."
)
@options.count
@click.option(
    "--rank", type=click.IntRange(1), default=None, help="How many principal components to keep.  [default: 64]"
)
@options.model
@preparation.prepare
@options.machine
@options.replace
def command(
    images: Path | None,
    output: Path | None,
    samples: int | None,
    count: int | None,
    rank: int | None,
    model: Subject,
    prepare: Preparation | None,
    machine: Machine,
    overwrite: bool,
) -> None:
    """Compute the Gaussian of a model's data: mean, principal components and their variances, from IMAGES.

    Where noise is high, the Gaussian's exact flow is nearly the model's. With --top gaussian it carries the latents of
    encode, decode and sample from a noise level σ_s to σ_T, or back, at no evaluation; the solvers gauss-ab2 and
    gauss-ab3 use it at all noise levels. The models of the package have theirs.

    IMAGES is as in `odeddim encode`. A few hundred images are enough; --samples takes those that the model makes. Of a
    latent model the Gaussian is that of its autoencoder's data. Under a condition (--label, --prompt, --guidance) it
    holds for that condition only. The last 16 images are left out of it: on them, and on as many noises, the errors of
    its flow and of solvers are measured, by which --top gaussian chooses σ_s.

    \b
    Examples:
      odeddim moments photos/ --model MODEL -o moments.safetensors
      odeddim moments --samples 64 --model MODEL -o moments.safetensors
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.moments(
        images, output, samples=samples, count=count, **({} if rank is None else {"rank": rank}), model=model,
        prepare=prepare, machine=machine, overwrite=overwrite, progress=bar,
    )  # fmt: skip
    options.tell(made)
