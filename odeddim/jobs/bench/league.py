"""Every solver at the same numbers of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from odeddim.api import to_data
from odeddim.bench import defaults
from odeddim.bench import league as bench
from odeddim.bench.entrants import draw
from odeddim.bench.harness import Entry
from odeddim.bench.tables import Table
from odeddim.checks.whiteness import statistics
from odeddim.jobs.bench.helping import helped
from odeddim.jobs.bench.workbench import Session, Workbench, with_skipped
from odeddim.jobs.subject import images_for, recorded, warn_of_count, warn_of_plan
from odeddim.plans import Plan
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of


@helped
@torch.no_grad()
def league(
    workbench: Workbench,
    images: Images = None,
    *,
    count: int | None = None,
    solvers: Sequence[str] = (),
    plans: Sequence[str | Path] = (),
    evaluations: Sequence[int] = defaults.LEAGUE.steps,
    seed: int = 0,
    end: str = "zero",
    prepare: Preparation | None = None,
) -> Table:
    """Compare every solver with every other at the same numbers of evaluations of the network.

    For each number, a solver takes the most steps that need no more evaluations in either direction. It encodes the
    images, decodes them again, and decodes noise. The table has its round trip, the errors of its latents and of its
    decoded images, the share of the latents' values that have the right sign, how white the latents are, and its places
    by these errors. A solver that adds noise is measured by its decoded images only. The errors are distances to a
    reference that shares no code with the solvers.

    Args:
        workbench: The model, the machine, and the folder.
        images: As of `odeddim.jobs.encode`; None for the sample images of the package.
        count: The number of images, taken from the beginning, and of noises; by default 12, or all images if there are
            fewer.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; none for every solver with a fixed number of
            evaluations a step, on the grid that is recommended for it.
        plans: Files of further runs, as of `Plan.save`. Each takes part with the smallest of the numbers that it keeps.
        evaluations: The numbers of evaluations.
        seed: The seed of the noises.
        end: The end of the nodes, "zero" or "sigma_min".
        prepare: What is done to the images, as of `odeddim.Preparation`.

    Returns:
        The table, named "league". The folder also holds it, with its figures. `odeddim.bench.standings.standings` makes
        the short table that the command prints.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.league(bench, count=2, solvers=["euler@log", "belm"], evaluations=[5])
        >>> [(row["solver"], row["round_trip_place"]) for row in table.rows if row["round_trip"] == 0]
        [('belm', 1)]
    """
    session = Session.of(workbench, "league", on_data=True)
    place, whole, path = session.place, session.whole, place_of(images)
    further = {str(name): Plan.load(name) for name in plans}
    for plan in further.values():
        warn_of_plan(plan, session.field)
    drawn = draw(session.field, evaluations, [Entry.parse(name) for name in solvers], further, end)
    source = images_for(whole, images, prepare)
    if count is not None:
        warn_of_count(count, len(source), path)
    count = min(count or defaults.LEAGUE.count, len(source))

    def data(start: int, stop: int) -> Tensor:
        return to_data(whole, source[start:stop].to(place.state))

    named = {"path": str(path or "the package's sample"), **recorded(source)}
    with session.harness(count * (bench.reference_evaluations() + drawn.evaluations), count) as harness:
        table = bench.league(harness, data, count, drawn, statistics, seed=seed, end=end, source=named)
    return session.deliver(with_skipped(table, source))
