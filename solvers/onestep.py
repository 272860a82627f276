"""One-step solvers in σ: each step sees nothing but the state at its start."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from odeddim.types import Field, Solver, State

if TYPE_CHECKING:
    from torch import Tensor


def euler(field: Field, state: State, sigmas: Tensor) -> State:
    """x̄_{n+1} = x̄_n + (σ_{n+1} - σ_n) ε(x̄_n, σ_n). Falling it is DDIM, rising it is DDIM inversion.

    state.xbar (B, *) at sigmas[0]; sigmas (N+1,) float64; one evaluation a step, at the step's start.
    Song et al. 2020, arXiv 2010.02502, eq. 13.
    """
    nodes = sigmas.tolist()
    xbar = state.xbar.clone()
    for sigma, (here, there) in zip(sigmas, pairwise(nodes), strict=False):
        xbar.add_(field(sigma, xbar), alpha=there - here)
    return State(xbar, nodes[-1])


def heun(field: Field, state: State, sigmas: Tensor) -> State:
    """Euler to the next node, then again with the mean of the slopes at both ends.

    Shapes as in `euler`; two evaluations a step, at both of its nodes. Karras et al. 2022, arXiv 2206.00364,
    Algorithm 1; its last step without correction is only for σ = 0, which no solver sees.
    """
    nodes = sigmas.tolist()
    xbar = state.xbar.clone()
    for n, (here, there) in enumerate(pairwise(nodes)):
        h = there - here
        first = field(sigmas[n], xbar)
        second = field(sigmas[n + 1], xbar.add(first, alpha=h))
        xbar.add_(first, alpha=h / 2).add_(second, alpha=h / 2)
    return State(xbar, nodes[-1])


ROWS = (
    Solver(
        name="euler",
        run=euler,
        family="one-step",
        order=1,
        nfe=1,
        onestep=True,
        grid="linear",
        reference="Song et al. 2020, arXiv 2010.02502, eq. 13 (DDIM)",
    ),
    Solver(
        name="heun",
        run=heun,
        family="one-step",
        order=2,
        nfe=2,
        onestep=True,
        grid="karras",
        reference="Karras et al. 2022, arXiv 2206.00364, Algorithm 1 (EDM)",
    ),
)
