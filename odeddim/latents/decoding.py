"""The plan that decodes latents: the one that encoded them, unless something else is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from odeddim import defaults, solvers
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.grids import ENDS, NAMES, is_named
from odeddim.ode.schedule import Schedule
from odeddim.ode.tops import GAUSSIAN
from odeddim.plans import Grid, Plan
from odeddim.types import InputError, Solver


def decoding_plan(
    encoded: Plan,
    schedule: Schedule,
    solver: str | Solver | None = None,
    steps: int | None = None,
    grid: Grid = None,
    settings: Mapping[str, object] | None = None,
    *,
    top: str | None = None,
    moments: Gaussian | None = None,
    alone: bool = False,
    where: str = "the state",
) -> Plan:
    """The plan that decodes latents: what is not given is as they were encoded.

    Settings such as rtol are those of the encoding if the solver is. Latents made of others start from x̄ alone, and so
    do latents that another model decodes, or the same under another condition. A reversible solver gains nothing for
    them, so the default is that of `odeddim.defaults.COMBINED`.

    Args:
        encoded: The plan that encoded the latents.
        schedule: The noise levels of the model.
        solver, steps, grid, settings, top: What is given in place of what the plan says. The end stays.
        moments: The model's Gaussian, or None if it has none.
        alone: Whether the latents start from x̄ alone.
        where: What holds the latents, for messages.

    Returns:
        The plan.

    Raises:
        InputError: If an argument cannot be used, or the images lie where only the plan's own nodes lead.
    """
    own = encoded.solver
    chosen = {key: value for key, value in (settings or {}).items() if value is not None}
    if solver is None and own.reversible and alone:
        row = solvers.get(defaults.COMBINED)
    else:
        row = own if solver is None else solver if isinstance(solver, Solver) else solvers.get(solver)
        if row.name == own.name:
            chosen = {**encoded.settings, **chosen}
    its_grid = None if own.adaptive else encoded.grid
    if steps is None and grid is None and top is None and (row.adaptive or its_grid is not None):
        its_top = GAUSSIAN if encoded.carried else None
        nodes = encoded.solved.nodes
        made = Plan.of(schedule, row, None, nodes, settings=chosen, top=its_top, moments=moments)
        return replace(made, grid=encoded.grid, portable=encoded.portable)
    if top is None and encoded.carried:
        top = GAUSSIAN
    if grid is None or is_named(str(grid)):
        check_end(encoded, where)
    if grid is None and its_grid is not None and its_grid.partition(":")[0] in NAMES:
        grid = its_grid
    if steps is None and its_grid is not None and (grid is None or is_named(str(grid))):
        steps = encoded.steps
    end = encoded.end if encoded.end in ENDS else "zero"  # nodes that are given have an end of their own
    return Plan.of(schedule, row, steps, grid, end, chosen, top=top, moments=moments).portably(encoded.portable)


def check_end(encoded: Plan, where: str) -> None:
    """Raise an InputError if images lie where no named grid ends.

    Args:
        encoded: The plan that encoded the latents.
        where: What holds the latents, for the message.
    """
    if encoded.end not in ENDS:
        raise InputError(
            f"{where}: its images lie at σ = {float(encoded.nodes[0]):.6g}, so only its own nodes decode it: "
            "leave out grid=..., steps=... and tol=..."
        )
