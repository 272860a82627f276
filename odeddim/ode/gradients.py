"""Whether a run carries gradients, and in which way: what a run is given in place of its field."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import torch
from torch import Tensor

from odeddim.types import Field, Gradients, InputError, Solver, State, Way, pick

WAYS: tuple[str, ...] = get_args(Way)


def way_of(solver: Solver, gradients: Gradients) -> Gradients:
    """The way to gradients of a run: the one that is given, or the solver's usual one where gradients are recorded.

    Args:
        solver: The row.
        gradients: What is given; None for the usual way.

    Returns:
        The way; None where none is recorded, and for a row that has none.

    Raises:
        InputError: If there is no such way, or the row does not have it.
    """
    if gradients is None:
        return solver.gradients[0] if solver.gradients and torch.is_grad_enabled() else None
    pick(gradients, WAYS, "way to gradients")
    if gradients not in solver.gradients:
        raise InputError(
            f"solver {solver.name!r} has no gradients={gradients!r}: take {' or '.join(map(repr, solver.gradients))}"
            if solver.gradients
            else _without(solver)
        )
    return gradients if torch.is_grad_enabled() or gradients != solver.gradients[0] else None


def field_for(field: Field, state: State, solver: Solver, way: Gradients) -> Field:
    """The field that a run gets, so that its result carries the gradients that are asked for.

    Args:
        field: ε(σ, x̄).
        state: The start of the run.
        solver: The row.
        way: The way to gradients.

    Returns:
        The field itself where nothing is recorded, and where the run itself records.

    Raises:
        InputError: If the row has no way to gradients, and x̄ or aux need one. Where only the network does, it warns.
    """
    if not torch.is_grad_enabled():
        return field
    if not solver.differentiable:
        if any(part.requires_grad for part in (state.xbar, *state.aux)):
            raise InputError(_without(solver))
        return _Without(field, solver)
    if way == "checkpoint":
        from odeddim.solvers._gradients import Traced

        return Traced(field)
    return field


class _Without:
    """A field for a row that has no gradients: it warns where the network needs one, as most modules of torch do.

    That is no reason to refuse, for most who solve with a network of their own want none.
    """

    def __init__(self, field: Field, solver: Solver) -> None:
        self.field, self.solver, self.looked = field, solver, False

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        if self.looked:
            return self.field(sigma, xbar)
        self.looked = True
        with torch.enable_grad():
            eps = self.field(sigma, xbar)
        if eps.requires_grad:
            warnings.warn(
                f"solver {self.solver.name!r} gives no gradients, so the result carries none of the network's "
                "parameters, which need them: run within torch.no_grad() if you want none, or take another solver, "
                "such as 'unipc-2' or 'belm'",
                stacklevel=2,
            )
        return eps.detach()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


def _without(solver: Solver) -> str:
    return (
        f"solver {solver.name!r} gives no gradients, and the start of the run needs one: take another solver, such as "
        "'unipc-2', 'belm' or 'dopri5-per-image', without parallel=..., or call it within torch.no_grad()"
    )
