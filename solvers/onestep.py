"""One-step solvers: a step depends on nothing but the state at its start.

Euler, Heun, and the exponential solvers of DPM-Solver, which take ε (DPM-Solver++: x̂0) as a polynomial in log σ. In the
variables x̄ and σ their exponentials are nothing but weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from odeddim.solvers._points import Course, log_ratio, points_row
from odeddim.types import Point, Solver

FEW = 14  # steps; in shorter runs, where it is part of a method, the order falls towards the clean end


def euler(nodes: Sequence[float]) -> list[Point]:
    """Euler's method: x̄_{n+1} = x̄_n + (σ_{n+1} - σ_n)·ε(x̄_n, σ_n). Falling it is DDIM, rising it is DDIM inversion.

    A step costs one evaluation, at its start. DPM-Solver-1 is the same method.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13.
    """
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        here = course.move(here, there, {here: course.elapsed(here, there)})
    return course.points


def heun(nodes: Sequence[float]) -> list[Point]:
    """Heun's method: an Euler step, then the same step again with the mean of the slopes at both ends.

    A step costs two evaluations, one at each of its nodes. The last step of the paper, without correction, is for σ = 0
    only, which is not among these nodes.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Karras et al. 2022, arXiv 2206.00364, Algorithm 1.
    """
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        h = course.elapsed(here, there)
        trial = course.move(here, there, {here: h})
        here = course.move(here, there, {here: h / 2, trial: h / 2})
    return course.points


def part_of(start: float, end: float, part: float) -> float:
    """The noise level at this part, 0 to 1, of a step in log σ."""
    return start * math.exp(part * log_ratio(end, start))


def second_order(course: Course, start: int, inner: float, end: float) -> int:
    """A step of DPM-Solver-2, or in the data chart of DPM-Solver++(2S).

    The slope of the whole step is the one at its start plus 1/(2r) of the change to the stage, where r is the part of
    the step at which the stage lies, in log σ. For r = 1/2 it is the slope at the stage.

    Args:
        course: The points so far.
        start: The index of the point at which the step starts.
        inner: The noise level of the stage.
        end: The noise level at which the step ends.

    Returns:
        The index of the new point.

    Source:
        Lu et al. 2022, arXiv 2206.00927, Algorithm 1, and arXiv 2211.01095, Algorithm 1, for any r.
    """
    stage = course.move(start, inner, {start: course.elapsed(start, inner)})
    h, r = course.elapsed(start, end), log_ratio(inner, course.level(start)) / log_ratio(end, course.level(start))
    return course.move(start, end, {start: h - h / (2 * r), stage: h / (2 * r)})


def extrapolated(course: Course, start: int, inner: Sequence[float], end: float) -> int:
    """A step without history: each move uses the slopes at the start of the step and at the latest stage.

    With two stages it is DPM-Solver-3, for any two.

    Args:
        course: The points so far.
        start: The index of the point at which the step starts.
        inner: The noise levels of the stages.
        end: The noise level at which the step ends.

    Returns:
        The index of the new point.

    Source:
        Lu et al. 2022, arXiv 2206.00927, Algorithm 2.
    """
    known = [start]
    for sigma in inner:
        known = [start, course.move(start, sigma, course.weights(known, start, sigma))]
    return course.move(start, end, course.weights(known, start, end))


def dpm_solver_2(nodes: Sequence[float], *, data: bool = False) -> list[Point]:
    """DPM-Solver-2: two evaluations a step, at its start and in its middle in log σ.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        data: Whether x̂0 is extrapolated, in the data chart, which is DPM-Solver++(2S).

    Returns:
        The points of the run.
    """
    course, here = Course(nodes[0], data=data), 0
    for there in nodes[1:]:
        here = second_order(course, here, part_of(course.level(here), there, 1 / 2), there)
    return course.points


def dpm_solver_3(nodes: Sequence[float]) -> list[Point]:
    """DPM-Solver-3: three evaluations a step, at its start and at 1/3 and 2/3 of it in log σ.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.
    """
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        inner = [part_of(course.level(here), there, part) for part in (1 / 3, 2 / 3)]
        here = extrapolated(course, here, inner, there)
    return course.points


def dpm_solver_fast(nodes: Sequence[float]) -> list[Point]:
    """DPM-Solver-fast: steps of DPM-Solver-3 over three intervals each, and steps of lower order over the rest.

    An interval costs one evaluation, at its start: the nodes inside a step are its stages. The steps of lower order are
    at the clean end in both directions. In short runs their orders are those of the paper: 2 and 1, 1, or 2. In longer
    runs they are none, 2 and 2, or 2, because a single step of order 1 would lower the order of the whole run to 2.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Lu et al. 2022, arXiv 2206.00927, section 3.4 and its appendix.
    """
    count = len(nodes) - 1
    threes, left = divmod(count, 3)
    if count < FEW:
        orders = [3] * (threes - 1) + [2, 1] if left == 0 else [3] * threes + [left]
    else:
        orders = [3] * (threes - 1) + [2, 2] if left == 1 else [3] * threes + [2] * (left // 2)
    if nodes[-1] > nodes[0]:
        orders.reverse()
    course, here, n = Course(nodes[0]), 0, 0
    for order in orders:
        inner, end = nodes[n + 1 : n + order], nodes[n + order]
        here = second_order(course, here, inner[0], end) if order == 2 else extrapolated(course, here, inner, end)
        n += order
    return course.points


def runge_kutta(
    nodes: Sequence[float], *, parts: Sequence[float], rows: Sequence[Sequence[float]], data: bool = False
) -> list[Point]:
    """An explicit Runge-Kutta method, by its Butcher tableau, in the time of the chart: σ, or 1/σ in the data chart.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        parts: The parts c of a step at which its stages lie, without the first, 0; the last is 1, the end of the step.
        rows: The rows a of these stages; the last has the weights b.
        data: Whether the slopes are x̂0, in the data chart.

    Returns:
        The points of the run.
    """
    course, here = Course(nodes[0], data=data), 0
    for there in nodes[1:]:
        h, start, stages = course.elapsed(here, there), course.level(here), [here]
        for part, row in zip(parts, rows, strict=True):
            inner = start / (1 + part * (start / there - 1)) if data else start + part * (there - start)
            weights = {stage: h * weight for stage, weight in zip(stages, row, strict=True) if weight}
            stages.append(course.move(here, there if part == 1 else inner, weights))
        here = stages[-1]
    return course.points


EULER = "x̄ₙ₊₁ = x̄ₙ + hₙ·εₙ"
HEUN = """
u = x̄ₙ + hₙ·εₙ
x̄ₙ₊₁ = x̄ₙ + hₙ/2·(εₙ + ε(u, σₙ₊₁))
"""
DPM_SOLVER_2 = """
s = √(σₙ·σₙ₊₁)
u = x̄ₙ + (s - σₙ)·εₙ
x̄ₙ₊₁ = x̄ₙ + hₙ·ε(u, s)
"""
DPM_SOLVER_3 = """
s₁ = σₙ·(σₙ₊₁/σₙ)^(1/3),  s₂ = σₙ·(σₙ₊₁/σₙ)^(2/3)
u₁ = x̄ₙ + (s₁ - σₙ)·εₙ
u₂ = x̄ₙ + ∫ P₁ dσ from σₙ to s₂
x̄ₙ₊₁ = x̄ₙ + ∫ P₂ dσ from σₙ to σₙ₊₁
Pᵢ: the line in log σ through εₙ and ε(uᵢ, sᵢ)
"""
DPM_SOLVER_FAST = """
x̄ₙ₊₁ = x̄ₙ + (σₙ₊₁ - σₙ)·εₙ
x̄ₙ₊₂ = x̄ₙ + ∫ P₁ dσ from σₙ to σₙ₊₂
x̄ₙ₊₃ = x̄ₙ + ∫ P₂ dσ from σₙ to σₙ₊₃
Pᵢ: the line in log σ through εₙ and εₙ₊ᵢ
One interval left at the clean end: a step of `dpm-solver-1`
Two: a step of `dpm-solver-2`, with its stage at the node between
"""
DPMPP_2S = """
s = √(σₙ·σₙ₊₁)
u = s/σₙ·x̄ₙ + (1 - s/σₙ)·x̂ₙ
x̄ₙ₊₁ = ρₙ·x̄ₙ + (1 - ρₙ)·(u - s·ε(u, s))
"""


def _row(
    name: str, points: Callable[..., list[Point]], order: int, nfe: int, reference: str, formula: str, **declared: Any
) -> Solver:
    return points_row(
        name,
        points,
        **{"family": "exponential", "grid": "log", "onestep": True, **declared},
        order=order,
        nfe=nfe,
        reference=reference,
        formula=formula,
    )


ROWS = (
    _row(
        "euler",
        euler,
        1,
        1,
        "Song et al. 2020, arXiv 2010.02502, eq. 13 (DDIM)",
        EULER,
        family="one-step",
        grid="linear",
        ddim=True,
        stochastic_form="ddim-eta",
    ),
    _row(
        "heun",
        heun,
        2,
        2,
        "Karras et al. 2022, arXiv 2206.00364, Algorithm 1 (EDM)",
        HEUN,
        family="one-step",
        grid="karras",
    ),
    _row("dpm-solver-1", euler, 1, 1, "Lu et al. 2022, arXiv 2206.00927, eq. 3.7 (`euler`, on their grid)", EULER),
    _row("dpm-solver-2", dpm_solver_2, 2, 2, "Lu et al. 2022, arXiv 2206.00927, Algorithm 1", DPM_SOLVER_2),
    _row("dpm-solver-3", dpm_solver_3, 3, 3, "Lu et al. 2022, arXiv 2206.00927, Algorithm 2", DPM_SOLVER_3),
    _row(
        "dpm-solver-fast",
        dpm_solver_fast,
        3,
        1,
        "Lu et al. 2022, arXiv 2206.00927, section 3.4",
        DPM_SOLVER_FAST,
        onestep=False,
    ),
    _row(
        "dpmpp-2s",
        functools.partial(dpm_solver_2, data=True),
        2,
        2,
        "Lu et al. 2022, arXiv 2211.01095, Algorithm 1",
        DPMPP_2S,
    ),
)
