"""The grid "xue": the bound from DPM-Solver++'s own weights, its least by another way, and what comes out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import odeddim
from odeddim.ode import grids
from odeddim.ode.optimised import MOST_INTERVALS, bound, xue_positions
from odeddim.solvers._points import Course
from odeddim.types import InputError

LINEAR = odeddim.Schedule.linear()


def bound_by_runs(nodes: list[float], power: int) -> float:
    """The same bound, from falling nodes: weights of predicted images as `dpmpp-3m` takes them, and plain loops."""
    steps = len(nodes) - 1
    course = Course(nodes[0], data=True)
    for level in nodes[1:]:
        course.move(0, level, {})
    weights, alone = [0.0] * steps, 0.0
    for n in range(steps):
        order = min(3, n + 1, steps - n)
        known = list(range(n, n - order, -1))
        parts = course.weights(known, n, nodes[n + 1])  # of the step of x̄/σ
        wrong = {j: w * (nodes[j] if power == 1 else nodes[j] ** 2 / math.hypot(1, nodes[j])) for j, w in parts.items()}
        if order == 1:
            alone += abs(wrong[n])
        elif n < 3:
            alone += math.hypot(*wrong.values())
        else:
            for j, part in wrong.items():
                weights[j] += part
    return alone + sum(map(abs, weights))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 9, 20])
def test_the_bound_is_that_of_dpm_solvers_weights(steps: int, power: int) -> None:
    generator = np.random.default_rng(steps)
    for _ in range(3):
        nodes = np.sort(np.exp(generator.uniform(math.log(0.01), math.log(157), steps + 1)))[::-1]
        found = float(bound(-np.log(nodes)[None], power)[0])
        assert found == pytest.approx(bound_by_runs(nodes.tolist(), power), rel=1e-7)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("intervals", "points"), [(2, 400), (3, 60), (4, 26)])
def test_no_grid_has_a_smaller_bound(intervals: int, points: int, power: int) -> None:
    """Against all grids whose nodes lie on a fine lattice."""
    low, high = 0.01, 157.0
    ends = -math.log(high), -math.log(low)
    lattice = np.linspace(*ends, points)[1:-1]
    inner = np.array(list(itertools.combinations(lattice, intervals - 1)))
    lambdas = np.column_stack([np.full(len(inner), ends[0]), inner, np.full(len(inner), ends[1])])
    least = float(bound(lambdas, power).min())
    place = np.array(xue_positions(low, high, intervals, power))
    found = float(bound((ends[1] - place * (ends[1] - ends[0]))[None, ::-1], power)[0])
    assert found <= least * (1 + 1e-6)
    assert found > 0.9 * least  # the lattice comes near it


@pytest.mark.parametrize("intervals", [6, 10])
def test_no_neighbour_has_a_smaller_bound(intervals: int) -> None:
    place = np.array(xue_positions(0.01, 157.0, intervals, 1))
    span = math.log(15700)

    def at(positions: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(bound((-math.log(0.01) - positions * span)[None, ::-1], 1)[0])

    best, generator = at(place), np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(40):
            moved = place.copy()
            moved[1:-1] += size / intervals * generator.normal(size=intervals - 1)
            if bool((np.diff(moved) > 1e-6).all()):
                assert at(moved) > best * (1 - 1e-5)
    even = np.linspace(0, 1, intervals + 1)
    assert best < at(even)


def test_the_grid_by_name() -> None:
    for name, power in (("xue", 1), ("xue:1", 1), ("xue:2", 2)):
        nodes = grids.grid(name, LINEAR, 6)
        place = torch.tensor(xue_positions(LINEAR.sigma_min, LINEAR.sigma_max, 5, power), dtype=torch.float64)
        found = (nodes[1:] / LINEAR.sigma_min).log() / math.log(LINEAR.sigma_max / LINEAR.sigma_min)
        assert torch.allclose(found, place, rtol=0, atol=1e-12)
    assert torch.equal(grids.grid("xue", LINEAR, 5, end="sigma_min"), grids.grid("xue", LINEAR, 6)[1:])
    assert grids.grid("xue", LINEAR, 1).tolist() == [0, LINEAR.sigma_max]
    assert float(grids.grid("xue", LINEAR, 6, top=50.0)[-1]) == 50
    for name in ("xue:3", "xue:", "xue:x"):
        with pytest.raises(InputError, match="1 \\(models of pixels\\) or 2"):
            grids.grid(name, LINEAR, 5)


def test_long_grids_have_the_density_of_one_that_was_optimised() -> None:
    made = np.array(xue_positions(0.01, 157.0, MOST_INTERVALS, 1))
    longer = np.array(xue_positions(0.01, 157.0, 2 * MOST_INTERVALS, 1))
    assert longer[::2] == pytest.approx(made, abs=1e-12)
    assert bool((np.diff(longer) > 0).all())
