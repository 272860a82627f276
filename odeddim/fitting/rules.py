"""A linear multistep rule under construction: its nodes, its weights, its runs, and the weights by least squares.

A task is one direction. A rule has a table of weights for each of its tasks, over the same nodes. Where the model has
the Gaussian of its data, that carries the state between the last node and σ_T, and corrects the slopes below
(`odeddim.solvers.fitted`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from odeddim.fitting.pairs import Pairs
from odeddim.ode.gaussian import Gaussian
from odeddim.solvers.fitted import DIRECTIONS, SLOPES, adams_table, correction
from odeddim.types import Field

RIDGE = 1e-6
"""How strongly least squares pull towards the weights of Adams-Bashforth, as a share of each regressor's square."""

Weights = tuple[tuple[float, ...], ...]
"""For each step the weight of the state and those of the slopes, the newest first."""


Corrections = tuple[tuple[float, float], ...]
"""For each step α and β of the slope at its start; empty without a Gaussian."""


@dataclass(frozen=True)
class Rule:
    """Nodes, weights and corrections.

    Attributes:
        nodes: The noise levels, rising; the first is where images lie, the last where the solver's own steps end.
        weights: direction -> the weights, in the order in which that direction walks the nodes.
        corrections: direction -> those of its slopes, in the same order.
    """

    nodes: tuple[float, ...]
    weights: Mapping[str, Weights]
    corrections: Mapping[str, Corrections] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.nodes) - 1

    def walked(self, direction: str) -> tuple[float, ...]:
        """The nodes in the order of a direction."""
        return self.nodes if direction == "encode" else self.nodes[::-1]

    def settings(self) -> dict[str, Any]:
        """The settings of the row `fitted`."""
        found = {"weights": self._tables(self.weights)}
        corrections = self._tables(self.corrections)
        return found | ({"corrections": corrections} if any(corrections) else {})

    def _tables(self, of: Mapping[str, Sequence[Sequence[float]]]) -> tuple[Any, ...]:
        """Two tables, that of encoding and that of decoding, whose rows begin with the noise level of the step."""
        return tuple(
            tuple((sigma, *row) for sigma, row in zip(self.walked(direction), of.get(direction, ()), strict=False))
            for direction in DIRECTIONS
        )


@dataclass(frozen=True)
class Task:
    """One direction of a model, with solutions to compare with.

    Attributes:
        direction: "encode" or "decode".
        field: ε(σ, x̄).
        pairs: The solutions.
        top: σ_T.
        moments: The Gaussian of the data; None to end all steps at σ_T, and to correct no slope.
        batch: The number of images in work at once.
        device: Where the state is.
    """

    direction: str
    field: Field
    pairs: Pairs
    top: float
    moments: Gaussian | None
    batch: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def rises(self) -> bool:
        """Whether the nodes are walked upwards."""
        return self.direction == "encode"

    def over(self, pairs: Pairs) -> Task:
        """The task with other solutions."""
        return replace(self, pairs=pairs)

    def batches(self) -> Iterator[slice]:
        """The images, a batch at a time."""
        for first in range(0, len(self.pairs), self.batch):
            yield slice(first, min(first + self.batch, len(self.pairs)))

    def start(self, rule_top: float, images: slice) -> Tensor:
        """x̄ where the rule's first step starts."""
        if self.rises:
            return self.pairs.low[images].to(self.device)
        return self._carried(self.pairs.high[images].to(self.device), self.top, rule_top)

    def finish(self, xbar: Tensor, rule_top: float) -> Tensor:
        """x̄ at the end of the task, of x̄ where the rule's last step ends."""
        return self._carried(xbar, rule_top, self.top) if self.rises else xbar

    def misses(self, end: Tensor, images: slice) -> Tensor:
        """The errors of x̄ at the end of the task, (B, D): in units of σ_T of latents, of images as they are."""
        goal = self.pairs.high if self.rises else self.pairs.low
        return (end.double() - goal[images].double()).flatten(1) / (self.top if self.rises else 1.0)

    def _carried(self, xbar: Tensor, sigma: float, to: float) -> Tensor:
        if self.moments is None or sigma == to:
            return xbar
        return self.moments.carry(xbar, sigma, to)

    def slope(self, sigma: float, xbar: Tensor) -> Tensor:
        """ε at a noise level."""
        level = torch.tensor(sigma, dtype=torch.float64)
        return torch.cat([self.field(level, part).to(part) for part in torch.split(xbar, self.batch)])

    def parts(self, sigma: float, xbar: Tensor, slope: Tensor) -> list[Tensor]:
        """What corrects a slope: the multiples of α and of β; none without a Gaussian, and none at σ = 0."""
        if self.moments is None or sigma == 0:
            return []
        return [correction(self.moments, sigma, xbar, slope, *it).to(slope) for it in ((1.0, 0.0), (0.0, 1.0))]


class Course:
    """A run of a rule over some images: x̄ at each node that it has reached, and the slopes at those that it has left.

    Attributes:
        xbars: x̄ at each node, (B, *).
        slopes: ε', the corrected slopes, (B, *).
        parts: What corrects each of them, of ε itself (`Task.parts`).
    """

    def __init__(self, task: Task, sigmas: Sequence[float], corrections: Corrections, start: Tensor) -> None:
        self.task, self.sigmas, self.corrections = task, sigmas, corrections
        self.xbars, self.slopes, self.parts = [start], list[Tensor](), list[list[Tensor]]()

    @classmethod
    def begun(cls, task: Task, rule: Rule, images: slice) -> Course:
        """The run at its first node."""
        corrections = rule.corrections.get(task.direction, ())
        return cls(task, rule.walked(task.direction), corrections, task.start(rule.nodes[-1], images))

    def terms(self) -> list[Tensor]:
        """What the next step may be a weighted sum of, see `terms_of`."""
        here = len(self.xbars) - 1
        if len(self.slopes) == here:
            sigma, xbar = self.sigmas[here], self.xbars[here]
            slope = self.task.slope(sigma, xbar)
            self.parts.append(self.task.parts(sigma, xbar, slope))
            by = self.corrections[here] if self.corrections else ()
            self.slopes.append(weighted((1.0, *by), [slope, *self.parts[here]]))
        return self.terms_of(here)

    def terms_of(self, step: int) -> list[Tensor]:
        """x̄, the last slopes, the newest first, and what corrects the newest."""
        return [self.xbars[step], *self.slopes[step::-1][:SLOPES], *self.parts[step]]

    def correct(self, step: int, by: Sequence[float]) -> None:
        """Correct the slope at the start of a step by more."""
        self.slopes[step] = weighted((1.0, *by), [self.slopes[step], *self.parts[step]])

    def go(self, weights: Weights) -> Tensor:
        """Make the steps that are left. Returns x̄ at the end of the task."""
        for step in range(len(self.xbars) - 1, len(weights)):
            self.xbars.append(weighted(weights[step], self.terms()))
        return self.task.finish(self.xbars[-1], max(self.sigmas))

    def from_step(self, step: int, xbar: Tensor, sigmas: Sequence[float] | None = None) -> Course:
        """The run as far as a node, with another x̄ there."""
        twin = Course(self.task, sigmas or self.sigmas, self.corrections, xbar)
        twin.xbars, twin.slopes, twin.parts = [*self.xbars[:step], xbar], self.slopes[:step], self.parts[:step]
        return twin


def weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Σ weight·term, a new tensor; terms beyond the weights are left out."""
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=False):
        total.add_(term, alpha=weight)
    return total


def gram(terms: Sequence[Tensor]) -> Tensor:
    """The scalar products of tensors, (K, K) float64."""
    rows = torch.stack([term.flatten().double().cpu() for term in terms])
    return rows @ rows.T


def squares(task: Task, rule: Rule) -> Tensor:
    """The mean square error of each image at the end of a task, (B,) float64."""
    found = []
    for images in task.batches():
        end = Course.begun(task, rule, images).go(rule.weights[task.direction])
        found.append(task.misses(end.cpu(), images).square().mean(dim=1))
    return torch.cat(found)


def adams(nodes: Sequence[float], direction: str) -> Weights:
    """The weights of Adams-Bashforth, one for each term of a step."""
    walked = nodes if direction == "encode" else nodes[::-1]
    found = []
    for step, (_, *weights) in enumerate(adams_table(walked, SLOPES)):
        found.append((*weights, *[0.0] * (1 + min(step + 1, SLOPES) - len(weights))))
    return tuple(found)


def least_squares(task: Task, nodes: tuple[float, ...]) -> tuple[Rule, Tensor]:
    """A rule by least squares, step by step: what leads from the x̄ that the rule itself has reached to the true one.

    Args:
        task: The task; its solutions must be known between the ends too.
        nodes: The noise levels of the rule, rising.

    Returns:
        The rule of this direction, and the mean square error of each image at the end, (B,) float64.
    """
    usual = adams(nodes, task.direction)
    images = slice(0, len(task.pairs))
    none = tuple((0.0, 0.0) for _ in usual) if task.moments is not None else ()
    course = Course.begun(task, Rule(nodes, {}, {task.direction: none}), images)
    weights, corrections = list[tuple[float, ...]](), list[tuple[float, float]]()
    for step, sigma in enumerate(course.sigmas[1:]):
        terms = course.terms()
        missing = task.pairs.at(sigma).to(terms[0]) - weighted(usual[step], terms)
        products = gram([*terms, missing])
        scale = products.diagonal()[:-1].clamp(min=1e-300).sqrt()
        matrix = products[:-1, :-1] / scale[:, None] / scale + RIDGE * torch.eye(len(scale), dtype=torch.float64)
        more = (torch.linalg.solve(matrix, products[:-1, -1] / scale) / scale).tolist()
        row = tuple(own + by for own, by in zip(usual[step], more, strict=False))
        course.xbars.append(weighted((*row, *more[len(row) :]), terms))
        weights.append(row)
        by = [each / row[1] for each in more[len(row) :]] or [0.0, 0.0]
        corrections.append((by[0], by[1]))
        course.correct(step, by)
    end = task.finish(course.xbars[-1], nodes[-1])
    rule = Rule(nodes, {task.direction: tuple(weights)}, {task.direction: tuple(corrections)} if none else {})
    return rule, task.misses(end.cpu(), images).square().mean(dim=1)
