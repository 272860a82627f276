"""Lists of points, executed in whatever numbers: the loop that follows them, and σ = 0 beside the positive nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from odeddim.types import Observe, Point

if TYPE_CHECKING:
    from torch import Tensor


class Combine(Protocol):
    """The sum of [(weight, a point or a slope), ...], a new tensor; or a sum that was begun, with these added to it."""

    def __call__(self, terms: Sequence[tuple[float, Tensor]], begun: Tensor | None = None, /) -> Tensor: ...


def execute(
    points: Sequence[Point],
    nodes: Sequence[float],
    start: Tensor,
    slope: Callable[[float, Tensor], Tensor],
    combine: Combine,
    observe: Observe | None = None,
) -> Tensor:
    """Execute a list of points, whatever its numbers are.

    The terms of a sum are added in their order. So before a slope is evaluated, the terms that stand before it in the
    sum of the next point can be added up already. That is done where the sum takes less memory than its terms, but not
    of terms with gradients, which are kept anyway.

    Args:
        points: The points.
        nodes: The noise levels of the run.
        start: Point 0, (B, *).
        slope: The slope at a point, slope(σ, point (B, *)).
        combine: What makes sums.
        observe: What is shown the point at each node between the first and the last.

    Returns:
        The last point.
    """
    # A step may try its end before it gets there: the last point at a node is the one that the run goes on from.
    last_at = {point.sigma: n for n, point in enumerate(points)}
    shown = {last_at[sigma] for sigma in nodes[1:-1] if sigma in last_at} if observe is not None else set()
    sums = [_terms(point) for point in points]
    last = {key: n for n, terms in enumerate(sums) for _, key in terms}  # the point that a tensor is needed for last
    known = {0: start}

    def added(n: int, terms: Sequence[tuple[float, int]], begun: Tensor | None) -> Tensor:
        total = combine([(weight, known[key]) for weight, key in terms], begun)
        for _, key in terms:
            if last[key] == n:
                del known[key]
        return total

    begun: Tensor | None = None  # of the next point
    rest: list[tuple[float, int]] = []  # what it lacks
    for n, point in enumerate(points):
        if n > 0:
            known[n], begun = added(n, rest, begun), None
        if observe is not None and n in shown:
            observe(point.sigma, known[n])
        rest = sums[n + 1] if n + 1 < len(points) else []
        if ~n in last:
            here = known[n] if n in last or n == len(points) - 1 else known.pop(n)  # it is for its slope only
            before = next((place for place, (_, key) in enumerate(rest) if key == ~n), len(rest))
            freed = [key for _, key in rest[:before] if last[key] == n + 1 and key != n]
            if len(freed) > 1 and not any(known[key].requires_grad for _, key in rest[:before]):
                begun, rest = added(n + 1, rest[:before], None), rest[before:]
            known[~n] = slope(point.sigma, here)
            del here
    return known[len(points) - 1]


def _terms(point: Point) -> list[tuple[float, int]]:
    """The weights of a point's sum, each with its tensor: that of point i as i, and that of slope j as ~j."""
    return [(weight, i) for i, weight in point.points.items()] + [(weight, ~j) for j, weight in point.slopes.items()]


def beside_zero(instructions: Callable[..., Sequence[Any]], nodes: Sequence[float]) -> list[Point]:
    """The points over nodes, σ = 0 among them, of a row that gets the positive ones.

    As in `odeddim.plans.walk`, Euler's step leads from σ = 0 to its neighbour, and from there to σ = 0.

    Args:
        instructions: instructions(nodes) makes the points over positive nodes.
        nodes: The noise levels, rising or falling; the lowest may be 0.
    """
    inner = tuple(sigma for sigma in nodes if sigma > 0)
    points: list[Any] = [*instructions(inner)] if len(inner) > 1 else [Point(inner[0])]
    if nodes[0] == 0:
        points[0] = Point(inner[0], {-1: 1.0}, {-1: inner[0]})
        points = [Point(0.0), *(_shifted(point) for point in points)]
    if nodes[-1] == 0:
        points.append(Point(0.0, {len(points) - 1: 1.0}, {len(points) - 1: -inner[-1]}))
    return points


def _shifted(point: Point) -> Point:
    """A point whose references count from a point before the first."""
    return Point(point.sigma, {i + 1: c for i, c in point.points.items()}, {j + 1: w for j, w in point.slopes.items()})
