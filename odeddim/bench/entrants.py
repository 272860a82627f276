"""Who takes part in the league: for a number of evaluations, the longest run of each solver that keeps it.

Solvers that are one method on the same nodes are measured once: they are known by what they do to an exact field.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from odeddim import solvers
from odeddim.bench.harness import Entry, joins
from odeddim.ode import grids
from odeddim.ode.analytic import GaussianMixture
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, Solver, State


@dataclass(frozen=True)
class Entrant:
    """A run that takes part.

    Attributes:
        plan: The plan.
        budget: The number of evaluations that it does not exceed in either direction.
        grid: What the table calls its nodes: the name of the grid, or the file of the plan.
        same_as: The label of the run that is the same method on the same nodes and is measured for both, or "".
    """

    plan: Plan
    budget: int
    grid: str
    same_as: str = ""

    @property
    def label(self) -> str:
        """The run in words, such as "euler@log"."""
        return f"{self.plan.solver.name}@{self.grid}"


@dataclass(frozen=True)
class Draw:
    """Who takes part.

    Attributes:
        entrants: The runs, those with the fewest evaluations first.
        left_out: Solvers that cannot take part, name -> the reason.
    """

    entrants: tuple[Entrant, ...]
    left_out: Mapping[str, str]

    @property
    def evaluations(self) -> int:
        """The evaluations for an image and a noise of all runs that are measured, for a progress bar."""
        return sum(sum(counts(entrant.plan)) for entrant in self.entrants if not entrant.same_as)


def counts(plan: Plan) -> tuple[int, int, int]:
    """The evaluations to encode, to decode that again, and to decode noise; 0 for a direction that a plan has not."""
    found = []
    for way in ("evaluations", "evaluations_down"):
        try:
            found.append(int(getattr(plan, way)))
        except InputError:
            found.append(0)
    up, down = found
    return up, down if up else 0, down


def needed(plan: Plan) -> int:
    """The evaluations of a plan, in the direction with more of them.

    Raises:
        InputError: If it has neither direction.
    """
    return max(counts(plan)) or int(plan.evaluations_down)  # which says why it has none


def longest(schedule: Schedule, row: Solver, budget: int, grid: str | None = None, end: str = "zero") -> Plan | None:
    """The run with the most steps that takes no more evaluations than a budget, in either direction.

    Args:
        schedule: The noise levels of the model.
        row: A solver with a fixed number of evaluations a step.
        budget: The most evaluations.
        grid: The name of the grid; None for the solver's own.
        end: "zero" or "sigma_min".

    Returns:
        The plan; None if one step takes more.

    Raises:
        InputError: If a plan cannot be made.
    """
    assert row.nfe is not None
    most = budget // row.nfe + 1  # of all steps but one, which may be the single evaluation between σ = 0 and σ_1
    for steps in range(min(budget, most), 0, -1):
        plan = Plan.of(schedule, row, steps, grid, end)
        if needed(plan) <= budget:
            return plan
    return None


def draw(
    model: VectorField,
    budgets: Sequence[int],
    entries: Sequence[Entry] = (),
    plans: Mapping[str, Plan] | None = None,
    end: str = "zero",
) -> Draw:
    """Make the runs that take part.

    Args:
        model: The model.
        budgets: The numbers of evaluations.
        entries: The solvers on their grids; none for all rows of the table with a fixed number of evaluations a step,
            each on the grid that is recommended for it.
        plans: Further runs, by the name of their file. Each takes part with the smallest budget that it keeps.
        end: "zero" or "sigma_min".

    Returns:
        The draw.

    Raises:
        InputError: If a solver that is named has no fixed number of evaluations, if a plan takes more than all
            budgets, or if a run does not end at the model's σ_T.
    """
    budgets = sorted(set(budgets))
    left_out: dict[str, str] = {}
    own = [Entry(name) for name, row in solvers.SOLVERS.items() if row.nfe is not None]
    given = dict(plans or {})
    found: list[Entrant] = []
    for entry in entries:
        row = solvers.get(entry.solver)
        if row.nfe is None:
            raise InputError(
                f"solver {row.name!r} has no fixed number of evaluations, and the league compares runs with equally "
                "many: leave it out of solvers=..."
            )
        if entry.grid is not None and not grids.is_named(entry.grid):
            given[entry.grid] = entry.plan or Plan.of(model.schedule, row, None, entry.grid, end)
    for budget, entry in itertools.product(budgets, entries or own):
        row = solvers.get(entry.solver)
        if entry.grid is not None and not grids.is_named(entry.grid):
            continue
        try:
            plan = longest(model.schedule, row, budget, entry.grid, end)
        except InputError as error:
            if entries:
                raise
            left_out.setdefault(row.name, str(error))
            continue
        if plan is not None:
            found.append(Entrant(plan, budget, plan.grid))
    for name, plan in given.items():
        count = needed(plan)
        budget = next((budget for budget in budgets if count <= budget), 0)
        if not budget:
            raise InputError(
                f"{name} takes {count} evaluations, more than {budgets[-1]}: add {count} to evaluations=..."
            )
        found.append(Entrant(plan, budget, name))
    for entrant in found:
        _check(entrant, model, end)
    found.sort(key=lambda entrant: entrant.budget)
    return Draw(_with_twins(found), left_out)


def _check(entrant: Entrant, model: VectorField, end: str) -> None:
    plan = entrant.plan
    if not joins(plan, model, end):
        raise InputError(
            f"{plan.solver.name} on {entrant.grid} goes from the end {plan.end!r} to σ = {plan.top:.6g}, the league "
            f"from {end!r} to the model's σ_T = {model.schedule.sigma_max:.6g}: leave it out"
        )


def _with_twins(entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """The entrants, each with the label of an earlier one that is the same method on the same nodes."""
    known: dict[tuple[object, ...], str] = {}
    found = []
    for entrant in entrants:
        try:
            key: tuple[object, ...] = (entrant.budget, entrant.plan.solver.reversible, *trace(entrant.plan))
        except InputError:  # it needs more than a field, such as the model's moments
            key = (entrant.budget, entrant.label)
        twin = known.setdefault(key, entrant.label)
        found.append(entrant if twin == entrant.label else replace(entrant, same_as=twin))
    return tuple(found)


def trace(plan: Plan) -> tuple[float, ...]:
    """What a run does to an exact field, in each direction that it has: one method on the same nodes, one trace."""
    field = GaussianMixture(torch.tensor([[-0.6], [0.3]], dtype=torch.float64), 0.2)
    ends = [] if plan.solver.stochastic else [integrate(field, _at(float(plan.nodes[0]), 0.1), plan)]
    ends.append(integrate(field, _at(plan.top, 7.0), plan))
    return (*plan.nodes.tolist(), *(float(f"{float(end.xbar):.9g}") for end in ends))


def _at(sigma: float, xbar: float) -> State:
    return State(torch.tensor([[xbar]], dtype=torch.float64), sigma)
