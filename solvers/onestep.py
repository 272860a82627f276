"""One-step solvers: each step sees nothing but the state at its start.

Euler and Heun, and the exponential ones of DPM-Solver, whose ε (DPM-Solver++: whose x̂0) is a polynomial in log σ. In
the chart of x̄ and σ nothing is left of their exponentials but the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from odeddim.solvers._plan import Course, log_ratio, planned
from odeddim.types import Point, Solver

FEW = 14  # steps; in shorter runs, where it is part of a method, the order falls towards the clean end


def euler(nodes: Sequence[float]) -> list[Point]:
    """x̄_{n+1} = x̄_n + (σ_{n+1} - σ_n) ε(x̄_n, σ_n). Falling it is DDIM, rising it is DDIM inversion.

    One evaluation a step, at the step's start. Song et al. 2020, arXiv 2010.02502, eq. 13. It is DPM-Solver-1 too.
    """
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        here = course.move(here, there, {here: course.elapsed(here, there)})
    return course.points


def heun(nodes: Sequence[float]) -> list[Point]:
    """Euler to the next node, then again with the mean of the slopes at both ends.

    Two evaluations a step, at both of its nodes. Karras et al. 2022, arXiv 2206.00364, Algorithm 1; its last step
    without correction is only for σ = 0, which no solver sees.
    """
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        h = course.elapsed(here, there)
        trial = course.move(here, there, {here: h})
        here = course.move(here, there, {here: h / 2, trial: h / 2})
    return course.points


def part_of(start: float, end: float, part: float) -> float:
    """The noise level at this part of a step in log σ."""
    return start * math.exp(part * log_ratio(end, start))


def second_order(course: Course, start: int, inner: float, end: float) -> int:
    """A step of DPM-Solver-2 (++2S in the data chart) with its stage at `inner`. Returns the new point.

    The slope is held, at 1/(2r) times its change to the stage, r the stage's part of the step in log σ: its value at
    the stage for r = 1/2. Lu et al. 2022, arXiv 2206.00927, Algorithm 1 (2211.01095, Algorithm 1), for any r.
    """
    stage = course.move(start, inner, {start: course.elapsed(start, inner)})
    h, r = course.elapsed(start, end), log_ratio(inner, course.level(start)) / log_ratio(end, course.level(start))
    return course.move(start, end, {start: h - h / (2 * r), stage: h / (2 * r)})


def extrapolated(course: Course, start: int, inner: Sequence[float], end: float) -> int:
    """A step without history: every move is through the step's start and the latest level inside it.

    With two levels inside it is DPM-Solver-3 (arXiv 2206.00927, Algorithm 2, for any two). Returns the new point.
    """
    known = [start]
    for sigma in inner:
        known = [start, course.move(start, sigma, course.weights(known, start, sigma))]
    return course.move(start, end, course.weights(known, start, end))


def dpm_solver_2(nodes: Sequence[float], *, data: bool = False) -> list[Point]:
    """DPM-Solver-2: two evaluations a step, the second in its middle in log σ. data: DPM-Solver++(2S)."""
    course, here = Course(nodes[0], data=data), 0
    for there in nodes[1:]:
        here = second_order(course, here, part_of(course.level(here), there, 1 / 2), there)
    return course.points


def dpm_solver_3(nodes: Sequence[float]) -> list[Point]:
    """DPM-Solver-3: three evaluations a step, at its start and at 1/3 and 2/3 of it in log σ."""
    course, here = Course(nodes[0]), 0
    for there in nodes[1:]:
        inner = [part_of(course.level(here), there, part) for part in (1 / 3, 2 / 3)]
        here = extrapolated(course, here, inner, there)
    return course.points


def dpm_solver_fast(nodes: Sequence[float]) -> list[Point]:
    """DPM-Solver-fast: steps of DPM-Solver-3 over three intervals each, of lower order over what is left.

    One evaluation an interval, at its start: the nodes inside a step are its stages. The steps of lower order are at
    the clean end in both directions: as in the paper (2 and 1, 1, or 2) in short runs; in longer ones nothing, 2 and 2,
    or 2, since a step of order 1 would make the whole run of order 2. arXiv 2206.00927, section 3.4 and its appendix.
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


def _row(name: str, plan: Callable[..., list[Point]], order: int, nfe: int, reference: str, **declared: Any) -> Solver:
    return planned(
        name,
        plan,
        **{"family": "exponential", "grid": "karras", "onestep": True, **declared},
        order=order,
        nfe=nfe,
        reference=reference,
    )


ROWS = (
    _row("euler", euler, 1, 1, "Song et al. 2020, arXiv 2010.02502, eq. 13 (DDIM)", family="one-step", grid="linear"),
    _row("heun", heun, 2, 2, "Karras et al. 2022, arXiv 2206.00364, Algorithm 1 (EDM)", family="one-step"),
    _row("dpm-solver-1", euler, 1, 1, "Lu et al. 2022, arXiv 2206.00927, eq. 3.7 (`euler`, on their grid)", grid="log"),
    _row("dpm-solver-2", dpm_solver_2, 2, 2, "Lu et al. 2022, arXiv 2206.00927, Algorithm 1"),
    _row("dpm-solver-3", dpm_solver_3, 3, 3, "Lu et al. 2022, arXiv 2206.00927, Algorithm 2"),
    _row("dpm-solver-fast", dpm_solver_fast, 3, 1, "Lu et al. 2022, arXiv 2206.00927, section 3.4", onestep=False),
    _row("dpmpp-2s", functools.partial(dpm_solver_2, data=True), 2, 2, "Lu et al. 2022, arXiv 2211.01095, Algorithm 1"),
)
