"""DDIM's stochastic family: sampling with noise, σ_t(η) between the ODE (η = 0) and DDPM (η = 1). Decoding only."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from odeddim.types import Field, InputError, State

if TYPE_CHECKING:
    from torch import Tensor


def ddim(field: Field, state: State, sigmas: Tensor, *, eta: float, noise: Callable[[int], Tensor]) -> State:
    """DDIM sampling with σ_t(η) of eq. 16: one evaluation a step; η = 0 is `euler`, without a draw of noise.

    state.xbar (B, *) at sigmas[0]; sigmas (N+1,) float64, falling; the last may be 0 (the paper's α_0 = 1).
    noise(n): standard normal, like xbar, for step n = 0, 1, ...; asked for only where it has a weight.
    Errors: InputError for rising nodes and for an η that leaves ε an imaginary weight.
    Song et al. 2020, arXiv 2010.02502, eq. 12 and 16.

    Divided by √α, eq. 12 from σ to σ' is x̂0 + √(σ'² - s²)·ε + s·z with x̂0 = x̄ - σ ε and s = σ_t/√α_{t-1}; eq. 16
    is then s = η·σ'·√(1 - σ'²/σ²): nothing at σ' = 0.
    """
    nodes = sigmas.tolist()
    if any(there >= here for here, there in pairwise(nodes)):
        raise InputError("noise (η > 0) can only be added on falling noise levels: encode with η = 0")
    if not eta >= 0 or any(eta**2 * (1 - (there / here) ** 2) > 1 for here, there in pairwise(nodes)):
        raise InputError(f"η = {eta} is out of range: η must be at least 0, and up to 1 fits every grid")
    xbar = state.xbar.clone()
    for n, (here, there) in enumerate(pairwise(nodes)):
        fresh = 1 - (there / here) ** 2
        direction = there * math.sqrt(1 - eta**2 * fresh)  # √(σ'² - s²)
        weight = eta * there * math.sqrt(fresh)
        xbar.add_(field(sigmas[n], xbar), alpha=direction - here)
        if weight > 0:
            xbar.add_(noise(n), alpha=weight)
    return State(xbar, nodes[-1])
