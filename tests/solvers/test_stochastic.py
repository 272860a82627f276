"""DDIM's stochastic family: eq. 12, 16 and appendix D.3 in the paper's own x and α, and the distribution it samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.solvers import stochastic
from odeddim.solvers.stochastic import ddim, noise
from odeddim.types import InputError, Solver, State

STOCHASTIC = [row for row in solvers.SOLVERS.values() if row.stochastic]
MIXTURE = GaussianMixture(torch.tensor([[-0.6, -0.3], [0.6, 0.0], [0.1, 0.7]]), 0.15)
START = 20 * torch.tensor([[-0.5, -0.2], [0.4, 0.3], [0.1, 0.1]], dtype=torch.float64)
LINEAR = odeddim.Schedule.linear()


def falling(steps: int, low: float, high: float, *, zero: bool = False) -> Tensor:
    nodes = torch.from_numpy(np.geomspace(high, low, steps + 1))
    return torch.cat([nodes, torch.zeros(1, dtype=torch.float64)]) if zero else nodes


def paper(row_eta: float, sigmas: Tensor, *, hat: bool = False) -> Tensor:
    """Eq. 12 from START down the nodes, with σ_t of eq. 16, the noise's replaced by σ̂_t of appendix D.3 if `hat`."""
    alpha = 1 / (1 + sigmas**2)
    x = alpha[0].sqrt() * START
    for step, (t, s) in enumerate(itertools.pairwise(range(len(sigmas)))):
        eps = MIXTURE(sigmas[t], x / alpha[t].sqrt())
        sigma_t = row_eta * ((1 - alpha[s]) / (1 - alpha[t])).sqrt() * (1 - alpha[t] / alpha[s]).sqrt()
        predicted = (x - (1 - alpha[t]).sqrt() * eps) / alpha[t].sqrt()
        direction = (1 - alpha[s] - sigma_t**2).clamp(min=0).sqrt() * eps
        scale = (1 - alpha[t] / alpha[s]).sqrt() if hat and alpha[s] < 1 else sigma_t
        z = noise(3, (2,), seed=5, start=7, step=step + 1).double()
        x = alpha[s].sqrt() * predicted + direction + scale * z
    return x / alpha[-1].sqrt()


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12(eta: float, zero: bool) -> None:
    sigmas = falling(9, 0.05, 20.0, zero=zero)
    found = solvers.get("ddim-eta", eta=eta, seed=5, first=7).run(MIXTURE, State(START, 20.0), sigmas)
    assert found.sigma == float(sigmas[-1])
    assert torch.allclose(found.xbar, paper(eta, sigmas), rtol=0, atol=1e-11)


@pytest.mark.parametrize("zero", [False, True])
def test_the_other_rows_are_the_papers(zero: bool) -> None:
    sigmas = falling(9, 0.05, 20.0, zero=zero)
    for name, hat in (("ddpm", False), ("ddpm-sigma-hat", True)):
        found = solvers.get(name, seed=5, first=7).run(MIXTURE, State(START, 20.0), sigmas).xbar
        assert torch.allclose(found, paper(1.0, sigmas, hat=hat), rtol=0, atol=1e-11)
    default = solvers.get("ddim-eta", seed=5, first=7).run(MIXTURE, State(START, 20.0), sigmas).xbar
    assert torch.allclose(default, paper(0.5, sigmas), rtol=0, atol=1e-11)


def test_the_walk_of_integrate_is_the_paper_down_to_zero() -> None:
    """The last step is Euler's and not the row's: the same, since no member adds noise there."""
    sigmas = falling(9, 0.05, 20.0, zero=True)
    for row in STOCHASTIC:
        row = row.with_settings(seed=5, first=7)
        whole = row.run(MIXTURE, State(START, 20.0), sigmas).xbar
        found = odeddim.integrate(MIXTURE, State(START, 20.0), odeddim.Plan(row, sigmas.flip(0))).xbar
        assert torch.allclose(found, whole, rtol=0, atol=1e-12)


def test_without_eta_it_is_euler(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def recorded(*arguments: object, step: int, **others: object) -> Tensor:
        drawn.append(step)
        return torch.zeros(3, 2)

    monkeypatch.setattr(stochastic, "noise", recorded)
    sigmas = falling(5, 0.05, 20.0)
    still = ddim(MIXTURE, State(START, 20.0), sigmas, eta=0.0).xbar
    assert drawn == []
    assert torch.allclose(still, solvers.get("euler").run(MIXTURE, State(START, 20.0), sigmas).xbar, rtol=0, atol=1e-12)
    ddim(MIXTURE, State(START, 20.0), falling(5, 0.05, 20.0, zero=True), eta=1.0)
    assert drawn == [1, 2, 3, 4, 5]  # step 0 is x_T, and the step to 0 adds nothing


def output_variance(row: Solver, steps: int, mean: float, std: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of what it makes of N(m, s² + σ_T²): for a Gaussian field it is linear in x_T and the noise, so impulses tell.

    Image 0 has one standard deviation of x_T, image n the noise 1 in step n - 1 alone, the last one nothing at all.
    """
    low, high = 0.05, 20.0
    monkeypatch.setattr(stochastic, "noise", lambda *a, step, **k: torch.eye(steps + 2)[:, step : step + 1])
    begin = torch.full((steps + 2, 1), mean, dtype=torch.float64)
    begin[0] += math.sqrt(std**2 + high**2)
    found = row.run(Gaussian(mean, std), State(begin, high), falling(steps, low, high)).xbar
    return float((found - found[-1]).square().sum())


@pytest.mark.parametrize("row", STOCHASTIC, ids=lambda row: row.name)
def test_the_variance_converges_with_order_one(row: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weakly, as a row of the family declares: the variance at σ is s² + σ²."""
    truth = 0.5**2 + 0.05**2
    errors = [abs(output_variance(row, steps, 0.2, 0.5, monkeypatch) - truth) for steps in (16, 32, 64, 128)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(slopes[-1] - row.order) < 0.35
    assert errors[-1] < 0.2 * truth


def test_samples_have_the_distribution() -> None:
    """What is drawn, not its formula: 4000 numbers."""
    for row in STOCHASTIC:
        begin = 20 * noise(40, (100,)).double()
        found = row.run(Gaussian(0.2, 0.5), State(begin, 20.0), falling(200, 0.01, 20.0)).xbar
        assert float(found.mean()) == pytest.approx(0.2, abs=0.04)
        assert float(found.var()) == pytest.approx(0.25, rel=0.1)


@settings(max_examples=25)
@given(
    row=st.sampled_from(STOCHASTIC),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 10**6),
    cut=st.integers(0, 3),
    steps=st.integers(1, 6),
)
def test_an_image_depends_on_its_seed_and_index_only(row: Solver, seed: int, start: int, cut: int, steps: int) -> None:
    sigmas = falling(steps, 0.05, 20.0)
    row = row.with_settings(seed=seed)
    whole = row.with_settings(first=start).run(MIXTURE, State(START, 20.0), sigmas).xbar
    for begin, end in ((0, cut), (cut, 3)):
        if begin < end:
            part = row.with_settings(first=start + begin).run(MIXTURE, State(START[begin:end], 20.0), sigmas).xbar
            assert torch.allclose(part, whole[begin:end], rtol=0, atol=1e-12)
    other = row.with_settings(first=start + 3).run(MIXTURE, State(START, 20.0), sigmas).xbar
    assert bool((other != whole).all())


@settings(max_examples=25)
@given(eta=st.floats(0, 1), steps=st.integers(1, 8), zero=st.booleans())
def test_every_eta_up_to_one_fits_every_grid(eta: float, steps: int, zero: bool) -> None:
    """σ'² = (weight of ε)² + (weight of noise)² in every step, whatever η: what x̄' holds of noise is σ'."""
    sigmas = falling(steps, 0.05, 20.0, zero=zero)
    found = ddim(MIXTURE, State(START, 20.0), sigmas, eta=eta, seed=5, first=7).xbar
    assert torch.allclose(found, paper(eta, sigmas), rtol=0, atol=1e-10)


@settings(max_examples=50)
@given(n=st.integers(0, 4), seed=st.integers(0, 2**60), start=st.integers(0, 2**30), step=st.integers(0, 1000))
def test_noise_of_an_image(n: int, seed: int, start: int, step: int) -> None:
    many = noise(n, (2, 3), seed=seed, start=start, step=step)
    assert many.shape == (n, 2, 3)
    for i in range(n):
        assert torch.equal(noise(1, (2, 3), seed=seed, start=start + i, step=step)[0], many[i])


def test_noise_gives_the_numbers_it_always_gave() -> None:
    """Written down once: files say seed and index, and must mean the same images for ever."""
    assert odeddim.noise is noise
    found = noise(1, (3,), seed=3, start=2, step=1)[0]
    assert found.tolist() == pytest.approx([-0.8659223, -0.5494959, 1.5763063], abs=1e-6)


def test_refusals() -> None:
    for row in STOCHASTIC:
        with pytest.raises(InputError, match="adds noise, so it can only decode: encode with an ODE solver such as"):
            row.run(MIXTURE, State(START, 0.05), falling(5, 0.05, 20.0).flip(0))
        for steps in (1, 5):
            with pytest.raises(InputError, match=f"{row.name}' adds noise, so it can only decode"):
                odeddim.encode(torch.zeros(1, 1, 2, 2), row.name, model="exact-mixture", steps=steps)
    for eta in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match="η"):
            ddim(MIXTURE, State(START, 20.0), falling(5, 0.05, 20.0), eta=eta)
    with pytest.raises(InputError, match="no setting 'eta'"):
        solvers.get("ddpm", eta=0.5)


def test_sampling_by_name_and_by_eta() -> None:
    options = {"model": "exact-mixture", "shape": (1, 4, 4), "steps": 6, "seed": 3, "grid": "log"}
    ddpm = odeddim.sample(3, "ddpm", **options)
    assert torch.equal(odeddim.sample(3, "euler", eta=1.0, **options), ddpm)
    assert torch.equal(odeddim.sample(3, "ddim-eta", eta=1.0, **options), ddpm)
    assert torch.equal(odeddim.sample(1, "ddpm", start=2, **options), ddpm[2:])
    half = odeddim.sample(3, "ddim-eta", **options)
    assert torch.equal(odeddim.sample(3, "euler", eta=0.5, **options), half)
    assert not torch.equal(half, ddpm)
    still = odeddim.sample(3, "euler", **options)
    assert torch.equal(odeddim.sample(3, "euler", eta=0.0, **options), still)
    assert torch.allclose(odeddim.sample(3, "ddim-eta", eta=0.0, **options), still, rtol=0, atol=1e-5)
    x_T = noise(3, (1, 4, 4), seed=3)
    del options["shape"]
    assert torch.equal(odeddim.solve(x_T, "ddpm", **options), ddpm)
    with pytest.raises(InputError, match="needs solver 'euler'"):
        odeddim.sample(3, "ab2", eta=0.5, shape=(1, 4, 4), **options)
