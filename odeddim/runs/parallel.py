"""Runs in parallel in time: many nodes are evaluated in one batch, again and again, until nothing changes.

A sequential run waits for each evaluation before the next. Here all points of a window are guessed, the field is
evaluated at all of them in one batch (a round), and the run's own arithmetic then moves them with these slopes. What
comes out is the next guess, and the fixed point is the sequential run. The first point of the window is exact, so each
round settles one point at least: N evaluations in a row take N rounds at most, and after these the result is the
sequential one bit for bit, if the network gives an image the same bits in any batch.

Three things make it fast. The first guess follows the Gaussian of the model's data, or that of data of unit variance. A
slope is not held while its point moves: it follows a linear model, ε(x̄ + δ) = ε(x̄) + J·δ. J is that of data of unit
variance, ε = σx̄/(1+σ²) (what is held is then v of the variance-preserving chart), and along the last two changes of the
point what the field has shown there. And points that have settled leave the window, which takes in others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odeddim.plans import Plan
from odeddim.solvers._execution import beside_zero
from odeddim.solvers._points import combined
from odeddim.types import Field, InputError, Instructions, Moments, Point, State

TOLERANCE = 1e-3
"""The default of `Parallel.tolerance`."""
SETTLED = 1e-2
"""The share of the tolerance below which a point leaves the window before all are found: what is left of its error
grows along the rest of the run."""
ALIKE = 1e-2
"""The sine of the angle between two changes below which they count as one."""
_REFUSED = (
    "parallel=... needs a solver whose steps are fixed sums of slopes, of the one-step or the multistep family, and "
    "{!r} is none: leave out parallel=..., or take another solver, such as 'euler' or 'dpmpp-2m'"
)


_Guide: TypeAlias = Callable[[float, Tensor], Tensor]
"""ε of a Gaussian, guide(σ, x̄ (1, *)): the first guess of slopes."""


@dataclass(frozen=True)
class Parallel:
    """How many nodes of an image are evaluated together, and when they count as found.

    Attributes:
        window: The evaluations of a run that are made at once, for each image. A window as long as the run takes the
            fewest rounds; memory grows with the window.
        tolerance: A run ends with the round that changes no point by more than this: rms, in units of √(1+σ²), which
            are those of an image at the clean end, and of a latent of unit variance at σ_T. Changes shrink faster and
            faster, so that the result is closer to the sequential run's. With 0 it is that, up to the network's digits
            in another batch.

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

    def on(self, plan: Plan) -> Plan:
        """The plan with its solver run in parallel, for `odeddim.integrate`.

        The run gives no gradients and shows nothing between its ends. Its report has for each image the `rounds`, the
        `evaluations`, and the `residual`: the largest change of a point in the round with which it was taken as found;
        0 if all points are exact.

        Args:
            plan: The plan.

        Returns:
            A plan with the same nodes, and a row of the same arithmetic.

        Raises:
            InputError: If the solver is not one whose steps are fixed sums of slopes.

        Example:
            >>> plan = odeddim.plan(solver="euler", steps=20)
            >>> x_T = odeddim.noise(1, (1, 28, 28))
            >>> start = odeddim.State(x_T * (1 + plan.top**2) ** 0.5, plan.top)
            >>> found = odeddim.integrate(odeddim.load(), start, odeddim.Parallel(20).on(plan))
            >>> int(found.report["rounds"]) < 15, float(found.report["residual"]) <= 1e-3
            (True, True)
        """
        row = plan.solver
        if plan.portable:
            raise InputError("portable=True makes one step after the other: leave out parallel=..., or portable=True")
        if row.instructions is None or row.reversible:
            raise InputError(_REFUSED.format(row.name))
        course = _within_zero if row.through_zero else _beside_zero
        own = functools.partial(_run, course_of=functools.partial(course, row.instructions), parallel=self)
        return plan.with_solver(
            replace(
                row, name=f"{row.name} in parallel", run=own, settings={}, limits=(), chosen={}, to_zero=True,
                observable=False, differentiable=False,
            )
        )  # fmt: skip


def _run(
    field: Field, state: State, sigmas: Tensor, *, course_of: Callable[[tuple[float, ...]], _Course], parallel: Parallel
) -> State:
    """The run of the row: the nodes from sigmas[0] to sigmas[-1], σ = 0 among them, found together."""
    course = course_of(tuple(sigmas.tolist()))
    guide = _guide_of(field, state.xbar)
    images = [_Image(course, state.xbar[i : i + 1], parallel, guide) for i in range(len(state))]
    while moving := [image for image in images if not image.done]:
        _round(field, moving)
    report = {
        "rounds": torch.tensor([image.rounds for image in images]),
        "evaluations": torch.tensor([image.evaluations for image in images]),
        "residual": torch.tensor([image.residual for image in images], dtype=torch.float64),
    }
    return State(torch.cat([image.xbar for image in images]), course.points[-1].sigma, report=report)


def _round(field: Field, images: Sequence[_Image]) -> None:
    """Evaluate the windows of all images in one batch, and move their points."""
    levels = torch.tensor([sigma for image in images for sigma in image.levels], dtype=torch.float64)
    eps = field(levels, torch.cat([image.guesses for image in images]))
    parts = torch.split(eps, [len(image.levels) for image in images])
    for image, part in zip(images, parts, strict=True):
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


@functools.lru_cache(maxsize=64)
def _within_zero(instructions: Instructions, nodes: tuple[float, ...]) -> _Course:
    """The course over nodes of a row that has weights of its own for the step at σ = 0."""
    made: Any = instructions(nodes)
    return _Course.of(made)


@functools.lru_cache(maxsize=64)
def _beside_zero(instructions: Instructions, nodes: tuple[float, ...]) -> _Course:
    """The course over nodes, σ = 0 among them, made once for all batches."""
    return _Course.of(beside_zero(instructions, nodes))


class _Image:
    """The points of one image: what is settled, and the guesses in the window.

    Attributes:
        done: Whether the last point is settled.
        guesses: x̄ at the points of the window, (w, *).
        levels: The noise levels of these points.
        at_end: x̄ at the last point, (1, *), once the window reaches so far.
        rounds: The rounds so far.
        evaluations: The evaluations so far.
        residual: The largest change with which a point was taken as found.
    """

    def __init__(self, course: _Course, xbar: Tensor, parallel: Parallel, guide: _Guide) -> None:
        self.course, self.parallel, self.guide = course, parallel, guide
        self.front = 0  # in marks: the first whose slope is not settled; its x̄ is
        self.xbars, self.slopes = {0: xbar}, dict[int, Tensor]()  # what is settled and still used
        self.guesses, self.levels, self.done = xbar, list[float](), False
        self.at_end: Tensor | None = None
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
        tolerance, changes = self.parallel.tolerance, sweep.changes()
        for change in changes[: len(eps) - 1]:
            if not change <= SETTLED * tolerance:
                break
            self.residual = max(self.residual, change)
            after += 1
        if after < len(marks) - 1 and len(changes) == len(eps) and max(changes) <= tolerance:
            self.residual, after = max(self.residual, *changes), len(marks) - 1
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
            self.at_end = sweep.xbars.get(marks[-1])


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
            self.slopes[start] = eps[:1].clone()  # what stays must not keep the whole batch
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
            elif image.at_end is not None and n == len(course.points) - 1:
                self._note(self.xbars[n] - image.at_end, point.sigma)
        self.reached = max(self.reached, last)

    def _xbar(self, n: int) -> Tensor:
        return self.xbars[n] if n > self.start else self.image.xbars[n]

    def _followed(self, n: int, row: int) -> Tensor:
        """The slope at a point that was evaluated where it was before."""
        assert self.eps is not None
        sigma, change = self.image.levels[row], self.xbars[n] - self.image.guesses[row : row + 1]
        self._note(change, sigma)
        return self.eps[row : row + 1].add(change, alpha=_unit(sigma)).add_(self.image.models.along(row, change))

    def _guessed(self, n: int) -> Tensor:
        """The slope at a point that was not evaluated: that of a Gaussian, and what the last one that was had beyond.

        What is beyond is held as v of the variance-preserving chart.
        """
        course, guide = self.image.course, self.image.guide
        sigma, xbar = course.points[n].sigma, self._xbar(n)
        if self.eps is not None and self.v is None:
            last = course.marks[self.image.front + len(self.eps) - 1]
            where = course.points[last].sigma
            self.v = (self.slopes[last] - guide(where, self._xbar(last))) * math.hypot(1, where)
        own = guide(sigma, xbar)
        return own if self.v is None else own + self.v / math.hypot(1, sigma)

    def _note(self, change: Tensor, sigma: float) -> None:
        self.moved.append(torch.linalg.vector_norm(change, dtype=torch.float64) / math.hypot(1, sigma))

    def changes(self) -> list[float]:
        """By how much points have moved, rms in units of √(1+σ²): the evaluated ones but the first, then the last."""
        if not self.moved:
            return []
        found: list[float] = (torch.stack(self.moved) / math.sqrt(self.image.guesses[0].numel())).tolist()
        return found


def _guide_of(field: Field, xbar: Tensor) -> _Guide:
    """ε of the Gaussian of the model's data, or of data of unit variance if it has none for data of this shape."""
    moments: Moments | None = getattr(field, "moments", None)
    try:
        if moments is not None:
            moments.centre(xbar)
    except InputError:  # that of data of another size
        moments = None

    def guide(sigma: float, xbar: Tensor) -> Tensor:
        if moments is None or sigma == 0:  # where ε may not exist
            return xbar * _unit(sigma)
        return moments.eps(torch.tensor(sigma, dtype=torch.float64), xbar)

    return guide


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
        self.directions = self.answers = xbar.new_zeros(0, 2, xbar.numel())
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
                kept[:known, 1] = torch.where(across > ALIKE, (one - along * fresh) / across, 0.0)
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
