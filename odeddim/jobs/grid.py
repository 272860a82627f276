"""The job that computes the nodes of a plan from the model's own error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.fitting.grid_search import ComputedGrid, compute, most_evaluations, own_plan
from odeddim.jobs.machine import BATCH, Machine
from odeddim.jobs.subject import Subject, images_for, recorded, subject_on, tell_skipped, warn_of_count
from odeddim.jobs.work import Outcome, Progress, shown
from odeddim.models import DEFAULT
from odeddim.ode.grids import STEPS
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of

SUFFIXES = (".json",)


@dataclass(frozen=True)
class Computed(Outcome):
    """The outcome of the job `grid`.

    Attributes:
        plan: The plan that was computed.
        found: What was measured on the images, on this grid and on the solver's own.
        title: A title for figures of it.
    """

    plan: Plan
    found: ComputedGrid
    title: str


@torch.no_grad()
def grid(
    images: Images,
    output: str | Path,
    solver: str = defaults.ENCODE,
    steps: int = STEPS,
    *,
    end: str = "zero",
    count: int | None = None,
    model: Model | Subject = DEFAULT,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
) -> Computed:
    """Compute the noise levels on which a solver has the smallest error, and write the plan to a file.

    Args:
        images: As of `odeddim.jobs.encode`; None for the 256 sample images of the package.
        output: The file, plan.json, which `Plan.load` reads; it is also a grid file.
        solver: A name of `odeddim.solvers.names()`.
        steps: The number of steps.
        end: Where images lie: "zero" or "sigma_min".
        count: The number of images to take, the last ones; by default 16.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to replace what is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Returns:
        The outcome, with the plan and what was measured; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "plan.json")
        >>> computed = odeddim.jobs.grid(None, path, "euler", 4, count=2, model="exact-gaussian")
        >>> odeddim.Plan.load(path) == computed.plan
        True
    """
    given, output = place_of(images), Path(output)
    check_place(output, given, suffixes=SUFFIXES)
    place = (machine or Machine()).at(model=model)
    field = subject_on(place, model)
    own = own_plan(field, solver, steps, end)
    source = images_for(field, images, prepare)
    if count is not None:
        warn_of_count(count, len(source), given)
    x_0 = source[max(0, len(source) - (count or defaults.GRID_IMAGES)) : len(source)].to(place.state)
    of = plain_text(str(given or "the sample images"))
    notes: dict[str, Any] = {"images": f"the last {len(x_0)} of {of}", **recorded(source)}
    mark = mark_of(own.noted(field, **notes).to_dict())
    check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
    began = time.perf_counter()
    with shown(progress, most_evaluations(own), "evaluations", 0) as advance:
        found = compute(
            field, x_0, own.solver, steps, end=end, batch_size=place.machine.batch_size or BATCH, advance=advance
        )
    name = own.solver.grid
    plan = found.plan.noted(
        field,
        **notes,
        run=mark,
        **{
            "made by": f"local errors of {own.solver.name} on these images, refined by round trips (odeddim grid)",
            "round trip": f"{found.best.round_trip:.3e} (on the {name} grid {found.own.round_trip:.3e})",
            "latent": f"{found.best.latent:.3e} (on the {name} grid {found.own.latent:.3e})",
        },
    )
    plan.save(output)
    title = f"{field.title}: {own.solver.name}, {steps} steps, {len(x_0)} images, end at {end}"
    words = (
        f"grid of {steps} steps in {output}: {found.evaluations} evaluations per image, "
        f"{time.perf_counter() - began:.1f} s{tell_skipped(source)}"
    )
    return Computed(output, 1, 1, words, plan, found, title)
