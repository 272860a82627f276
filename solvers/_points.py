"""Runs whose arithmetic is known before they begin: their coefficients in float64, and the loop that follows them.

A family returns a list of `Point`s. `follow` executes it, and `odeddim explain` prints it. A quadrature moves from a
point by weights on slopes. The slope is ε, with the noise level σ as time. In the data chart it is the predicted image
x̂0 = x̄ - σ ε, with 1/σ as time: (x̄/σ)' = x̂0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from odeddim.solvers._execution import beside_zero, execute
from odeddim.types import Field, Growth, Observe, Point, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

Variable = Callable[[float, float], float]
"""v(σ·e^u) - v(σ) = variable(σ, u): the variable of a polynomial, by its differences, which lose no digits."""

# The VP process of DDPM in continuous time: log(1 + σ²) = β_min·t + (β_max - β_min)·t²/2, arXiv 2011.13456, eq. 33.
BETA_MIN, BETA_MAX = 0.1, 20.0


def log_ratio(a: float, b: float) -> float:
    """log(a/b), as accurate for neighbours (whose difference is exact) as for distant noise levels."""
    return math.log1p((a - b) / b) if 0.5 < a / b < 2.0 else math.log(a / b)


def in_log(sigma: float, u: float) -> float:
    """log σ."""
    return u


def in_sigma(sigma: float, u: float) -> float:
    """σ itself."""
    return sigma * math.expm1(u)


def in_time(sigma: float, u: float) -> float:
    """The time t of the VP process of DDPM. Solvers see noise levels only, so it is not the model's own schedule."""
    if abs(u) < 0.5:
        growth = math.log1p(sigma**2 / (1 + sigma**2) * math.expm1(2 * u))
    else:  # far apart the difference is the accurate form
        growth = math.log1p((sigma * math.exp(u)) ** 2) - math.log1p(sigma**2)
    return 2 * growth / (_root(sigma) + _root(sigma * math.exp(u)))


def _root(sigma: float) -> float:
    """β(t) at the t of this noise level: the root in the solution of the quadratic equation for t."""
    return math.sqrt(BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * math.log1p(sigma**2))


def halfway_in_time(start: float, end: float) -> float:
    """The noise level halfway between two, in the time of `in_time`."""
    middle = sum(math.log1p(sigma**2) / (BETA_MIN + _root(sigma)) for sigma in (start, end))
    return math.sqrt(math.expm1(BETA_MIN * middle + (BETA_MAX - BETA_MIN) * middle**2 / 2))


@functools.cache
def gauss_legendre(panels: int) -> list[tuple[float, float]]:
    """The points and weights of a quadrature over [0, 1]: 16 points on each of so many equal parts."""
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(16)
    return [
        ((panel + (point + 1) / 2) / panels, weight / 2 / panels)
        for panel in range(panels)
        for point, weight in zip(points.tolist(), weights.tolist(), strict=True)
    ]


def lagrange_weights(nodes: Sequence[float], start: float, end: float, variable: Variable = in_log) -> list[float]:
    """The weights w_j of x̄(end) = x̄(start) + Σ_j w_j·ε(nodes[j]), exact if ε is a polynomial in a variable v.

    w_j = ∫ L_j(v(σ)) dσ, where L_j is the Lagrange polynomial in v that is 1 at nodes[j] and 0 at the other nodes. The
    integral is computed by quadrature, because the closed form loses digits where steps are small. The relative error
    is about 1e-15.

    Args:
        nodes: The noise levels at which ε is known, all positive, no two equal.
        start: The noise level at which the step starts.
        end: The noise level at which the step ends.
        variable: The variable v, by its differences.

    Returns:
        One weight for each node.

    Source:
        The polynomial extrapolation of DEIS, Zhang & Chen 2022, arXiv 2204.13902.
    """
    span = log_ratio(end, start)
    ahead = [variable(node, log_ratio(start, node)) for node in nodes]
    apart = [[variable(other, log_ratio(node, other)) for other in nodes] for node in nodes]
    weights = [0.0] * len(nodes)
    for part, share in gauss_legendre(max(1, math.ceil(abs(span) / 2))):
        u = part * span
        v, growth = variable(start, u), share * math.exp(u)
        for j in range(len(nodes)):
            weights[j] += growth * math.prod((v + ahead[i]) / apart[j][i] for i in range(len(nodes)) if i != j)
    return [start * span * weight for weight in weights]


def lagrange_values(nodes: Sequence[float], sigma: float) -> list[float]:
    """The values at σ of the Lagrange polynomials in log σ of these nodes; 1 of a single node, which may be 0."""
    return [
        math.prod(log_ratio(sigma, other) / log_ratio(node, other) for other in nodes if other != node)
        for node in nodes
    ]


class Course:
    """A list of points under construction. Points are named by their index.

    Args:
        sigma: The noise level at which the run starts; it is point 0.
        data: Whether slopes are predicted images x̂0 with 1/σ as time (the data chart), and not ε with σ as time.
    """

    def __init__(self, sigma: float, *, data: bool = False) -> None:
        self.points = [Point(sigma)]
        self.data = data

    def time(self, sigma: float) -> float:
        """The chart's time at a noise level."""
        return 1 / sigma if self.data else sigma

    def level(self, point: int) -> float:
        """The noise level of a point."""
        return self.points[point].sigma

    def elapsed(self, start: int, sigma: float) -> float:
        """The chart's time between a point and a noise level: the length of the step."""
        here = self.level(start)
        return (here - sigma) / (here * sigma) if self.data else sigma - here

    def weights(self, known: Sequence[int], start: int, sigma: float, variable: Variable = in_log) -> dict[int, float]:
        """The weights {point: w} of a step to σ, by the polynomial through the slopes at the known points."""
        times = [self.time(self.level(point)) for point in known]
        found = lagrange_weights(times, self.time(self.level(start)), self.time(sigma), variable)
        return dict(zip(known, found, strict=True))

    def move(self, start: int, sigma: float, weights: Mapping[int, float]) -> int:
        """Add a point at σ: the point `start` plus weighted slopes, {point: w}. Returns its index."""
        points, slopes = {start: 1.0}, dict(weights)
        if self.data:
            points[start] = sigma / self.level(start)
            for point, weight in weights.items():
                points[point] = points.get(point, 0.0) + sigma * weight
                slopes[point] = -sigma * weight * self.level(point)
        self.points.append(Point(sigma, points, slopes))
        return len(self.points) - 1


class FlowCourse(Course):
    """A list of points in the chart of rectified flow: y = x̄/(1+σ), whose slope over t = σ/(1+σ) is v = ε - x̂0.

    It is what a flow model sees, and it serves any other: v = (1+σ)·ε - x̄.

    Args:
        sigma: The noise level at which the run starts; it is point 0.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__(sigma)

    def time(self, sigma: float) -> float:
        """The time t of the flow at a noise level."""
        return sigma / (1 + sigma)

    def halfway(self, start: int, sigma: float) -> float:
        """The noise level halfway in t between a point and a noise level."""
        here = self.level(start)
        return (here + sigma + 2 * here * sigma) / (2 + here + sigma)

    def elapsed(self, start: int, sigma: float) -> float:
        """The time of the flow between a point and a noise level."""
        here = self.level(start)
        return (sigma - here) / ((1 + here) * (1 + sigma))

    def move(self, start: int, sigma: float, weights: Mapping[int, float]) -> int:
        """Add a point at σ: the point `start` plus weighted slopes v, {point: w}. Returns its index."""
        points, slopes, scale = {start: (1 + sigma) / (1 + self.level(start))}, {}, 1 + sigma
        for point, weight in weights.items():
            points[point] = points.get(point, 0.0) - scale * weight
            slopes[point] = scale * weight * (1 + self.level(point))
        self.points.append(Point(sigma, points, slopes))
        return len(self.points) - 1


@functools.lru_cache(maxsize=64)
def _made(
    instructions: Callable[..., Sequence[Point]],
    nodes: tuple[float, ...],
    settings: tuple[tuple[str, Any], ...],
    through_zero: bool,
) -> Sequence[Point]:
    """The points of a run, made once for all batches of images: nobody changes them."""
    made = functools.partial(instructions, **dict(settings))
    return made(nodes) if through_zero else beside_zero(made, nodes)


def follow(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    instructions: Callable[..., list[Point]],
    through_zero: bool = False,
    portable: bool = False,
    observe: Observe | None = None,
    **settings: Any,
) -> State:
    """Execute a list of points. The field is evaluated once at each point whose slope is used.

    Points and slopes that no later point uses are freed, so memory does not grow with the number of steps.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, rising or falling; the lowest may be 0.
        instructions: instructions(nodes, **settings) makes the points over positive nodes. Euler's
            step stands between σ = 0 and its neighbour.
        through_zero: Whether it makes the points over all nodes, σ = 0 among them.
        portable: Whether the run is made in integers (`odeddim.solvers._portable`).
        observe: What is shown x̄ at each node between the first and the last.
        **settings: The settings of the row.

    Returns:
        The state at sigmas[-1].
    """
    if portable:
        from odeddim.solvers import _portable

        return _portable.follow(
            field, state, sigmas, instructions=instructions, through_zero=through_zero, observe=observe, **settings
        )
    nodes = sigmas.tolist()
    points = _made(instructions, tuple(nodes), tuple(settings.items()), through_zero)
    xbar = execute(
        points, nodes, state.xbar, lambda sigma, xbar: field(sigmas.new_tensor(sigma), xbar), combined, observe
    )
    return State(xbar, points[-1].sigma)


def combined(terms: Sequence[tuple[float, Tensor]], begun: Tensor | None = None) -> Tensor:
    """Σ weight·tensor, a new tensor; or a sum that was begun, with these added to it in place."""
    if begun is None:
        (weight, first), *terms = terms
        if weight == 1 and terms:  # one pass over memory, not two, and the same bits
            (weight, second), *terms = terms
            begun = first.add(second, alpha=weight).to(first.dtype)
        else:
            begun = first * weight
    for weight, other in terms:
        begun.add_(other, alpha=weight)
    return begun


def account(
    nodes: Sequence[float], single: bool, *, instructions: Callable[..., list[Point]], **settings: Any
) -> Growth:
    """The growth of rounding errors of a list of points: each point is off by one unit of rounding.

    Args:
        nodes: Noise levels, all positive, in either direction.
        single: Whether the unit of rounding is that of float32.
        instructions: instructions(nodes, **settings) makes the points.
        **settings: The settings of the row.

    Returns:
        The growth in both directions.
    """
    up = sorted(nodes)
    there, latent = _gain(instructions(up, **settings), single)
    back, image = _gain(instructions(up[::-1], **settings), single)
    return Growth(there, back, latent, image)


def _gain(points: Sequence[Point], single: bool) -> tuple[float, float]:
    """The largest factor between an error at a point and at the last one, and the sum of all errors over its scale."""
    arriving = [0.0] * len(points)
    arriving[-1] = 1.0
    for n in range(len(points) - 1, -1, -1):
        for i, weight in points[n].points.items():
            arriving[i] += weight * arriving[n]
    rounding = 2.0**-24 if single else 2.0**-53
    errors = [factor * rounding * math.hypot(1, point.sigma) for factor, point in zip(arriving, points, strict=True)]
    return max(map(abs, arriving)), math.hypot(*errors) / math.hypot(1, points[-1].sigma)


def points_row(name: str, instructions: Callable[..., list[Point]], **declared: Any) -> Solver:
    """A row whose run is a list of points.

    Args:
        name: The name of the row.
        instructions: instructions(nodes, **settings) makes the points, with a keyword argument for each setting.
        **declared: Further fields of the row, see `Solver`.

    Returns:
        The row, with its instructions and the growth of its rounding errors.
    """
    growth = functools.partial(account, instructions=instructions)
    whole: dict[str, Any] = {"through_zero": True} if declared.get("through_zero") else {}
    run = functools.partial(follow, instructions=instructions, **whole)
    known: dict[str, Any] = {"instructions": instructions, "growth": growth, "observable": True, "portable": True}
    return Solver(name=name, run=run, to_zero=True, **known, **declared)
