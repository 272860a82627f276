"""Multistep solvers in the principal components of the model's data: what a Gaussian explains is not extrapolated.

With ε = ε_G + r, where ε_G is the ε of the Gaussian with the data's mean and covariance, a component z_k of x̄ - μ along
an eigenvector of variance λ_k obeys, as y_k = z_k/√(λ_k + σ²), dy_k/dτ_k = r_k with a time of its own,
τ_k = asinh(σ/√λ_k). Adams-Bashforth extrapolates r as a polynomial in log σ and integrates it exactly over dτ_k. It is
exact for Gaussian data. As λ → ∞ it is `ab2` or `ab3`, as λ → 0 the same of the predicted image (DPM-Solver++). (r as a
polynomial in τ_k itself decodes a little worse, and encodes many times worse: τ_k is σ at low noise, where steps that
are even in log σ grow by a factor.)

The Gaussian is the attribute `moments` of the field, as a `VectorField` has it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odeddim.solvers._points import gauss_legendre, log_ratio
from odeddim.solvers._settings import defaults_of
from odeddim.types import Field, InputError, Moments, Observe, Solver, State, pick

if TYPE_CHECKING:
    from torch import Tensor

STARTS = ("single", "lower")
"""How a method of order 3 begins: by a step of two evaluations, or with order 2."""


def weights(variances: Tensor, known: Sequence[float], start: float, end: float) -> list[Tensor]:
    """The weights w_j of y(end) = y(start) + Σ_j w_j·r(known[j]), exact if r is a polynomial in log σ.

    w_j = ∫ L_j dτ, by the quadrature of `odeddim.solvers._points.lagrange_weights`, with dτ/d log σ = σ/√(λ + σ²).

    Args:
        variances: The variances λ, (K,) float64; 0 is allowed.
        known: The noise levels at which r is known, no two equal.
        start: The noise level at which the step starts.
        end: The noise level at which it ends.

    Returns:
        For each noise level its weights, (K,) float64.
    """
    span, places = log_ratio(end, start), [log_ratio(sigma, start) for sigma in known]
    found = [variances * 0 for _ in known]
    for part, share in gauss_legendre(max(1, math.ceil(abs(span) / 2))):
        u = part * span
        sigma = start * math.exp(u)
        speed = share * span * sigma / (variances + sigma**2).sqrt()
        for j, place in enumerate(places):
            others = math.prod((u - other) / (place - other) for i, other in enumerate(places) if i != j)
            found[j] = found[j] + speed * others
    return found


def run(
    field: Field, state: State, sigmas: Tensor, *, k: int, warmup: str = "single", observe: Observe | None = None
) -> State:
    """Adams-Bashforth through the last k nodes, integrated over each principal component's own time τ_k.

    A step costs one evaluation, and the first one of k = 3 another.

    Args:
        field: ε(σ, x̄), with the attribute `moments`.
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, all positive, rising or falling.
        k: 2 or 3 nodes, which is the global order.
        warmup: One of `STARTS`, for k = 3.
        observe: What is shown x̄ at each node between the first and the last.

    Returns:
        The state at sigmas[-1].

    Raises:
        InputError: If the field has no moments, or for an unknown warmup.
    """
    pick(warmup, STARTS, "warmup")
    moments, levels = moments_of(field), sigmas.tolist()
    centre = moments.centre(state.xbar)
    path = _Path(field, moments, state.xbar.to(centre) - centre, centre, state.xbar)
    known: list[tuple[float, Tensor]] = []  # the newest first
    for n, (here, there) in enumerate(pairwise(levels)):
        known = [(here, path.slope(sigmas.new_tensor(here))), *known[: k - 1]]
        if k == 3 and n == 0 and warmup == "single":
            middle = math.sqrt(here * there)
            trial = path.moved(known, here, middle)
            known.append((middle, path.slope(sigmas.new_tensor(middle), trial)))
            path.apart = path.moved(known, here, there)
            known.pop()
        else:
            path.apart = path.moved(known, here, there)
        if observe is not None and n < len(levels) - 2:
            observe(there, path.xbar())
    return State(path.xbar(), levels[-1])


class _Path:
    """x̄ - μ in float64, and what moves it."""

    def __init__(self, field: Field, moments: Moments, apart: Tensor, centre: Tensor, like: Tensor) -> None:
        self.field, self.moments, self.apart, self.centre, self.like = field, moments, apart, centre, like

    def xbar(self, apart: Tensor | None = None) -> Tensor:
        """x̄ in the dtype of the state."""
        return ((self.apart if apart is None else apart) + self.centre).to(self.like)

    def slope(self, sigma: Tensor, apart: Tensor | None = None) -> Tensor:
        """r = ε - ε_G, (B, *) float64."""
        xbar = self.xbar(apart)
        return self.field(sigma, xbar).to(self.apart) - self.moments.eps(sigma, xbar.to(self.apart))

    def moved(self, known: Sequence[tuple[float, Tensor]], here: float, there: float) -> Tensor:
        """x̄ - μ at the end of a step, by the slopes r at noise levels, the one of its start first."""
        levels = [sigma for sigma, _ in known]
        growth = self.moments.per_component(lambda v: ((v + there**2) / (v + here**2)).sqrt())
        terms = [(self.apart, *growth)]
        for j, (_, slope) in enumerate(known):
            factors = self.moments.per_component(functools.partial(_factor, j, levels, here, there))
            terms.append((slope, *factors))
        return self.moments.filtered(terms)


def _factor(j: int, levels: Sequence[float], here: float, there: float, variances: Tensor) -> Tensor:
    """What the slope at levels[j] is multiplied by in a step of z, (K,)."""
    return (variances + there**2).sqrt() * weights(variances, levels, here, there)[j]


def moments_of(field: Field) -> Moments:
    found: Moments | None = getattr(field, "moments", None)
    if found is None:
        raise InputError(
            "this solver needs the Gaussian of the model's data, and the model has none that holds under its "
            "condition: compute it with `odeddim moments`, or take another solver, such as 'ab3'"
        )
    return found


FORMULA = """
yₖ = uₖ·(x̄ - μ)/√(λₖ + σ²),  τₖ = asinh(σ/√λₖ),  rₖ = uₖ·ε - σ·yₖ/√(λₖ + σ²)
yₖ(σₙ₊₁) = yₖ(σₙ) + Σⱼ wₖⱼ·rₖ(σₙ₋ⱼ),  j = 0, ..., order - 1
wₖⱼ = ∫ Lⱼ dτₖ from σₙ to σₙ₊₁
Lⱼ: the polynomial in log σ that is 1 at σₙ₋ⱼ and 0 at the other nodes
μ, λₖ, uₖ: mean, variances and eigenvectors of the model's data
"""


def _row(k: int, **declared: Any) -> Solver:
    return Solver(
        name=f"gauss-ab{k}",
        run=functools.partial(run, k=k),
        family="principal components",
        order=k,
        nfe=1,
        reference="this package, between DEIS (λ → ∞) and DPM-Solver++ (λ → 0)",
        grid="log",
        formula=FORMULA,
        observable=True,
        **declared,
    )


ROWS = (_row(2), _row(3, warmup=(1,), settings=defaults_of(run, "warmup")))
