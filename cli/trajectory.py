"""`odeddim trajectory`: a strip or an animation of the points that images pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.cli import options, pictures
from odeddim.cli.kinds import Items, ModelName

if TYPE_CHECKING:
    from odeddim.jobs import Machine


@click.command("trajectory")
@click.argument("trajectories", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The strip, NAME.png, or the animation, NAME.gif, NAME.webp or NAME.mp4.",
)
@click.option(
    "--images",
    type=Items(click.INT),
    default=None,
    metavar="I,I,...",
    help="The images to draw, by index.  [default: the first 4]",
)
@click.option(
    "--trajectory-at",
    "at",
    type=Items(click.FLOAT),
    default=None,
    metavar="σ,σ,...",
    help="The noise levels to draw.  [default: 8 of the points on a strip, all in an animation]",
)
@click.option(
    "--model",
    type=ModelName(),
    default=None,
    metavar="NAME|PATH",
    help="A latent model, whose autoencoder makes images of the data.",
)
@click.option(
    "--scale",
    type=click.IntRange(1, pictures.MOST_SCALE),
    default=None,
    help="How many times each image is enlarged.  [default: to 112 pixels on a strip, 256 in an animation]",
)
@click.option("--fps", type=click.IntRange(1, 50), default=10, show_default=True, help="Frames a second.")
@options.machine
@options.replace
def command(
    trajectories: Path,
    output: Path,
    images: list[int] | None,
    at: list[float] | None,
    model: str | None,
    scale: int | None,
    fps: int,
    machine: Machine,
    overwrite: bool,
) -> None:
    """Draw TRAJECTORIES, a file that `odeddim encode --trajectory` or `odeddim decode --trajectory` wrote.

    A strip has two rows for each image: x = x̄/√(1+σ²), and below it the image x̂₀ that the network predicts there, at
    noise levels in the order of the run. An animation shows the same, one noise level after the other. `odeddim
    inspect` says what the file holds.

    \b
    Examples:
      odeddim trajectory t.h5 -o strip.png
      odeddim trajectory t.h5 -o strip.png --images 0,3 --trajectory-at 0.1,1,10
      odeddim trajectory t.h5 -o film.gif --fps 5
    """
    from odeddim import jobs

    to = jobs.Animation(output, fps, scale)
    options.tell(
        jobs.trajectory(
            trajectories, to, images=images, at=at, model=model, scale=scale, machine=machine, overwrite=overwrite
        )
    )
