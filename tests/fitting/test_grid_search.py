"""Computed grids: the steps' own errors, what they are good for on other images, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import odeddim
from odeddim.bench.reconstruction import true_latents
from odeddim.fitting import grid_search as local_error
from odeddim.fitting.grid_search import REFERENCE
from odeddim.ode.analytic import GaussianMixture
from odeddim.types import InputError

MIXTURE = odeddim.load("exact-mixture")


def pictures(seed: int, n: int = 4) -> torch.Tensor:
    """Draws from the model's own distribution, (n, 1, 8, 8) float64."""
    x_T = odeddim.noise(n, (1, 8, 8), seed=seed).double()
    return odeddim.solve(x_T, "ab4", model=MIXTURE, steps=100, grid="log")


def figures(images: torch.Tensor, solver: str, grid: torch.Tensor, end: str = "zero") -> tuple[float, float]:
    """(round trip, latent) of a grid, as the bench has them."""
    sigma_T = MIXTURE.schedule.sigma_max
    truth = true_latents(MIXTURE, images, [sigma_T], end, REFERENCE[2])
    state = odeddim.encode(images, solver, model=MIXTURE, grid=grid)
    back = odeddim.decode(state, solver, model=MIXTURE, grid=grid)
    latent = float((state.xbar - truth[sigma_T]).square().mean().sqrt()) / sigma_T
    return float((back - images).square().mean().sqrt()), latent


@pytest.mark.parametrize(
    ("solver", "steps", "times"),
    [("ab2", 10, 4), ("ab3", 12, 4), ("dpmpp-2m", 16, 4), ("heun", 8, 4), ("euler", 10, 1.5)],
)
def test_better_than_karras_on_other_images(solver: str, steps: int, times: float) -> None:
    nodes = odeddim.computed_grid(pictures(0), solver, steps, model=MIXTURE)
    others = pictures(1)
    own = odeddim.grid("linear" if solver == "euler" else "karras", MIXTURE.schedule, steps)
    before, after = figures(others, solver, own), figures(others, solver, nodes)
    assert (after[0] * after[1]) ** 2 < (before[0] * before[1]) ** 2 / times, (before, after)
    assert after[0] < before[0] * 1.05
    assert after[1] < before[1] * 1.05


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [3, 5, 24])
def test_nodes_are_a_grid(steps: int, end: str) -> None:
    field = MIXTURE
    found = local_error.compute(field, pictures(0, 2), "ab2", steps, end=end)
    nodes = found.best.nodes
    assert nodes.shape == (steps + 1,)
    assert nodes.dtype == torch.float64
    assert bool((nodes.diff() > 0).all())
    own = odeddim.grid(odeddim.solvers.get("ab2").grid, field.schedule, steps, end=end)
    assert torch.equal(nodes[[0, -1]], own[[0, -1]])
    assert torch.equal(found.own.nodes, own)
    assert found.best.round_trip <= found.own.round_trip
    assert found.best.latent <= found.own.latent
    images = pictures(0, 2)
    assert figures(images, "ab2", nodes, end) == pytest.approx((found.best.round_trip, found.best.latent), rel=1e-2)
    assert figures(images, "ab2", own, end) == pytest.approx((found.own.round_trip, found.own.latent), rel=1e-2)


def test_same_call_same_grid_in_any_batch() -> None:
    first = odeddim.computed_grid(pictures(0), "ab2", 8, model=MIXTURE)
    assert torch.equal(first, odeddim.computed_grid(pictures(0), "ab2", 8, model=MIXTURE))
    batched = local_error.compute(MIXTURE, pictures(0), "ab2", 8, batch_size=3).best.nodes
    assert torch.allclose(first, batched, rtol=1e-4)


def test_local_errors_are_those_of_single_steps() -> None:
    """Fed with the true ε, euler's error of a step is ∫ε dσ - h·ε: of the trajectory, known by a finer run."""
    images = pictures(0, 2)
    own = local_error.own_plan(MIXTURE, "euler", 12)
    trace = local_error._Trace.of(MIXTURE, images, own, 32)
    nodes = odeddim.grid("log", MIXTURE.schedule, 12)[1:]
    at = [odeddim.encode(images, "ab4", model=MIXTURE, grid=_fine(float(sigma))).xbar for sigma in nodes]
    for rising in (True, False):
        walked, points = (nodes, at) if rising else (nodes.flip(0), at[::-1])
        errors = trace.local_errors(own.solver, walked)
        for n, (here, there) in enumerate(pairwise(walked)):
            true = points[n] + (there - here) * MIXTURE(here, points[n]) - points[n + 1]
            assert torch.allclose(errors[n], true.flatten(1), rtol=1e-3, atol=1e-4), n


def _fine(top: float) -> torch.Tensor:
    nodes = odeddim.grid("log", MIXTURE.schedule, 300)
    return torch.cat([nodes[nodes < top * (1 - 1e-9)], torch.tensor([top], dtype=torch.float64)])


def test_steps_err_alike_afterwards() -> None:
    """Part 1 on its own: errors of steps that differed by powers of ten come to lie within a factor of two."""
    own = local_error.own_plan(MIXTURE, "dpmpp-2m", 20)
    trace = local_error._Trace.of(MIXTURE, pictures(0), own, 32)
    density = local_error._Density.of(own.nodes)

    def spread(grid: torch.Tensor) -> float:
        nodes = grid[1:]
        up, down = (trace.local_errors(own.solver, way) for way in (nodes, nodes.flip(0)))
        down = down.flip(0)
        error = (up.square() + (up + down).square()).mean(dim=(1, 2)).sqrt() / (1 + nodes[1:] * nodes[:-1]).sqrt()
        return float(error[2:-2].log().std())

    knots = local_error._equidistributed(trace, own.solver, density, density.at / 7)
    assert spread(own.nodes) > 2
    assert spread(density.nodes(knots)) < 0.55


def test_densities_hold_the_named_grids() -> None:
    schedule = MIXTURE.schedule
    for end in ("zero", "sigma_min"):
        density = local_error._Density.of(odeddim.grid("karras", schedule, 20, end=end))
        for name, knots in (("karras", density.at / 7), ("log", density.at * 0), ("karras:3", density.at / 3)):
            assert torch.allclose(density.nodes(knots), odeddim.grid(name, schedule, 20, end=end), rtol=1e-4)
        fitted = density.fit(density.at[:-1] + 0.4, (density.at[:-1] + 0.4) / 7)
        assert fitted - fitted[0] == pytest.approx((density.at - density.at[0]) / 7, abs=1e-9)


def test_a_run_that_gets_out_of_hand_is_only_a_bad_grid() -> None:
    """A solver that fails on every grid but its own: its own is what is left."""
    own = odeddim.grid("karras", MIXTURE.schedule, 6)
    euler = odeddim.solvers.get("euler")

    def run(field, state, sigmas):  # type: ignore[no-untyped-def]
        mine = torch.equal(sigmas, own) or torch.equal(sigmas, own.flip(0))
        if not mine and len(sigmas) == 7 and field is MIXTURE:
            raise InputError("no")
        return euler.run(field, state, sigmas)

    row = replace(euler, name="picky", run=run, grid="karras")
    found = local_error.compute(MIXTURE, pictures(0, 2), row, 6)
    assert found.best is found.own


def test_evaluations_are_told_and_bounded() -> None:
    told: list[int] = []
    own = local_error.own_plan(MIXTURE, "ab3", 10)
    found = local_error.compute(MIXTURE, pictures(0, 2), "ab3", 10, advance=told.append)
    assert found.evaluations == pytest.approx(sum(told), rel=0.1)
    assert found.evaluations <= local_error.most_evaluations(own) * 1.1


def test_a_tiny_error_is_rounding() -> None:
    """One Gaussian in one evaluation's reach: no logarithm of 0, and a grid all the same."""
    eps = GaussianMixture(torch.zeros(1), 1.0).network(odeddim.Schedule.linear())
    field = odeddim.VectorField(eps, odeddim.Schedule.linear(), name="unit")
    nodes = odeddim.computed_grid(torch.zeros(1, 1, 2, 2), "ab2", 6, model=field)
    assert nodes.shape == (7,)
    assert math.isfinite(float(nodes.sum()))


def test_refusals() -> None:
    images = pictures(0, 1)
    with pytest.raises(InputError, match="chooses its own steps"):
        odeddim.computed_grid(images, "dopri5", 10, model=MIXTURE)
    with pytest.raises(InputError, match="at least 3"):
        odeddim.computed_grid(images, "ab2", 2, model=MIXTURE)
    with pytest.raises(InputError, match="at least 2"):
        odeddim.computed_grid(images, "ab2", 1, model=MIXTURE, end="sigma_min")
    with pytest.raises(InputError, match="at least one image"):
        odeddim.computed_grid(images[:0], "ab2", 10, model=MIXTURE)
    noisy = replace(odeddim.solvers.get("euler"), name="noisy", stochastic=True)
    with pytest.raises(InputError, match="noisy"):
        odeddim.computed_grid(images, noisy, 10, model=MIXTURE)
