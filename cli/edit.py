"""`odeddim edit`: images encoded under one condition and decoded under another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim import defaults
from odeddim.cli import condition, options, pictures, preparation, sharing
from odeddim.cli.kinds import Interval, ModelName

if TYPE_CHECKING:
    from odeddim.jobs import Pictures, Subject


def _descriptions(own: dict[str, Any]) -> dict[str, Any]:
    """What the images show, and what they are to show."""
    from odeddim.jobs import Description

    if own["before"] is None and own["from_each"] is None:
        raise click.UsageError("Missing option '--from', or '--from-each'.")
    return {
        "before": Description(
            own["before"], guidance=own["from_guidance"], distilled_guidance=own["from_distilled_guidance"]
        ),
        "after": Description(
            own["after"],
            own["negative_prompt"],
            own["guidance"],
            own["guidance_interval"],
            own["distilled_guidance"],
            own["guidance_rescale"],
            own["low_guidance"],
            own["guide"],
        ),
        "from_each": own["from_each"],
        "to_each": own["to_each"],
    }


def _subject(own: dict[str, Any]) -> Subject:
    """The model, under no condition yet."""
    from odeddim.jobs import Subject

    return Subject(own["model"], {}, options.of_model().get("allow_pickle", False))


descriptions = options.gathered(
    "descriptions",
    options.together(
        click.option(
            "--from", "before", metavar="TEXT|CLASS", default=None, help="What the images show, to encode them."
        ),
        click.option(
            "--to", "after", metavar="TEXT|CLASS", default=None, help="What they are to show.  [default: as --from]"
        ),
        click.option(
            "--from-each",
            metavar=condition.EACH,
            default=None,
            help="A text or a class for each image in place of --from for all: a column of a CSV, the lines of a text, "
            "or the names of the images' folders.",
        ),
        click.option(
            "--to-each", metavar=condition.EACH, default=None, help="What each is to show, likewise, in place of --to."
        ),
        click.option(
            "--guidance",
            type=float,
            metavar="W",
            default=1.0,
            show_default=True,
            help="The guidance of the way down, to --to: ε = ε_none + W·(ε_condition - ε_none).",
        ),
        click.option(
            "--guide",
            type=ModelName(),
            metavar="NAME|PATH",
            default=None,
            help="The model that --guidance leads away from, in place of --model under no condition.",
        ),
        click.option(
            "--from-guidance",
            type=float,
            metavar="W",
            default=1.0,
            show_default=True,
            help="The guidance of the way up and of the reconstruction. Above 1 both lose accuracy.",
        ),
        click.option(
            "--negative-prompt",
            metavar="TEXT",
            default=None,
            help="The text that --guidance leads away from.  [default: the empty text]",
        ),
        click.option(
            "--guidance-interval",
            type=Interval(),
            metavar="LOW,HIGH",
            default=None,
            help="The noise levels σ between which --guidance is applied.  [default: all]",
        ),
        click.option(
            "--guidance-rescale",
            type=click.FloatRange(0, 1),
            metavar="PHI",
            default=0.0,
            help="How far the guided answer of the network is scaled to the standard deviation of its answer under "
            "--to, 0 to 1.  [default: 0]",
        ),
        click.option(
            "--low-guidance",
            type=float,
            metavar="W",
            default=None,
            help="The guidance of the network for the lower noise levels, of a model with two, on the way down.  "
            "[default: --guidance]",
        ),
        click.option(
            "--distilled-guidance",
            type=float,
            metavar="W",
            default=1.0,
            show_default=True,
            help="The guidance that a network distilled from it takes as an input (Flux.1 dev), on the way down.",
        ),
        click.option(
            "--from-distilled-guidance",
            type=float,
            metavar="W",
            default=1.0,
            show_default=True,
            help="The same, on the way up and in the reconstruction.",
        ),
    ),
    _descriptions,
)
model = options.gathered(
    "model",
    options.together(
        click.option(
            "--model",
            type=ModelName(),
            default="fashion-mnist",
            metavar="NAME|PATH",
            help="A model of texts or of classes: its path, or hf:ORG/NAME[@REVISION] of Hugging Face's hub.",
        ),
        options.allow_pickle,
    ),
    _subject,
)


@click.command("edit")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@pictures.output("Where images go: a folder for PNGs, a sheet.png, a file.h5 or a file.npz.")
@descriptions
@click.option(
    "--sigma",
    type=click.FloatRange(0, min_open=True),
    default=None,
    metavar="S",
    help="Encode up to this noise level only. A lower one keeps more of the image.  [default: the model's highest]",
)
@options.count
@model
@preparation.prepare
@options.run(defaults.ENCODE, options.end)
@sharing.machine
@options.overwrite
def command(
    images: Path | None,
    output: Pictures,
    descriptions: dict[str, Any],
    how: dict[str, Any],
    **given: Any,
) -> None:
    """Edit IMAGES: encode them under one condition (--from), and decode them under another (--to).

    --from and --to are texts for models of texts, and numbers for models of classes. Without --to, the images keep what
    they show, and --guidance alone changes them: the change that is printed is what encoding at guidance 1 and decoding
    at another one loses. A sheet shows each image, its
    edit, and its reconstruction: decoded under --from again. Where the reconstruction is not the image, the edit began
    with another one. Image files, a file.h5 and a file.npz store reconstruction_error and change, the rms over pixels
    in [-1, 1] of the reconstruction and of the edit, each minus the image.

    --from-each and --to-each say what each image shows and is to show, as --labels-from and --prompts-from of `odeddim
    encode`. A file.h5 and a file.npz store the place of each image's condition among them (from_condition, condition).

    A reversible solver, as the default, reconstructs what the autoencoder leaves of an image exactly. The edit starts
    from the state alone, by unipc-2 then. IMAGES, and how a stopped run goes on or a finished one is extended, are as
    in `odeddim encode`.

    \b
    Examples:
      odeddim edit photos/ --from 207 --to 281 --model M -o edited/ --steps 20
      odeddim edit photos/ --from 207 --to 281 --model M -o sheet.png --sigma 5 --steps 20
      odeddim edit photos/ --from 207 --model M -o guided.h5 --guidance 5
      odeddim edit photos/ --from 207 --to-each labels.csv:class --model M -o each/ --steps 20
      odeddim edit photos/ --from 207 --to 281 --model M -o edited.h5 --solver unipc-2 --end sigma_min
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    made = jobs.edit(images, output, progress=bar, **descriptions, **given, **how)
    options.tell(made)
    if made.error_words:
        for line in made.error_words.splitlines():
            options.echo(line)
