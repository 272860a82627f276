"""How a latent file is decoded: with its own plan, or with what the user gives in its place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from odeddim import defaults, solvers
from odeddim.api import decode, in_parallel, to_decode
from odeddim.checks.certificate import Rungs, decode_as_encoded, rungs_of
from odeddim.jobs.recording import Walk
from odeddim.jobs.work import OWN_DIGITS, OWN_TOP, How, the_plan
from odeddim.latents.decoding import check_end, decoding_plan
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import MADE_OF_OTHERS, Provenance, provenance_of
from odeddim.ode.field import VectorField
from odeddim.ode.grids import is_named
from odeddim.ode.portable import MARGIN, check_portable
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.runs.parallel import Parallel
from odeddim.types import InputError, State

NOTHING = How(None, None, None, None, {}, None)


@dataclass(frozen=True)
class Decoding:
    """What decodes a latent file.

    Attributes:
        plan: The plan.
        rungs: Plans by their numbers of steps, if each image has steps of its own; otherwise empty.
        parallel: How nodes are found together; None for one after the other.

    Raises:
        InputError: If the solver does not run in parallel, or each image has steps of its own.
    """

    plan: Plan
    rungs: Rungs = field(default_factory=dict)
    parallel: Parallel | None = None

    def __post_init__(self) -> None:
        if self.parallel is not None and self.rungs:
            raise InputError("the latents have steps of their own: leave out parallel=..., or give steps=...")
        in_parallel(self.plan, self.parallel)  # or a sentence

    @property
    def steps(self) -> str:
        """The steps in words."""
        if self.rungs:
            return "steps as encoded"
        return "adaptive" if self.plan.steps is None else f"{self.plan.steps} steps"

    def images(
        self, state: State, model: VectorField, first: int = 0, walk: Walk | Certain | None = None
    ) -> torch.Tensor:
        """The images of latents of the file.

        Args:
            state: The latents, xbar (B, *).
            model: The model, or its `on_data()` for the data in place of images.
            first: The index of the first latent in the file.
            walk: What runs and records, on a model that is `on_data()`; None for `odeddim.decode`.

        Returns:
            The images, (B, C, H, W), or the data.
        """
        if self.rungs:
            return decode_as_encoded(state, self.rungs, model)
        row = self.plan.solver
        # The noise of an image depends on its index in the file, and not on the batch.
        plan = self.plan.with_solver(row.with_settings(first=first)) if row.stochastic else self.plan
        if walk is not None:
            return walk(state, model, plan).xbar
        return decode(state, model=model, plan=plan, parallel=self.parallel)

    def provenance(self, file: LatentFile, model: VectorField, count: int, **details: Any) -> Provenance:
        """The provenance of the images of the first `count` latents of a file."""
        whole = count == len(file)
        latents = {"path": str(file.path), "sha256": file.fingerprint if whole else file.fingerprint_of(count)}
        encoded = asdict(file.provenance)
        encoded["details"].pop("images", None)  # the latents tell them, and their hash depends on their number
        return provenance_of(model, self.plan, "decode", latents=latents, encoded=encoded, **details)


def decoding_of(
    file: LatentFile,
    model: VectorField,
    how: How = NOTHING,
    plan: Plan | None = None,
    tol: float | None = None,
    *,
    made_by: str | None = None,
    portable: bool | None = None,
) -> Decoding:
    """What decodes a latent file: the file's own plan, unless something else is given.

    Settings such as rtol are the file's if the solver is. Latents with steps of their own are decoded with those.

    Args:
        file: The latent file.
        model: The model that decodes.
        how: What is given in place of what the file says. The end is that of the file.
        plan: A plan in place of the file's.
        tol: A tolerance, which chooses the steps.
        made_by: The command that made the latents, if it is not the one that made the file.
        portable: Whether the bits are to be the same on any machine; None for as the latents were encoded.

    Returns:
        What decodes the file.

    Raises:
        InputError: If an argument cannot be used, or the plan does not end where the latents lie.
    """
    made, schedule = file.provenance, model.schedule
    if how.end is not None and how.end != made.end:
        raise InputError(f"the images of {file.path} lie at the end {made.end!r}: leave out end={how.end!r}")
    if tol is not None:
        if plan is not None:
            raise InputError("tol=... chooses the steps, but plan=... has steps of its own: give one of the two")
        if portable:
            raise InputError(OWN_DIGITS)
        return _within(how, file, schedule)
    if plan is not None:
        return Decoding(_landing(the_plan(plan, how, model, made.solver, portable=bool(portable)), file))
    own = file.plan
    ladder = made.details.get("ladder") if "steps" in file.figures("report") else None
    if ladder is not None and how.solver is None and how.steps is None and how.grid is None and how.top is None:
        rungs = {count: Plan.of(schedule, own.solver, count, made.grid, made.end, made.settings) for count in ladder}
        return Decoding(own, rungs)
    alone = (made_by or made.made_by) in MADE_OF_OTHERS or (file.noted is not None and bool(file.noted.unlike(model)))
    solver, steps, grid, _, settings, top = how
    plan = decoding_plan(
        own if portable is None else own.portably(False), schedule, solver, steps, grid, settings,
        top=top, moments=model.moments, alone=alone, where=str(file.path),
    )  # fmt: skip
    plan = plan.portably() if portable else plan
    if plan.portable:
        check_portable(model)
    return Decoding(_landing(plan, file))


class Certain:
    """What runs a portable decoding, as of `Walk`.

    Attributes:
        figures: What outputs keep of the images of the last run, (B,) by name.
    """

    figures: dict[str, torch.Tensor] | None = None

    def __call__(self, state: State, model: VectorField, plan: Plan) -> State:
        """The end of the run."""
        end = integrate(model, *to_decode(model, state, None, None, None, None, plan, {}))
        self.figures = {MARGIN: end.report[MARGIN]}
        return end


def _within(how: How, file: LatentFile, schedule: Schedule) -> Decoding:
    """The plans that a tolerance tries."""
    made = file.provenance
    check_end(file.plan, str(file.path))
    if how.top is not None:
        raise InputError(OWN_TOP)
    own, solver, grid = solvers.get(made.solver), how.solver, how.grid
    its_grid = None if own.adaptive else made.grid
    if solver is None:  # a reversible solver comes back exactly on the nodes of the file only
        solver = defaults.TOLERANCE if own.reversible or own.through_zero or own.adaptive else made.solver
    if grid is None and solver == made.solver and its_grid is not None and is_named(its_grid):
        grid = its_grid
    rungs = rungs_of(schedule, solver, how.steps, grid, made.end, how.settings)
    longest = rungs[max(rungs)]
    _landing(longest, file)
    return Decoding(longest, rungs)


def _landing(plan: Plan, file: LatentFile) -> Plan:
    """The plan, if it ends where the latents lie; otherwise an InputError."""
    if not plan.ends_at(file.sigma):
        raise InputError(
            f"the latents of {file.path} lie at σ = {file.sigma:.9g}, but the grid ends at σ = {plan.top:.9g}: give a "
            "grid that ends where they lie"
        )
    return plan
