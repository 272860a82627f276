"""DDIM's stochastic family: sampling with noise, σ_t(η) between the ODE (η = 0) and DDPM (η = 1). Decoding only.

Divided by √α, eq. 12 from σ to σ' is x̂0 + √(σ'² - s²)·ε + s·z with x̂0 = x̄ - σ ε and s = σ_t/√α_{t-1}; eq. 16 is
then s = η·σ'·√(1 - σ'²/σ²), nothing at σ' = 0: there every member of the family is Euler's step.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import TYPE_CHECKING

from odeddim.types import Field, InputError, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

ONLY_DECODES = "adds noise, so it can only decode: encode with an ODE solver such as 'ab2' or 'euler'"


def noise(n: int, shape: tuple[int, ...], *, seed: int = 0, start: int = 0, step: int = 0) -> Tensor:
    """Standard normal noise (n, *shape), float32: image i's depends on (seed, start + i, step) only.

    Step 0 is x_T; step n + 1 of a stochastic run is what its n-th step adds.
    """
    import numpy as np
    import torch

    if n < 0 or seed < 0 or start < 0:
        raise InputError(f"the count, the seed and the first index of noise must not be negative: {n}, {seed}, {start}")
    images = []
    for i in range(start, start + n):
        # SeedSequence hashes the three numbers into one: neighbours get unrelated streams.
        key = np.random.SeedSequence([seed, i, step]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(key[0]) << 32 | int(key[1]))
        images.append(torch.randn(shape, generator=generator))
    return torch.stack(images) if images else torch.empty(0, *shape)


def ddim(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    eta: float = 0.5,
    larger: bool = False,
    seed: int = 0,
    first: int = 0,
) -> State:
    """Eq. 12 with σ_t(η) of eq. 16: one evaluation a step; η = 0 is `euler`, without a draw of noise.

    state.xbar (B, *) at sigmas[0]; sigmas (N+1,) float64, falling; the last may be 0 (the paper's α_0 = 1).
    eta: η; 0.5 is the middle of the paper's table 1. larger: the noise has σ̂_t = √(1 - α_t/α_{t-1}) of appendix D.3
    instead, the weight of ε stays; none on a step to 0, as in DDPM's own code. seed, first: the noise of image i in
    step n is `noise` of (seed, first + i, n + 1).
    Errors: InputError for rising nodes and for an η that leaves ε an imaginary weight.
    Song et al. 2020, arXiv 2010.02502.
    """
    nodes = sigmas.tolist()
    if any(there >= here for here, there in pairwise(nodes)):
        raise InputError(f"DDIM's stochastic family {ONLY_DECODES}")
    if not eta >= 0 or any(eta**2 * (1 - (there / here) ** 2) > 1 for here, there in pairwise(nodes)):
        raise InputError(f"η = {eta} is out of range: η must be at least 0, and up to 1 fits every grid")
    xbar = state.xbar.clone()
    for n, (here, there) in enumerate(pairwise(nodes)):
        fresh = 1 - (there / here) ** 2
        direction = there * math.sqrt(1 - eta**2 * fresh)  # √(σ'² - s²)
        weight = eta * there * math.sqrt(fresh)
        if larger and there > 0:
            weight = math.sqrt(fresh * (1 + there**2) / (1 + 1 / here**2))  # σ̂_t/√α_{t-1}
        xbar.add_(field(sigmas[n], xbar), alpha=direction - here)
        if weight > 0:
            xbar.add_(noise(len(xbar), xbar.shape[1:], seed=seed, start=first, step=n + 1).to(xbar), alpha=weight)
    return State(xbar, nodes[-1])


# The order is the weak one: of the distribution, not of an image.
_row = functools.partial(Solver, family="stochastic", order=1, nfe=1, stochastic=True, grid="linear")

ROWS = (
    _row(
        name="ddim-eta",
        run=ddim,
        settings={"eta": float, "seed": int, "first": int},
        reference="Song et al. 2020, arXiv 2010.02502, eq. 12 and 16, η = 0.5 unless given",
    ),
    _row(
        name="ddpm",
        run=functools.partial(ddim, eta=1.0),
        settings={"seed": int, "first": int},
        reference="Ho et al. 2020, arXiv 2006.11239, as arXiv 2010.02502, eq. 12 and 16 with η = 1",
    ),
    _row(
        name="ddpm-sigma-hat",
        run=functools.partial(ddim, eta=1.0, larger=True),
        settings={"seed": int, "first": int},
        reference="Song et al. 2020, arXiv 2010.02502, appendix D.3, σ̂",
    ),
)
