"""Solutions of the ODE that share no code with the solvers: what solvers are measured by.

The classical Runge-Kutta method in log σ, in float64, with the same Euler step between σ = 0 and σ_1 that all runs
take. How far it is off is the distance to the same with half the steps.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.types import Field


def runge_kutta(field: Field, xbar: Tensor, low: float, high: float, steps: int) -> Tensor:
    """Move x̄ from σ = low to σ = high by the classical method of order 4 on dx̄/ds = σ·ε, s = log σ, in even steps.

    Args:
        field: ε(σ, x̄).
        xbar: x̄ (B, *) at σ = low.
        low: The noise level of the start, above 0.
        high: The noise level of the end, above 0; it may lie below `low`.
        steps: The number of steps, of four evaluations each.

    Returns:
        x̄ (B, *) at σ = high, float64.

    Source:
        W. Kutta, Zeitschrift für Mathematik und Physik 46, 1901.
    """
    s = torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64)

    def slope(s: Tensor, xbar: Tensor) -> Tensor:
        return field(s.exp(), xbar) * float(s.exp())

    xbar = xbar.double()
    for here, there in pairwise(s):
        h, middle = float(there - here), (here + there) / 2
        k1 = slope(here, xbar)
        k2 = slope(middle, xbar + h / 2 * k1)
        k3 = slope(middle, xbar + h / 2 * k2)
        k4 = slope(there, xbar + h * k3)
        xbar = xbar + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return xbar


def encoded(field: VectorField, x_0: Tensor, steps: int, end: str = "zero") -> Tensor:
    """Return the latents x_T (B, *), unit variance, float64, of images x_0 (B, *) at an end, "zero" or "sigma_min"."""
    low, high = field.schedule.sigma_min, field.schedule.sigma_max
    first = x_0.double()
    if end == "zero":
        first = first + low * field(torch.tensor(0.0, dtype=torch.float64), first)
    return runge_kutta(field, first, low, high, steps) / math.sqrt(1 + high**2)


def decoded(field: VectorField, x_T: Tensor, steps: int, end: str = "zero") -> Tensor:
    """Return the images (B, *) at an end, "zero" or "sigma_min", float64, of latents x_T (B, *) of unit variance."""
    low, high = field.schedule.sigma_min, field.schedule.sigma_max
    last = runge_kutta(field, x_T.double() * math.sqrt(1 + high**2), high, low, steps)
    return last - low * field(torch.tensor(low, dtype=torch.float64), last) if end == "zero" else last
