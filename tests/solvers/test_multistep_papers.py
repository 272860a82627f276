"""The planned rows against their papers' own formulas, in the papers' variables, and what every plan must get right.

Here a network is eps(x, σ) on x = √α·x̄, as the papers have it. α_t and σ_t below are theirs (α_t² + σ_t² = 1, DDIM's
√α and √(1-α)), λ = log(α_t/σ_t) is -log σ; none of the code under test but its rows is used. Every formula is
checked on uneven nodes, falling and rising, to 1e-11 of the scale of x̄, which leaves room for rounding alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad

from odeddim import solvers
from odeddim.ode.analytic import GaussianMixture
from odeddim.solvers._points import Variable, in_log, in_sigma, in_time, lagrange_weights
from odeddim.types import Point, Solver, State

Array = NDArray[np.float64]
MIXTURE = GaussianMixture(
    torch.tensor([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]], dtype=torch.float64),
    0.15,
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
)
IMAGES = np.array([[-0.5, -0.2], [0.4, 1.3], [1.1, 0.1], [-1.8, -0.4], [0.2, -0.6]])
# Rows that follow points; the plans of reversible rows are of another kind.
PLANNED = [
    row
    for row in solvers.SOLVERS.values()
    if row.instructions is not None and isinstance(row.instructions([1.0, 2.0])[0], Point)
]

DIRECTIONS = ("encode", "decode")
STEPS = (1, 2, 3, 4, 7, 13, 14, 17)


def uneven(steps: int, direction: str) -> list[float]:
    """steps+1 levels between 0.05 and 30, no two steps alike."""
    u = np.linspace(0, 1, steps + 1)
    u = u + 0.1 * np.sin(2 * np.pi * u) + 0.02 * np.sin(40 * u) * u * (1 - u)
    nodes = (0.05**0.2 + u * (30**0.2 - 0.05**0.2)) ** 5
    nodes[[0, -1]] = 0.05, 30.0
    assert (np.diff(nodes) > 0).all()
    falling: list[float] = nodes[::-1].tolist()
    return falling if direction == "decode" else falling[::-1]


# The papers' symbols, of λ.


def level(lam: float) -> float:
    return math.exp(-lam)


def alpha_of(lam: float) -> float:
    return 1 / math.sqrt(1 + math.exp(-2 * lam))


def sigma_of(lam: float) -> float:
    return 1 / math.sqrt(1 + math.exp(2 * lam))


def eps(x: Array, lam: float) -> Array:
    """ε_θ(x, λ)."""
    xbar = torch.from_numpy(x / alpha_of(lam))
    found: Array = MIXTURE(torch.tensor(level(lam), dtype=torch.float64), xbar).numpy()
    return found


def image(x: Array, lam: float) -> Array:
    """x_θ(x, λ) = (x - σ_t ε_θ)/α_t."""
    return (x - sigma_of(lam) * eps(x, lam)) / alpha_of(lam)


Method = Callable[[Array, list[float]], Array]
"""x at the last of these λ from x at the first."""


def check(row: str, method: Method, steps: int, direction: str, **options: Any) -> None:
    """The row ends where the paper's method does."""
    nodes = uneven(steps, direction)
    lams = [-math.log(node) for node in nodes]
    truth = method(alpha_of(lams[0]) * max(1.0, nodes[0]) * IMAGES, lams) / alpha_of(lams[-1])
    start = State(torch.from_numpy(max(1.0, nodes[0]) * IMAGES), nodes[0])
    found = solvers.get(row, **options).run(MIXTURE, start, torch.tensor(nodes, dtype=torch.float64)).xbar.numpy()
    assert np.abs(found - truth).max() < 1e-11 * max(1.0, nodes[0], nodes[-1])


directions = pytest.mark.parametrize("direction", DIRECTIONS)
lengths = pytest.mark.parametrize("steps", STEPS)


# One step: DPM-Solver and DPM-Solver++.


def dpm_solver_1(x: Array, start: float, end: float, e: Array) -> Array:
    """2206.00927, eq. 3.7."""
    h = end - start
    return alpha_of(end) / alpha_of(start) * x - sigma_of(end) * math.expm1(h) * e


@lengths
@directions
def test_dpm_solver_2(steps: int, direction: str) -> None:
    """2206.00927, Algorithm 1: s_i in the middle in λ, then the whole step with ε there."""

    def method(x: Array, lams: list[float]) -> Array:
        for start, end in pairwise(lams):
            middle = (start + end) / 2
            u = dpm_solver_1(x, start, middle, eps(x, start))
            x = dpm_solver_1(x, start, end, eps(u, middle))
        return x

    check("dpm-solver-2", method, steps, direction)


@lengths
@directions
def test_dpm_solver_3(steps: int, direction: str) -> None:
    """2206.00927, Algorithm 2 with r1 = 1/3, r2 = 2/3."""

    def method(x: Array, lams: list[float]) -> Array:
        for start, end in pairwise(lams):
            x = dpm_solver_3_step(x, start, end)
        return x

    check("dpm-solver-3", method, steps, direction)


def dpm_solver_3_step(x: Array, start: float, end: float) -> Array:
    r1, r2, h = 1 / 3, 2 / 3, end - start
    s1, s2 = start + r1 * h, start + r2 * h
    e = eps(x, start)
    u1 = dpm_solver_1(x, start, s1, e)
    D1 = eps(u1, s1) - e
    u2 = dpm_solver_1(x, start, s2, e) - sigma_of(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * D1
    D2 = eps(u2, s2) - e
    return dpm_solver_1(x, start, end, e) - sigma_of(end) / r2 * (math.expm1(h) / h - 1) * D2


@lengths
@directions
def test_dpmpp_2s(steps: int, direction: str) -> None:
    """2211.01095, Algorithm 1 with r = 1/2."""

    def method(x: Array, lams: list[float]) -> Array:
        for start, end in pairwise(lams):
            h, r = end - start, 1 / 2
            s = start + r * h
            first = image(x, start)
            u = sigma_of(s) / sigma_of(start) * x - alpha_of(s) * math.expm1(-r * h) * first
            D = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * image(u, s)
            x = sigma_of(end) / sigma_of(start) * x - alpha_of(end) * math.expm1(-h) * D
        return x

    check("dpmpp-2s", method, steps, direction)


@pytest.mark.parametrize("steps", [*range(1, 20)])
@directions
def test_dpm_solver_fast(steps: int, direction: str) -> None:
    """2206.00927, appendix D.3, with Algorithms 4 and 5 for stages that lie anywhere, as the nodes do."""

    def single(x: Array, known: list[float]) -> Array:
        if len(known) == 2:
            return dpm_solver_1(x, known[0], known[1], eps(x, known[0]))
        h, e = known[-1] - known[0], eps(x, known[0])
        r1 = (known[1] - known[0]) / h
        u1 = dpm_solver_1(x, known[0], known[1], e)
        D1 = eps(u1, known[1]) - e
        if len(known) == 3:
            slope = sigma_of(known[2]) * math.expm1(h) / (2 * r1)
            return dpm_solver_1(x, known[0], known[2], e) - slope * D1
        r2 = (known[2] - known[0]) / h
        bend = sigma_of(known[2]) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
        u2 = dpm_solver_1(x, known[0], known[2], e) - bend * D1
        D2 = eps(u2, known[2]) - e
        return dpm_solver_1(x, known[0], known[3], e) - sigma_of(known[3]) / r2 * (math.expm1(h) / h - 1) * D2

    # The paper's: 3, ..., 3 and at the clean end 2 and 1, 1, or 2. From 14 steps on no step of order 1.
    k = steps // 3
    few = {0: [3] * (k - 1) + [2, 1], 1: [3] * k + [1], 2: [3] * k + [2]}
    many = {0: [3] * k, 1: [3] * (k - 1) + [2, 2], 2: [3] * k + [2]}
    orders = (few if steps < 14 else many)[steps % 3]

    def method(x: Array, lams: list[float]) -> Array:
        n = 0
        for order in orders if direction == "decode" else orders[::-1]:
            x = single(x, lams[n : n + order + 1])
            n += order
        return x

    check("dpm-solver-fast", method, steps, direction)


# Polynomials through earlier nodes: DPM-Solver++ 3M, DEIS.


def lagrange(points: Sequence[float], j: int, v: float) -> float:
    return math.prod((v - other) / (points[j] - other) for i, other in enumerate(points) if i != j)


def integrated(function: Callable[[float], float], start: float, end: float) -> float:
    found: float = quad(function, start, end, epsabs=0, epsrel=1e-13, limit=200)[0]
    return found


def in_data(x: Array, known: list[float], images: Sequence[Array], start: float, end: float) -> Array:
    """2211.01095, eq. 8: x_t = σ_t/σ_s x + σ_t ∫ e^λ x_θ dλ, x_θ the polynomial in λ through what is known."""
    x = sigma_of(end) / sigma_of(start) * x
    for j, found in enumerate(images):
        weight = integrated(lambda lam, j=j: math.exp(lam - end) * lagrange(known, j, lam), start, end)  # type: ignore[misc]
        x = x + alpha_of(end) * weight * found
    return x


@pytest.mark.parametrize("start", ["single", "lower"])
@lengths
@directions
def test_dpmpp_3m(steps: int, direction: str, start: str) -> None:
    """Three nodes; two on the step before the clean end of short runs. "single": the first step has a middle."""

    def method(x: Array, lams: list[float]) -> Array:
        images: list[Array] = []
        for n, (here, there) in enumerate(pairwise(lams)):
            images.append(image(x, here))
            if n == 0 and start == "single":
                middle = (here + there) / 2
                stage = image(in_data(x, [here], images, here, middle), middle)
                x = in_data(x, [here, middle], [images[0], stage], here, there)
                continue
            left = n if direction == "encode" else steps - 1 - n  # steps between this one and the clean end
            order = min(3, n + 1, 2 + left if steps < 14 else 3)
            x = in_data(x, lams[n + 1 - order : n + 1], images[-order:], here, there)
        return x

    check("dpmpp-3m", method, steps, direction, warmup=start)


BETA_0, BETA_1 = 0.1, 20.0


def beta(t: float) -> float:
    return BETA_0 + (BETA_1 - BETA_0) * t


def time_of(lam: float) -> float:
    """t of the VP process: log(1 + σ²) = β_min·t + (β_max-β_min)·t²/2."""
    growth = math.log1p(math.exp(-2 * lam))
    spread = BETA_1 - BETA_0
    return 2 * growth / (BETA_0 + math.sqrt(BETA_0**2 + 2 * spread * growth))


def log_alpha(t: float) -> float:
    """log α_t, whose derivative is -β/2."""
    return -(BETA_0 * t + (BETA_1 - BETA_0) * t**2 / 2) / 2


def deis(x: Array, known: list[float], slopes: Sequence[Array], start: float, end: float, variable: str) -> Array:
    """2204.13902, eq. 14-15: x = Ψ(t, t_i) x + Σ C_ij ε_j, C_ij = ∫ ½ Ψ(t, τ) β(τ)/σ_τ Π (τ-τ_k)/(τ_j-τ_k) dτ.

    tAB: the polynomial in τ. ρAB: in ρ = σ_t/α_t, where C_ij is α_t ∫ Π (ρ-ρ_k)/(ρ_j-ρ_k) dρ. log: in log ρ.
    """
    t, begin = time_of(end), time_of(start)
    x = alpha_of(end) / alpha_of(start) * x
    for j, found in enumerate(slopes):
        if variable == "time":
            times = [time_of(lam) for lam in known]

            def kernel(tau: float, j: int = j, times: list[float] = times) -> float:
                sigma = math.sqrt(-math.expm1(2 * log_alpha(tau)))
                return math.exp(log_alpha(t) - log_alpha(tau)) * beta(tau) / (2 * sigma) * lagrange(times, j, tau)

            weight = integrated(kernel, begin, t)
        elif variable == "rho":
            rhos = [level(lam) for lam in known]
            weight = alpha_of(end) * integrated(
                lambda rho, j=j, rhos=rhos: lagrange(rhos, j, rho),  # type: ignore[misc]
                level(start),
                level(end),
            )
        else:
            weight = -alpha_of(end) * integrated(
                lambda lam, j=j: level(lam) * lagrange(known, j, lam),  # type: ignore[misc]
                start,
                end,
            )
        x = x + weight * found
    return x


@pytest.mark.parametrize("variable", ["log", "time", "rho"])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@directions
def test_deis(steps: int, direction: str, k: int, variable: str) -> None:
    """Through k nodes, begun with lower orders; and begun with k-2 single steps in log ρ, which are DPM-Solver-3's."""

    def method(x: Array, lams: list[float], single: bool) -> Array:
        slopes: list[Array] = []
        for n, (here, there) in enumerate(pairwise(lams)):
            slopes.append(eps(x, here))
            if single and n < k - 2 and k == 4:
                x = dpm_solver_3_step(x, here, there)
            elif single and n < k - 2:
                middle = (here + there) / 2
                stage = eps(dpm_solver_1(x, here, middle, slopes[-1]), middle)
                x = deis(x, [here, middle], [slopes[-1], stage], here, there, "log")
            else:
                order = min(k, n + 1)
                x = deis(x, lams[n + 1 - order : n + 1], slopes[-order:], here, there, variable)
        return x

    row = {"log": f"ab{k}", "time": f"deis-tab{k - 1}", "rho": f"deis-rhoab{k - 1}"}[variable]
    check(row, functools.partial(method, single=True), steps, direction)
    if k > 2:
        check(row, functools.partial(method, single=False), steps, direction, warmup="lower")
    if variable == "rho" and k == 4:
        check("lms", functools.partial(method, single=True), steps, direction)


# UniPC.


def unip_coefficients(r: Sequence[float], h: float, B: float) -> Array:
    """a of 2302.04867, from its condition R_p(h) a = φ_p(h)/B(h) in the data form, solved as the linear system it is.

    (R)_kl = (r_l h)^(k-1); φ_k = h^k k! ψ_(k+1)(-h), where ψ_(k+1)(h) = (ψ_k(h) - 1/k!)/h and ψ_0 = e^h; by mpmath, for
    they cancel.
    """
    with mpmath.workdps(40):
        rows, sides, factorial = [], [], mpmath.mpf(1)
        psi = (mpmath.expm1(-h) / mpmath.mpf(-h) - 1) / -mpmath.mpf(h)  # ψ_2(-h)
        for k in range(1, len(r) + 1):
            factorial *= k
            rows.append([float((mpmath.mpf(part) * h) ** (k - 1)) for part in r])
            sides.append(float(mpmath.mpf(h) ** k * factorial * psi / B))
            psi = (psi - 1 / (factorial * (k + 1))) / -mpmath.mpf(h)
    found: Array = np.linalg.solve(np.array(rows), np.array(sides))
    return found


@pytest.mark.parametrize("b", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
@lengths
@directions
def test_unipc(p: int, b: str, steps: int, direction: str) -> None:
    """2302.04867, UniP-p and UniC-p in their data form, begun with lower p; the last step is not corrected.

    x_t = σ_t/σ_s x - α_t (e^-h - 1) m_0 + α_t B(h) Σ a_m D_m/r_m, D_m = m_m - m_0. Where one weight is left, in UniP-2
    and UniC-1, it is 1/2 for either B(h).
    """

    def method(x: Array, lams: list[float]) -> Array:
        images, places = [image(x, lams[0])], [lams[0]]
        for n, (here, there) in enumerate(pairwise(lams)):
            left = n if direction == "encode" else steps - 1 - n
            order = min(p, n + 1, 2 + left if steps < 14 else p)
            h = there - here
            B = h if b == "bh1" else -math.expm1(-h)
            r = [(places[-m - 1] - here) / h for m in range(1, order)]
            D = [(images[-m - 1] - images[-1]) / part for m, part in zip(range(1, order), r, strict=True)]
            plain = sigma_of(there) / sigma_of(here) * x - alpha_of(there) * math.expm1(-h) * images[-1]
            a = unip_coefficients(r, h, B) if order > 2 else np.array([0.5])
            predicted = plain + alpha_of(there) * B * sum(
                (part * bend for part, bend in zip(a, D, strict=False)), np.zeros_like(x)
            )
            if n == steps - 1:
                return predicted
            new = image(predicted, there)
            D, r = [*D, new - images[-1]], [*r, 1.0]
            a = unip_coefficients(r, h, B) if order > 1 else np.array([0.5])
            x = plain + alpha_of(there) * B * sum(part * bend for part, bend in zip(a, D, strict=True))
            images, places = [*images, new], [*places, there]
        return x

    row = f"unipc-{p}" if b == "bh2" else f"unipc-{p}-{b}"
    check(row, method, steps, direction, **({"warmup": "lower"} if p == 3 else {}))


@pytest.mark.parametrize("b", ["bh1", "bh2"])
@directions
def test_unipc_3_starts_in_the_data_chart(b: str, direction: str) -> None:
    """Its first step, and its only one here, is DPM-Solver-3's with x_θ for ε."""

    def method(x: Array, lams: list[float]) -> Array:
        here, there = lams
        s1, s2 = here + (there - here) / 3, here + 2 * (there - here) / 3
        m0 = image(x, here)
        m1 = image(in_data(x, [here], [m0], here, s1), s1)
        m2 = image(in_data(x, [here, s1], [m0, m1], here, s2), s2)
        return in_data(x, [here, s2], [m0, m2], here, there)

    check("unipc-3" if b == "bh2" else "unipc-3-bh1", method, 1, direction)


# Weights of even steps: PNDM, PLMS, iPNDM, gradient estimation.


def transfer(x: Array, start: float, end: float, e: Array) -> Array:
    """The transfer φ of PNDM, 2202.09778, in DDIM's α."""
    a, b = alpha_of(start) ** 2, alpha_of(end) ** 2
    bend = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
    return math.sqrt(b / a) * x - (b - a) / bend * e


ADAMS = ([1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def even(slopes: Sequence[Array]) -> Array:
    known = slopes[:-5:-1]
    mean: Array = sum((w * e for w, e in zip(ADAMS[len(known) - 1], known, strict=True)), np.zeros_like(known[0]))
    return mean


@lengths
@directions
def test_ipndm(steps: int, direction: str) -> None:
    """2204.13902, appendix: PNDM's weights, begun with those of fewer nodes."""

    def method(x: Array, lams: list[float]) -> Array:
        slopes: list[Array] = []
        for here, there in pairwise(lams):
            slopes.append(eps(x, here))
            x = transfer(x, here, there, even(slopes))
        return x

    check("ipndm", method, steps, direction)


@lengths
@directions
def test_plms(steps: int, direction: str) -> None:
    """PNDM's weights after a step of 2202.09778's pseudo improved Euler method, whose second ε is not kept."""

    def method(x: Array, lams: list[float]) -> Array:
        slopes: list[Array] = []
        for n, (here, there) in enumerate(pairwise(lams)):
            slopes.append(eps(x, here))
            mean = even(slopes)
            if n == 0:
                mean = (slopes[0] + eps(transfer(x, here, there, slopes[0]), there)) / 2
            x = transfer(x, here, there, mean)
        return x

    check("plms", method, steps, direction)


@lengths
@directions
def test_pndm(steps: int, direction: str) -> None:
    """2202.09778, eq. 12 (pseudo linear multistep) after three steps of eq. 13 (pseudo Runge-Kutta), halfway in t."""

    def halfway(start: float, end: float) -> float:
        t = (time_of(start) + time_of(end)) / 2
        growth = BETA_0 * t + (BETA_1 - BETA_0) * t**2 / 2
        return -math.log(math.expm1(growth)) / 2

    def method(x: Array, lams: list[float]) -> Array:
        slopes: list[Array] = []
        for n, (here, there) in enumerate(pairwise(lams)):
            e1 = eps(x, here)
            slopes.append(e1)
            mean = even(slopes)
            if n < 3:
                middle = halfway(here, there)
                e2 = eps(transfer(x, here, middle, e1), middle)
                e3 = eps(transfer(x, here, middle, e2), middle)
                e4 = eps(transfer(x, here, there, e3), there)
                mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
            x = transfer(x, here, there, mean)
        return x

    check("pndm", method, steps, direction)


@pytest.mark.parametrize("gamma", [None, 0.5, 1.0, 1.5, 3.0])
@lengths
@directions
def test_gradient_estimation(steps: int, direction: str, gamma: float | None) -> None:
    """2306.04848, Algorithm 2, in its x with data of scale 1: ε̄ = γ ε_n + (1-γ) ε_{n-1}, γ = 2; first step plain."""
    weight = 2.0 if gamma is None else gamma

    def method(x: Array, lams: list[float]) -> Array:
        z, before = x / alpha_of(lams[0]), None
        for here, there in pairwise(lams):
            e = eps(z * alpha_of(here), here)
            mean = e if before is None else weight * e + (1 - weight) * before
            z, before = z - (level(here) - level(there)) * mean, e
        return z * alpha_of(lams[-1])

    check("gradient-estimation", method, steps, direction, gamma=gamma)


# What every plan must get right, on any nodes.

LOWEST, HIGHEST = 1e-5, 160.0  # below the lowest σ of any model; where DDPM's time ends


@st.composite
def node_lists(draw: st.DrawFn, *, tame: bool = False) -> list[float]:
    """2 to 13 levels, strictly falling or rising, neighbours from 1 + 1e-6 to 1000 times one another.

    tame: neighbours from 1.2 to 2 times, so that no polynomial runs away and errors are bare rounding.
    """
    steps = draw(st.integers(1, 12))
    smallest, largest = (math.log(1.2), math.log(2)) if tame else (1e-6, math.log(1e3))
    sizes = st.floats(math.log(smallest), math.log(largest))
    gaps = [math.exp(size) for size in draw(st.lists(sizes, min_size=steps, max_size=steps))]
    top = draw(st.floats(1.0, math.log10(HIGHEST)))
    shrunk = min(1.0, (top - math.log10(LOWEST)) * math.log(10) / sum(gaps))
    nodes = [10**top]
    for gap in gaps:
        nodes.append(nodes[-1] * math.exp(-gap * shrunk))
    assert all(a > b for a, b in pairwise(nodes))
    return nodes if draw(st.booleans()) else nodes[::-1]


def each(rows: Sequence[Solver]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def planned(row: Solver, nodes: list[float]) -> list[Point]:
    assert row.instructions is not None
    points = [point for point in row.instructions(nodes) if isinstance(point, Point)]
    assert all(min(nodes) <= point.sigma <= max(nodes) for point in points)
    assert all(math.isfinite(c) for point in points for c in (*point.points.values(), *point.slopes.values()))
    assert points[-1].sigma == nodes[-1]
    return points


def walked(row: Solver, nodes: list[float], field: Callable[[float, float], float]) -> tuple[list[float], float]:
    """x̄ at every point of the plan from x̄ = 0.7, and the sum of all that was added and subtracted on the way."""
    points = planned(row, nodes)
    xbars, slopes, sums = [0.7], [field(nodes[0], 0.7)], [0.7]
    for point in points[1:]:
        moves, kicks = point.points.items(), point.slopes.items()
        xbars.append(sum(c * xbars[i] for i, c in moves) + sum(w * slopes[j] for j, w in kicks))
        sizes = {j: max(1.0, sums[j] / points[j].sigma) for j, _ in kicks}
        sums.append(sum(abs(c) * sums[i] for i, c in moves) + sum(abs(w) * sizes[j] for j, w in kicks))
        slopes.append(field(point.sigma, xbars[-1]))
    return xbars, sums[-1]


CONSTANTS: dict[str, Callable[[float, float], float]] = {
    "eps": lambda sigma, xbar: -1.3,
    "image": lambda sigma, xbar: (xbar - 0.2) / sigma,
}


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("tame", [True, False], ids=["tame", "wild"])
@each(PLANNED)
def test_a_constant_is_integrated_exactly(row: Solver, tame: bool, constant: str) -> None:
    """Where ε does not change, or x̂0, the solution is the straight line through both, whatever the nodes.

    On wild nodes polynomials run away, and what is added and subtracted outgrows the result: rounding is a share of it.
    """

    @settings(max_examples=15, derandomize=True, database=None)
    @given(nodes=node_lists(tame=tame))
    def run(nodes: list[float]) -> None:
        field = CONSTANTS[constant]
        xbars, total = walked(row, nodes, field)
        truth = 0.7 + field(nodes[0], 0.7) * (nodes[-1] - nodes[0])
        # On tame nodes too a few long steps in a row amplify rounding: by far less than `total`, which adds all sizes.
        assert abs(xbars[-1] - truth) < (
            1e-12 * max(1.0, abs(truth), *nodes) + 1e-17 * total if tame else 1e-12 * total
        )

    run()


def exact_time(sigma: Any) -> Any:
    """`time_of`, in mpmath."""
    growth, lowest = mpmath.log1p(mpmath.mpf(sigma) ** 2), mpmath.mpf(BETA_0)
    return 2 * growth / (lowest + mpmath.sqrt(lowest**2 + 2 * (mpmath.mpf(BETA_1) - lowest) * growth))


EXACTLY: dict[str, Callable[[Any], Any]] = {"log": mpmath.log, "rho": mpmath.mpf, "time": exact_time}
VARIABLES: dict[str, Variable] = {"log": in_log, "rho": in_sigma, "time": in_time}


def exact_integral(variable: str, roots: Sequence[Any], scales: Sequence[Any], start: float, end: float) -> Any:
    """∫ Π (v(σ) - root)/scale dσ, over [0, 1] in parts of log σ: mpmath's quadrature knows absolute errors only."""
    a, span = mpmath.log(start), mpmath.log(mpmath.mpf(end) / mpmath.mpf(start))

    def integrand(part: Any) -> Any:
        sigma = mpmath.exp(a + part * span)
        v = EXACTLY[variable](sigma)
        return sigma * mpmath.fprod((v - root) / scale for root, scale in zip(roots, scales, strict=True))

    parts = max(1, math.ceil(abs(float(span)) / 3))
    return span * mpmath.quad(integrand, [mpmath.mpf(part) / parts for part in range(parts + 1)])


def adams_variable(name: str) -> str:
    return {"ab": "log", "deis-tab": "time", "deis-rhoab": "rho", "lms": "rho", "dpmpp-": "log"}[name.rstrip("m01234")]


ADAMS_ROWS = [row for row in PLANNED if row.name.startswith(("ab", "deis", "lms", "dpmpp-3m"))]


@each(ADAMS_ROWS)
def test_polynomials_are_integrated_exactly(row: Solver) -> None:
    """Of the degree below the number of nodes, in the row's variable, on every step after its own first ones.

    In the data chart the slope is x̂0 over the time 1/σ: what a step adds to x̄/σ.
    """
    k, variable, data = row.order, adams_variable(row.name), row.name.startswith("dpmpp")

    @settings(max_examples=4, derandomize=True, database=None)
    @given(nodes=node_lists(tame=True))
    def run(nodes: list[float]) -> None:
        points = planned(row, nodes)
        places = [0, *(i for i, point in enumerate(points) if i and point.sigma in nodes[1:])]
        assert [points[place].sigma for place in places] == nodes
        for n in range(k - 1, len(nodes) - 1):
            here, there, known = nodes[n], nodes[n + 1], places[n - k + 1 : n + 1]
            weights = points[places[n + 1]].slopes
            if data:
                weights = {j: -w / (there * points[j].sigma) for j, w in weights.items()}
                here, there = 1 / here, 1 / there
                left = n if nodes[-1] > nodes[0] else len(nodes) - 2 - n
                if len(nodes) - 1 < 14 and left == 0:
                    known = known[1:]  # order 2 on the last step before the clean end of a short run
            assert set(weights) == set(known)
            with mpmath.workdps(25):
                origin = EXACTLY[variable](here)
                for degree in range(len(known)):
                    terms = [
                        w
                        * (EXACTLY[variable](1 / mpmath.mpf(points[j].sigma) if data else points[j].sigma) - origin)
                        ** degree
                        for j, w in weights.items()
                    ]
                    truth = exact_integral(variable, [origin] * degree, [1] * degree, here, there)
                    assert abs(mpmath.fsum(terms) - truth) < 1e-13 * mpmath.fsum(map(abs, terms))

    run()


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("gap", [1e-12, 1e-6, 1e-2, 1.0, 3.0])
def test_lagrange_weights(gap: float, k: int, variable: str) -> None:
    """Against forty digits: nodes `gap` apart in log σ, unevenly, rising and falling, near both ends of DDPM's time."""
    for sign, first in ((1, HIGHEST / math.exp(gap)), (-1, HIGHEST / math.exp(3 * gap)), (1, 0.02), (-1, 0.002)):
        nodes = [first * math.exp(sign * gap * place) for place in (0.0, -1.0, -1.7, -3.0)][:k]
        check_weights(nodes, first * math.exp(sign * gap), variable)


@pytest.mark.parametrize("variable", VARIABLES)
def test_lagrange_weights_of_tiny_beside_huge_gaps(variable: str) -> None:
    """And one step over twelve e-folds, which is almost all there is between the image and noise."""
    for apart in ((1e-6, 5.0, 0.3), (5.0, 0.3, 1e-6)):
        for sign in (1, -1):
            places = [0.0, *itertools.accumulate(apart)]
            nodes = [(0.1 if sign < 0 else 1e-3) * math.exp(-sign * place) for place in places]
            for step in (1e-6, 11.9):
                check_weights(nodes, nodes[0] * math.exp(sign * step), variable)


def check_weights(nodes: list[float], end: float, variable: str) -> None:
    with mpmath.workdps(40):
        levels = [EXACTLY[variable](mpmath.mpf(node)) for node in nodes]
        found = lagrange_weights(nodes, nodes[0], end, VARIABLES[variable])
        for j, weight in enumerate(found):
            others = [other for i, other in enumerate(levels) if i != j]
            truth = exact_integral(variable, others, [levels[j] - other for other in others], nodes[0], end)
            assert abs(weight / truth - 1) < 1e-12
