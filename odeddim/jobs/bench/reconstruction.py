"""DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odeddim.api import to_data
from odeddim.bench import defaults
from odeddim.bench import reconstruction as bench
from odeddim.bench.tables import Table
from odeddim.jobs.bench.helping import helped
from odeddim.jobs.bench.workbench import Session, Workbench, with_skipped
from odeddim.jobs.subject import data_and_floor, images_for, recorded, warn_of_count
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of


@helped
@torch.no_grad()
def reconstruction(
    workbench: Workbench,
    images: Images = None,
    *,
    count: int | None = None,
    solvers: Sequence[str] = defaults.RECONSTRUCTION.solvers,
    steps: Sequence[int] = defaults.RECONSTRUCTION.steps,
    labels: Sequence[str] = defaults.LABELS,
    paper: bool = False,
    end: str = "zero",
    prepare: Preparation | None = None,
    **settings: Any,
) -> Table:
    """Encode images, decode them again, and measure both errors: DDIM's Table 2 for any solver.

    The error of the round trip is the rms over pixels in [-1, 1]. The error of the latent is the rms distance to the
    ODE's true latent, divided by σ_T: a solver can come back exactly from a wrong latent. For a latent model, both
    errors are measured on its data.

    Args:
        workbench: The model, the machine, and the folder.
        images: As of `odeddim.jobs.encode`; None for the sample images of the package.
        count: The number of images, taken from the beginning; by default 24, or all if there are fewer.
        solvers: Each is SOLVER, SOLVER@GRID, or the file of a plan; a plan and a grid file have their own steps.
        steps: The numbers of steps.
        labels: Which label t encoding takes: "source", the label of the step's start, as in eq. 14 reversed; or
            "target", the label of its end, as in much other code, for euler only.
        paper: Whether the model is the paper's for CIFAR-10 and the images are the test images. A column then has the
            values of the paper's Table 2.
        end: The end of the nodes, "zero" or "sigma_min".
        prepare: What is done to the images, as of `odeddim.Preparation`.
        **settings: The settings of the solvers, such as rtol. Each solver gets the settings that it has.

    Returns:
        The table. The folder also holds it, with its figures: reconstruction.h5, .json, .csv, .svg and .png.

    Raises:
        InputError: If an argument cannot be used, or if the folder holds foreign files. Nothing is measured then.

    Source:
        Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502, Table 2.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.reconstruction(bench, count=2, solvers=["euler@linear", "ab3"], steps=[3])
        >>> [row["solver"] for row in table.rows]
        ['euler', 'ab3']
    """
    session = Session.of(workbench, "reconstruction", on_data=True)
    place, whole, path = session.place, session.whole, place_of(images)
    source = images_for(whole, images, prepare)
    if count is not None:
        warn_of_count(count, len(source), path)
    count = min(count or defaults.RECONSTRUCTION.count, len(source))
    plans = session.plans(solvers, steps, end, settings)

    def data(start: int, stop: int) -> Tensor:
        return to_data(whole, source[start:stop].to(place.state))

    named = {"path": str(path or "the package's sample"), **recorded(source)}
    with session.harness(count * bench.expected_evaluations(plans, labels), count) as harness:
        table = bench.reconstruction(harness, data, count, plans, end=end, labels=labels, source=named, paper=paper)
    floor = None
    if whole.codec is not None:  # image by image, as the autoencoder works itself
        floor = statistics.median(float(data_and_floor(whole, source[i : i + 1])[1]["floor"]) for i in range(count))
    return session.deliver(with_skipped(table, source), floor)
