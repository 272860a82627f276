"""Exact inversion by iteration: it comes back, says of each image whether it does, and leaves neighbours alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.solvers.iterated import PATIENCE, exact
from odeddim.storage.images import open_images
from odeddim.types import Field, InputError, Solver, State

ROWS = [row for row in solvers.SOLVERS.values() if row.family == "iterated"]
MIXTURE = GaussianMixture(torch.tensor([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]]), 0.15, torch.tensor([0.5, 0.2, 0.3]))
IMAGES = torch.tensor([[-0.5, -0.2], [0.4, 0.3], [0.1, 0.1], [-0.8, -0.4], [0.2, 0.6]], dtype=torch.float64)
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def rising(steps: int, low: float = 0.03, high: float = 20.0, *, zero: bool = False) -> Tensor:
    nodes = torch.from_numpy(np.geomspace(low, high, steps + 1))
    return torch.cat([torch.zeros(1, dtype=torch.float64), nodes]) if zero else nodes


def base_of(row: Solver) -> Solver:
    return solvers.get(row.name.removeprefix("exact-"))


class Counting:
    """A field that counts the evaluations of all images together."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.rows = 0

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        self.rows += len(xbar)
        return self.field(sigma, xbar)


def come_back(row: Solver, field: Field, xbar: Tensor, sigmas: Tensor) -> tuple[State, Tensor]:
    """The encoded state, and how far off each image comes back, rms."""
    state = row.run(field, State(xbar, float(sigmas[0])), sigmas)
    back = row.run(field, state, sigmas.flip(0)).xbar
    return state, (back - xbar).square().mean(dim=1).sqrt()


@pytest.mark.parametrize("zero", [False, True], ids=["sigma_min", "zero"])
@each
def test_it_comes_back_to_rounding(row: Solver, zero: bool) -> None:
    """And R, its base, does not; nor does it lose what R knows of the latent."""
    sigmas = rising(40, zero=zero)
    state, off = come_back(row, MIXTURE, IMAGES, sigmas)
    assert bool(state.report["converged"].all())
    assert float(off.max()) < 1e-12
    plan = odeddim.Plan(base_of(row), sigmas)
    there = odeddim.integrate(MIXTURE, State(IMAGES, float(sigmas[0])), plan)
    back = odeddim.integrate(MIXTURE, there, plan).xbar
    assert float((back - IMAGES).abs().max()) > 1e-4
    assert float((state.xbar - there.xbar).abs().max()) < 0.2 * 20


@pytest.mark.parametrize("zero", [False, True], ids=["sigma_min", "zero"])
@each
def test_it_decodes_as_its_base(row: Solver, zero: bool) -> None:
    sigmas = rising(7, zero=zero)
    start = State(20 * IMAGES, 20.0)
    truth = odeddim.integrate(MIXTURE, start, odeddim.Plan(base_of(row), sigmas))
    found = odeddim.integrate(MIXTURE, start, odeddim.Plan(row, sigmas))
    assert torch.equal(found.xbar, truth.xbar)
    assert found.sigma == float(sigmas[0])


def test_eulers_inverse_is_the_closed_form() -> None:
    """Of one Gaussian Euler's falling step is linear: x̄ - m times 1 - (σ_{n+1} - σ_n) σ_{n+1}/(s² + σ_{n+1}²).

    The step from 0 is explicit, and ε there is 0; what its way back lacks is kept.
    """
    sigmas, field = rising(12, zero=True), Gaussian(0.2, 0.5)
    factor = 1.0
    for low, high in zip(sigmas[1:-1].tolist(), sigmas[2:].tolist(), strict=True):
        factor *= 1 - (high - low) * high / (0.25 + high**2)
    found = solvers.get("exact-euler").run(field, State(IMAGES, 0.0), sigmas)
    assert torch.allclose(found.xbar, 0.2 + (IMAGES - 0.2) / factor, rtol=1e-11, atol=0)
    assert torch.allclose(found.aux[0], (IMAGES - 0.2) * float(sigmas[1]) ** 2 / (0.25 + float(sigmas[1]) ** 2))
    other = solvers.get("exact-euler").run(field, found, rising(11, zero=True).flip(0))  # not its own way back
    plain = solvers.get("exact-euler").run(field, State(found.xbar, found.sigma), rising(11, zero=True).flip(0))
    assert torch.equal(other.xbar, plain.xbar)


@each
def test_the_report(row: Solver) -> None:
    """Evaluations are those made; the residual is what decoding by R misses, of one interval and in image units."""
    sigmas, field = rising(1, 0.5, 1.0), Counting(MIXTURE)
    loose = row.with_settings(accuracy=1e-3)
    state = loose.run(field, State(IMAGES, 0.5), sigmas)
    assert state.report["evaluations"].dtype == torch.int64
    assert int(state.report["evaluations"].sum()) == field.rows
    assert len(set(state.report["evaluations"].tolist())) > 1 or row.order > 1
    off = loose.run(MIXTURE, State(state.xbar, 1.0), sigmas.flip(0)).xbar - IMAGES
    residual = off.square().mean(dim=1).sqrt() / math.sqrt(1.25)
    assert torch.allclose(state.report["residual"], residual, rtol=1e-9, atol=1e-15)
    assert torch.equal(state.report["converged"], residual <= 1e-3)
    assert float(residual.max()) > 1e-9  # it did stop at the tolerance


@each
def test_an_image_that_does_not_converge(row: Solver) -> None:
    """It says so, with the residual that it has, and is no worse than where it began; the others are not held up."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        rough = 40 * (7 * xbar).sin() * (xbar[:, :1] > 0.3)  # no inverse there
        return MIXTURE(sigma, xbar) + rough

    sigmas = rising(1, 0.5, 1.0)
    counted = Counting(field)
    state = row.run(counted, State(IMAGES, 0.5), sigmas)
    hard, easy = IMAGES[:, 0] > 0.3, IMAGES[:, 0] < -0.1
    assert not bool(state.report["converged"][hard].any())
    assert bool(state.report["converged"][easy].all())
    assert int(state.report["evaluations"].sum()) == counted.rows
    assert int(state.report["evaluations"].max()) < 5 * PATIENCE
    strict = row.with_settings(accuracy=float(state.report["residual"][hard].min()) / 2)
    assert not bool(strict.run(field, State(IMAGES, 0.5), sigmas).report["converged"][hard].any())
    base = base_of(row)
    back = base.run(field, State(state.xbar, 1.0), sigmas.flip(0)).xbar
    residual = (back - IMAGES).square().mean(dim=1).sqrt() / math.sqrt(1.25)
    assert torch.allclose(state.report["residual"], residual, rtol=1e-6, atol=1e-12)
    explicit = base.run(field, State(IMAGES, 0.5), sigmas).xbar
    begun = (base.run(field, State(explicit, 1.0), sigmas.flip(0)).xbar - IMAGES).square().mean(dim=1).sqrt()
    assert bool((residual <= begun / math.sqrt(1.25)).all())


@each
def test_the_field_is_not_asked_where_iteration_explodes(row: Solver) -> None:
    """A field that is steep without bound sends iterates away: they end there, finite."""

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        assert bool(torch.isfinite(xbar).all())
        return 20 * xbar * xbar.abs()

    state = row.run(field, State(IMAGES, 0.5), rising(1, 0.5, 1.0))
    assert bool(torch.isfinite(state.xbar).all())
    assert not bool(state.report["converged"].all())


@each
def test_max_nfe_leaves_an_explicit_run(row: Solver) -> None:
    sigmas = rising(12)
    base = base_of(row)
    state = row.with_settings(max_nfe=1).run(MIXTURE, State(IMAGES, 0.03), sigmas)
    assert torch.equal(state.xbar, base.run(MIXTURE, State(IMAGES, 0.03), sigmas).xbar) or row.order > 1
    assert set(state.report["evaluations"].tolist()) == {2 * base.evaluations(12)}
    assert not bool(state.report["converged"].any())
    some = row.with_settings(max_nfe=4 * base.evaluations(12)).run(MIXTURE, State(IMAGES, 0.03), sigmas)
    assert bool((some.report["residual"] <= state.report["residual"]).all())
    for setting in ({"accuracy": 0.0}, {"accuracy": math.nan}, {"max_nfe": 0}):
        with pytest.raises(InputError, match="positive"):
            row.with_settings(**setting).run(MIXTURE, State(IMAGES, 0.03), sigmas)


@settings(max_examples=12)
@given(
    row=st.sampled_from(ROWS),
    order=st.permutations(range(5)),
    steps=st.integers(8, 25),
    zero=st.booleans(),
    double=st.booleans(),
)
def test_no_image_depends_on_its_neighbours(
    row: Solver, order: list[int], steps: int, zero: bool, double: bool
) -> None:
    sigmas, tolerance = rising(steps, zero=zero), 1e-11 if double else 3e-4
    images = IMAGES if double else IMAGES.float()
    whole = row.run(MIXTURE, State(images, float(sigmas[0])), sigmas)
    mixed = row.run(MIXTURE, State(images[order], float(sigmas[0])), sigmas)
    alone = row.run(MIXTURE, State(images[order[:1]], float(sigmas[0])), sigmas)
    assert torch.allclose(mixed.xbar, whole.xbar[order], rtol=tolerance, atol=tolerance)
    assert torch.allclose(alone.xbar, whole.xbar[order[:1]], rtol=tolerance, atol=tolerance)
    assert whole.xbar.dtype == images.dtype


def spread_of(row: Solver, state: State, sigmas: Tensor, residual: float) -> Tensor:
    """How far off images come back at most, (B,), if each step leaves a residual (rms in image units).

    What a step leaves goes through the rest of the way down: times the norm of its Jacobian, by differences.
    """
    base, down = base_of(row), sigmas.flip(0)
    off = torch.zeros(len(state.xbar), dtype=torch.float64)
    for k, sigma in enumerate(down[:-1].tolist()):
        x = base.run(MIXTURE, State(state.xbar, state.sigma), down[: k + 1]).xbar if k else state.xbar
        unit = math.sqrt(1 + sigma**2)
        moved = torch.cat([x, *(x + 1e-6 * unit * axis for axis in torch.eye(2, dtype=torch.float64))])
        there, *others = base.run(MIXTURE, State(moved, sigma), down[k:]).xbar.split(len(x))
        jacobian = torch.stack([other - there for other in others], dim=2) / (1e-6 * unit)
        off += residual * unit * torch.linalg.matrix_norm(jacobian, ord=2)
    return off


@settings(max_examples=15)
@example(row=solvers.get("exact-heun"), seed=6063, low=0.0234375, high=39.0)  # a way down that amplifies 330 times
@given(row=st.sampled_from(ROWS), seed=st.integers(0, 2**30), low=st.floats(0.02, 0.2), high=st.floats(5.0, 157.0))
def test_what_converges_comes_back(row: Solver, seed: int, low: float, high: float) -> None:
    """Any image of the square, any range: converged means that decoding gives it back, wherever it is."""
    images = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    state, off = come_back(row, MIXTURE, images, rising(60, low, high))
    converged = state.report["converged"]
    assert bool((off < spread_of(row, state, rising(60, low, high), 1e-14))[converged].all())
    assert torch.equal(converged, state.report["residual"] <= 1e-14)


def test_exact_of_any_row() -> None:
    """One's own rows too: step by step if they are one-step, else whole runs; in both ways to rounding."""
    heun = solvers.get("heun")
    for base in (solvers.get("ab3"), dataclasses.replace(heun, name="mine"), dataclasses.replace(heun, onestep=False)):
        row = exact(base)
        assert (row.name, row.order, row.nfe, row.grid) == (f"exact-{base.name}", base.order, None, "log")
        state, off = come_back(row, MIXTURE, IMAGES, rising(60))
        assert bool(state.report["converged"].all())
        assert float(off.max()) < 1e-12
    for name in ("dopri5", "ddpm", "exact-euler"):
        with pytest.raises(InputError, match="no inverse to iterate for"):
            exact(solvers.get(name))


@pytest.mark.parametrize("name", ["exact-euler", pytest.param("exact-dpmpp-2m", marks=pytest.mark.slow)])
def test_the_built_in_model(name: str) -> None:
    """Real images and a real network in float32: where it converges, 1e-9 on the [0, 1] scale and better."""
    model, images = odeddim.load(), open_images()[0:1]
    options = {"model": model, "grid": "karras", "steps": 20, "end": "sigma_min"}
    state = odeddim.encode(images, name, **options)
    assert bool(state.report["converged"].all())
    back = odeddim.decode(state, name, **options)
    assert float((back - images).square().flatten(1).mean(dim=1).max()) / 4 < 1e-9
    assert int(state.report["evaluations"].max()) < 1000
    assert torch.equal(back, odeddim.decode(state, name.removeprefix("exact-"), **options))


@pytest.mark.parametrize("name", ["exact-euler", "exact-ab2"])
def test_one_step_to_zero_is_eulers_alone(name: str) -> None:
    """Of one-step and of multistep bases; it comes back all the same."""
    images = odeddim.noise(2, (1, 4, 4), seed=1).clamp(-1, 1)
    state = odeddim.encode(images, name, model="exact-mixture", steps=1)
    assert torch.equal(state.xbar, odeddim.encode(images, "euler", model="exact-mixture", steps=1, grid="log").xbar)
    assert state.report["converged"].tolist() == [True, True]
    assert torch.equal(odeddim.decode(state, model="exact-mixture"), images)
