"""The solvers of scipy, one image after another: its steps and its result do not depend on its neighbours.

scipy computes in float64 on the CPU. The field gets the dtype and the device of the state.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from odeddim.solvers._adaptive import EMBEDDED, IN_LOG, LONGEST, Watch, adaptive_row, check_settings
from odeddim.types import Field, Solver, State

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IMPLICIT = ("LSODA", "Radau", "BDF")
COLUMNS = 64  # of a Jacobian, in one evaluation of the field
DISPLACEMENT = 1e-4  # relative, of a Jacobian's differences: well above the rounding of a float32 network


def ivp(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    method: str,
    strict: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 10_000,
) -> State:
    """A method of scipy.integrate in log σ, from sigmas[0] to sigmas[-1].

    The implicit methods compute a Jacobian by differences. That costs n + 1 evaluations for an image of n numbers, and
    n×n numbers of memory, so these methods are for small images, up to about 3×32×32.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, all positive, rising or falling. Those between the ends are not used.
        method: The name of the class in scipy.integrate.
        strict: A factor on both tolerances.
        rtol: The relative tolerance on each number of x̄.
        atol: The absolute tolerance on each number of x̄.
        max_nfe: The most evaluations of an image.

    Returns:
        The state at sigmas[-1]. Its report has "evaluations", (B,) int64.

    Raises:
        BudgetExceeded: With the last accepted point of the image (1, *) that needs more than max_nfe, or steps that
            are too small.
        InputError: If a setting is out of its range, or the field is not finite.
    """
    import torch

    check_settings(rtol, atol, max_nfe)
    with torch.no_grad():
        images, spent = [], []
        for i in range(len(state.xbar)):
            who = f"scipy {method}, image {i} of the batch"
            start = State(state.xbar[i : i + 1], float(sigmas[0]))
            watch = Watch(who, field, start, float(sigmas[-1]), log=True, max_nfe=max_nfe)
            images.append(_one_image(watch, method, rtol=rtol * strict, atol=atol * strict, max_step=LONGEST))
            spent.append(watch.nfe)
    return State(torch.cat(images), float(sigmas[-1]), report={"evaluations": torch.tensor(spent)})


def _one_image(watch: Watch, method: str, **options: Any) -> Tensor:
    """x̄ (1, *) at the watch's target."""
    import numpy as np
    import torch
    from scipy import integrate

    like = watch.reached.xbar

    def images(y: np.ndarray) -> Tensor:
        return torch.from_numpy(y).reshape(-1, *like.shape[1:]).to(like)

    def rates(u: float, y: np.ndarray) -> np.ndarray:
        """(B, n) or (n,) -> (B, n): every row counts as an evaluation."""
        xbar = images(y)
        rate = watch.rate(u, xbar, cost=len(xbar)).reshape(len(xbar), -1)
        return rate.cpu().double().numpy()

    def jacobian(u: float, y: np.ndarray) -> np.ndarray:
        steps = DISPLACEMENT * np.maximum(np.abs(y), 1.0)
        displaced = y + np.diag(steps)
        moved = np.concatenate([rates(u, displaced[i : i + COLUMNS]) for i in range(0, len(y), COLUMNS)])
        columns: np.ndarray = (moved - rates(u, y)) / steps[:, None]
        return columns.T

    if method in IMPLICIT:
        options["jac"] = jacobian
    y = like.cpu().double().numpy().ravel()
    solver = getattr(integrate, method)(
        lambda u, y: rates(u, y)[0], watch.u(watch.reached.sigma), y, watch.u(watch.target), **options
    )
    while solver.status == "running":
        solver.step()
        watch.reached = State(images(solver.y), watch.sigma(solver.t))
    if solver.status == "failed":
        raise watch.stopped("cannot make its steps small enough")
    return watch.reached.xbar


LSODA = """
Σⱼ αⱼ·x̄ₙ₊₁₋ⱼ = H·Σⱼ βⱼ·fₙ₊₁₋ⱼ
Coefficients: Adams' up to order 12, or where the problem is stiff, those of
backward differentiation up to order 5
"""
RADAU = """
kᵢ = f(x̄ₙ + H·Σⱼ aᵢⱼ·kⱼ, τₙ + cᵢ·H),  i, j = 1, 2, 3, solved by Newton's method
x̄ₙ₊₁ = x̄ₙ + H·Σⱼ bⱼ·kⱼ
"""
BDF = """
Σₘ ∇ᵐx̄ₙ₊₁/m = H·fₙ₊₁ + κₖ·(1 + 1/2 + ... + 1/k)·(x̄ₙ₊₁ - uₙ₊₁),  m = 1, ..., k
solved by Newton's method;  order k = 1, ..., 5, chosen by the run
uₙ₊₁: the polynomial through the last k + 1 points, at τₙ₊₁
"""


def _row(name: str, method: str, order: int, reference: str, formula: str, **settings: Any) -> Solver:
    run = functools.partial(ivp, method=method, **settings)
    source = f"{reference}; scipy.integrate.{method}"
    shared: dict[str, Any] = {"family": "scipy", "one_by_one": True, "differentiable": False}
    return adaptive_row(name, run, order, source, f"{formula.strip()}\n{IN_LOG}", **shared)


ROWS = (
    _row("scipy-rk45", "RK45", 5, "Dormand & Prince 1980", EMBEDDED),
    _row("scipy-dop853", "DOP853", 8, "Hairer, Nørsett & Wanner 1993", EMBEDDED),
    # Order: the highest that it may choose. The many small steps of this one and of BDF add up to errors of 100 times
    # what each step is allowed, so they are allowed less. A Jacobian counts its columns, so they may count further.
    _row("scipy-lsoda", "LSODA", 12, "Petzold 1983", LSODA, strict=0.1, max_nfe=100_000),
    _row("scipy-radau", "Radau", 5, "Hairer & Wanner 1996, Radau IIA", RADAU, max_nfe=100_000),
    _row("scipy-bdf", "BDF", 5, "Shampine & Reichelt 1997", BDF, strict=0.1, max_nfe=100_000),
)
