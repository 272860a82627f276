"""Multistep solvers: earlier evaluations are used again, so that a step costs one new one.

All of them are quadratures of dx̄ = ε dσ over nodes of any spacing. They differ in what is extrapolated through the
last nodes: ε (Adams-Bashforth) or the predicted image x̂0 = x̄ - σ ε (DPM-Solver++), both in λ = log σ.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from odeddim.types import Field, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

# Adams-Bashforth through k nodes has k-2 first steps of their own: single steps with the local error O(h^k) that the
# global order k allows, evaluated at the step's start and at these parts of it in λ. That is DPM-Solver-3 for k = 4,
# and for k = 3 DPM-Solver-2 with its ε extrapolated, not held (Lu et al. 2022, arXiv 2206.00927, Algorithms 2 and 1).
INNER = {2: (), 3: (1 / 2,), 4: (1 / 3, 2 / 3)}


def log_ratio(a: float, b: float) -> float:
    """log(a/b), as accurate for neighbours (whose difference is exact) as for distant noise levels."""
    return math.log1p((a - b) / b) if 0.5 < a / b < 2.0 else math.log(a / b)


@functools.cache
def _gauss_legendre() -> list[tuple[float, float]]:
    """16 points on [0, 1] with their weights: e^λ times a cubic is exact to rounding over λ-steps up to 10."""
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(16)
    return list(zip(((points + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def lagrange_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """w_j with x̄(end) = x̄(start) + Σ_j w_j·ε(nodes[j]) for ε that is a polynomial in log σ: ∫ L_j(log σ) dσ.

    L_j is the Lagrange polynomial in log σ that is 1 at nodes[j] and 0 at the other nodes (all σ > 0, no two equal).
    By quadrature, because the closed form cancels where steps are small; relative error about 1e-15. This is the
    polynomial extrapolation of DEIS (Zhang & Chen 2022, arXiv 2204.13902) with log σ as its variable.
    """
    span = log_ratio(end, start)
    ahead = [log_ratio(start, node) for node in nodes]
    weights = []
    for j, node in enumerate(nodes):
        others = [(ahead[i], log_ratio(node, other)) for i, other in enumerate(nodes) if i != j]
        integral = 0.0
        for part, share in _gauss_legendre():
            u = part * span
            integral += share * math.exp(u) * math.prod((u + lead) / apart for lead, apart in others)
        weights.append(start * span * integral)
    return weights


def adams_bashforth(field: Field, state: State, sigmas: Tensor, *, k: int) -> State:
    """x̄_{n+1} = x̄_n + Σ_j ε_j ∫ L_j(log σ) dσ: ε extrapolated in log σ through the last k nodes, weights exact.

    state.xbar (B, *) at sigmas[0]; sigmas (N+1,) float64, of any spacing; one evaluation a step, at its start, and
    k-2 more in each of the first k-2 steps. k = 2, 3 or 4 is the global order; k = 2 starts with Euler.
    """
    nodes = sigmas.tolist()
    plan = [_single(*step, INNER[k]) if n < k - 2 else _multi(nodes, n, k) for n, step in enumerate(pairwise(nodes))]
    xbar = state.xbar.clone()
    history: deque[Tensor] = deque(maxlen=k)  # the newest ε first
    for sigma, (stages, weights) in zip(sigmas, plan, strict=False):
        history.appendleft(field(sigma, xbar))
        slopes: Sequence[Tensor] = history
        for inner, parts in stages:
            slopes = [history[0], field(sigmas.new_tensor(inner), _moved(xbar.clone(), parts, slopes))]
        _moved(xbar, weights, slopes)
    return State(xbar, nodes[-1])


# A step: the noise levels inside it, each with the weights that lead there, and the weights of the whole step.
_Step = tuple[list[tuple[float, list[float]]], list[float]]


def _multi(nodes: Sequence[float], n: int, k: int) -> _Step:
    """Step n through its start and the k-1 nodes before it, or as many as there are."""
    return [], lagrange_weights(nodes[max(0, n - k + 1) : n + 1][::-1], nodes[n], nodes[n + 1])


def _single(start: float, end: float, parts: Iterable[float]) -> _Step:
    """A step without history: every move is through the step's start and the latest level inside it."""
    stages = []
    known = [start]
    for part in parts:
        inner = start * (end / start) ** part
        stages.append((inner, lagrange_weights(known, start, inner)))
        known = [start, inner]
    return stages, lagrange_weights(known, start, end)


def _moved(xbar: Tensor, weights: Iterable[float], slopes: Iterable[Tensor]) -> Tensor:
    """x̄ + Σ_j w_j ε_j, in place. There may be more slopes than weights: history that this step does not use."""
    for weight, slope in zip(weights, slopes, strict=False):
        xbar.add_(slope, alpha=weight)
    return xbar


def dpmpp_2m(field: Field, state: State, sigmas: Tensor) -> State:
    """DPM-Solver++(2M): x̂0 = x̄ - σ ε extrapolated through the last two nodes; one evaluation a step.

    With D = x̂0 + (x̂0 - x̂0 of the node before)/(2r), r the ratio of the last step to this one in log σ, the paper's
    step is x̄·σ'/σ + D·(1 - σ'/σ), written here as Euler plus a correction. The first step is Euler.
    Shapes as in `adams_bashforth`. Lu et al. 2022, arXiv 2211.01095, Algorithm 2.
    """
    nodes = sigmas.tolist()
    xbar = state.xbar.clone()
    before: Tensor | None = None
    for n, (here, there) in enumerate(pairwise(nodes)):
        h = there - here
        eps = field(sigmas[n], xbar)
        image = xbar.sub(eps, alpha=here)
        xbar.add_(eps, alpha=h)
        if before is not None:
            r = log_ratio(here, nodes[n - 1]) / log_ratio(there, here)
            xbar.sub_(image.sub(before), alpha=h / here / (2 * r))
        before = image
    return State(xbar, nodes[-1])


def _adams_bashforth_row(k: int) -> Solver:
    warmup = (len(INNER[k]),) * (k - 2)
    return Solver(
        name=f"ab{k}",
        run=functools.partial(adams_bashforth, k=k),
        family="multistep",
        order=k,
        nfe=1,
        warmup=warmup,
        grid="karras",
        reference="Zhang & Chen 2022, arXiv 2204.13902 (DEIS), ε extrapolated in log σ"
        + (f"; start: arXiv 2206.00927, Algorithm {k - 2}" if warmup else ""),
    )


ROWS = (
    *map(_adams_bashforth_row, INNER),
    Solver(
        name="dpmpp-2m",
        run=dpmpp_2m,
        family="multistep",
        order=2,
        nfe=1,
        grid="karras",
        reference="Lu et al. 2022, arXiv 2211.01095, Algorithm 2 (DPM-Solver++ 2M)",
    ),
)
