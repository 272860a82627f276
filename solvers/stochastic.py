"""The stochastic family of DDIM: sampling with noise σ_t(η), from the ODE (η = 0) to DDPM (η = 1). It only decodes.

Divided by √α, eq. 12 from σ to σ' is x̂0 + √(σ'² - s²)·ε + s·z with x̂0 = x̄ - σ ε and s = σ_t/√α_{t-1}. Eq. 16 is
then s = η·σ'·√(1 - σ'²/σ²), which is 0 at σ' = 0: there every member of the family takes the Euler step.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odeddim.solvers._settings import defaults_of
from odeddim.types import Field, InputError, Observe, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

ONLY_DECODES = "adds noise, so it can only decode: encode with an ODE solver such as 'ab2' or 'euler'"


def noise(n: int, shape: tuple[int, ...], *, seed: int = 0, start: int = 0, step: int = 0) -> Tensor:
    """Standard normal noise that depends, for image i, on (seed, start + i, step) only.

    Args:
        n: The number of images.
        shape: The shape of an image, such as (C, H, W).
        seed: The seed, not negative.
        start: The index of the first image, not negative.
        step: 0 for x_T, and n + 1 for what the n-th step of a stochastic run adds.

    Returns:
        The noise, (n, *shape), float32, on the CPU.

    Raises:
        InputError: If n, seed or start is negative.

    Example:
        >>> import torch
        >>> from odeddim.solvers.stochastic import noise
        >>> torch.equal(noise(3, (1, 2, 2))[2:], noise(1, (1, 2, 2), start=2))
        True
    """
    import numpy as np
    import torch

    if n < 0 or seed < 0 or start < 0:
        raise InputError(
            f"the count, the seed and the first index of noise must not be negative, not {n}, {seed} and {start}"
        )
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
    observe: Observe | None = None,
) -> State:
    """A stochastic run: eq. 12 with σ_t(η) of eq. 16, one evaluation a step. With η = 0 it is `euler`.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, falling; the last may be 0 (the paper's α_0 = 1).
        eta: η; 0.5 is the middle of the paper's table 1.
        larger: Whether the noise has the larger σ̂_t = √(1 - α_t/α_{t-1}) of appendix D.3. The weight of ε stays, and a
            step to 0 adds no noise, as in DDPM's own code.
        seed: The seed of the noise.
        first: The index of the first image: in step n, image i gets `noise` of (seed, first + i, n + 1).
        observe: What is shown x̄ at each node between the first and the last.

    Returns:
        The state at sigmas[-1].

    Raises:
        InputError: For rising nodes, and for an η with which the weight of ε would be imaginary.

    Source:
        Song et al. 2020, arXiv 2010.02502.
    """
    nodes = sigmas.tolist()
    if any(there >= here for here, there in pairwise(nodes)):
        raise InputError(f"DDIM's stochastic family {ONLY_DECODES}")
    if not eta >= 0 or any(eta**2 * (1 - (there / here) ** 2) > 1 for here, there in pairwise(nodes)):
        raise InputError(
            f"η = {eta} is out of range: η must be at least 0, and values up to 1 are possible on every grid"
        )
    xbar = state.xbar
    for n, (here, there) in enumerate(pairwise(nodes)):
        if observe is not None and n > 0:
            observe(here, xbar)
        weight, deviation = transition(here, there, eta=eta, larger=larger)
        xbar = xbar.add(field(sigmas[n], xbar), alpha=weight)  # not in place: gradients need what ε is of
        if deviation > 0:
            xbar.add_(noise(len(xbar), xbar.shape[1:], seed=seed, start=first, step=n + 1).to(xbar), alpha=deviation)
    return State(xbar, nodes[-1])


def transition(
    here: float, there: float, *, eta: float = 0.5, larger: bool = False, seed: int = 0, first: int = 0
) -> tuple[float, float]:
    """The distribution of a step of `ddim`; see `odeddim.types.Transition`.

    Args:
        here: The noise level σ at which the step starts, positive.
        there: The noise level σ' at which it ends, lower.
        eta, larger: As of `ddim`.
        seed, first: Which noise is drawn; its distribution does not depend on them.

    Returns:
        The weight of ε, √(σ'² - s²) - σ, and the standard deviation of x̄ at σ'.
    """
    fresh = 1 - (there / here) ** 2
    weight = there * math.sqrt(1 - eta**2 * fresh) - here
    if larger and there > 0:
        return weight, math.sqrt(fresh * (1 + there**2) / (1 + 1 / here**2))  # σ̂_t/√α_{t-1}
    return weight, eta * there * math.sqrt(fresh)


STEP = """
s = η·σₙ₊₁·√(1 - σₙ₊₁²/σₙ²)
x̄ₙ₊₁ = x̂ₙ + √(σₙ₊₁² - s²)·εₙ + {size}·z,  z standard normal
"""
LARGER = "ŝ = √((1 - σₙ₊₁²/σₙ²)·(1 + σₙ₊₁²)/(1 + 1/σₙ²)), and 0 in the step to σ = 0;  η = 1"


def _row(name: str, reference: str, formula: str, *settings: str, **fixed: Any) -> Solver:
    run = functools.partial(ddim, **fixed)
    return Solver(
        name=name,
        run=run,
        family="stochastic",
        order=1,  # the weak order: of the distribution, not of an image
        nfe=1,
        stochastic=True,
        observable=True,
        transition=functools.partial(transition, **fixed),
        grid="linear",
        reference=reference,
        formula=formula,
        settings=defaults_of(run, *settings, "seed", "first"),
    )


ROWS = (
    _row(
        "ddim-eta",
        "Song et al. 2020, arXiv 2010.02502, eq. 12 and 16, η = 0.5 unless given",
        STEP.format(size="s"),
        "eta",
    ),
    _row(
        "ddpm",
        "Ho et al. 2020, arXiv 2006.11239, as arXiv 2010.02502, eq. 12 and 16 with η = 1",
        STEP.format(size="s").rstrip() + "\nη = 1",
        eta=1.0,
    ),
    _row(
        "ddpm-sigma-hat",
        "Song et al. 2020, arXiv 2010.02502, appendix D.3, σ̂",
        STEP.format(size="ŝ") + LARGER,
        eta=1.0,
        larger=True,
    ),
)
