"""--parallel of the commands that run a model: evaluations in batches of one window each."""

from __future__ import annotations

from typing import Any

import click

from odeddim.cli.kinds import Window

option = click.option(
    "--parallel",
    type=Window(),
    default=None,
    metavar="WINDOW[:TOLERANCE]",
    help="Evaluate so many noise levels of each image in one batch, in rounds, until the result is that of the run to "
    "this tolerance (rms, 1e-3 by default). For solvers of the one-step and the multistep family.",
)


def beside(own: dict[str, Any]) -> dict[str, Any]:
    """`parallel=` of jobs, which a plan leaves open; it is taken out of these values. Nothing if it was not said."""
    said = own.pop("parallel", None)
    if said is None:
        return {}
    from odeddim.runs.parallel import Parallel

    window, tolerance = said
    return {"parallel": Parallel(window) if tolerance is None else Parallel(window, tolerance)}
