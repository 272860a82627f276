"""The part of the job `fit` that finds nodes for a solver of the table, by the model's own error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from odeddim import defaults
from odeddim.fitting.grid_search import compute, most_evaluations, own_plan
from odeddim.jobs.machine import BATCH, Place
from odeddim.jobs.subject import images_for, recorded, tell_skipped, warn_of_count
from odeddim.jobs.work import Outcome, Progress, shown
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, has_mark, mark_of, plain_text
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of


@dataclass(frozen=True)
class Found(Outcome):
    """The outcome of the job `fit`.

    Attributes:
        path, done, total, words: As of `Outcome`.
        plan: The plan that was found.
        title: A title for its figures.
        caption: What they are.
        figures: The figures as text: rows of cells, the first one the header. The last row is that of the plan.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "plan.json")
        >>> found = odeddim.jobs.fit(None, path, solver="euler", steps=3, count=1, model="exact-samples")
        >>> found.plan.steps, found.figures[-1][0]
        (3, 'computed')
    """

    plan: Plan
    title: str
    caption: str
    figures: tuple[tuple[str, ...], ...]

    @property
    def gains(self) -> bool:
        """Whether the plan is another one than the best with named nodes."""
        return self.figures[-1][1:] != self.figures[-2][1:]


CAPTION = "round trip: rms over pixels in [-1, 1]; latent: rms distance to the true latent / σ_T"


@torch.no_grad()
def fit_nodes(
    images: Images,
    output: Path,
    solver: str,
    steps: int,
    *,
    end: str,
    count: int | None,
    on: tuple[Place, VectorField],
    prepare: Preparation | None,
    overwrite: bool,
    progress: Progress,
) -> Found:
    """Compute the noise levels on which a solver has the smallest error, and write the plan to a file.

    Args:
        on: Where to run, and the model there.
        images, output, solver, steps, end, count, prepare, overwrite, progress: As of `odeddim.jobs.fit`.

    Returns:
        The outcome.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.
    """
    place, field = on
    own = own_plan(field, solver, steps, end)
    given, source = place_of(images), images_for(field, images, prepare)
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
            "made by": f"local errors of {own.solver.name} on these images, refined by round trips (odeddim fit)",
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
    rows = [
        (label, f"{it.round_trip:.2e}", f"{it.latent:.2e}")
        for label, it in ((name, found.own), ("computed", found.best))
    ]
    return Found(output, 1, 1, words, plan, title, CAPTION, (("grid", "round trip", "latent"), *rows))
