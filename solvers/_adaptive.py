"""What the adaptive families share: their settings, their rows, and the watch on their evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from odeddim.solvers._settings import defaults_of
from odeddim.types import BudgetExceeded, Field, InputError, Solver, State

if TYPE_CHECKING:
    from torch import Tensor


# The longest step in log σ, one e-fold: a longer one can leap over the levels at which an image is decided, unseen by
# its error estimate. On a Gaussian mixture the worst error of dopri5 at 1e-3 fell from 166 to 6 times the tolerance,
# for 53 evaluations instead of 44; at 1e-5 it costs none.
LONGEST = 1.0


EMBEDDED = """
kᵢ = f(x̄ₙ + H·Σⱼ aᵢⱼ·kⱼ, τₙ + cᵢ·H),  j < i
x̄ₙ₊₁ = x̄ₙ + H·Σⱼ bⱼ·kⱼ
error = H·Σⱼ (bⱼ - b̂ⱼ)·kⱼ
a, b, b̂, c: the coefficients of the reference;  H = τₙ₊₁ - τₙ
"""
IN_LOG = "τ = log σ,  f(x̄, τ) = σ·ε(x̄, σ)"
IN_SIGMA = "τ = σ,  f(x̄, τ) = ε(x̄, σ)"
BOSH3 = """
k₁ = f(x̄ₙ, τₙ),  k₂ = f(x̄ₙ + H/2·k₁, τₙ + H/2)
k₃ = f(x̄ₙ + 3H/4·k₂, τₙ + 3H/4)
x̄ₙ₊₁ = x̄ₙ + H/9·(2·k₁ + 3·k₂ + 4·k₃),  k₄ = f(x̄ₙ₊₁, τₙ₊₁)
error = H·(5/72·k₁ - 1/12·k₂ - 1/9·k₃ + 1/8·k₄),  H = τₙ₊₁ - τₙ
"""


def adaptive_row(
    name: str,
    run: Callable[..., State],
    order: int,
    reference: str,
    formula: str,
    *settings: str,
    family: str,
    **declared: Any,
) -> Solver:
    """A row with the settings rtol, atol and max_nfe.

    Args:
        name: See `Solver`, as for order, reference, formula and family.
        run: The run function with all that the row fixes, a `functools.partial`.
        *settings: Its further settings.
        **declared: Further fields of the row.

    Returns:
        The row, whose max_nfe only decides when a run gives up.
    """
    return Solver(
        name=name,
        run=run,
        family=family,
        order=order,
        nfe=None,
        adaptive=True,
        settings=defaults_of(run, "rtol", "atol", "max_nfe", *settings),
        limits=("max_nfe",),
        reference=reference,
        formula=formula,
        **declared,
    )


def check_settings(rtol: float, atol: float, max_nfe: int) -> None:
    """Raise an InputError unless all of these settings are positive."""
    if not (rtol > 0 and atol > 0 and max_nfe > 0):
        raise InputError(f"rtol, atol and max_nfe must be positive, not {rtol}, {atol} and {max_nfe}")


class Watch:
    """dx̄/du for an integrator that chooses its own steps; u is log σ or σ itself.

    It evaluates nothing outside the noise levels from `start.sigma` to `target`, counts every evaluation, and refuses
    an ε that is not finite. The adapter of the integrator keeps `reached`, the last accepted point, up to date.

    Args:
        who: The solver and the image, with which messages begin.
        field: ε(σ, x̄).
        start: The start of the run.
        target: The noise level σ at which the run ends.
        log: Whether u is log σ.
        max_nfe: The most evaluations.
    """

    def __init__(self, who: str, field: Field, start: State, target: float, *, log: bool, max_nfe: int) -> None:
        self.who = who
        self.field = field
        self.start = self.reached = start
        self.target = target
        self.low, self.high = sorted((start.sigma, target))
        self.log = log
        self.max_nfe = max_nfe
        self.nfe = 0

    def u(self, sigma: float) -> float:
        """The integrator's variable u at a noise level."""
        return math.log(sigma) if self.log else sigma

    def sigma(self, u: float) -> float:
        """The noise level at a value of the integrator's variable u, kept between the two ends."""
        # The cap before exp: a wild trial step must not overflow it.
        sigma = math.exp(min(u, self.u(self.high))) if self.log else u
        return min(max(sigma, self.low), self.high)

    def rate(self, u: float, xbar: Tensor, cost: int = 1) -> Tensor:
        """dx̄/du (B, *) at x̄ (B, *).

        Args:
            u: The integrator's variable.
            xbar: x̄ (B, *).
            cost: How many evaluations this one counts as.

        Raises:
            BudgetExceeded: If the run needs more than max_nfe evaluations.
            InputError: If ε is not finite.
        """
        import torch

        sigma = self.sigma(u)
        if self.nfe + cost > self.max_nfe:
            raise self.stopped(f"needs more than max_nfe = {self.max_nfe} evaluations")
        self.nfe += cost
        eps = self.field(torch.tensor(sigma, dtype=torch.float64), xbar)
        if not bool(torch.isfinite(eps).all()):
            raise InputError(f"{self.who}: the field is not finite at σ = {sigma:.6g}: check its input there")
        return eps * sigma if self.log else eps

    def stopped(self, why: str) -> BudgetExceeded:
        """The exception for a run that ends before its target, with the last accepted point as its state."""
        return BudgetExceeded(
            f"{self.who} {why}: on its way from σ = {self.start.sigma:.6g} to {self.target:.6g} it reached "
            f"{self.reached.sigma:.6g} (see `.state`): raise max_nfe, loosen rtol and atol, or take a solver with "
            "fixed steps",
            self.reached,
            self.nfe,
        )
