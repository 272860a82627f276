"""The options of commands that keep the points of runs: --trajectory and --trajectory-at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from odeddim.cli.kinds import Items
from odeddim.cli.options import gathered, together

if TYPE_CHECKING:
    from odeddim.jobs import Recording


def recording(own: Mapping[str, Any]) -> Recording | None:
    """Where trajectories go, and which of their points."""
    from odeddim.jobs import Recording

    if own["trajectory"] is None:
        if own["trajectory_at"] is not None:
            raise click.UsageError("--trajectory-at says which points are kept: give --trajectory FILE, too")
        return None
    return Recording(own["trajectory"], own["trajectory_at"])


options = together(
    click.option(
        "--trajectory",
        type=click.Path(path_type=Path),
        default=None,
        help="Write the points that each image passes, x̄ and ε at all nodes, to this file too, t.h5. `odeddim "
        "trajectory` draws them.",
    ),
    click.option(
        "--trajectory-at",
        type=Items(click.FLOAT),
        default=None,
        metavar="σ,σ,...",
        help="The noise levels that --trajectory keeps, at nodes or between them.  [default: all nodes]",
    ),
)
trajectory = gathered("trajectory", options, recording)
