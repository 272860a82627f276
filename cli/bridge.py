"""`odeddim bridge`: images of one model made images of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import options, pictures, preparation, sharing
from odeddim.cli.kinds import Interval, ModelName

if TYPE_CHECKING:
    from odeddim.jobs import Pictures, Subject


def _target(own: dict[str, Any]) -> Subject:
    """The model that decodes, under its own condition."""
    from odeddim.jobs import Subject

    condition = {
        "label": own["to_label"],
        "prompt": own["to_prompt"],
        "negative_prompt": own["to_negative_prompt"],
        "guidance": own["to_guidance"],
        "interval": own["to_guidance_interval"],
        "distilled_guidance": own["to_distilled_guidance"],
        "guidance_rescale": own["to_guidance_rescale"],
        "guide": own["to_guide"],
        "low_guidance": own["to_low_guidance"],
    }
    return Subject(own["to"], condition, options.of_model().get("allow_pickle", False))


target = options.gathered(
    "target",
    options.together(
        click.option(
            "--to",
            required=True,
            type=ModelName(),
            metavar="NAME|PATH",
            help="The model that decodes; --model is the one that encodes.",
        ),
        click.option("--to-label", type=click.IntRange(0), default=None, help="The class for --to."),
        click.option("--to-prompt", metavar="TEXT", default=None, help="The text for --to."),
        click.option(
            "--to-negative-prompt", metavar="TEXT", default=None, help="The text that guidance of --to leads away from."
        ),
        click.option("--to-guidance", type=float, metavar="W", default=1.0, help="The guidance of --to.  [default: 1]"),
        click.option(
            "--to-guide",
            type=ModelName(),
            metavar="NAME|PATH",
            default=None,
            help="The model that --to-guidance leads away from, in place of --to under no condition.",
        ),
        click.option(
            "--to-guidance-interval",
            type=Interval(),
            metavar="LOW,HIGH",
            default=None,
            help="The noise levels σ between which --to-guidance is applied.  [default: all]",
        ),
        click.option(
            "--to-guidance-rescale",
            type=click.FloatRange(0, 1),
            metavar="PHI",
            default=0.0,
            help="How far the guided answer of --to is scaled to the standard deviation of its answer under the "
            "condition, 0 to 1.  [default: 0]",
        ),
        click.option(
            "--to-low-guidance",
            type=float,
            metavar="W",
            default=None,
            help="The guidance of the network of --to for the lower noise levels, if it has two.  "
            "[default: --to-guidance]",
        ),
        click.option(
            "--to-distilled-guidance",
            type=float,
            metavar="W",
            default=1.0,
            help="The guidance that the network of --to takes as an input.  [default: 1]",
        ),
    ),
    _target,
)


@click.command("bridge")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@pictures.output("Where images go: a folder for PNGs, a sheet.png, a file.h5 or a file.npz.")
@options.count
@target
@click.option(
    "--cycle/--no-cycle", default=True, help="Also go back, for the cycle error. This takes twice the evaluations."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the cycle errors of all images as CSV.")
@options.model
@preparation.prepare
@options.run(defaults.BRIDGE, options.end)
@sharing.machine
@options.overwrite
def command(
    images: Path | None,
    output: Pictures,
    target: Subject,
    cycle: bool,
    as_csv: bool,
    how: dict[str, Any],
    **given: Any,
) -> None:
    """Encode IMAGES with one model (--model) and decode them with another (--to): a dual diffusion implicit bridge.

    The second model takes over the state x̄ at the lower of the two σ_T. Diffusion models and rectified flows can be
    combined. --model and --to may name the same model under two conditions: --label is the class for encoding,
    --to-label the class for decoding.

    The cycle error of an image is the rms over pixels, in [-1, 1], of the image that comes back minus the image.
    Image files, a file.h5 and a file.npz store it (cycle_error), and --csv prints it for all images. A sheet shows each
    image, its translation, and the image that comes back, with the name and the cycle error. IMAGES, and how a stopped
    run goes on or a finished one is extended, are as in `odeddim encode`.

    \b
    Examples:
      odeddim bridge -n 16 --to fashion-mnist-flow -o sheet.png
      odeddim bridge photos/ --model A --to B -o out/ --steps 100
      odeddim bridge photos/ --model A --to B -o out/ --steps 100 --csv > errors.csv
      odeddim bridge photos/ --model M --label 207 --to M --to-label 281 -o out/
    """
    import csv
    import sys

    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.bridge(images, output, target, cycle=cycle, progress=bar, **given, **how)
    options.tell(made, err=as_csv)
    if as_csv and cycle:
        table = csv.writer(sys.stdout)
        table.writerow(["name", "cycle_error"])
        table.writerows(made.cycle_errors)
    elif made.cycle_words:
        options.echo(made.cycle_words)
