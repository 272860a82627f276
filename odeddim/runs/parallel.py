"""Runs in parallel in time: many nodes are evaluated in one batch, again and again, until nothing changes.

A sequential run waits for each evaluation before the next. Here all points of a window are guessed, the field is
evaluated at all of them in one batch (a round), and the run's own arithmetic then moves them with these slopes. What
comes out is the next guess, and the fixed point is the sequential run. The first point of the window is exact, so each
round settles one point at least: N evaluations in a row take N rounds at most, and after these the result is the
sequential one bit for bit, if the network gives an image the same bits in any batch.

Two things make it fast. A slope is not held while its point moves: it follows a linear model, ε(x̄ + δ) = ε(x̄) + J·δ.
J is that of data of unit variance, ε = σx̄/(1+σ²) (what is held is then v of the variance-preserving chart), and along
the last two changes of the point what the field has shown there. And points that have settled leave the window, which
takes in others.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from odeddim.plans import Callback, Plan, directed, ready
from odeddim.solvers._points import combined
from odeddim.types import Field, InputError, Instructions, Point, State

TOLERANCE = 1e-3
"""The default of `Parallel.tolerance`."""
SECANTS = 2
"""The changes of a point along which its linear model is what the field has shown."""
PARALLEL = 1e-2
"""The sine of the angle between two changes below which they count as one."""
_REFUSED = (
    "parallel=... needs a solver whose steps are fixed sums of slopes, of the one-step or the multistep family, and "
    "{!r} is none: leave out parallel=..., or take another solver, such as 'euler' or 'dpmpp-2m'"
)


@dataclass(frozen=True)
class Parallel:
    """How many nodes of an image are evaluated together, and when they count as found.

    Attributes:
        window: The evaluations of a run that are made at once, for each image. A window as long as the run takes the
            fewest rounds; memory grows with the window.
        tolerance: A point is found when a round changes it by at most this: rms, in units of √(1+σ²), which are those
            of an image at the clean end, and of a latent of unit variance at σ_T. With 0 the result is that of the
            sequential run, up to the network's digits in another batch.

    Raises:
        InputError: If the window is no positive whole number, or the tolerance is negative or not finite.

    Source:
        The sliding window: ParaDiGMS, Shih et al. 2023, arXiv 2305.16317, Algorithm 1. That accelerating must not move
        what lies behind: ParaTAA, Tang et al. 2024, arXiv 2402.09970, section 3.

    Example:
        >>> x_T = odeddim.noise(1, (1, 28, 28))
        >>> fast = odeddim.solve(x_T, "euler", steps=20, parallel=odeddim.Parallel(20, tolerance=1e-4))
        >>> slow = odeddim.solve(x_T, "euler", steps=20)
        >>> bool((fast - slow).square().mean().sqrt() < 1e-3)
        True
    """

    window: int
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise InputError(f"the window of parallel=... must be a positive whole number, not {self.window!r}")
        number = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if not number or not 0 <= self.tolerance < math.inf:
            raise InputError(f"the tolerance of parallel=... must be a number of at least 0, not {self.tolerance!r}")

    @classmethod
    def of(cls, given: Parallel | int | None) -> Parallel | None:
        """What a user gives as `parallel=`: a window alone has the usual tolerance; None is a sequential run."""
        return given if given is None or isinstance(given, Parallel) else cls(given)

    def to_dict(self) -> dict[str, float]:
        """The values, as provenances hold them."""
        return {"window": self.window, "tolerance": self.tolerance}

    def check(self, plan: Plan) -> None:
        """Raise an InputError unless the solver of a plan runs in parallel."""
        _course_of(plan, rising=not plan.solver.stochastic)

    def integrate(self, field: Field, state: State, plan: Plan, *, callback: Callback | None = None) -> State:
        """The run of `odeddim.integrate`, its nodes found together.

        Args:
            field: A model, or any function ε = field(σ, x̄), σ (B,) float64, x̄ (B, *).
            state: The state, x̄ (B, *), at the first node of the plan or at the last. Gradients are not recorded.
            plan: The solver and the nodes.
            callback: Called once, at the end, with the number of steps, the last node and a copy of x̄.

        Returns:
            The state at the other end of the plan. Its report has for each image the `rounds`, the `evaluations`, and
            the `residual`, the largest change with which a point was taken as found; 0 if all are exact.

        Raises:
            InputError: If the solver does not run in parallel, the state lies elsewhere, a gradient is needed, or the
                model does not take the state.
        """
        if torch.is_grad_enabled() and state.xbar.requires_grad:
            raise InputError(
                "parallel=... gives no gradients, and the start of the run needs one: leave it out, or call it within "
                "torch.no_grad()"
            )
        field, state = ready(field, state)
        nodes = directed(plan, state)
        course = _course_of(plan, rising=float(nodes[0]) < float(nodes[-1]))
        with torch.no_grad():
            images = [_Image(course, state.xbar[i : i + 1], self) for i in range(len(state))]
            while moving := [image for image in images if not image.done]:
                _round(field, moving)
            xbar = torch.cat([image.xbar for image in images])
        if callback is not None:
            callback(len(nodes) - 1, float(nodes[-1]), xbar.clone())
        report = {
            "rounds": torch.tensor([image.rounds for image in images]),
            "evaluations": torch.tensor([image.evaluations for image in images]),
            "residual": torch.tensor([image.residual for image in images], dtype=torch.float64),
        }
        return State(xbar, float(nodes[-1]), report=report)


def _round(field: Field, images: Sequence[_Image]) -> None:
    """Evaluate the windows of all images in one batch, and move their points."""
    levels = torch.tensor([sigma for image in images for sigma in image.levels], dtype=torch.float64)
    eps = field(levels, torch.cat([image.guesses for image in images]))
    for image, part in zip(images, eps.split([len(image.levels) for image in images]), strict=True):
        image.move(part)


@dataclass(frozen=True)
class _Course:
    """The points of a run, those between σ = 0 and its neighbour among them.

    Attributes:
        points: The points.
        marks: The indices of the points whose slope is used, in their order, and that of the last point.
        places: Where the first are among the marks, {index: place}.
        last_use: The index of the last point that uses a point or its slope; the point's own if none does.
    """

    points: tuple[Point, ...]
    marks: tuple[int, ...]
    places: dict[int, int]
    last_use: tuple[int, ...]

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Course:
        """The course of these points."""
        last_use = list(range(len(points)))
        for n, point in enumerate(points):
            for i in (*point.points, *point.slopes):
                last_use[i] = n
        used = sorted({j for point in points for j in point.slopes})
        places = {index: place for place, index in enumerate(used)}
        return cls(tuple(points), (*used, len(points) - 1), places, tuple(last_use))


def _course_of(plan: Plan, *, rising: bool) -> _Course:
    """The points of a plan; an InputError if its solver's run is none of points."""
    row = plan.solver
    nodes = plan.nodes.tolist()
    if row.instructions is None:
        raise InputError(_REFUSED.format(row.name))
    made = _made(row.instructions, tuple(nodes if rising else nodes[::-1]))
    if made is None:
        raise InputError(_REFUSED.format(row.name))
    return made


@functools.lru_cache(maxsize=64)
def _made(instructions: Instructions, nodes: tuple[float, ...]) -> _Course | None:
    """The course over nodes, made once for all batches; None if it is no list of points.

    As in `odeddim.plans.walk`, Euler's step leads from σ = 0 to its neighbour, and from there to σ = 0.
    """
    inner = tuple(sigma for sigma in nodes if sigma > 0)
    own = list(instructions(inner)) if len(inner) > 1 else [Point(inner[0])]
    if not all(isinstance(point, Point) for point in own):
        return None
    points: list[Point] = [point for point in own if isinstance(point, Point)]
    if nodes[0] == 0:
        points[0] = Point(inner[0], {-1: 1.0}, {-1: inner[0]})
        points = [Point(0.0), *(_shifted(point) for point in points)]
    if nodes[-1] == 0:
        points.append(Point(0.0, {len(points) - 1: 1.0}, {len(points) - 1: -inner[-1]}))
    return _Course.of(points)


def _shifted(point: Point) -> Point:
    """A point whose references count from a point before the first."""
    return Point(
        point.sigma, {i + 1: c for i, c in point.points.items()}, {j + 1: w for j, w in point.slopes.items()}
    )


class _Image:
    """The points of one image: what is settled, and the guesses in the window.

    Attributes:
        done: Whether the last point is settled.
        guesses: x̄ at the points of the window, (w, *).
        levels: The noise levels of these points.
        rounds: The rounds so far.
        evaluations: The evaluations so far.
        residual: The largest change with which a point was taken as found.
    """

    def __init__(self, course: _Course, xbar: Tensor, parallel: Parallel) -> None:
        self.course, self.parallel = course, parallel
        self.front = 0  # in marks: the first whose slope is not settled; its x̄ is
        self.xbars, self.slopes = {0: xbar}, dict[int, Tensor]()  # what is settled and still used
        self.guesses, self.levels, self.done = xbar, list[float](), False
        self.rounds, self.evaluations, self.residual = 0, 0, 0.0
        self.models = _Models(xbar)
        sweep = _Sweep(self, 0)
        sweep.to(self._end(0))
        self._settle(0, sweep)

    @property
    def xbar(self) -> Tensor:
        """x̄ at the last point, (1, *)."""
        return self.xbars[len(self.course.points) - 1]

    def _end(self, front: int) -> int:
        """The point up to which the window reaches from a mark."""
        marks = self.course.marks
        return marks[min(front + self.parallel.window, len(marks) - 1)]

    def move(self, eps: Tensor) -> None:
        """Take the slopes (w, *) at the guesses, and move all points with them."""
        marks, after = self.course.marks, self.front + 1
        self.rounds += 1
        self.evaluations += len(eps)
        self.models.learn(self.guesses, eps, self.levels)
        sweep = _Sweep(self, marks[self.front], eps)
        sweep.to(marks[self.front + len(eps)])
        for change in sweep.changes():
            if not change <= self.parallel.tolerance:
                break
            self.residual = max(self.residual, change)
            after += 1
        sweep.to(self._end(after))
        self._settle(after, sweep)

    def _settle(self, front: int, sweep: _Sweep) -> None:
        """Keep what is settled before a mark, and the guesses from it on."""
        marks, last_use = self.course.marks, self.course.last_use
        here = marks[front]
        self.xbars |= {n: xbar for n, xbar in sweep.xbars.items() if n <= here}
        self.slopes |= {n: slope for n, slope in sweep.slopes.items() if n < here}
        for kept in (self.xbars, self.slopes):
            for n in [n for n in kept if last_use[n] <= here and n != here]:
                del kept[n]
        window = marks[front : min(front + self.parallel.window, len(marks) - 1)]
        self.models.shift(front - self.front, len(window))
        self.front, self.done = front, not window
        self.levels = [self.course.points[n].sigma for n in window]
        if window:
            self.guesses = torch.cat([sweep.xbars[n] if n > sweep.start else self.xbars[n] for n in window])


class _Sweep:
    """The run's own arithmetic from a settled point on, with slopes that follow the points.

    Attributes:
        start: The settled point.
        xbars: {n: x̄} of the points after it.
        slopes: {n: ε} from it on.
    """

    def __init__(self, image: _Image, start: int, eps: Tensor | None = None) -> None:
        self.image, self.start, self.reached = image, start, start
        self.xbars, self.slopes = dict[int, Tensor](), dict[int, Tensor]()
        self.eps = eps
        self.moved: list[Tensor] = []
        self.v: Tensor | None = None
        if eps is not None:
            self.slopes[start] = eps[:1]
        elif start in image.course.places:
            self.slopes[start] = self._guessed(start)

    def to(self, last: int) -> None:
        """Go on up to a point."""
        course, image = self.image.course, self.image
        window = 0 if self.eps is None else len(self.eps)
        for n in range(self.reached + 1, last + 1):
            point = course.points[n]
            terms = [(c, self._xbar(i)) for i, c in point.points.items()]
            terms += [(w, self.slopes[j] if j >= self.start else image.slopes[j]) for j, w in point.slopes.items()]
            self.xbars[n] = combined(terms)
            if n in course.places:
                row = course.places[n] - image.front
                self.slopes[n] = self._followed(n, row) if row < window else self._guessed(n)
        self.reached = max(self.reached, last)

    def _xbar(self, n: int) -> Tensor:
        return self.xbars[n] if n > self.start else self.image.xbars[n]

    def _followed(self, n: int, row: int) -> Tensor:
        """The slope at a point that was evaluated where it was before."""
        assert self.eps is not None
        sigma, change = self.image.levels[row], self.xbars[n] - self.image.guesses[row : row + 1]
        self.moved.append(torch.linalg.vector_norm(change, dtype=torch.float64) / math.hypot(1, sigma))
        return self.eps[row : row + 1].add(change, alpha=_unit(sigma)).add_(self.image.models.along(row, change))

    def _guessed(self, n: int) -> Tensor:
        """The slope at a point that was not evaluated: v of the last one that was, or 0."""
        sigma, xbar = self.image.course.points[n].sigma, self._xbar(n)
        if self.v is None:
            self.v = torch.zeros_like(xbar)
            if self.eps is not None:
                last = self.image.course.marks[self.image.front + len(self.eps) - 1]
                where = self.image.course.points[last].sigma
                self.v = self.slopes[last].sub(self._xbar(last), alpha=_unit(where)) * math.hypot(1, where)
        return (self.v / math.hypot(1, sigma)).add_(xbar, alpha=_unit(sigma))

    def changes(self) -> list[float]:
        """By how much the evaluated points after the first have moved: rms, in units of √(1+σ²)."""
        if not self.moved:
            return []
        found: list[float] = (torch.stack(self.moved) / math.sqrt(self.image.guesses[0].numel())).tolist()
        return found


def _unit(sigma: float) -> float:
    """∂ε/∂x̄ where the data are a Gaussian of unit variance: ε = σx̄/(1+σ²)."""
    return sigma / (1 + sigma**2)


class _Models:
    """What the field has shown of its slopes along the last changes of each point of a window.

    A model holds two directions, of unit length and orthogonal, and by how much ε changes along each of them beyond
    that of `_unit`. With this change of ε alone the point's linear model is Broyden's.

    Source:
        Broyden 1965, A class of methods for solving nonlinear simultaneous equations, eq. 4.5, for each point alone.
    """

    def __init__(self, xbar: Tensor) -> None:
        self.directions = self.answers = xbar.new_zeros(0, SECANTS, xbar.numel())
        self.seen = (xbar[:0], xbar[:0])

    def learn(self, xbar: Tensor, eps: Tensor, levels: Sequence[float]) -> None:
        """Take in the evaluations ε (w, *) at x̄ (w, *)."""
        before, its_eps = self.seen
        known = len(before)
        if known:
            change = (xbar[:known] - before).flatten(1)
            units = change.new_tensor([[_unit(sigma)] for sigma in levels[:known]])
            answer = (eps[:known] - its_eps).flatten(1) - units * change
            length = torch.linalg.vector_norm(change, dim=1, keepdim=True)
            # Changes as small as rounding show nothing but that.
            least = 1e3 * torch.finfo(xbar.dtype).eps * torch.linalg.vector_norm(xbar[:known].flatten(1), dim=1)
            shows = length > least.unsqueeze(1)
            new = [torch.where(shows, part / length, 0.0) for part in (change, answer)]
            old = [kept[:known, 0] for kept in (self.directions, self.answers)]
            along = (old[0] * new[0]).sum(1, keepdim=True)
            across = (1 - along.square()).clamp(min=0).sqrt()
            for kept, fresh, one in zip((self.directions, self.answers), new, old, strict=True):
                kept[:known, 1] = torch.where(across > PARALLEL, (one - along * fresh) / across, 0.0)
                kept[:known, 0] = fresh
        self.seen = (xbar, eps)

    def shift(self, settled: int, window: int) -> None:
        """Leave out what has settled, and make room for new points."""
        x, eps = self.seen
        self.seen = (x[settled:], eps[settled:])
        fresh = self.directions.new_zeros(max(0, window - len(self.directions[settled:])), *self.directions.shape[1:])
        self.directions, self.answers = (
            torch.cat([kept[settled:], fresh])[:window] for kept in (self.directions, self.answers)
        )

    def along(self, row: int, change: Tensor) -> Tensor:
        """By how much ε at a point of the window changes with x̄ (1, *), beyond `_unit`."""
        return (self.answers[row].T @ (self.directions[row] @ change.flatten())).reshape(change.shape)
