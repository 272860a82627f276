"""Options that say where pictures go and how they are drawn: folders, sheets, animations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options
from odeddim.cli.kinds import ModelName

if TYPE_CHECKING:
    from odeddim.jobs import Drawing, Pictures

MOST_SCALE = 256

_how_drawn = options.together(
    click.option(
        "--scale",
        type=click.IntRange(1, MOST_SCALE),
        default=None,
        help="How many times a sheet enlarges each image, without smoothing; 1 shows its bare pixels.  [default: so "
        "that an image has 112 pixels or more]",
    ),
    click.option(
        "--labels/--no-labels", default=None, help="Whether a sheet has text.  [default: where there is room for it]"
    ),
)


def _pictures(own: dict[str, Any]) -> Pictures:
    """Where images go, and how they are drawn or written there."""
    from odeddim.jobs import Pictures

    return Pictures(own["output"], own["format"], own["scale"], own["labels"], own["fps"])


def output(places: str) -> Callable[[options.F], options.F]:
    """-o, and how images are drawn or written there. places: what -o is said to be."""
    return options.gathered(
        "output",
        options.together(
            click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=places),
            click.option(
                "--format",
                type=click.Choice(["png", "jpeg", "webp", "mp4"]),
                default=None,
                help="The files of a folder. Of images, png, jpeg or webp; the last two take less room, but do not "
                "keep the pixels exactly. Of videos, mp4 (`pip install 'odeddim[video]'`, not exact), webp, or png for "
                "a folder of PNGs each.  [default: png; of videos mp4]",
            ),
            click.option(
                "--fps",
                type=click.IntRange(1, 50),
                default=16,
                show_default=True,
                help="Frames a second of videos that are files.",
            ),
            _how_drawn,
        ),
        _pictures,
    )


def _sheet(own: dict[str, Any]) -> Pictures | None:
    """The sheet, as it is drawn."""
    from odeddim.jobs import Pictures

    if own["sheet"] is None:
        if options.is_given("labels") or (own["scale"] and not own.get("animate")):
            raise click.UsageError("--scale and --labels say how a sheet is drawn: give --sheet")
        return None
    return Pictures(own["sheet"], scale=own["scale"], labels=own["labels"])


def sheet(what: str) -> Callable[[options.F], options.F]:
    """--sheet, and how it is drawn. what: what it is said to be."""
    its_path = click.option("--sheet", type=click.Path(path_type=Path), default=None, help=what)
    return options.gathered("sheet", options.together(its_path, _how_drawn), _sheet)


animation = options.together(
    click.option(
        "--animate",
        type=click.Path(path_type=Path),
        default=None,
        help="Decode the path and show its images one after the other, path.gif, path.webp or path.mp4. A line goes "
        "forward and back. MP4 needs `pip install 'odeddim[video]'`, and does not keep the pixels exactly.",
    ),
    click.option(
        "--fps", type=click.IntRange(1, 50), default=10, show_default=True, help="Frames a second of --animate."
    ),
)


def _drawing(own: dict[str, Any]) -> Drawing:
    """Where new latents go, and how they are drawn."""
    from odeddim.cli.progress import bar
    from odeddim.jobs import Animation, Drawing, Machine

    sheet, animate = _sheet(own), own.get("animate")
    its_place = {field.name: own[field.name] for field in fields(Machine) if field.name in own}
    return Drawing(
        own["output"],
        sheet,
        options.subject(own),
        Machine(**its_place),
        own["overwrite"],
        bar,
        None if animate is None else Animation(animate, own["fps"], own["scale"]),
    )


def drawing(file: str, sheet: str, *more: Callable[[Any], Any]) -> Callable[[options.F], options.F]:
    """-o and --sheet, and how the sheet is drawn. file, sheet: what they are said to be; more: options besides."""
    return options.gathered(
        "to",
        options.together(
            click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help=file),
            click.option("--sheet", type=click.Path(path_type=Path), default=None, help=sheet),
            _how_drawn,
            *more,
            click.option(
                "--model",
                type=ModelName(),
                default=None,
                metavar="NAME|PATH",
                help="The model that decodes for --sheet.  [default: the model that the latents name]",
            ),
            options.told,
            options.whole_machine,
            options.overwrite,
        ),
        _drawing,
    )
