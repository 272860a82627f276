"""Solvers that add noise, from the ODE (η = 0) to a stochastic differential equation. They only decode.

DDIM's family: divided by √α, eq. 12 from σ to σ' is x̂0 + √(σ'² - s²)·ε + s·z with x̂0 = x̄ - σ ε and s = σ_t/√α_{t-1}.
Eq. 16 is then s = η·σ'·√(1 - σ'²/σ²), which is 0 at σ' = 0: there every row takes the Euler step.

ER-SDE and SA-Solver are multistep methods. A step keeps a part of x̄, adds predicted images x̂0 of the last nodes, and
noise. All rows draw once a step, for each image by itself (`noise`), so that a batch changes nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odeddim.solvers._points import BETA_MAX, BETA_MIN, combined, gauss_legendre, log_ratio
from odeddim.solvers._settings import defaults_of
from odeddim.types import Field, InputError, Observe, RunFunction, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

MOST_NOISE = 10.0
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


def _falling(sigmas: Tensor) -> list[float]:
    """The nodes; an InputError if they rise."""
    nodes: list[float] = sigmas.tolist()
    if any(there >= here for here, there in pairwise(nodes)):
        raise InputError(f"a run along rising noise levels cannot be made by a solver that {ONLY_DECODES}")
    return nodes


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
    nodes = _falling(sigmas)
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
            fresh = noise(len(xbar), xbar.shape[1:], seed=seed, start=first, step=n + 1)
            xbar.add_(fresh.to(xbar, non_blocking=True), alpha=deviation)
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


@dataclass(frozen=True)
class Step:
    """The arithmetic of a step with noise: x̄' = keep·x̄ + Σ images[n]·x̂ₙ + deviation·z.

    Attributes:
        keep: The weight of x̄.
        images: {n: weight} of the images x̂ₙ = x̄ₙ - σₙ·εₙ predicted at node n.
        deviation: The standard deviation of the noise, 0 for none.
    """

    keep: float
    images: Mapping[int, float]
    deviation: float = 0.0


def er_sde(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    order: int,
    eta: float = 1.0,
    seed: int = 0,
    first: int = 0,
    observe: Observe | None = None,
) -> State:
    """ER-SDE-Solver: x̂0 is extrapolated by Taylor's formula in σ, with finite differences; one evaluation a step.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, falling and positive.
        order: The number of nodes whose x̂0 are used, 2 or 3, as the paper counts.
        eta: η, the amount of noise. The noise scale function is φ(σ) = σ·(exp(σ^0.3) + 10)^η: that of the authors' code
            for η = 1, and the ODE for η = 0.
        seed, first: As of `ddim`.
        observe: What is shown x̄ at each node between the first and the last.

    Returns:
        The state at sigmas[-1].

    Raises:
        InputError: For rising nodes, and for a negative η.

    Source:
        Cui et al. 2023, arXiv 2309.06169, Algorithms 2 and 3.
    """
    nodes, xbar = _falling(sigmas), state.xbar
    _check_amount(eta)
    images: dict[int, Tensor] = {}
    for n, there in enumerate(nodes[1:]):
        if observe is not None and n > 0:
            observe(nodes[n], xbar)
        images[n] = xbar.add(field(sigmas[n], xbar), alpha=-nodes[n])
        images.pop(n - order, None)
        step = er_sde_step(nodes[: n + 1], there, order=order, eta=eta)
        xbar = _moved(step, xbar, images, _drawn(step, xbar, seed=seed, first=first, n=n))
    return State(xbar, nodes[-1])


def er_sde_step(passed: Sequence[float], there: float, *, order: int, eta: float) -> Step:
    """A step of `er_sde`.

    Args:
        passed: The noise levels of the run until now; the step starts at the last one.
        there: The noise level at which the step ends, lower and positive.
        order, eta: As of `er_sde`.

    Returns:
        The step.
    """
    here, n = passed[-1], len(passed) - 1
    shrunk = eta * (_log_excess(there) - _log_excess(here))  # log of (φ(σ')/σ')/(φ(σ)/σ)
    ratio = math.exp(shrunk) * there / here
    images = {n: 1 - ratio}
    # The moments of φ(σ')/φ(λ) - 1 over the step, which are what Taylor's terms are multiplied by.
    span, moments = log_ratio(here, there), [0.0, 0.0]
    for part, share in gauss_legendre(max(1, math.ceil(span))):
        level = there * math.exp(part * span)
        excess = math.expm1(eta * (_log_excess(there) - _log_excess(level)) - part * span) * level * span * share
        moments[0] += excess
        moments[1] += excess * (level - here)
    if order > 1 and n > 0:
        _add_slope(images, passed, n, moments[0])
    if order > 2 and n > 1:
        curve = 2 * moments[1] / (here - passed[n - 2])
        _add_slope(images, passed, n, curve)
        _add_slope(images, passed, n - 1, -curve)
    return Step(ratio, images, there * math.sqrt(-math.expm1(2 * shrunk)))


def _add_slope(images: dict[int, float], passed: Sequence[float], n: int, weight: float) -> None:
    """Add the finite difference of x̂0 over the step before node n, with a weight."""
    part = weight / (passed[n] - passed[n - 1])
    images[n] = images.get(n, 0.0) + part
    images[n - 1] = images.get(n - 1, 0.0) - part


def _log_excess(sigma: float) -> float:
    """log of φ(σ)/σ at η = 1, as of the authors' code (its function 7)."""
    power: float = sigma**0.3
    return power + math.log1p(10 * math.exp(-power))


def _level_at(time: float) -> float:
    """The noise level at a time t of the VP process of DDPM."""
    return math.sqrt(math.expm1(BETA_MIN * time + (BETA_MAX - BETA_MIN) * time**2 / 2))


NOISY = (_level_at(0.2), _level_at(0.8))
"""Where SA-Solver adds noise: the noise levels of 0.2 <= t <= 0.8 in DDPM's time, which is its authors' choice."""
PREDICTOR, CORRECTOR = 3, 4
"""The orders of SA-Solver that its authors recommend without strong guidance."""


def sa_solver(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    eta: float = 1.0,
    seed: int = 0,
    first: int = 0,
    observe: Observe | None = None,
) -> State:
    """SA-Solver: a stochastic Adams predictor of order 3 and a corrector of order 4; one evaluation a step.

    x̂0 is a polynomial in log σ through the last nodes; the corrector takes the image predicted at the end of the step
    too, and the noise of the predictor. The order rises from 1 and falls to 1 again. The last step adds no noise and is
    not corrected: it is Euler's.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, falling; the last may be 0.
        eta: The value of the paper's τ between the noise levels `NOISY`; τ is 0 elsewhere. With η = 0 the method is
            UniPC-3 with B₁(h), begun with lower orders.
        seed, first: As of `ddim`.
        observe: What is shown x̄ at each node between the first and the last.

    Returns:
        The state at sigmas[-1].

    Raises:
        InputError: For rising nodes, and for a negative η.

    Source:
        Xue et al. 2023, arXiv 2309.05019, eq. 14 and 17, and the authors' code for few steps.
    """
    nodes, xbar = _falling(sigmas), state.xbar
    _check_amount(eta)
    images: dict[int, Tensor] = {}
    predicted, drawn, before = xbar, None, xbar
    for n in range(len(nodes) - 1):
        images[n] = predicted.add(field(sigmas[n], predicted), alpha=-nodes[n])
        if n > 0:
            xbar = _moved(sa_solver_step(nodes, n, eta=eta, corrects=True), before, images, drawn)
            if observe is not None:
                observe(nodes[n], xbar)
        images.pop(n - PREDICTOR, None)
        step = sa_solver_step(nodes, n + 1, eta=eta)
        drawn, before = _drawn(step, xbar, seed=seed, first=first, n=n), xbar
        predicted = _moved(step, before, images, drawn)
    return State(predicted, nodes[-1])


def sa_solver_step(nodes: Sequence[float], n: int, *, eta: float, corrects: bool = False) -> Step:
    """The step of `sa_solver` to node n, n > 0: what predicts it, or what corrects it.

    Args:
        nodes: The noise levels of the run, falling.
        n: The index of the node at which the step ends.
        eta: As of `sa_solver`.
        corrects: Whether the image predicted at node n is known.

    Returns:
        The step.
    """
    here, there, left = nodes[n - 1], nodes[n], len(nodes) - 1 - n
    if left == 0:
        return Step(there / here, {n - 1: 1 - there / here})
    order = min(CORRECTOR, n + 1, left + 2) if corrects else min(PREDICTOR, n, left + 1)
    newest = n if corrects else n - 1
    known = range(newest, newest - order, -1)
    tau = eta if NOISY[0] <= there <= NOISY[1] else 0.0
    h, rate = log_ratio(here, there), 1 + tau**2
    if order == 2:  # the slope has the weight of small steps, as in the authors' code for few steps
        slope = rate * h**2 / 2 / log_ratio(nodes[known[1]], nodes[known[0]])
        other = n - 2 if not corrects else n - 1
        whole = -math.expm1(-rate * h)
        images = {n - 1: whole + slope, other: -slope} if not corrects else {n: slope, other: whole - slope}
    else:
        images = dict.fromkeys(known, 0.0)
        for part, share in gauss_legendre(max(1, math.ceil(rate * h))):
            density = rate * h * share * math.exp(-rate * h * (1 - part))
            for j in known:
                at = (log_ratio(nodes[i], here) + part * h for i in known if i != j)
                apart = (log_ratio(nodes[i], nodes[j]) for i in known if i != j)
                images[j] += density * math.prod(at) / math.prod(apart)
    return Step(math.exp(-rate * h), images, there * math.sqrt(-math.expm1(-2 * tau**2 * h)))


def _check_amount(eta: float) -> None:
    if not 0 <= eta <= MOST_NOISE:
        raise InputError(f"η = {eta} is out of range: η must be between 0 and {MOST_NOISE:g}")


def _drawn(step: Step, xbar: Tensor, *, seed: int, first: int, n: int) -> Tensor | None:
    """The noise of step n, (B, *), times its deviation; None if it has none."""
    if step.deviation == 0:
        return None
    fresh = noise(len(xbar), xbar.shape[1:], seed=seed, start=first, step=n + 1)
    return fresh.to(xbar, non_blocking=True).mul_(step.deviation)


def _moved(step: Step, xbar: Tensor, images: Mapping[int, Tensor], drawn: Tensor | None) -> Tensor:
    """x̄ at the end of a step, a new tensor."""
    terms = [(step.keep, xbar), *((weight, images[n]) for n, weight in step.images.items())]
    return combined(terms if drawn is None else [*terms, (1.0, drawn)])


STEP = """
s = η·σₙ₊₁·√(1 - σₙ₊₁²/σₙ²)
x̄ₙ₊₁ = x̂ₙ + √(σₙ₊₁² - s²)·εₙ + {size}·z,  z standard normal
"""
ER_SDE = """
φ(σ) = σ·(exp(σ^0.3) + 10)^η,  r = φ(σₙ₊₁)/φ(σₙ)
A = ∫ (φ(σₙ₊₁)/φ(λ) - 1) dλ from σₙ₊₁ to σₙ,  dₙ = (x̂ₙ - x̂ₙ₋₁)/(σₙ - σₙ₋₁)
x̄ₙ₊₁ = r·x̄ₙ + (1 - r)·x̂ₙ + A·dₙ{terms} + √(σₙ₊₁² - r²·σₙ²)·z
"""
ER_SECOND = """B = ∫ (φ(σₙ₊₁)/φ(λ) - 1)·(λ - σₙ) dλ from σₙ₊₁ to σₙ
d′ₙ = 2·(dₙ - dₙ₋₁)/(σₙ - σₙ₋₂)
"""
SA_SOLVER = f"""
κ = 1 + τ²,  τ = η where {NOISY[0]:.3g} ≤ σₙ₊₁ ≤ {NOISY[1]:.3g}, else 0
s = σₙ₊₁·√(1 - ρₙ^(2·τ²))
ũₙ₊₁ = ρₙ^κ·x̄ₙ + Σⱼ vⱼ·x̂ₙ₋ⱼ + s·z,  j = 0, 1, 2
x̄ₙ₊₁ = ρₙ^κ·x̄ₙ + Σⱼ wⱼ·x̂ₙ₋ⱼ + s·z,  j = -1, 0, 1, 2
x̂ₙ = ũₙ - σₙ·ε(ũₙ, σₙ): the field is evaluated at the prediction ũ, once a step
Weights v, w: κ·∫ e^(κ·(λ - λₙ₊₁))·Lⱼ dλ from λₙ to λₙ₊₁, λ = -log σ
Lⱼ: the polynomial in λ that is 1 at node n-j and 0 at the other nodes
The first steps and the last but one: lower orders; the last: Euler's
"""
LARGER = "ŝ = √((1 - σₙ₊₁²/σₙ²)·(1 + σₙ₊₁²)/(1 + 1/σₙ²)), and 0 in the step to σ = 0;  η = 1"


def _row(
    name: str, run: RunFunction, order: int, reference: str, formula: str, *settings: str, **declared: Any
) -> Solver:
    return Solver(
        name=name,
        run=run,
        family="stochastic",
        order=order,  # the weak order: of the distribution, not of an image
        nfe=1,
        stochastic=True,
        observable=True,
        grid="linear",
        reference=reference,
        formula=formula,
        settings=defaults_of(run, *settings, "seed", "first"),
        **declared,
    )


def _ddim_row(name: str, reference: str, formula: str, *settings: str, **fixed: Any) -> Solver:
    run, step = functools.partial(ddim, **fixed), functools.partial(transition, **fixed)
    return _row(name, run, 1, reference, formula, *settings, transition=step)


def _er_sde_row(order: int) -> Solver:
    run = functools.partial(er_sde, order=order)
    terms = {2: "", 3: " + B·d′ₙ"}[order]
    second = "" if order == 2 else ER_SECOND
    formula = ER_SDE.format(terms=terms) + second
    return _row(f"er-sde-{order}", run, 2, f"Cui et al. 2023, arXiv 2309.06169, Algorithm {order}", formula, "eta")


ROWS = (
    _ddim_row(
        "ddim-eta",
        "Song et al. 2020, arXiv 2010.02502, eq. 12 and 16, η = 0.5 unless given",
        STEP.format(size="s"),
        "eta",
    ),
    _ddim_row(
        "ddpm",
        "Ho et al. 2020, arXiv 2006.11239, as arXiv 2010.02502, eq. 12 and 16 with η = 1",
        STEP.format(size="s").rstrip() + "\nη = 1",
        eta=1.0,
    ),
    _ddim_row(
        "ddpm-sigma-hat",
        "Song et al. 2020, arXiv 2010.02502, appendix D.3, σ̂",
        STEP.format(size="ŝ") + LARGER,
        eta=1.0,
        larger=True,
    ),
    _er_sde_row(2),
    _er_sde_row(3),
    _row(
        "sa-solver",
        sa_solver,
        2,
        "Xue et al. 2023, arXiv 2309.05019, eq. 14 and 17, for few steps",
        SA_SOLVER,
        "eta",
        to_zero=True,
    ),
)
