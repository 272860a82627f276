"""What a walk along a plan is made of: the state made ready, the solver's run, the Euler step at σ = 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
from odeddim.ode.tops import LACKS
from odeddim.types import Field, Gradients, InputError, Observe, Solver, State

Callback: TypeAlias = Callable[[int, float, Tensor], Any]
"""callback(step, sigma, xbar): what a run calls after each step, at its node; steps count from 1."""


class Steps:
    """Who observes a run for a callback: it counts the steps, and hands out copies."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.made = 0

    def __call__(self, sigma: float, xbar: Tensor) -> None:
        self.made += 1
        with torch.no_grad():
            self.callback(self.made, sigma, xbar.clone())


def ready(field: VectorField | Field, state: State) -> tuple[Field, State]:
    """The state on the field's device, after a check that the model takes it."""
    if isinstance(field, VectorField):
        field.check(state.xbar)
        if field.device is not None:
            wait = field.device.type == "cpu"  # a copy to the CPU would be read before it is there
            xbar, *aux = (part.to(field.device, non_blocking=not wait) for part in (state.xbar, *state.aux))
            state = replace(state, xbar=xbar, aux=tuple(aux))
    return field, state


def gaussian_of(field: Field) -> Gaussian:
    """The Gaussian of a field; an InputError if it has none."""
    found = getattr(field, "moments", None)
    if not isinstance(found, Gaussian):
        raise InputError(LACKS.format(repr(field.name) if isinstance(field, VectorField) else "of this run"))
    return found


def solved(
    field: Field,
    state: State,
    sigmas: Tensor,
    solver: Solver,
    shown: Callable[[State], State],
    observe: Observe | None,
    way: Gradients,
) -> State:
    """The run of a solver, with the Euler step next to σ = 0.

    Args:
        field: ε(σ, x̄).
        state: The state at sigmas[0].
        sigmas: The noise levels, (N+1,) float64, rising or falling; the lowest may be 0.
        solver: The row.
        shown: What is given each state that is reached outside the row, and gives it back.
        observe: The observer of the row, see `Solver.walk`.
        way: The way to gradients.

    Returns:
        The state at sigmas[-1].
    """
    if solver.to_zero:
        return shown(solver.walk(field, state, sigmas, observe, way))
    leaves_zero = float(sigmas[0]) == 0
    if leaves_zero:
        state = shown(_euler(field, state, sigmas[0], sigmas[1]))
        sigmas = sigmas[1:]
    lands_on_zero = float(sigmas[-1]) == 0
    inner = sigmas[:-1] if lands_on_zero else sigmas
    if len(inner) > 1:
        state = shown(solver.walk(field, state, inner, observe, way))
    if lands_on_zero:
        state = shown(_euler(field, state, sigmas[-2], sigmas[-1]))
    if "evaluations" in state.report and leaves_zero + lands_on_zero:
        spent = state.report["evaluations"] + leaves_zero + lands_on_zero
        state = replace(state, report={**state.report, "evaluations": spent})
    return state


def _euler(field: Field, state: State, source: Tensor, target: Tensor) -> State:
    eps = field(source, state.xbar)
    return replace(state, xbar=torch.add(state.xbar, eps, alpha=float(target - source)), sigma=float(target))
