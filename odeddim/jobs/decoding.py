"""How a latent file is decoded: by its own plan, or by what was asked for in its place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from odeddim import defaults, solvers
from odeddim.api import decode
from odeddim.checks.certificate import Rungs, decode_as_encoded, rungs_of
from odeddim.jobs.work import How, the_plan
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import MADE_OF_OTHERS, Provenance, provenance_of
from odeddim.ode.field import VectorField
from odeddim.ode.grids import ENDS, NAMES, is_named
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.types import InputError, Solver, State

NOTHING = How(None, None, None, None, {})


@dataclass(frozen=True)
class Decoding:
    """What decodes a latent file: a plan, or plans by the steps of each image (`rungs`)."""

    plan: Plan
    rungs: Rungs = field(default_factory=dict)

    @property
    def steps(self) -> str:
        """How many steps that are, in words."""
        if self.rungs:
            return "steps as encoded"
        return "adaptive" if self.plan.steps is None else f"{self.plan.steps} steps"

    def images(self, state: State, model: VectorField, first: int = 0) -> torch.Tensor:
        """The images, or of `model.on_data()` the data, of latents of the file. first: the index of the first one."""
        if self.rungs:
            return decode_as_encoded(state, self.rungs, model)
        row = self.plan.solver
        # The noise of an image belongs to its place in the file, whatever the batch.
        plan = self.plan.with_solver(row.with_settings(first=first)) if row.stochastic else self.plan
        return decode(state, model=model, plan=plan)

    def provenance(self, file: LatentFile, model: VectorField, **details: Any) -> Provenance:
        """How the images of this file come about."""
        latents = {"path": str(file.path), "sha256": file.fingerprint}
        return provenance_of(model, self.plan, "decode", latents=latents, encoded=asdict(file.provenance), **details)


def decoding_of(
    file: LatentFile,
    schedule: Schedule,
    how: How = NOTHING,
    plan: Plan | None = None,
    tol: float | None = None,
    *,
    made_by: str | None = None,
) -> Decoding:
    """What decodes a latent file: its own plan, unless something else is asked for.

    Settings such as rtol are the file's, as long as the solver is. Latents with steps of their own are decoded with
    those, unless something else is asked for.

    Args:
        file: The latents.
        schedule: Of the model.
        how: What is asked for in place of what the file says; it has no end, which is that of the file.
        plan: All of that at once.
        tol: A tolerance, which chooses the steps.
        made_by: What has made the latents, if not what has made the file.
    """
    made = file.provenance
    if how.end is not None and how.end != made.end:
        raise InputError(f"the images of {file.path} lie at the end {made.end!r}: leave out end={how.end!r}")
    if tol is not None:
        if plan is not None:
            raise InputError("tol= chooses the steps, and plan= says them: give one of them")
        return _within(how, file, schedule)
    if plan is not None:
        return Decoding(_landing(the_plan(plan, how, schedule, made.solver), file))
    own = solvers.get(made.solver)
    ladder = made.details.get("ladder") if "steps" in file.figures("report") else None
    if ladder is not None and how.solver is None and how.steps is None and how.grid is None:
        rungs = {count: Plan.of(schedule, own, count, made.grid, made.end, made.settings) for count in ladder}
        return Decoding(file.plan, rungs)
    solver: str | Solver | None = how.solver
    settings = dict(how.settings)
    if solver in (None, made.solver):
        settings = {**made.settings, **{key: value for key, value in settings.items() if value is not None}}
    if solver is None and own.reversible and (made_by or made.made_by) in MADE_OF_OTHERS:
        solver, settings = defaults.COMBINED, {}
    row = solver if isinstance(solver, Solver) else solvers.get(solver or made.solver)
    its_grid = None if own.adaptive else made.grid
    if how.steps is None and how.grid is None and (row.adaptive or its_grid is not None):
        return Decoding(_named(Plan.of(schedule, row, None, file.nodes, settings=settings), made.grid))
    _check_end(file)
    grid, steps = how.grid, how.steps
    if grid is None and its_grid is not None and its_grid.partition(":")[0] in NAMES:
        grid = its_grid
    if steps is None and its_grid is not None and (grid is None or is_named(str(grid))):
        steps = made.steps
    return Decoding(_landing(Plan.of(schedule, row, steps, grid, made.end, settings), file))


def _within(how: How, file: LatentFile, schedule: Schedule) -> Decoding:
    """As few steps as keep a tolerance."""
    made = file.provenance
    _check_end(file)
    own, solver, grid = solvers.get(made.solver), how.solver, how.grid
    its_grid = None if own.adaptive else made.grid
    if solver is None:  # what comes back exactly does so over the nodes of the file only
        solver = defaults.TOLERANCE if own.to_zero or own.adaptive else made.solver
    if grid is None and solver == made.solver and its_grid is not None and is_named(its_grid):
        grid = its_grid
    rungs = rungs_of(schedule, solver, how.steps, grid, made.end, how.settings)
    longest = rungs[max(rungs)]
    _landing(longest, file)
    return Decoding(longest, rungs)


def _named(plan: Plan, grid: str) -> Plan:
    """The plan with the name that its grid has in the file."""
    return Plan(plan.solver, plan.nodes, grid, plan.end)


def _landing(plan: Plan, file: LatentFile) -> Plan:
    """The plan, if it ends where the latents lie."""
    if abs(plan.top - file.sigma) > 1e-12 * file.sigma:
        raise InputError(
            f"the latents of {file.path} lie at σ = {file.sigma:.9g}, but the grid ends at σ = {plan.top:.9g}: take a "
            "grid that ends where they lie"
        )
    return plan


def _check_end(file: LatentFile) -> None:
    if file.provenance.end not in ENDS:
        raise InputError(f"{file.path}: its images lie at σ = {float(file.nodes[0]):.6g}: only its own nodes decode it")
