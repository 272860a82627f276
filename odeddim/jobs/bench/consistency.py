"""DDIM's Figure 5: one x_T through every solver and number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odeddim.bench import consistency as bench
from odeddim.bench import defaults
from odeddim.bench.features import Features
from odeddim.bench.harness import expected
from odeddim.bench.tables import Table
from odeddim.bench.work_precision import references
from odeddim.jobs.bench.workbench import Session, Workbench


def consistency(
    workbench: Workbench,
    *,
    count: int = defaults.CONSISTENCY.count,
    solvers: Sequence[str] = defaults.CONSISTENCY.solvers,
    steps: Sequence[int] = defaults.CONSISTENCY.steps,
    features: str | Path | Features | None = None,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    end: str = "zero",
    **settings: Any,
) -> Table:
    """Decode the same x_T by every solver with every number of steps, and compare the images: DDIM's Figure 5.

    Each image is compared with the image that a run with many steps makes of the same x_T, in pixels and in the
    features of a network. The share is the median of these distances over the distance between different x_T.

    Args:
        workbench: The model, where it runs, and the folder.
        count: How many x_T, 2 or more.
        solvers: SOLVER or SOLVER@GRID; a grid file runs with its own steps.
        steps: The numbers of steps.
        features: The network whose features are compared, as of `odeddim.bench.features.load_features`; None for the
            built-in network where the model is built in, otherwise for pixels only.
        seed: Of the noise; x_T number i is the noise of (seed, i).
        size: (C, H, W) of the images, for models that take any.
        end: "zero" or "sigma_min".
        **settings: The settings of the solvers, such as rtol; each goes to the solvers that have it.

    Returns:
        The table. It is in the folder too, with its figures and a sheet of images for each solver.

    Raises:
        InputError: For what cannot be measured, before anything is measured, and for a folder with files of others.

    Source:
        Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, Figure 5 and section 5.2.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-gaussian", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.consistency(bench, count=2, solvers=["euler"], steps=[5, 10], size=(1, 4, 4))
        >>> table.rows[1]["pixels"] < table.rows[0]["pixels"]
        True
    """
    session = Session.of(workbench, "consistency")
    shape = session.shape(size)
    network = session.features(features, session.field.image_shape or shape)
    plans = session.plans(solvers, steps, end, settings)
    total = count * sum(expected(each) for each in (*plans, *references(session.field, end)))
    with session.harness(total, count) as harness:
        table = bench.consistency(harness, plans, count, shape, seed=seed, end=end, features=network)
    return session.deliver(table)
