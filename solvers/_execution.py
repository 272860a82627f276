"""Lists of points, executed in whatever numbers: the loop that follows them, and σ = 0 beside the positive nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from odeddim.types import Observe, Point

if TYPE_CHECKING:
    from torch import Tensor


def execute(
    points: Sequence[Point],
    nodes: Sequence[float],
    start: Tensor,
    slope: Callable[[float, Tensor], Tensor],
    combine: Callable[[Sequence[tuple[float, Tensor]]], Tensor],
    observe: Observe | None = None,
) -> Tensor:
    """Execute a list of points, whatever its numbers are.

    Args:
        points: The points.
        nodes: The noise levels of the run.
        start: Point 0, (B, *).
        slope: The slope at a point, slope(σ, point (B, *)).
        combine: The sum of [(weight, a point or a slope), ...].
        observe: What is shown the point at each node between the first and the last.

    Returns:
        The last point.
    """
    # A step may try its end before it gets there: the last point at a node is the one that the run goes on from.
    last_at = {point.sigma: n for n, point in enumerate(points)}
    shown = {last_at[sigma] for sigma in nodes[1:-1] if sigma in last_at} if observe is not None else set()
    last_point = {i: n for n, point in enumerate(points) for i in point.points}
    last_slope = {j: n for n, point in enumerate(points) for j in point.slopes}
    xbars, slopes = {0: start}, dict[int, "Tensor"]()
    for n, point in enumerate(points):
        if n > 0:
            xbars[n] = combine(_terms(point, xbars, slopes))  # no list of them here: it would keep them alive
            for used, last, kept in ((point.points, last_point, xbars), (point.slopes, last_slope, slopes)):
                for i in used:
                    if last[i] == n:
                        del kept[i]
        if observe is not None and n in shown:
            observe(point.sigma, xbars[n])
        if n in last_slope:
            slopes[n] = slope(point.sigma, xbars[n])
        if n not in last_point and n < len(points) - 1:
            del xbars[n]  # it was for its slope only
    return xbars[len(points) - 1]


def _terms(point: Point, xbars: Mapping[int, Tensor], slopes: Mapping[int, Tensor]) -> list[tuple[float, Tensor]]:
    """The weights and tensors whose sum is x̄ at a point."""
    terms = [(weight, xbars[i]) for i, weight in point.points.items()]
    return terms + [(weight, slopes[j]) for j, weight in point.slopes.items()]


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
