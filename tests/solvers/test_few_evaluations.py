"""Rows for few evaluations against their papers' own formulas, in the papers' variables, and the identities stated.

None of the code under test but its rows is used. A flow model is v(x, t) on x = (1-t)·x0 + t·noise; the
predicted image x_θ(x, λ) is of x = √α·x̄. Both are of one mixture of Gaussians, whose ε is exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import RK45
from test_multistep_papers import (
    IMAGES,
    MIXTURE,
    STEPS,
    Array,
    alpha_of,
    check,
    directions,
    image,
    lengths,
    level,
    uneven,
)

from odeddim import solvers
from odeddim.solvers._embedded import TSIT5
from odeddim.types import InputError, State

# Flow models: x and t of rectified flow.


def velocity(x: Array, t: float) -> Array:
    """v(x, t) = noise - image of a flow model, σ = t/(1-t)."""
    sigma, xbar = t / (1 - t), x / (1 - t)
    noise: Array = MIXTURE(torch.tensor(sigma, dtype=torch.float64), torch.from_numpy(xbar)).numpy()
    return noise - (xbar - sigma * noise)


FlowMethod = Callable[[Array, list[float]], Array]
"""x at the last of these times from x at the first."""


def check_flow(row: str, method: FlowMethod, nodes: Sequence[float]) -> None:
    """The row ends where the method does, which is given the flow's times of the nodes."""
    times = [sigma / (1 + sigma) for sigma in nodes]
    start = max(1.0, nodes[0]) * IMAGES
    truth = method(start * (1 - times[0]), times) / (1 - times[-1])
    state = State(torch.from_numpy(start), nodes[0])
    found = solvers.get(row).run(MIXTURE, state, torch.tensor(nodes, dtype=torch.float64)).xbar.numpy()
    assert np.abs(found - truth).max() < 1e-10 * max(1.0, nodes[0], nodes[-1])


@lengths
@directions
def test_fireflow(steps: int, direction: str) -> None:
    """2412.07517, Algorithm 1: v̂ of the middle before takes the place of the slope at the start."""

    def method(x: Array, times: list[float]) -> Array:
        held = velocity(x, times[0])
        for here, there in pairwise(times):
            held = velocity(x + (there - here) / 2 * held, here + (there - here) / 2)
            x = x + (there - here) * held
        return x

    check_flow("midpoint-reuse", method, uneven(steps, direction))


@lengths
@directions
def test_rf_solver_is_the_midpoint_rule(steps: int, direction: str) -> None:
    """2411.04746, eq. 9: x + h·v + h²/2·v' with v' from the middle. FireFlow's first step is one of it."""

    def method(x: Array, times: list[float]) -> Array:
        here, there = times[:2]
        h, v = there - here, velocity(x, here)
        derivative = (velocity(x + h / 2 * v, here + h / 2) - v) / (h / 2)
        return x + h * v + h**2 / 2 * derivative

    nodes = uneven(steps, direction)[:2]
    check_flow("midpoint-reuse", method, nodes)
    check_flow("stork-2", method, nodes)


@lengths
@directions
def test_uni_inv(steps: int, direction: str) -> None:
    """2504.13109, Algorithm 1: v at the end that the v before predicts moves x from the start again."""

    def method(x: Array, times: list[float]) -> Array:
        v = velocity(x, times[0])
        for here, there in pairwise(times):
            v = velocity(x + (there - here) * v, there)
            x = x + (there - here) * v
        return x

    check_flow("uni-inv", method, uneven(steps, direction))


# RES: x̂0 with φ functions of -h.


def phi(k: int, z: float) -> float:
    """φ_k(z), by its series or, far from 0, by its recursion from φ_0 = e^z."""
    if abs(z) < 1:
        return sum(z**n / math.factorial(n + k) for n in range(20))
    return math.exp(z) if k == 0 else (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def res(x: Array, lams: list[float], k: int) -> Array:
    """2308.02157 as a multistep method: x = e^(-h)·x + h·Σ b_j·x̂_j with Σ b_j·c_j^(m-1)/(m-1)! = φ_m(-h), VE's x."""
    z, images = x / alpha_of(lams[0]), list[Array]()
    for n, (here, there) in enumerate(pairwise(lams)):
        images.append(image(z * alpha_of(here), here))
        h, order = there - here, min(k, n + 1)
        c = [(lam - here) / h for lam in lams[n::-1][:order]]
        powers = np.array([[part**m / math.factorial(m) for part in c] for m in range(order)])
        b = np.linalg.solve(powers, [phi(m + 1, -h) for m in range(order)])
        z = math.exp(-h) * z + h * sum((w * x0 for w, x0 in zip(b, images[::-1], strict=False)), np.zeros_like(x))
    return z * alpha_of(lams[-1])


@lengths
@directions
def test_res_2m(steps: int, direction: str) -> None:
    """ComfyUI's res_multistep: b2 = φ2(-h)/c2 and b1 = φ1(-h) - b2 with c2 = -h_before/h."""

    def method(x: Array, lams: list[float]) -> Array:
        z, before, h_before = x / alpha_of(lams[0]), np.zeros_like(x), math.inf
        for here, there in pairwise(lams):
            h, now = there - here, image(z * alpha_of(here), here)
            b2 = -phi(2, -h) * h / h_before
            z = level(h) * z + h * ((phi(1, -h) - b2) * now + b2 * before)
            before, h_before = now, h
        return z * alpha_of(lams[-1])

    check("res-2m", method, steps, direction)
    check("res-2m", functools.partial(res, k=2), steps, direction)


@lengths
@directions
def test_res_3m(steps: int, direction: str) -> None:
    check("res-3m", functools.partial(res, k=3), steps, direction, warmup="lower")


@pytest.mark.parametrize("steps", [2, 3, 13, 14, 20])
@directions
def test_res_3m_is_dpmpp_3m_without_its_lower_end(steps: int, direction: str) -> None:
    ours, theirs = (solvers.get(name).instructions for name in ("res-3m", "dpmpp-3m"))
    assert ours is not None
    assert theirs is not None
    nodes = uneven(steps, direction)
    falls = 3 <= steps < 14 if direction == "decode" else False  # a run begins with lower orders anyway
    assert (ours(nodes) == theirs(nodes)) != falls


# STORK: stages that evaluate a polynomial of time.


def taylor(times: Sequence[float], slopes: Sequence[Array]) -> Callable[[float], Array]:
    """The polynomial of time through the last three slopes, or as many as there are."""
    known = list(zip(times, slopes, strict=True))[-3:]

    def at(t: float) -> Array:
        found = np.zeros_like(slopes[0])
        for place, v in known:
            found = found + math.prod((t - other) / (place - other) for other, _ in known if other != place) * v
        return found

    return at


def rkg2(x: Array, start: float, h: float, v: Callable[[float], Array], stages: int = 50) -> Array:
    """The Runge-Kutta-Gegenbauer method of order 2, Skaras et al. 2021, J. Comput. Phys. 425, 109879, eq. 30 to 35."""

    def b(j: int) -> float:
        return (1.0, 1 / 3)[j] if j < 2 else 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))

    w = 6 / ((stages + 4) * (stages - 1))

    def place(j: int) -> float:
        """The part of the step at which stage j lies."""
        return (0.0, w)[j] if j < 2 else (j - 1) * (j + 4) * w / 6

    older, newer = x, x + h * w * v(start)
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
        gamma = -mu * w * (1 - j * (j + 1) / 2 * b(j - 1))
        move = mu * w * v(start + place(j - 1) * h) + gamma * v(start)
        older, newer = newer, mu * newer + nu * older + (1 - mu - nu) * x + h * move
    return newer


def order_4(x: Array, start: float, h: float, v: Callable[[float], Array]) -> Array:
    """A Runge-Kutta method of order 4 on a field without x: whichever it is, it integrates cubics exactly."""
    return x + h / 8 * (v(start) + 3 * v(start + h / 3) + 3 * v(start + 2 * h / 3) + v(start + h))


@pytest.mark.parametrize(("row", "stages"), [("stork-2", rkg2), ("stork-4", order_4)])
@lengths
@directions
def test_stork(steps: int, direction: str, row: str, stages: Callable[..., Array]) -> None:
    """2505.24210 for flow models, Taylor polynomials of degree 2, after a step of the midpoint rule and one of AB2."""

    def method(x: Array, times: list[float]) -> Array:
        slopes: list[Array] = []
        for n, (here, there) in enumerate(pairwise(times)):
            h = there - here
            slopes.append(velocity(x, here))
            if n == 0:
                x = x + h * velocity(x + h / 2 * slopes[0], here + h / 2)
            elif n == 1:
                bend = h**2 / (2 * (here - times[0]))
                x = x + (h + bend) * slopes[1] - bend * slopes[0]
            else:
                x = stages(x, here, h, taylor(times[: n + 1], slopes))
        return x

    check_flow(row, method, uneven(steps, direction))


def test_the_derivatives_of_stork_on_even_steps() -> None:
    """The authors' differences: v' = (3v - 4v_1 + v_2)/2h and v'' = (v - 2v_1 + v_2)/h², both at the newest time."""
    times, slopes = [0.9, 0.7, 0.5], [np.array([1.0]), np.array([0.4]), np.array([0.1])]
    h = -0.2
    first = (3 * slopes[2] - 4 * slopes[1] + slopes[0]) / (2 * h)
    second = (slopes[2] - 2 * slopes[1] + slopes[0]) / h**2
    for tau in (-0.2, -0.05):
        assert taylor(times, slopes)(0.5 + tau) == pytest.approx(slopes[2] + tau * first + tau**2 / 2 * second)


# Rex and the coupling of McCallum and Foster.


def rows_of(name: str) -> tuple[list[float], list[list[float]]]:
    """c and a of a tableau, the weights b as the last row."""
    if name == "dopri5":
        return [*RK45.C, 1.0], [*RK45.A.tolist(), RK45.B.tolist()]
    if name == "tsit5":
        return [0.0, *map(float, TSIT5.c)], [[], *([float(w) for w in row] for row in TSIT5.a)]
    rows = {
        "euler": [[], [1.0]],
        "midpoint": [[], [1 / 2], [0.0, 1.0]],
        "rk4": [[], [1 / 3], [-1 / 3, 1.0], [1.0, -1.0, 1.0], [1 / 8, 3 / 8, 3 / 8, 1 / 8]],
    }[name]
    return [sum(row) for row in rows], rows


def increment(name: str, field: Callable[[Array, float], Array], y: Array, start: float, end: float) -> Array:
    """What a step of a tableau adds to y."""
    places, rows = rows_of(name)
    h, slopes = end - start, list[Array]()
    for place, row in zip(places, rows, strict=True):
        found = h * sum((w * slope for w, slope in zip(row, slopes, strict=False)), np.zeros_like(y))
        if row is not rows[-1]:
            slopes.append(field(y + found, start + place * h))
    return found


NODES = (0.5, 0.6, 0.9, 1.0, 1.7, 2.2, 4.0)


@directions
@pytest.mark.parametrize("name", ["euler", "midpoint", "rk4", "tsit5", "dopri5"])
def test_rex_in_data_prediction(name: str, direction: str) -> None:
    """2502.08834: x' = σ'/σ·(ζx + (1-ζ)x̂) + σ'Ψ_h(x̂), x̂' = σ'/σ·x̂ - σ'Ψ_(-h)(x'), Ψ of x/σ over α/σ; DDIM's x."""
    nodes = list(NODES if direction == "encode" else NODES[::-1])
    zeta = 0.9

    def weight(node: float) -> float:
        return node / math.hypot(1, node)  # DDIM's √(1-α)

    def denoised(y: Array, gamma: float) -> Array:
        return image(y * weight(1 / gamma), math.log(gamma))

    x = other = IMAGES * nodes[0] / math.hypot(1, nodes[0])
    for here, there in pairwise(nodes):
        ratio = weight(there) / weight(here)
        psi = increment(name, denoised, other / weight(here), 1 / here, 1 / there)
        x = ratio * (zeta * x + (1 - zeta) * other) + weight(there) * psi
        psi = increment(name, denoised, x / weight(there), 1 / there, 1 / here)
        other = ratio * other - weight(there) * psi
    row = solvers.get(f"mf-data-{name}", coupling=zeta)
    state = State(torch.from_numpy(IMAGES * nodes[0]), nodes[0])
    found = row.run(MIXTURE, state, torch.tensor(nodes, dtype=torch.float64)).xbar.numpy()
    assert np.abs(found - x * math.hypot(1, nodes[-1])).max() < 1e-9


@directions
@pytest.mark.parametrize("name", ["tsit5", "dopri5"])
def test_tableaus_in_the_noise_frame(name: str, direction: str) -> None:
    """2410.11648, eq. 5, with the increment of the tableau in σ."""
    nodes = list(NODES if direction == "encode" else NODES[::-1])

    def slope(xbar: Array, sigma: float) -> Array:
        found: Array = MIXTURE(torch.tensor(sigma, dtype=torch.float64), torch.from_numpy(xbar)).numpy()
        return found

    x = other = IMAGES * nodes[0]
    for here, there in pairwise(nodes):
        x = 0.9 * x + 0.1 * other + increment(name, slope, other, here, there)
        other = other - increment(name, slope, x, there, here)
    state = State(torch.from_numpy(IMAGES * nodes[0]), nodes[0])
    row = solvers.get(f"mf-{name}", coupling=0.9)
    found = row.run(MIXTURE, state, torch.tensor(nodes, dtype=torch.float64)).xbar.numpy()
    assert np.abs(found - x).max() < 1e-9


@pytest.mark.parametrize("coupling", [1.0, 0.5])
def test_a_scale_alone_needs_no_shears(coupling: float) -> None:
    """At coupling 1 the mixture is a scale; the way back is exact all the same."""
    row = solvers.get("mf-data-midpoint", coupling=coupling)
    sigmas = torch.tensor(NODES, dtype=torch.float64)
    x = torch.from_numpy(IMAGES)
    assert torch.equal(row.run(MIXTURE, row.run(MIXTURE, State(x, NODES[0]), sigmas), sigmas.flip(0)).xbar, x)


def test_growth_of_the_data_frame() -> None:
    """With ε held, x̂ = x̄ - σε follows x̄, and two registers that differ drift apart by (σ'/σ)² a step."""
    growth, zeta = solvers.get("mf-data-euler", coupling=0.9).growth, 0.9
    assert growth is not None
    row, largest = np.array([1.0, 0.0]), 1.0
    for here, there in reversed([*pairwise(NODES)]):
        ratio = there / here
        first = np.array([[ratio * zeta, ratio * (1 - zeta) + 1 - ratio], [0.0, ratio]])
        row = row @ np.array([[1.0, 0.0], [1 - ratio, 1.0]]) @ first
        largest = max(largest, *np.abs(row))
    assert largest > 1.4 * NODES[-1] / NODES[0]  # more than x̄/σ alone would be carried by
    assert largest <= growth(NODES, True).encode <= 2 * largest


def test_the_data_frame_in_words() -> None:
    instructions = solvers.get("mf-data-euler", coupling=1.0).instructions
    assert instructions is not None
    assert [step.words(0) for step in instructions([3.0, 1.0])] == [
        "(u, v) = (0.333333·u, 0.333333·v)",
        "u = u + (data-euler's step of 3·v from σ = 3 to 1 - v)",
        "v = v - 0.333333·(data-euler's step of u from σ = 1 to 3 - 3·u)",
    ]


def test_names_of_others_lead_here() -> None:
    for name, ours in (
        ("fireflow", "midpoint-reuse"),
        ("res_multistep", "res-2m"),
        ("abnorsett_3m", "res-3m"),
        ("STORKScheduler", "stork-2"),
        ("UniInvDDIMScheduler", "uni-inv"),
        ("rex", "mf-data-euler"),
    ):
        with pytest.raises(InputError, match=f"here it is '{ours}'"):
            solvers.get(name)
    assert STEPS[0] == 1
