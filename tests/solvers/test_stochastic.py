"""Solvers that add noise: the papers' formulas in their own x, α and λ, and the distributions that are sampled.

DDIM's family: eq. 12, 16 and appendix D.3. ER-SDE: Algorithms 2 and 3. SA-Solver: eq. 14 and 17 with appendix D.
"""

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
DDIM = [row for row in STOCHASTIC if row.transition is not None]
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
    for row in DDIM:
        row = row.with_settings(seed=5, first=7)
        whole = row.run(MIXTURE, State(START, 20.0), sigmas).xbar
        found = odeddim.integrate(MIXTURE, State(START, 20.0), odeddim.Plan(row, sigmas.flip(0))).xbar
        assert torch.allclose(found, whole, rtol=0, atol=1e-12)


def er_sde_as_published(order: int, sigmas: Tensor, eta: float) -> Tensor:
    """Algorithms 2 and 3 from START, in x and α, the integrals by scipy's adaptive quadrature."""
    from scipy.integrate import quad

    def scale(level: float) -> float:
        return float(level * (np.exp(level**0.3) + 10) ** eta)

    alphas, lambdas = (1 / (1 + sigmas**2).sqrt()).tolist(), sigmas.tolist()
    x, images, slopes = alphas[0] * START, [], [None]
    for i, (s, t) in enumerate(itertools.pairwise(range(len(sigmas)))):
        images.append((x - alphas[s] * lambdas[s] * MIXTURE(sigmas[s], x / alphas[s])) / alphas[s])
        ratio, h = scale(lambdas[t]) / scale(lambdas[s]), lambdas[t] - lambdas[s]
        moved = ratio * x / alphas[s] + (1 - ratio) * images[i]
        if i > 0:
            slopes.append((images[i] - images[i - 1]) / (lambdas[s] - lambdas[i - 1]))
            whole = quad(lambda at: 1 / scale(at), lambdas[t], lambdas[s], epsabs=1e-14, epsrel=1e-13)[0]
            moved = moved + (h + scale(lambdas[t]) * whole) * slopes[i]
        if i > 1 and order == 3:
            bend = 2 * (slopes[i] - slopes[i - 1]) / (lambdas[s] - lambdas[i - 2])
            first = quad(lambda at, s=s: (at - lambdas[s]) / scale(at), lambdas[t], lambdas[s], epsabs=1e-14)[0]
            moved = moved + (h**2 / 2 + scale(lambdas[t]) * first) * bend
        z = noise(3, (2,), seed=5, start=7, step=i + 1).double()
        x = alphas[t] * (moved + math.sqrt(max(0.0, lambdas[t] ** 2 - (lambdas[s] * ratio) ** 2)) * z)
    return x / alphas[-1]


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("order", [2, 3])
def test_er_sde_is_the_papers(order: int, eta: float, steps: int) -> None:
    sigmas = falling(steps, 0.05, 20.0)
    found = solvers.get(f"er-sde-{order}", eta=eta, seed=5, first=7).run(MIXTURE, State(START, 20.0), sigmas).xbar
    assert torch.allclose(found, er_sde_as_published(order, sigmas, eta), rtol=0, atol=1e-7)  # the square root's digits
    if eta > 0:
        default = solvers.get(f"er-sde-{order}", seed=5, first=7).run(MIXTURE, State(START, 20.0), sigmas).xbar
        assert torch.equal(default, found) == (eta == 1.0)


def sa_as_published(sigmas: Tensor, value: float) -> Tensor:
    """SA-Solver from START in x, α and λ = log(α/σ), with few steps: polynomials by numpy, integrals by scipy."""
    from scipy.integrate import quad

    nodes, last = sigmas.tolist(), len(sigmas) - 1
    alphas = [1 / math.sqrt(1 + sigma**2) for sigma in nodes]
    lambdas = [-math.log(sigma) if sigma > 0 else math.inf for sigma in nodes]
    times = [(-0.1 + math.sqrt(0.01 + 2 * 19.9 * math.log1p(sigma**2))) / 19.9 for sigma in nodes]

    def step(known: list[int], n: int, tau: float, xbar: Tensor, z: Tensor) -> Tensor:
        if n == last:
            tau, known = 0.0, known[:1]
        here, there = lambdas[n - 1], lambdas[n]
        if there == math.inf:
            return images[n - 1]
        h, rate = there - here, 1 + tau**2
        weights = []
        for j in known:
            others = [lambdas[i] for i in known if i != j]
            basis = np.poly1d(others, r=True) / math.prod(lambdas[j] - other for other in others)
            density = lambda at, basis=basis: rate * math.exp(rate * (at - there)) * basis(at)  # noqa: E731
            weights.append(quad(density, here, there, epsabs=1e-14, epsrel=1e-13)[0])
        if len(known) == 2:  # appendix D: the order stays if the second moment is that of a small step
            exact = quad(lambda at: rate * math.exp(rate * (at - there)) * (at - here), here, there, epsabs=1e-14)[0]
            more = (rate * h**2 / 2 - exact) / (lambdas[known[0]] - lambdas[known[1]])
            weights = [weights[0] + more, weights[1] - more]
        x = math.exp(-(tau**2) * h) * (alphas[n] * nodes[n]) / (alphas[n - 1] * nodes[n - 1]) * (alphas[n - 1] * xbar)
        x = x + alphas[n] * sum(weight * images[j] for weight, j in zip(weights, known, strict=True))
        return (x + alphas[n] * nodes[n] * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * z) / alphas[n]

    images, xbar, predicted = {}, START * nodes[0] / 20, START * nodes[0] / 20
    before: tuple[float, Tensor, Tensor] = 0.0, xbar, xbar
    for n in range(1, last + 1):
        images[n - 1] = predicted - nodes[n - 1] * MIXTURE(sigmas[n - 1], predicted)
        if n > 1:
            known = list(range(n - 1, n - 1 - min(4, n, last - n + 3), -1))
            xbar = step(known, n - 1, *before)
        tau = value if 0.2 <= times[n] <= 0.8 else 0.0
        z = noise(3, (2,), seed=5, start=7, step=n).double()
        before = tau, xbar, z
        predicted = step(list(range(n - 1, n - 1 - min(3, n, last - n + 1), -1)), n, *before)
    return predicted


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 12])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_is_the_papers(tau: float, steps: int, zero: bool) -> None:
    sigmas = falling(steps, 0.02, 150.0, zero=zero)
    start = State(START * 7.5, 150.0)
    found = solvers.get("sa-solver", eta=tau, seed=5, first=7).run(MIXTURE, start, sigmas).xbar
    assert torch.allclose(found, sa_as_published(sigmas, tau), rtol=0, atol=1e-9)


def test_sa_solver_without_noise_is_unipc_3() -> None:
    """An identity of two methods, down to 0 in short runs, whose order UniPC lowers likewise."""
    for steps in (2, 3, 4, 7, 11):
        sigmas = falling(steps, 0.05, 20.0, zero=True)
        plans = [odeddim.Plan(row, sigmas.flip(0)) for row in (
            solvers.get("sa-solver", eta=0.0), solvers.get("unipc-3-bh1", warmup="lower")
        )]  # fmt: skip
        one, other = (odeddim.integrate(MIXTURE, State(START, 20.0), plan).xbar for plan in plans)
        assert torch.allclose(one, other, rtol=0, atol=1e-13), steps


@pytest.mark.parametrize("name", ["er-sde-2", "er-sde-3", "sa-solver"])
def test_the_end_at_zero_is_the_predicted_image(name: str) -> None:
    """The noise scale is 0 there, whatever the row: integrate's Euler step is theirs."""
    sigmas = falling(6, 0.05, 20.0, zero=True)
    row, points, asked = solvers.get(name), [], []

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        asked.append((float(sigma), xbar))
        return MIXTURE(sigma, xbar)

    plan = odeddim.Plan(row, sigmas.flip(0))
    found = odeddim.integrate(field, State(START, 20.0), plan, callback=lambda n, s, x: points.append(s)).xbar
    sigma, xbar = asked[-1]
    assert torch.allclose(found, xbar - sigma * MIXTURE(sigmas[-2], xbar), rtol=0, atol=1e-14)
    assert [sigma for sigma, _ in asked] == sigmas.tolist()[:-1]
    assert points == sigmas.tolist()[1:]


@pytest.mark.parametrize("name", ["er-sde-2", "er-sde-3", "sa-solver"])
def test_noise_is_drawn_once_a_step_and_not_without_eta(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def recorded(*arguments: object, step: int, **others: object) -> Tensor:
        drawn.append(step)
        return torch.zeros(3, 2)

    monkeypatch.setattr(stochastic, "noise", recorded)
    sigmas = falling(5, 0.8, 20.0)
    still = solvers.get(name, eta=0.0).run(MIXTURE, State(START, 20.0), sigmas).xbar
    assert drawn == []
    solvers.get(name).run(MIXTURE, State(START, 20.0), sigmas)
    assert drawn == [1, 2, 3, 4, 5][: 4 if name == "sa-solver" else 5]  # SA-Solver's last step adds none
    fine = solvers.get("rk4").run(MIXTURE, State(START, 20.0), falling(400, 0.8, 20.0)).xbar
    sharp = solvers.get(name, eta=0.0).run(MIXTURE, State(START, 20.0), falling(400, 0.8, 20.0)).xbar
    assert torch.allclose(sharp, fine, rtol=0, atol=1e-3 * float((still - fine).abs().max()) + 1e-5)


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
def test_the_variance_converges_with_its_order(row: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weakly, as the row declares: the variance at σ is s² + σ²."""
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
    if steps > 1 or not row.to_zero:  # SA-Solver's last step adds no noise
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
    for name in ("er-sde-2", "er-sde-3", "sa-solver"):
        for eta in (-0.1, 10.5, math.nan):
            with pytest.raises(InputError, match="η must be between 0 and 10"):
                solvers.get(name, eta=eta).run(MIXTURE, State(START, 20.0), falling(5, 0.05, 20.0))
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
