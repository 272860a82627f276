"""A linear multistep rule under construction: its nodes, its weights, its runs, and the weights by least squares.

A task is one direction. A rule has a table of weights for each of its tasks, over the same nodes. Between the last node
and σ_T the Gaussian of the data carries the state, where the model has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from odeddim.fitting.pairs import Pairs
from odeddim.solvers.fitted import DIRECTIONS, SLOPES, adams_table
from odeddim.types import Field

RIDGE = 1e-6
"""How strongly least squares pull towards the weights of Adams-Bashforth, as a share of each regressor's square."""

Weights = tuple[tuple[float, ...], ...]
"""For each step the weight of the state and those of the slopes, the newest first."""


class Carrier(Protocol):
    """What moves a state between two high noise levels at no evaluation: `odeddim.ode.gaussian.Gaussian`."""

    def carry(self, xbar: Tensor, sigma: float, to: float) -> Tensor:
        """x̄ (B, *) at `sigma`, moved to the level `to`."""


@dataclass(frozen=True)
class Rule:
    """Nodes and weights.

    Attributes:
        nodes: The noise levels, rising; the first is where images lie, the last where the solver's own steps end.
        weights: direction -> the weights, in the order in which that direction walks the nodes.
    """

    nodes: tuple[float, ...]
    weights: Mapping[str, Weights]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.nodes) - 1

    def walked(self, direction: str) -> tuple[float, ...]:
        """The nodes in the order of a direction."""
        return self.nodes if direction == "encode" else self.nodes[::-1]

    def tables(self) -> tuple[Any, ...]:
        """The setting `weights` of the row `fitted`."""
        found = []
        for direction in DIRECTIONS:
            rows = zip(self.walked(direction), self.weights.get(direction, ()), strict=False)
            found.append(tuple((sigma, *weights) for sigma, weights in rows))
        return tuple(found)


@dataclass(frozen=True)
class Task:
    """One direction of a model, with solutions to compare with.

    Attributes:
        direction: "encode" or "decode".
        field: ε(σ, x̄).
        pairs: The solutions.
        top: σ_T.
        carrier: The Gaussian of the data; None to end all steps at σ_T.
        batch: The number of images in work at once.
        device: Where the state is.
    """

    direction: str
    field: Field
    pairs: Pairs
    top: float
    carrier: Carrier | None
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
        if self.carrier is None or sigma == to:
            return xbar
        return self.carrier.carry(xbar, sigma, to)

    def slope(self, sigma: float, xbar: Tensor) -> Tensor:
        """ε at a noise level."""
        level = torch.tensor(sigma, dtype=torch.float64)
        return torch.cat([self.field(level, part).to(part) for part in torch.split(xbar, self.batch)])


class Course:
    """A run of a rule over some images: x̄ at each node that it has reached, and ε at those that it has left."""

    def __init__(self, task: Task, sigmas: Sequence[float], start: Tensor) -> None:
        self.task, self.sigmas = task, sigmas
        self.xbars, self.slopes = [start], list[Tensor]()

    @classmethod
    def begun(cls, task: Task, rule: Rule, images: slice) -> Course:
        """The run at its first node."""
        return cls(task, rule.walked(task.direction), task.start(rule.nodes[-1], images))

    def terms(self) -> list[Tensor]:
        """What the next step is a weighted sum of: x̄, and the last slopes, the newest first."""
        here = len(self.xbars) - 1
        if len(self.slopes) == here:
            self.slopes.append(self.task.slope(self.sigmas[here], self.xbars[here]))
        return [self.xbars[here], *self.slopes[: -SLOPES - 1 : -1]]

    def terms_of(self, step: int) -> list[Tensor]:
        """The terms of a step that was made."""
        return [self.xbars[step], *self.slopes[step::-1][:SLOPES]]

    def go(self, weights: Weights) -> Tensor:
        """Make the steps that are left. Returns x̄ at the end of the task."""
        for step in range(len(self.xbars) - 1, len(weights)):
            self.xbars.append(weighted(weights[step], self.terms()))
        return self.task.finish(self.xbars[-1], max(self.sigmas))

    def from_step(self, step: int, xbar: Tensor, sigmas: Sequence[float] | None = None) -> Course:
        """The run as far as a node, with another x̄ there."""
        twin = Course(self.task, sigmas or self.sigmas, xbar)
        twin.xbars, twin.slopes = [*self.xbars[:step], xbar], self.slopes[:step]
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


def least_squares(task: Task, nodes: tuple[float, ...]) -> tuple[Weights, Tensor]:
    """Weights by least squares, step by step: what leads from the x̄ that the rule itself has reached to the true one.

    Args:
        task: The task; its solutions must be known between the ends too.
        nodes: The noise levels of the rule, rising.

    Returns:
        The weights, and the mean square error of each image at the end, (B,) float64.
    """
    usual = adams(nodes, task.direction)
    images = slice(0, len(task.pairs))
    course = Course.begun(task, Rule(nodes, {}), images)
    found: list[tuple[float, ...]] = []
    for step, sigma in enumerate(course.sigmas[1:]):
        terms = course.terms()
        missing = task.pairs.at(sigma).to(terms[0]) - weighted(usual[step], terms)
        products = gram([*terms, missing])
        scale = products.diagonal()[:-1].clamp(min=1e-300).sqrt()
        matrix = products[:-1, :-1] / scale[:, None] / scale + RIDGE * torch.eye(len(scale), dtype=torch.float64)
        more = torch.linalg.solve(matrix, products[:-1, -1] / scale) / scale
        found.append(tuple((torch.tensor(usual[step], dtype=torch.float64) + more).tolist()))
        course.xbars.append(weighted(found[-1], terms))
    end = task.finish(course.xbars[-1], nodes[-1])
    return tuple(found), task.misses(end.cpu(), images).square().mean(dim=1)
