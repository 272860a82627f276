"""Solvers that evaluate where no node of the run lies, or extrapolate what they know: one evaluation a step.

They come from flow models and work in the chart of rectified flow, whose slope is the velocity v = ε - x̂0 and whose
time is t = σ/(1+σ). So they are their authors' formulas on a flow model, and serve any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from odeddim.solvers._points import FlowCourse, points_row
from odeddim.types import Point, Solver


def midpoint_reuse(nodes: Sequence[float]) -> list[Point]:
    """The midpoint rule whose way to the middle takes the slope of the middle before; one evaluation a step.

    The first step evaluates at its start too, as the midpoint rule does. The nodes themselves are not evaluated.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Deng et al. 2024, arXiv 2412.07517 (FireFlow), Algorithm 1.
    """
    course, here, latest = FlowCourse(nodes[0]), 0, 0
    for there in nodes[1:]:
        middle = course.halfway(here, there)
        latest = course.move(here, middle, {latest: course.elapsed(here, middle)})
        here = course.move(here, there, {latest: course.elapsed(here, there)})
    return course.points


def uni_inv(nodes: Sequence[float]) -> list[Point]:
    """The implicit Euler step with one evaluation, at the point that the slope before predicts; order 1.

    A step has the slope at its own end, with which the Euler step that takes it back begins. The first step evaluates
    at its start too.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Jiao et al. 2025, arXiv 2504.13109 (Uni-Inv), Algorithm 1.
    """
    course, here, latest = FlowCourse(nodes[0]), 0, 0
    for there in nodes[1:]:
        h = course.elapsed(here, there)
        latest = course.move(here, there, {latest: h})
        here = course.move(here, there, {latest: h})
    return course.points


def stork(nodes: Sequence[float], *, bend: float) -> list[Point]:
    """STORK: the stages of a stabilised Runge-Kutta method, on the parabola in t through the last three slopes v.

    Its stages evaluate a polynomial of t and no state, so they add up to a quadrature of that polynomial: to all of it
    for ROCK4, which has order 4, and to all but a part of its bend for RKG2, which has order 2. With `bend` 1/3 it is
    Adams-Bashforth through three nodes. The first step is that of the midpoint rule, and the second goes along the line
    through two slopes.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        bend: What the stages make of ∫ τ² dτ over a step from 0 to 1.

    Returns:
        The points of the run.

    Source:
        Tan et al. 2025, arXiv 2505.24210, in its form for flow models, with Taylor polynomials of degree 2.
    """
    course, history = FlowCourse(nodes[0]), [0]  # the newest point first
    for there in nodes[1:]:
        here, *earlier = history
        h = course.elapsed(here, there)
        if not earlier:
            middle = course.halfway(here, there)
            weights = {course.move(here, middle, {here: course.elapsed(here, middle)}): h}
        else:
            p, *q = (course.elapsed(point, course.level(here)) for point in earlier)
            line = h * h / 2  # of the first difference of v, and of the second one:
            curve = (bend * h + p / 2) * h * h / (q[0] * (q[0] - p)) if q else 0.0
            ratio = q[0] / p if q else 0.0
            weights = {here: h + line / p + curve * (ratio - 1), earlier[0]: -line / p - curve * ratio}
            if q:
                weights[earlier[1]] = curve
        history = [course.move(here, there, weights), *history[:2]]
    return course.points


FLOW = "y = x̄/(1 + σ),  t = σ/(1 + σ),  v = ε - x̂ = (1 + σ)·ε - x̄,  H = tₙ₊₁ - tₙ"
MIDPOINT_REUSE = f"""
{FLOW}
m = yₙ + H/2·w,  then w ← v at m and (tₙ + tₙ₊₁)/2
yₙ₊₁ = yₙ + H·w,  and the next step begins with this w
The first step begins with w = v₀
"""
UNI_INV = f"""
{FLOW}
u = yₙ + H·w,  then w ← v at u and tₙ₊₁
yₙ₊₁ = yₙ + H·w,  and the next step begins with this w
The first step begins with w = v₀
"""
STORK = f"""
{FLOW}
yₙ₊₁ = yₙ + H·(vₙ + H/2·v' + {{bend}}·H²/2·v'')
v', v'': of the parabola in t through vₙ, vₙ₋₁ and vₙ₋₂, at tₙ
The first step: the midpoint rule in y and t
The second step: the line in t through v₁ and v₀
"""
RKG2, ROCK4 = 1431589 / 5739370, 1 / 3
"""∫ τ² dτ by the stages of RKG2 (50 of them, the authors' number; 1/4 by infinitely many) and of ROCK4."""


def _row(
    name: str, points: Callable[..., list[Point]], order: int, reference: str, formula: str, **declared: Any
) -> Solver:
    return points_row(
        name,
        points,
        order=order,
        reference=reference,
        formula=formula,
        **{"family": "multistep", "nfe": 1, "warmup": (1,), "grid": "log", **declared},
    )


TAN = "Tan et al. 2025, arXiv 2505.24210"
ROWS = (
    _row("midpoint-reuse", midpoint_reuse, 2, "Deng et al. 2024, arXiv 2412.07517 (FireFlow)", MIDPOINT_REUSE),
    _row("uni-inv", uni_inv, 1, "Jiao et al. 2025, arXiv 2504.13109 (Uni-Inv)", UNI_INV, grid="linear"),
    _row(
        "stork-2",
        functools.partial(stork, bend=RKG2),
        2,
        f"{TAN} (STORK-2), 50 stages of RKG2 in closed form",
        STORK.format(bend="0.249433"),
        grid="linear",
    ),
    _row(
        "stork-4",
        functools.partial(stork, bend=ROCK4),
        3,
        f"{TAN} (STORK-4): the same as Adams-Bashforth of 3 nodes for v in t",
        STORK.format(bend="1/3"),
        grid="linear",
    ),
)
