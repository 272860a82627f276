"""The options that say how images are prepared; a command gets them as one argument, `prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli import options
from odeddim.cli.kinds import Frames, Size

if TYPE_CHECKING:
    from odeddim.storage.preparation import Preparation


def _prepare(own: Mapping[str, Any]) -> Preparation | None:
    """What is done to the images; None without any of the options."""
    said = {name: value for name, value in own.items() if value not in (None, False)}
    if not said:
        return None
    from odeddim.storage.preparation import Preparation

    return Preparation(**said)


prepare = options.gathered(
    "prepare",
    options.together(
        click.option(
            "--resize",
            type=Size(),
            default=None,
            metavar="S|H,W|model",
            help="Resize the images to S×S pixels, to H×W, or to the model's own size (Pillow, Lanczos).  "
            "[default: as they are; model with --crop center and --pad]",
        ),
        click.option(
            "--crop",
            type=click.Choice(["center", "none"]),
            default=None,
            help="How images of other proportions are resized. center: the shorter side fits, and both ends of the "
            "longer one are cut off. none: they are stretched.  [default: center]",
        ),
        click.option(
            "--pad", is_flag=True, help="Resize until the longer side fits, and fill up with --background, uncropped."
        ),
        click.option(
            "--background",
            default=None,
            metavar="COLOUR",
            help="What transparent images are laid on, a name or #rrggbb.  [default: white]",
        ),
        click.option(
            "--frames",
            type=Frames(),
            default=None,
            metavar="first|all|video|N",
            help="Which pictures of an animation to take; each of all is an image, NAME#0003. video: all of them as "
            "one video, or N, the first N of each video.  [default: first; video for models of videos]",
        ),
        click.option(
            "--skip-bad",
            is_flag=True,
            help="Leave out files that cannot be read, and list them at the end. All files are decoded once before "
            "the run.",
        ),
    ),
    _prepare,
)
