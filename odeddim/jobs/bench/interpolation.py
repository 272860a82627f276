"""DDIM's appendix D.5: images between latents, and their smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from odeddim.bench import defaults
from odeddim.bench import interpolation as bench
from odeddim.bench.harness import expected
from odeddim.bench.tables import Table
from odeddim.jobs.bench.helping import helped
from odeddim.jobs.bench.workbench import Session, Workbench


@helped
@torch.no_grad()
def interpolation(
    workbench: Workbench,
    *,
    pairs: int = defaults.INTERPOLATION.count,
    points: int = defaults.POINTS,
    side: int = defaults.SIDE,
    solvers: Sequence[str] = defaults.INTERPOLATION.solvers,
    steps: Sequence[int] = defaults.INTERPOLATION.steps,
    seed: int = 0,
    size: tuple[int, ...] | None = None,
    end: str = "zero",
    **settings: Any,
) -> Table:
    """Decode lines and a grid between latents, and measure how smooth the images along them are.

    The images of an ODE change smoothly. DDPM, for contrast, adds noise to each image, so neighbouring images have
    little in common. For reference, the table has the cross-fade between the first solver's end images, which is
    straight.

    Args:
        workbench: The model, the machine, and the folder.
        pairs: The number of lines, each between two latents.
        points: The number of images on each line, at least 3.
        side: The number of images along each side of the grid between four latents, which the first solver decodes;
            0 for no grid.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        steps: The numbers of steps.
        seed: The seed of the noise; pair p lies between the noise of (seed, 2p) and (seed, 2p + 1).
        size: The shape (C, H, W) of the images, for models that take any shape.
        end: The end of the nodes, "zero" or "sigma_min".
        **settings: The settings of the solvers, such as rtol. Each solver gets the settings that it has.

    Returns:
        The table. The folder also holds it, with its figures and sheets of the images.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

    Source:
        Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, appendix D.5.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.interpolation(
        ...     bench, pairs=1, points=3, side=0, solvers=["euler"], steps=[5], size=(1, 4, 4)
        ... )
        >>> [row["solver"] for row in table.rows]
        ['euler', 'cross-fade']
    """
    session = Session.of(workbench, "interpolation")
    shape = session.shape(size)
    plans = session.plans(solvers, steps, end, settings)
    total = pairs * points * sum(expected(each) for each in plans) + side**2 * expected(plans[0])
    with session.harness(total) as harness:
        table = bench.interpolation(harness, plans, shape, pairs=pairs, points=points, side=side, seed=seed)
    return session.deliver(table)
