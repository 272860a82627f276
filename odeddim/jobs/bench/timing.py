"""DDIM's Figure 4: seconds over steps and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from odeddim.bench import defaults
from odeddim.bench import timing as bench
from odeddim.bench.harness import expected
from odeddim.bench.tables import Table
from odeddim.jobs.bench.workbench import Session, Workbench
from odeddim.storage.workers import rank
from odeddim.types import InputError


@torch.no_grad()
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

    After a warm-up, each run is timed several times, and the runs take turns. A row has the median, and the line fitted
    to the medians over steps: milliseconds per step, and the quality of the fit (R²). Nothing else should run on the
    machine at the same time, and the workbench's `progress` should draw nothing while a run is timed.

    Args:
        workbench: The model, the machine, and the folder.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        steps: The numbers of steps.
        batches: The numbers of images that are decoded together. The network gets them as one batch.
        repeats: The number of times that each run is timed.
        seed: The seed of the noise.
        size: The shape (C, H, W) of the images, for models that take any shape.
        end: The end of the nodes, "zero" or "sigma_min".
        **settings: The settings of the solvers, such as rtol. Each solver gets the settings that it has.

    Returns:
        The table, named "time". The folder also holds it, with its figures.

    Raises:
        InputError: If an argument cannot be used, if the folder holds foreign files, or under torchrun, whose processes
            would slow each other. Nothing is measured then.

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
        raise InputError("several processes would slow each other: run `odeddim bench time` without torchrun")
    session = Session.of(workbench, "time", on_data=True)
    shape = session.shape(size)
    plans = session.plans(solvers, steps, end, settings)
    total = repeats * sum(batch * expected(each) for each in plans for batch in {*batches})
    with session.harness(total) as harness:
        table = bench.timing(harness, plans, shape, batches=batches, repeats=repeats, seed=seed)
    return session.deliver(table)
