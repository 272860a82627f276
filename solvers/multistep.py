"""Multistep solvers: they use earlier evaluations again, so that a step costs one evaluation.

All of them are quadratures of dx̄ = ε dσ, or of the predicted image in the data chart, over nodes of any spacing. They
differ in what they extrapolate (ε or x̂0), in which variable (log σ, σ or the time t), and in how they begin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from odeddim.solvers._points import (
    Course,
    Variable,
    halfway_in_time,
    in_log,
    in_sigma,
    in_time,
    log_ratio,
    points_row,
)
from odeddim.solvers._settings import defaults_of
from odeddim.solvers.onestep import FEW, extrapolated, part_of
from odeddim.types import InputError, Point, Solver, pick

# A method through k nodes has k-2 first steps of their own: single steps with the local error O(h^k) that the global
# order k allows, evaluated at the step's start and at these parts of it in λ. That is DPM-Solver-3 for k = 4,
# and for k = 3 DPM-Solver-2 with its ε extrapolated, not held (Lu et al. 2022, arXiv 2206.00927, Algorithms 2 and 1).
INNER = {2: (), 3: (1 / 2,), 4: (1 / 3, 2 / 3)}

STARTS = ("single", "lower")
"""How a method through several nodes begins: by single steps of its own order, or with lower order, as most code."""


def adams(
    nodes: Sequence[float],
    *,
    k: int,
    data: bool = False,
    variable: Variable = in_log,
    settle: bool = False,
    warmup: str = "single",
) -> list[Point]:
    """Adams-Bashforth: ε is extrapolated as a polynomial through the last k nodes, with exact weights.

    A step costs one evaluation, at its start, and each of the first k-2 steps k-2 more. The first step of k = 2 is
    Euler's.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        k: 2, 3 or 4 nodes, which is the global order.
        data: Whether x̂0 is extrapolated, in the data chart, and not ε.
        variable: The variable of the polynomial.
        settle: Whether the last step before the clean end has order 2 in short runs.
        warmup: One of `STARTS`.

    Returns:
        The points of the run.

    Raises:
        InputError: For an unknown warmup.
    """
    pick(warmup, STARTS, "warmup")
    course = Course(nodes[0], data=data)
    history = [0]  # the newest point first
    for n, end in enumerate(nodes[1:]):
        if warmup == "single" and n < k - 2:
            inner = [part_of(nodes[n], end, part) for part in INNER[k]]
            here = extrapolated(course, history[0], inner, end)
        else:
            highest = min(k, 2 + _to_the_clean_end(nodes, n)) if settle and len(nodes) - 1 < FEW else k
            here = course.move(history[0], end, course.weights(history[:highest], history[0], end, variable))
        history = [here, *history[: k - 1]]
    return course.points


def _to_the_clean_end(nodes: Sequence[float], n: int) -> int:
    """The number of steps between step n and the clean end."""
    return n if nodes[-1] > nodes[0] else len(nodes) - 2 - n


def dpmpp_2m(nodes: Sequence[float]) -> list[Point]:
    """DPM-Solver++(2M): x̂0 = x̄ - σ ε is extrapolated through the last two nodes; one evaluation a step.

    A step holds D = x̂0 + (x̂0 - x̂0 of the node before)/(2r) constant, where r is the ratio of the last step to this one
    in log σ. The first step is Euler's.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Lu et al. 2022, arXiv 2211.01095, Algorithm 2.
    """
    course, before, here = Course(nodes[0], data=True), None, 0
    for n, end in enumerate(nodes[1:]):
        h = course.elapsed(here, end)
        weights = {here: h}
        if before is not None:
            bend = h * log_ratio(end, nodes[n]) / log_ratio(nodes[n], nodes[n - 1]) / 2
            weights = {here: h + bend, before: -bend}
        before, here = here, course.move(here, end, weights)
    return course.points


def unipc(nodes: Sequence[float], *, p: int, b: str, warmup: str = "single") -> list[Point]:
    """UniPC-p: UniP-p predicts, and UniC-p corrects with the evaluation made there; one evaluation a step, order p + 1.

    It works in the data chart. B(h) matters only where the paper fixes a weight, 1/2, instead of solving for it: in
    UniP-2 and UniC-1. Elsewhere it cancels, and the weights are those of the polynomial. The last step is not
    corrected, because its correction would cost an evaluation. In short runs the order falls towards the clean end.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        p: 1, 2 or 3. p = 3 starts with a step like DPM-Solver-3's, so that its order is the global one.
        b: "bh1", where B(h) is h, or "bh2", where it is the step of 1/σ over the noise level.
        warmup: One of `STARTS`.

    Returns:
        The points of the run.

    Raises:
        InputError: For an unknown warmup.

    Source:
        Zhao et al. 2023, arXiv 2302.04867, Algorithms 1 and 2.
    """
    pick(warmup, STARTS, "warmup")
    course, base = Course(nodes[0], data=True), 0
    history = [0]  # where the field was asked, the newest first
    for n, end in enumerate(nodes[1:]):
        if warmup == "single" and n == 0 and p == 3:
            inner = [part_of(nodes[n], end, part) for part in INNER[4]]
            base = extrapolated(course, base, inner, end)
            history = [base, *history]
            continue
        order = min(p, len(history), 2 + _to_the_clean_end(nodes, n) if len(nodes) - 1 < FEW else p)
        h = course.elapsed(base, end)
        step = h if b == "bh2" else log_ratio(nodes[n], end) / end  # B(h), as a step of 1/σ
        if order == 2:
            slope = step * log_ratio(end, nodes[n]) / log_ratio(nodes[n], nodes[n - 1]) / 2
            weights = {history[0]: h + slope, history[1]: -slope}
        else:
            weights = course.weights(history[:order], base, end)
        predicted = course.move(base, end, weights)
        if n < len(nodes) - 2:
            if order == 1:
                weights = {history[0]: h - step / 2, predicted: step / 2}
            else:
                weights = course.weights([predicted, *history[:order]], base, end)
            base = course.move(base, end, weights)
        history = [predicted, *history[:2]]
    return course.points


# Adams-Bashforth with even steps, the newest slope first.
EVEN = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _even(course: Course, history: Sequence[int], end: float) -> int:
    """A step with the mean slope that Adams-Bashforth has for even steps. Returns the index of the new point."""
    h, known = course.elapsed(history[0], end), history[:4]
    return course.move(
        history[0], end, {point: h * part for point, part in zip(known, EVEN[len(known) - 1], strict=True)}
    )


def ipndm(nodes: Sequence[float]) -> list[Point]:
    """iPNDM: the weights of PNDM, begun with the lower orders; one evaluation a step.

    The weights are those of even steps, whatever the steps are. So the order is 2 if the steps change smoothly.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Zhang & Chen 2022, arXiv 2204.13902, appendix.
    """
    course, history = Course(nodes[0]), [0]
    for end in nodes[1:]:
        history = [_even(course, history, end), *history[:3]]
    return course.points


def plms(nodes: Sequence[float]) -> list[Point]:
    """PLMS of Stable Diffusion: iPNDM whose first step is Heun's. One evaluation a step, and one more.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.
    """
    course = Course(nodes[0])
    h = course.elapsed(0, nodes[1])
    trial = course.move(0, nodes[1], {0: h})
    history = [course.move(0, nodes[1], {0: h / 2, trial: h / 2}), 0]
    for end in nodes[2:]:
        history = [_even(course, history, end), *history[:3]]
    return course.points


def pndm(nodes: Sequence[float]) -> list[Point]:
    """PNDM: three steps of a pseudo Runge-Kutta method with four evaluations each, then the weights of PLMS.

    The stages lie halfway in DDPM's time, see `odeddim.solvers._points.in_time`.

    Args:
        nodes: Noise levels, all positive, rising or falling.

    Returns:
        The points of the run.

    Source:
        Liu et al. 2022, arXiv 2202.09778 (F-PNDM).
    """
    course, history = Course(nodes[0]), [0]
    for n, end in enumerate(nodes[1:]):
        if n >= 3:
            here = _even(course, history, end)
        else:
            stages = [history[0]]
            for sigma in (halfway_in_time(nodes[n], end),) * 2 + (end,):
                stages.append(course.move(stages[0], sigma, {stages[-1]: course.elapsed(stages[0], sigma)}))
            h = course.elapsed(stages[0], end)
            weights = {stage: h * part for stage, part in zip(stages, (1 / 6, 1 / 3, 1 / 3, 1 / 6), strict=True)}
            here = course.move(stages[0], end, weights)
        history = [here, *history[:3]]
    return course.points


def gradient_estimation(nodes: Sequence[float], *, gamma: float = 2.0) -> list[Point]:
    """Euler's step with the slope γ·ε_n + (1-γ)·ε_{n-1}; one evaluation a step.

    Args:
        nodes: Noise levels, all positive, rising or falling.
        gamma: γ, between 0 and 4. 3/2 is Adams-Bashforth for even steps.

    Returns:
        The points of the run.

    Raises:
        InputError: For a gamma out of its range.

    Source:
        Permenter & Yuan 2023, arXiv 2306.04848.
    """
    if not 0 < gamma < 4:
        raise InputError(f"gradient-estimation: gamma must be a number between 0 and 4, not {gamma}")
    course, before, here = Course(nodes[0]), None, 0
    for end in nodes[1:]:
        h = course.elapsed(here, end)
        weights = {here: h} if before is None else {here: h * gamma, before: h * (1 - gamma)}
        before, here = here, course.move(here, end, weights)
    return course.points


NEWEST = "j = 0, ..., order - 1"
LAGRANGE = "Lⱼ: the polynomial in {variable} that is 1 at σₙ₋ⱼ and 0 at the other nodes"
ADAMS = "x̄ₙ₊₁ = x̄ₙ + Σⱼ wⱼ·εₙ₋ⱼ,  " + NEWEST + "\nwⱼ = ∫ Lⱼ dσ from σₙ to σₙ₊₁\n" + LAGRANGE
DATA_ADAMS = f"""
x̄ₙ₊₁ = ρₙ·x̄ₙ + σₙ₊₁·Σⱼ wⱼ·x̂ₙ₋ⱼ,  {NEWEST}
wⱼ = ∫ Lⱼ d(1/σ) from σₙ to σₙ₊₁
{LAGRANGE.format(variable="log σ")}
"""
DPMPP_2M = """
r = log(σₙ/σₙ₋₁)/log(σₙ₊₁/σₙ)
x̄ₙ₊₁ = ρₙ·x̄ₙ + (1 - ρₙ)·(x̂ₙ + (x̂ₙ - x̂ₙ₋₁)/(2r))
"""
UNIPC_1 = """
ũₙ₊₁ = ρₙ·x̄ₙ + (1 - ρₙ)·x̂ₙ
x̄ₙ₊₁ = ũₙ₊₁ + B/2·(x̂ₙ₊₁ - x̂ₙ)
"""
UNIPC_2 = """
r = log(σₙ/σₙ₋₁)/log(σₙ₊₁/σₙ)
ũₙ₊₁ = ρₙ·x̄ₙ + (1 - ρₙ)·x̂ₙ + B/(2r)·(x̂ₙ - x̂ₙ₋₁)
x̄ₙ₊₁ = ρₙ·x̄ₙ + σₙ₊₁·Σⱼ wⱼ·x̂ₙ₋ⱼ,  j = -1, 0, 1
"""
UNIPC_3 = """
ũₙ₊₁ = ρₙ·x̄ₙ + σₙ₊₁·Σⱼ vⱼ·x̂ₙ₋ⱼ,  j = 0, 1, 2
x̄ₙ₊₁ = ρₙ·x̄ₙ + σₙ₊₁·Σⱼ wⱼ·x̂ₙ₋ⱼ,  j = -1, 0, 1, 2
The second step, and the last step down in short runs: as `unipc-2`
"""
PREDICTED = "x̂ₙ = ũₙ - σₙ·ε(ũₙ, σₙ): the field is evaluated at the prediction ũ, once a step"
BY_POLYNOMIAL = "Weights v, w: as in `dpmpp-3m`, by the polynomial in log σ through these nodes"
EVEN_STEPS = "x̄ₙ₊₁ = x̄ₙ + hₙ/24·(55·εₙ - 59·εₙ₋₁ + 37·εₙ₋₂ - 9·εₙ₋₃)"
LOWER_EVEN = "The next two: the slopes (3·εₙ - εₙ₋₁)/2 and (23·εₙ - 16·εₙ₋₁ + 5·εₙ₋₂)/12"
PNDM = f"""
{EVEN_STEPS}
The first three steps, with m halfway between σₙ and σₙ₊₁ in the time t:
k₁ = εₙ,  k₂ = ε(x̄ₙ + (m - σₙ)·k₁, m)
k₃ = ε(x̄ₙ + (m - σₙ)·k₂, m),  k₄ = ε(x̄ₙ + hₙ·k₃, σₙ₊₁)
x̄ₙ₊₁ = x̄ₙ + hₙ/6·(k₁ + 2·k₂ + 2·k₃ + k₄)
"""
PLMS = f"""
{EVEN_STEPS}
The first step: `heun`
{LOWER_EVEN}
"""
IPNDM = f"""
{EVEN_STEPS}
The first step: `euler`
{LOWER_EVEN}
"""
GRADIENT_ESTIMATION = "x̄ₙ₊₁ = x̄ₙ + hₙ·(γ·εₙ + (1 - γ)·εₙ₋₁)"


def _row(
    name: str, points: Callable[..., list[Point]], order: int, reference: str, formula: str, **declared: Any
) -> Solver:
    settled = {"family": "multistep", "nfe": 1, "grid": "log", **declared}
    return points_row(name, points, order=order, reference=reference, formula=formula, **settled)


def _adams_row(name: str, k: int, reference: str, grid: str = "log", **options: Any) -> Solver:
    warmup = (len(INNER[k]),) * (k - 2)
    points = functools.partial(adams, k=k, **options)
    settings = defaults_of(points, "warmup") if warmup else {}
    variable = {in_time: "the time t", in_sigma: "σ"}.get(options.get("variable", in_log), "log σ")
    formula = DATA_ADAMS if options.get("data") else ADAMS.format(variable=variable)
    return _row(name, points, k, reference, formula, grid=grid, warmup=warmup, settings=settings)


def _unipc_row(p: int, b: str) -> Solver:
    name = f"unipc-{p}" if b == "bh2" else f"unipc-{p}-{b}"
    variant = "B₂(h) = e^h - 1" if b == "bh2" else "B₁(h) = h"
    points = functools.partial(unipc, p=p, b=b)
    step = "B = 1 - ρₙ" if b == "bh2" else "B = -log ρₙ"
    lines = (UNIPC_1, UNIPC_2, UNIPC_3)[p - 1].strip(), PREDICTED, *([BY_POLYNOMIAL] if p > 1 else []), step
    return _row(
        name,
        points,
        p + 1,
        f"Zhao et al. 2023, arXiv 2302.04867, {variant}",
        "\n".join(lines),
        warmup=(2,) if p == 3 else (),
        settings=defaults_of(points, "warmup") if p == 3 else {},
    )


RES = "Zhang et al. 2023, arXiv 2308.02157"
DEIS = "Zhang & Chen 2022, arXiv 2204.13902"
ROWS = (
    *(_adams_row(f"ab{k}", k, f"{DEIS} (DEIS), ε extrapolated in log σ") for k in INNER),
    *(
        _adams_row(f"deis-tab{k - 1}", k, f"{DEIS}, tAB{k - 1}, ε in the time t", "quadratic", variable=in_time)
        for k in INNER
    ),
    *(_adams_row(f"deis-rhoab{k - 1}", k, f"{DEIS}, ρAB{k - 1}, ε in σ", "karras", variable=in_sigma) for k in INNER),
    _adams_row("lms", 4, "k-diffusion's linear multistep method, ε in σ: `deis-rhoab3`", "karras", variable=in_sigma),
    _row("dpmpp-2m", dpmpp_2m, 2, "Lu et al. 2022, arXiv 2211.01095, Algorithm 2 (DPM-Solver++ 2M)", DPMPP_2M),
    _adams_row("dpmpp-3m", 3, "Lu et al. 2022, arXiv 2211.01095 (DPM-Solver++ 3M)", data=True, settle=True),
    _adams_row("res-2m", 2, f"{RES} (2M); ComfyUI's res_multistep", data=True),
    _adams_row("res-3m", 3, f"{RES} (3M): `dpmpp-3m` whose order never falls", data=True),
    *(_unipc_row(p, b) for b in ("bh2", "bh1") for p in (1, 2, 3)),
    _row("pndm", pndm, 2, "Liu et al. 2022, arXiv 2202.09778 (F-PNDM)", PNDM, warmup=(3, 3, 3), grid="karras"),
    _row("plms", plms, 2, "Liu et al. 2022, arXiv 2202.09778 (S-PNDM), weights of 4 nodes", PLMS, warmup=(1,)),
    _row("ipndm", ipndm, 2, f"{DEIS}, appendix (iPNDM)", IPNDM),
    _row(
        "gradient-estimation",
        gradient_estimation,
        1,
        "Permenter & Yuan 2023, arXiv 2306.04848",
        GRADIENT_ESTIMATION,
        settings=defaults_of(gradient_estimation, "gamma"),
    ),
)
