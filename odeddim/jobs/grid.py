"""A plan whose nodes are computed from the model's own error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odeddim import defaults
from odeddim.api import Model
from odeddim.fitting.grid_search import ComputedGrid, compute, most_evaluations, own_plan
from odeddim.jobs.machine import BATCH, Machine
from odeddim.jobs.subject import Subject, images_for, subject_on, warn_of_count
from odeddim.jobs.work import Outcome, Progress, silent
from odeddim.models import DEFAULT
from odeddim.ode.grids import STEPS
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text

SUFFIXES = (".json",)
COUNT = 16  # images, unless given


@dataclass(frozen=True)
class Computed(Outcome):
    """A plan that was computed, and what was measured on the images, on it and on the solver's own grid."""

    plan: Plan
    found: ComputedGrid
    title: str


def grid(
    images: str | Path | None,
    output: str | Path,
    solver: str = defaults.ENCODE,
    steps: int = STEPS,
    *,
    end: str = "zero",
    count: int | None = None,
    model: Model | Subject = DEFAULT,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Computed:
    """Compute the noise levels on which a solver with so many steps errs least, and keep the plan in a file.

    Args:
        images: As of `encode`; the last `count` of them are taken. None for the package's own.
        output: The file, plan.json, for `plan=` and, for its nodes, `grid=`.
        solver: A name of the table.
        steps: The number of steps.
        end: "zero" or "sigma_min".
        count: How many images; 16 unless given.
        model: A name, a path, a VectorField, or a Subject with its condition.
        machine: Where to run.
        overwrite: Whether to replace what is there.
        progress: Shown while the job works.

    Returns:
        The plan, with what was measured; `print` it for a line of words.

    Raises:
        InputError: For what cannot be used, before anything is written.
    """
    images, output = None if images is None else Path(images), Path(output)
    check_place(output, images, suffixes=SUFFIXES)
    place = (machine or Machine()).at()
    field = subject_on(place, model)
    own = own_plan(field, solver, steps, end)
    source = images_for(field, images)
    if count is not None:
        warn_of_count(count, len(source), images)
    x_0 = source[max(0, len(source) - (count or COUNT)) : len(source)].to(place.state)
    of = plain_text(str(images or "the sample images"))
    notes: dict[str, Any] = {"images": f"the last {len(x_0)} of {of}"}
    mark = mark_of(own.noted(field, **notes).to_dict())
    check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
    began = time.perf_counter()
    with progress(most_evaluations(own), "evaluations", 0) as advance:
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
        f"{time.perf_counter() - began:.1f} s"
    )
    return Computed(output, 1, 1, words, plan, found, title)
