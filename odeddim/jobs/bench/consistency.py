"""DDIM's Figure 5: the same x_T decoded by every solver with every number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from odeddim.bench import consistency as bench
from odeddim.bench import defaults
from odeddim.bench.features import Features
from odeddim.bench.harness import expected
from odeddim.bench.tables import Table
from odeddim.bench.work_precision import references
from odeddim.jobs.bench.helping import helped
from odeddim.jobs.bench.workbench import Session, Workbench


@helped
@torch.no_grad()
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
    features of a network. The share is the median of these distances divided by the distance between the images of
    different x_T.

    Args:
        workbench: The model, the machine, and the folder.
        count: The number of x_T, at least 2.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        steps: The numbers of steps.
        features: The network whose features are compared, see `odeddim.bench.features.load_features`. By default the
            built-in network for a built-in model; otherwise only pixels are compared.
        seed: The seed of the noise; x_T number i is the noise of (seed, i).
        size: The shape (C, H, W) of the images, for models that take any shape.
        end: The end of the nodes, "zero" or "sigma_min".
        **settings: The settings of the solvers, such as rtol. Each solver gets the settings that it has.

    Returns:
        The table. The folder also holds it, with its figures and a sheet of images for each solver.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

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
    network = session.features(features, session.field.shape_of_images(shape))
    plans = session.plans(solvers, steps, end, settings)
    total = count * sum(expected(each) for each in (*plans, *references(session.field, end)))
    with session.harness(total, count) as harness:
        table = bench.consistency(harness, plans, count, shape, seed=seed, end=end, features=network)
    return session.deliver(table)
