"""Gauss-Newton on a whole rule: all weights and corrections of all directions and the nodes between, together.

What falls is the mean over images of the logarithm of the mean square error at the end, summed over the directions, so
that no hard image rules the result. A logarithm lies below its tangent: least squares in which each image weighs one
over its present error bound it from above. The effect of a weight and of a node on the end is found by runs from there
on with a small change, so that no gradients of the model are needed.

Two changes of variables make the problem round. The weights of a step, and the corrections of the slope at its start,
move along combinations of its terms that are orthonormal over the images. A node that moves takes x̄ with it, along the
slope that the step before it extrapolates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odeddim.fitting.rules import Course, Rule, Task, gram, squares, weighted
from odeddim.solvers._points import lagrange_values
from odeddim.types import InputError

FLOOR = 1e-12
"""Mean square errors below are rounding."""
CHANGE = 1e-3
"""The small change of x̄ and of log σ, relative."""
FARTHEST = 0.4
"""How far a round may move a node in log σ."""
DAMPINGS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The dampings of Levenberg and Marquardt that a round tries, as shares of the diagonal; each try costs one run."""
SHARES = (1.0, 0.3, 0.1)
"""What part of the step is made; less where none of the dampings lowers the objective, for then its effects bend."""
GAIN = 0.01
"""A round that lowers the objective by less is the last."""


@dataclass(frozen=True)
class Point:
    """A rule with its objective, where the descent is.

    Attributes:
        rule: The rule.
        squares: direction -> the mean square error of each image, (B,) float64.
    """

    rule: Rule
    squares: Mapping[str, Tensor]

    @property
    def objective(self) -> float:
        """What falls: the mean logarithm of the mean square error, summed over the directions."""
        return sum(float((found + FLOOR).log().mean()) for found in self.squares.values())


def measured(tasks: Sequence[Task], rule: Rule) -> Point:
    """A rule with its objective."""
    return Point(rule, {task.direction: squares(task, rule) for task in tasks})


def evaluations(steps: int, images: int, directions: int = 1, *, corrected: bool = False) -> int:
    """About how many images a round evaluates, for a progress bar. corrected: whether a Gaussian corrects slopes."""
    return directions * images * (2 + (3 if corrected else 2) * steps * steps + steps)


def round_of(tasks: Sequence[Task], point: Point, advance: Callable[[int], Any]) -> Point | None:
    """A round of the descent.

    Args:
        tasks: The directions.
        point: Where the descent is.
        advance: Called with the number of images whose effect was found; each of `tasks` has its own.

    Returns:
        The next point; None if no step lowers the objective.
    """
    rule, systems = point.rule, [_System(task, point, advance) for task in tasks]
    free = free_nodes(tasks, rule)
    sizes = [system.size for system in systems]
    total = sum(sizes) + len(free)
    matrix = torch.zeros(total, total, dtype=torch.float64)
    vector = torch.zeros(total, dtype=torch.float64)
    offset = 0
    for system in systems:
        own, pull = system.normal_equations(free)
        places = torch.tensor([*range(offset, offset + system.size), *range(total - len(free), total)])
        matrix[places[:, None], places] += own
        vector[places] += pull
        offset += system.size
    steps = []
    for damping in DAMPINGS:
        damped = matrix + torch.diag(damping * matrix.diagonal() + 1e-12 * matrix.diagonal().mean())
        steps.append(-torch.linalg.solve(damped, vector))
    for share in SHARES:
        found = _best(tasks, systems, point, free, [share * step for step in steps])
        if found is not None:
            return found
    return None


def _best(
    tasks: Sequence[Task], systems: Sequence[_System], point: Point, free: Sequence[int], steps: Sequence[Tensor]
) -> Point | None:
    """The best point after one of some steps, the most damped first; None if none lowers the objective."""
    best: Point | None = None
    for step in steps:
        found = _stepped(tasks, systems, point, free, step)
        if found is None or found.objective >= (best or point).objective:
            if best is not None:  # with still less damping it only gets worse
                break
        else:
            best = found
    return best


def free_nodes(tasks: Sequence[Task], rule: Rule) -> list[int]:
    """The places of the nodes that may move: those between, and the last one where a Gaussian carries from there on."""
    return list(range(1, len(rule.nodes) if tasks[0].moments is not None else len(rule.nodes) - 1))


def _stepped(
    tasks: Sequence[Task], systems: Sequence[_System], point: Point, free: Sequence[int], step: Tensor
) -> Point | None:
    """The point after a step; None if that goes too far, is no rule, or its runs fail."""
    moves = step[len(step) - len(free) :].tolist()
    if max(map(abs, moves), default=0.0) > FARTHEST:
        return None
    rule, offset = point.rule, 0
    for system in systems:
        rule = system.changed(rule, step[offset : offset + system.size])
        offset += system.size
    for place, move in zip(free, moves, strict=True):
        rule = with_node(rule, place, point.rule.nodes[place] * math.exp(move))
    rising = all(a < b for a, b in zip(rule.nodes, rule.nodes[1:], strict=False))
    if not rising or rule.nodes[-1] > tasks[0].top:
        return None
    try:
        return measured(tasks, rule)
    except InputError:  # the model's answer was not finite
        return None


def with_node(rule: Rule, place: int, sigma: float) -> Rule:
    """The rule with a node moved: each run passes the node along the slope that it extrapolates to it.

    Args:
        rule: The rule.
        place: The place of the node among `rule.nodes`.
        sigma: Its noise level.

    Returns:
        The rule. Where the slope is constant, it ends where it did.
    """
    by = sigma - rule.nodes[place]
    found = {}
    for direction, table in rule.weights.items():
        walked, rows = rule.walked(direction), [list(row) for row in table]
        here = place if direction == "encode" else rule.steps - place
        if here > 0:
            before = [level for level in walked[max(0, here - 2) : here] if level > 0][::-1] or [walked[here - 1]]
            for j, value in enumerate(lagrange_values(before, walked[here])):
                rows[here - 1][1 + j] += by * value
        if here < rule.steps:
            rows[here][1] -= by * rows[here][0]
        found[direction] = tuple(map(tuple, rows))
    return replace(rule, nodes=(*rule.nodes[:place], sigma, *rule.nodes[place + 1 :]), weights=found)


class _System:
    """The linear least squares of one direction, in the changes of its weights, its corrections and the free nodes."""

    def __init__(self, task: Task, point: Point, advance: Callable[[int], Any]) -> None:
        self.task, self.rule, self.advance = task, point.rule, advance
        self.weights = point.rule.weights[task.direction]
        self.squares = point.squares[task.direction]
        corrected = task.moments is not None
        self.sizes = [
            len(row) + 2 * (corrected and sigma > 0)
            for row, sigma in zip(self.weights, point.rule.walked(task.direction), strict=False)
        ]
        self.size = sum(self.sizes)
        self.combinations: list[Tensor] = []
        self.changes: list[float] = []

    def normal_equations(self, free: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The matrix (P, P) and the vector (P,): first weights and corrections, step by step, then the nodes."""
        self._find_combinations()
        size = self.size + len(free)
        matrix, vector = (torch.zeros(shape, dtype=torch.float64) for shape in ((size, size), (size,)))
        for images in self.task.batches():
            course = Course.begun(self.task, self.rule, images)
            misses = self.task.misses(course.go(self.weights).cpu(), images)
            weight = (1 / (misses.shape[1] * (self.squares[images] + FLOOR))).sqrt()[:, None]
            effects = torch.stack(
                [*self._of_weights(course, images, misses), *self._of_nodes(course, free, images, misses)]
            )
            effects = (effects * weight).flatten(1)
            matrix = matrix + effects @ effects.T
            vector = vector + effects @ (misses * weight).flatten()
            self.advance(images.stop - images.start)
        return matrix, vector

    def _find_combinations(self) -> None:
        """For each step the orthonormal combinations of its terms, (K, K), and how far x̄ is changed along them.

        A correction counts twice: by what it changes in its own step, and in the next one.
        """
        sums = [torch.zeros(size, size, dtype=torch.float64) for size in self.sizes]
        numbers, ends = 0, 0.0
        for images in self.task.batches():
            course = Course.begun(self.task, self.rule, images)
            course.go(self.weights)
            for step, row in enumerate(self.weights):
                sums[step] += gram(course.terms_of(step))
                if course.parts[step] and step + 1 < len(sums):  # a corrected slope is used by the next step, too
                    sums[step][len(row) :, len(row) :] += (self.weights[step + 1][2] / row[1]) ** 2 * gram(
                        course.parts[step]
                    )
            ends += float(course.xbars[-1].double().square().sum())
            numbers += course.xbars[0].numel()
        for products in sums:
            scale = (products.diagonal() / numbers).clamp(min=1e-300).sqrt()
            even = products / numbers / scale[:, None] / scale
            root = torch.linalg.cholesky(even + 1e-9 * torch.eye(len(scale), dtype=torch.float64))
            self.combinations.append(torch.linalg.inv(root) / scale)
        reached = [*(float(products[0, 0]) for products in sums[1:]), ends]
        self.changes = [CHANGE * max(math.sqrt(value / numbers), 1e-30) for value in reached]

    def _of_weights(self, course: Course, images: slice, misses: Tensor) -> list[Tensor]:
        found = []
        for step, (combinations, change) in enumerate(zip(self.combinations, self.changes, strict=True)):
            terms = course.terms_of(step)
            for combination in combinations.tolist():
                moved = course.xbars[step + 1] + change * weighted(combination, terms)
                twin = course.from_step(step + 1, moved)
                row = self.weights[step]
                twin.correct(step, [change * by / row[1] for by in combination[len(row) :]])
                end = twin.go(self.weights)
                found.append((self.task.misses(end.cpu(), images) - misses) / change)
        return found

    def _of_nodes(self, course: Course, free: Sequence[int], images: slice, misses: Tensor) -> list[Tensor]:
        found = []
        for place in free:
            rule = with_node(self.rule, place, self.rule.nodes[place] * math.exp(CHANGE))
            weights, sigmas = rule.weights[self.task.direction], rule.walked(self.task.direction)
            here = place if self.task.rises else rule.steps - place
            if here == 0:
                moved = Course.begun(self.task, rule, images)
            else:  # the run is the same until the step to the node
                moved = course.from_step(here, weighted(weights[here - 1], course.terms_of(here - 1)), sigmas)
            found.append((self.task.misses(moved.go(weights).cpu(), images) - misses) / CHANGE)
        return found

    def changed(self, rule: Rule, step: Tensor) -> Rule:
        """The rule after a step along the combinations."""
        way, offset = self.task.direction, 0
        weights, corrections = list[tuple[float, ...]](), list[tuple[float, float]]()
        for row, size, combinations, (alpha, beta) in zip(
            self.weights, self.sizes, self.combinations, self._corrections, strict=True
        ):
            moves = (step[offset : offset + size] @ combinations).tolist()
            weights.append(tuple(value + by for value, by in zip(row, moves, strict=False)))
            by = [move / row[1] for move in moves[len(row) :]] or [0.0, 0.0]
            corrections.append((alpha + by[0], beta + by[1]))
            offset += size
        found = {**rule.corrections, way: tuple(corrections)} if self.task.moments is not None else rule.corrections
        return replace(rule, weights={**rule.weights, way: tuple(weights)}, corrections=found)

    @property
    def _corrections(self) -> Sequence[tuple[float, float]]:
        return self.rule.corrections.get(self.task.direction, [(0.0, 0.0)] * len(self.weights))
