"""DDIM's Figure 4: seconds over steps and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from odeddim.bench import defaults
from odeddim.bench import timing as bench
from odeddim.bench.harness import expected
from odeddim.bench.tables import Table
from odeddim.jobs.bench.workbench import Session, Workbench
from odeddim.storage.workers import rank
from odeddim.types import InputError


def timing(
    workbench: Workbench,
    *,
    solvers: Sequence[str] = defaults.TIMING.solvers,
    steps: Sequence[int] = defaults.TIMING.steps,
    batches: Sequence[int] = defaults.BATCHES,
    repeats: int = defaults.TIMING.count,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    end: str = "zero",
    **settings: Any,
) -> Table:
    """Time the decoding of noise: DDIM's Figure 4, seconds over steps, for each batch size.

    Each run is timed several times, all of them in turns, after a warm-up. A row has the median, and the line through
    the medians over steps: milliseconds per step, and how straight the line is (R²). Nothing else should run on the
    machine meanwhile; the progress of the workbench should draw nothing while a run is timed.

    Args:
        workbench: The model, where it runs, and the folder.
        solvers: SOLVER or SOLVER@GRID; a grid file runs with its own steps.
        steps: The numbers of steps.
        batches: How many images to decode together; the network sees them as one batch.
        repeats: How many times each run is timed.
        seed: Of the noise.
        size: (C, H, W) of the images, for models that take any.
        end: "zero" or "sigma_min".
        **settings: The settings of the solvers, such as rtol; each goes to the solvers that have it.

    Returns:
        The table, named "time". It is in the folder too, with its figures.

    Raises:
        InputError: For what cannot be measured, before anything is measured, for a folder with files of
            others, and under torchrun, whose processes would time each other.

    Source:
        Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, Figure 4.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.timing(bench, steps=[2, 4], batches=[1], repeats=1, size=(1, 4, 4))
        >>> table.rows[0]["seconds"] > 0
        True
    """
    if rank()[1] > 1:
        raise InputError("several processes would time each other: run `odeddim bench time` without torchrun")
    session = Session.of(workbench, "time", on_data=True)
    shape = session.shape(size)
    plans = session.plans(solvers, steps, end, settings)
    total = repeats * sum(batch * expected(each) for each in plans for batch in {*batches})
    with session.harness(total) as harness:
        table = bench.timing(harness, plans, shape, batches=batches, repeats=repeats, seed=seed)
    return session.deliver(table)
