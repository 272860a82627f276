"""Lists of points, executed as they are written: term after term, all points and slopes kept."""

from __future__ import annotations

import pytest
import torch
from test_solvers import DIRECTIONS, directed, each, log_grid
from torch import Tensor

from odeddim import solvers
from odeddim.types import Point, Solver, State

PLANNED = [
    row
    for row in solvers.SOLVERS.values()
    if row.instructions is not None and isinstance(row.instructions([1.0, 2.0])[0], Point)
]
START = torch.linspace(-1, 1, 60).reshape(2, 30)


def field(sigma: Tensor, xbar: Tensor) -> Tensor:
    return torch.tanh(3 * xbar / (1 + float(sigma))) - 0.1 * xbar


def by_hand(row: Solver, nodes: list[float], start: Tensor) -> Tensor:
    """The last point, in the dtype of the start."""
    assert row.instructions is not None
    points: list[Tensor] = []
    slopes: list[Tensor] = []
    for point in row.instructions(nodes):
        assert isinstance(point, Point)
        terms = [(weight, points[i]) for i, weight in point.points.items()]
        terms += [(weight, slopes[j]) for j, weight in point.slopes.items()]
        total = start
        for n, (weight, tensor) in enumerate(terms):
            total = tensor * weight if n == 0 else torch.add(total, tensor, alpha=weight)
        points.append(total)
        slopes.append(field(torch.tensor(point.sigma, dtype=torch.float64), total))
    return points[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", DIRECTIONS)
@each(PLANNED)
def test_a_run_has_the_bits_of_its_points(row: Solver, direction: str, dtype: torch.dtype) -> None:
    """A sum of which a part is made before an evaluation has them too, and the start is not changed."""
    for steps in (1, 2, 3, 9):
        sigmas = directed(log_grid(steps, 0.1, 20.0), direction)
        start = START.to(dtype)
        found = row.run(field, State(start, float(sigmas[0])), sigmas).xbar
        assert torch.equal(found, by_hand(row, sigmas.tolist(), START.to(dtype)))
        assert torch.equal(start, START.to(dtype))


@pytest.mark.parametrize("direction", DIRECTIONS)
@each([row for row in PLANNED if not row.through_zero])
def test_at_zero_stands_eulers_step(row: Solver, direction: str) -> None:
    levels = [0.1, 0.5, 3.0, 20.0]
    if direction == "encode":
        start = torch.add(START, field(torch.tensor(0.0), START), alpha=0.1)
        expected = by_hand(row, levels, start)
        levels = [0.0, *levels]
    else:
        xbar = by_hand(row, levels[::-1], START)
        expected = torch.add(xbar, field(torch.tensor(0.1), xbar), alpha=-0.1)
        levels = [*levels[::-1], 0.0]
    sigmas = torch.tensor(levels, dtype=torch.float64)
    assert torch.equal(row.run(field, State(START, levels[0]), sigmas).xbar, expected)
