"""GITS: the cheapest path against all paths, the costs against runs of their own, and the plans that come out."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import odeddim
from odeddim.fitting import gits
from odeddim.plans import Plan
from odeddim.types import InputError, State

MIXTURE = odeddim.load("exact-mixture")
SHAPE = (1, 4, 4)


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.15])
def test_the_cheapest_path_is_the_best_of_all(gamma: float) -> None:
    generator = np.random.default_rng(0)
    for last in range(1, 9):
        cost = np.triu(generator.normal(size=(last + 1, last + 1)), 1)

        def total(path: tuple[int, ...], cost: np.ndarray = cost) -> float:  # type: ignore[type-arg]
            return sum(gamma**k * cost[step] for k, step in enumerate(pairwise(path)))

        for steps in range(1, last + 1):
            ways = [(0, *inner, last) for inner in itertools.combinations(range(1, last), steps - 1)]
            assert tuple(gits.cheapest_path(cost, steps, gamma)) == min(ways, key=total)


def test_the_costs_are_deviations_from_the_chord() -> None:
    """One run at a time, with the distance of a point from a line written as a least-squares problem."""
    teacher = Plan.of(MIXTURE.schedule, "ipndm", 7, "karras", "sigma_min")
    found = gits.costs(MIXTURE, teacher, 5, 3, SHAPE, batch_size=2)
    levels = teacher.nodes.tolist()[::-1]
    wanted = np.zeros((8, 8))
    for n in range(5):
        x_T = odeddim.noise(1, SHAPE, seed=3, start=n) * math.sqrt(1 + levels[0] ** 2)
        points = [x_T]
        odeddim.integrate(MIXTURE, State(x_T, levels[0]), teacher, callback=lambda *it, to=points: to.append(it[2]))
        end = points[-1]
        line = (end - x_T).flatten().double().numpy()[:, None]

        def deviation(xbar: torch.Tensor, line: np.ndarray = line, end: torch.Tensor = end) -> float:  # type: ignore[type-arg]
            return float(np.linalg.lstsq(line, (end - xbar).flatten().double().numpy(), rcond=None)[1][0]) ** 0.5

        for i, j in itertools.combinations(range(8), 2):
            there = points[i] + (levels[j] - levels[i]) * MIXTURE(torch.tensor(levels[i]).double(), points[i])
            wanted[i, j] += (deviation(there) - (deviation(points[j]) if j < 7 else 0)) / 5
    assert found == pytest.approx(wanted, abs=2e-4 * wanted.max())
    assert found == pytest.approx(gits.costs(MIXTURE, teacher, 5, 3, SHAPE, batch_size=5), abs=1e-5 * wanted.max())


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_plans(end: str, tmp_path: Path) -> None:
    told: list[int] = []
    options = {"model": MIXTURE, "shape": SHAPE, "count": 6, "end": end}
    plan = odeddim.gits_plan("dpmpp-2m", 5, batch_size=4, advance=told.append, **options)
    assert told == [4, 2]
    assert str(plan) == f"dpmpp-2m, gits grid, 5 steps, end {end}"
    assert (plan.solver.name, plan.steps, plan.top) == ("dpmpp-2m", 5, MIXTURE.schedule.sigma_max)
    fine = odeddim.grid("karras", MIXTURE.schedule, gits.INTERVALS, end="sigma_min")
    assert set(plan.nodes.tolist()) <= {0.0, *fine.tolist()}
    assert float(plan.nodes[1 if end == "zero" else 0]) == MIXTURE.schedule.sigma_min
    assert not plan.unlike(MIXTURE)
    assert plan.of_another(odeddim.load("exact-gaussian"))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    images = odeddim.sample(2, model=MIXTURE, plan=plan, shape=SHAPE)
    assert torch.equal(images, odeddim.sample(2, "dpmpp-2m", model=MIXTURE, grid=tmp_path / "plan.json", shape=SHAPE))
    assert torch.equal(odeddim.gits_plan("dpmpp-2m", 5, batch_size=4, **options).nodes, plan.nodes)
    full = odeddim.gits_plan("euler", gits.INTERVALS + (end == "zero"), **options)
    assert torch.equal(full.nodes[-61:], fine)


def test_evaluations_and_settings() -> None:
    before = MIXTURE.rows
    plan = odeddim.gits_plan("ab3", 4, model=MIXTURE, shape=SHAPE, count=3, warmup="lower")
    assert MIXTURE.rows - before == 3 * gits.INTERVALS
    assert plan.settings == {"warmup": "lower"}


def test_refusals() -> None:
    options = {"model": MIXTURE, "shape": SHAPE, "count": 2}
    for steps, end in ((1, "zero"), (62, "zero"), (0, "sigma_min"), (61, "sigma_min")):
        with pytest.raises(InputError, match="steps of a grid by GITS"):
            odeddim.gits_plan("euler", steps, end=end, **options)
    for wrong in ({"count": 0}, {"emphasis": 0.0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="must be positive"):
            odeddim.gits_plan("euler", 4, **{**options, **wrong})
    with pytest.raises(InputError, match="chooses its own steps"):
        odeddim.gits_plan("dopri5", 4, **options)
    with pytest.raises(InputError, match="unknown end"):
        odeddim.gits_plan("euler", 4, **{**options, "end": "top"})
