"""Error against evaluations and seconds, and the cheapest run that keeps an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from odeddim.bench import cheapest as search
from odeddim.bench import defaults
from odeddim.bench import work_precision as bench
from odeddim.bench.harness import Entry, expected
from odeddim.bench.tables import Table
from odeddim.jobs.bench.workbench import Session, Workbench, chosen
from odeddim.plans import Plan


@torch.no_grad()
def work_precision(
    workbench: Workbench,
    *,
    count: int = defaults.WORK_PRECISION.count,
    solvers: Sequence[str] = defaults.WORK_PRECISION.solvers,
    steps: Sequence[int] = defaults.WORK_PRECISION.steps,
    tolerances: Sequence[float] = defaults.TOLERANCES,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    end: str = "zero",
    **settings: Any,
) -> Table:
    """Measure the error of encoding and decoding against evaluations and seconds. No images are needed.

    A very accurate run decodes noise, and encodes the resulting images. Its small error is the floor of the figures.
    The error of decoding is the rms over pixels in [-1, 1]. The error of encoding is the rms divided by σ_T.

    Args:
        workbench: The model, the machine, and the folder.
        count: The number of solutions.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        steps: The numbers of steps.
        tolerances: The values of rtol and atol for solvers that choose their own steps.
        seed: The seed of the noise.
        size: The shape (C, H, W) of the images, for models that take any shape.
        end: The end of the nodes, "zero" or "sigma_min".
        **settings: Other settings of the solvers. Each solver gets the settings that it has.

    Returns:
        The table, named "work-precision". The folder also holds it, with its figures.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-gaussian", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.work_precision(bench, count=1, solvers=["euler"], steps=[5], size=(1, 4, 4))
        >>> table.rows[0]["decode_evaluations"]
        5.0
    """
    session = Session.of(workbench, "work-precision", on_data=True)
    shape = session.shape(size)
    entries = [Entry.parse(text) for text in solvers]
    plans = bench.runs_of(session.field, entries, steps, tolerances, end, chosen(settings))
    total = bench.truth_evaluations() + sum(2 * expected(each) for each in plans)
    with session.harness(count * total, count) as harness:
        exact = bench.truth(harness, count, shape, seed=seed, end=end)
        table = bench.work_precision(harness, plans, exact)
    return session.deliver(table)


@torch.no_grad()
def find(
    workbench: Workbench,
    error: float,
    *,
    count: int = defaults.WORK_PRECISION.count,
    solvers: Sequence[str] = defaults.CANDIDATES,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    end: str = "zero",
    **settings: Any,
) -> tuple[Table, Plan]:
    """Find the run with the fewest evaluations that keeps an error both ways for nine images in ten.

    A run is a solver on a grid with a number of steps. The search uses the noise of `seed`. Equally many images from
    the noise of `seed` + 1 check the result. Only a run that keeps the error there too is returned.

    Args:
        workbench: The model, the machine, and the folder.
        error: The largest error: of decoding, the rms over pixels in [-1, 1]; of encoding, the rms divided by σ_T.
        count: The number of solutions in each of the two sets.
        solvers: The solvers, SOLVER@GRID, or SOLVER for the solver's own grid and the usual grids.
        seed: The seed of the noise.
        size: The shape (C, H, W) of the images, for models that take any shape.
        end: The end of the nodes, "zero" or "sigma_min".
        **settings: The settings of the solvers; each goes to the solvers that have it.

    Returns:
        The table, named "cheapest", and the plan of the cheapest run. Both are in the folder too: the table with its
        figures, the plan as plan.json.

    Raises:
        InputError: If no run keeps the error, if an argument cannot be used, or if the folder holds foreign files.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-gaussian", folder=tempfile.mkdtemp())
        >>> table, plan = odeddim.jobs.bench.find(bench, 0.1, count=1, solvers=["ab2@log"], size=(1, 4, 4))
        >>> plan.solver.name
        'ab2'
    """
    session = Session.of(workbench, "cheapest", [defaults.PLAN], on_data=True)
    shape = session.shape(size)
    entries = search.candidates(solvers)
    # The number of evaluations is not known beforehand. The bar counts solvers on grids, both sets, and the check.
    with session.harness(len(entries) + 3, count, unit="solvers") as harness:
        done, harness.advance = harness.advance, lambda evaluations: None
        sets = []
        for its_seed in (seed, seed + 1):
            sets.append(bench.truth_for(harness, error, count, shape, seed=its_seed, end=end))
            done(1)
        table, plan = search.cheapest(harness, error, entries, *sets, settings=chosen(settings), advance=done)
    return session.deliver(table, beside={defaults.PLAN: plan.to_json().encode()}), plan
