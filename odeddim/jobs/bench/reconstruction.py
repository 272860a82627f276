"""DDIM's Table 2, for any solver and grid."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from odeddim.api import to_data
from odeddim.bench import defaults
from odeddim.bench import reconstruction as bench
from odeddim.bench.tables import Table
from odeddim.jobs.bench.workbench import Session, Workbench, with_skipped
from odeddim.jobs.subject import data_and_floor, images_for, recorded, warn_of_count
from odeddim.storage.preparation import Preparation


def reconstruction(
    workbench: Workbench,
    images: str | Path | None = None,
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

    The round trip is the rms over pixels in [-1, 1]. The latent's error is its rms distance to the ODE's true latent,
    over σ_T: a solver can come back exactly from a latent that is wrong. Both errors of a latent
    model are of its data.

    Args:
        workbench: The model, where it runs, and the folder.
        images: A folder, an image file or an array file; None for the sample images of the package.
        count: Only the first so many images; 24 unless given, or as many as there are.
        solvers: SOLVER or SOLVER@GRID; a grid file runs with its own steps.
        steps: The numbers of steps.
        labels: Where encoding takes the network's label t: "source", as eq. 14 reversed says, or "target", of euler
            only, as much other code has it.
        paper: Whether the model is the paper's of CIFAR-10 and the images are its test images: the figures of the
            paper's Table 2 are then in a column.
        end: "zero" or "sigma_min".
        prepare: What is done to the images, as of `odeddim.Preparation`.
        **settings: The settings of the solvers, such as rtol; each goes to the solvers that have it.

    Returns:
        The table. It is in the folder too, with its figures: reconstruction.h5, .json, .csv, .svg and .png.

    Raises:
        InputError: For what cannot be measured, before anything is measured, and for a folder with files of others.

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
    place, whole, path = session.place, session.whole, None if images is None else Path(images)
    source = images_for(whole, path, prepare)
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
