"""Log densities against closed forms, Jacobians that autograd writes out, and bars that must be honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import odeddim
from odeddim import LogDensity, Schedule, VectorField
from odeddim.checks import density_path
from odeddim.checks.density import Density, check_plan
from odeddim.checks.density_path import COLUMNS, mean_of
from odeddim.checks.dequantisation import Dequantisation
from odeddim.checks.divergence import Products, exact, noise_of, patterns, probed, signs
from odeddim.ode.analytic import GaussianMixture
from odeddim.types import InputError, State

SCHEDULE = Schedule.linear()
SIGMA_1 = SCHEDULE.sigma_min
GAUSSIAN = 0.5**2 + SIGMA_1**2  # the variance of a pixel of exact-gaussian at σ_1
LN2 = math.log(2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(x: Tensor) -> Tensor:
    """log p of exact-gaussian at σ_1, in nats."""
    return torch.from_numpy(scipy.stats.norm.logpdf(x.double().numpy(), scale=math.sqrt(GAUSSIAN))).flatten(1).sum(1)


def pixels(x: Tensor) -> Tensor:
    """log p of exact-mixture at σ_1: its pixels are independent, of two modes."""
    scale = math.sqrt(0.15**2 + SIGMA_1**2)
    modes = [scipy.stats.norm.logpdf(x.double().numpy(), loc=mean, scale=scale) for mean in (-0.6, 0.6)]
    return torch.from_numpy(np.logaddexp(*modes) - LN2).flatten(1).sum(1)


class Whole:
    """Images of six modes: the Jacobian of its field is far from diagonal, and its density a closed form."""

    std = 0.2

    def __init__(self, side: int = 8) -> None:
        generator = torch.Generator().manual_seed(1)
        self.means = (torch.rand(6, 1, side, side, generator=generator) * 1.6 - 0.8).double()
        self.field = VectorField(GaussianMixture(self.means, self.std).network(SCHEDULE), SCHEDULE, name="six modes")

    def images(self, count: int, seed: int = 0) -> Tensor:
        which = torch.randint(0, 6, (count,), generator=torch.Generator().manual_seed(seed))
        return self.means[which] + randn(count, *self.means.shape[1:], seed=seed) * self.scale

    @property
    def scale(self) -> float:
        return math.hypot(self.std, SIGMA_1)

    def log_p(self, x: Tensor) -> Tensor:
        each = scipy.stats.norm.logpdf(x.double()[:, None].numpy(), self.means.numpy(), self.scale).sum((2, 3, 4))
        return torch.from_numpy(scipy.special.logsumexp(each, axis=1) - math.log(6))


def inside(density: LogDensity, truth: Tensor) -> float:
    """The share of images whose true bits per dimension lie in the 95% bar."""
    off = density.bits_per_dim - -truth / density.dimensions / LN2
    return float((off.abs() <= 1.96 * density.standard_error).double().mean())


def continuous(x: Tensor, **how: object) -> LogDensity:
    return odeddim.log_density(x, dequantise="none", **how)  # type: ignore[arg-type]


# Closed forms.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["ab3", "unipc-2", "belm", "leapfrog", "mf-heun", "dopri5"])
def test_a_gaussian_has_its_closed_form(solver: str, dtype: torch.dtype) -> None:
    x = (randn(4, 1, 6, 6) * math.sqrt(GAUSSIAN)).to(dtype)
    adaptive = odeddim.solvers.get(solver).adaptive
    how = {"rtol": 1e-4, "atol": 1e-4} if adaptive else {"steps": 60}
    found = continuous(x, solver=solver, model="exact-gaussian", **how)
    assert (found.nats - gaussian(x)).abs().max() < 36 * LN2 * (5e-3 if adaptive else 2e-3)
    off = (found.bits_per_dim + gaussian(x) / 36 / LN2).abs()
    assert (off < 1.96 * found.standard_error + 3e-5).all()  # the variance of x̄_T is 0.25 + σ_T², not 1 + σ_T²
    assert sum(found.terms.values()).equal(found.nats)


def test_terms_of_a_gaussian() -> None:
    """The prior is that of the latent, and the divergence ∫ D·σ/(0.25+σ²) dσ."""
    x = randn(3, 1, 6, 6) * math.sqrt(GAUSSIAN)
    found = continuous(x, model="exact-gaussian", steps=100)
    top = SCHEDULE.sigma_max
    assert found.terms["divergence"][0] == pytest.approx(36 / 2 * math.log((0.25 + top**2) / GAUSSIAN), abs=1e-4)
    latent = (x * math.sqrt((0.25 + top**2) / GAUSSIAN)).numpy()
    prior = scipy.stats.norm.logpdf(latent, scale=math.hypot(1, top)).sum((1, 2, 3))
    np.testing.assert_allclose(found.terms["prior"].numpy(), prior, atol=1e-3)


def test_independent_pixels_have_their_closed_form() -> None:
    x = randn(64, 1, 6, 6).sign() * 0.6 + randn(64, 1, 6, 6, seed=1) * math.hypot(0.15, SIGMA_1)
    found = continuous(x, model="exact-mixture", steps=100)
    off = (found.nats - pixels(x)).abs() / 36 / LN2
    assert off.median() < 1e-3
    assert inside(found, pixels(x)) >= 0.9


@pytest.mark.parametrize(
    "probes", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_bars_hold_for_95_of_100_images(probes: int) -> None:
    world = Whole()
    x = world.images(1000)
    found = continuous(x, model=world.field, probes=probes, steps=48)
    assert 0.93 <= inside(found, world.log_p(x)) <= 0.97


def test_bars_of_exact_traces_are_the_solvers() -> None:
    world = Whole(4)
    x = world.images(100)
    found = continuous(x, model=world.field, probes="exact", steps=40)
    assert not found.errors["probes"].any()
    assert inside(found, world.log_p(x)) >= 0.93
    assert (found.bits_per_dim + world.log_p(x) / 16 / LN2).abs().median() < 2e-3


def test_path_takes_back_the_first_order_of_the_solvers_error() -> None:
    world = Whole(4)
    x = world.images(32)
    found = continuous(x, solver="dpmpp-2m", grid="karras", model=world.field, probes="exact", steps=60)
    left = (found.nats - world.log_p(x)).abs().median()
    without = (found.nats - found.terms["path"] - world.log_p(x)).abs().median()
    assert left < without / 4


def test_both_directions_agree() -> None:
    """The density of a sample, measured while it is made, is that of the image that it is."""
    world = Whole()
    plan = check_plan(odeddim.plan(world.field, "unipc-2", steps=48, end="sigma_min"), world.field)
    made = Density.of(world.field, plan, dequantise="none", seed=3)
    x_T = odeddim.noise(200, (1, 8, 8)).double()
    start = State(x_T * math.sqrt(1 + plan.top**2), plan.top)
    end, table = made.along(start, 0)
    down, up = made.density(table), continuous(end.xbar, model=world.field, steps=48, seed=4)
    assert torch.equal(end.xbar, odeddim.integrate(world.field, start, plan).xbar)
    bar = (down.standard_error.square() + up.standard_error.square()).sqrt()
    share = ((down.bits_per_dim - up.bits_per_dim).abs() <= 1.96 * bar).double().mean()
    assert 0.91 <= float(share) <= 0.99
    assert inside(down, world.log_p(end.xbar)) >= 0.93


@pytest.mark.parametrize("nodes", [8, 11, 16])
def test_the_error_of_the_quadrature_is_of_its_size(nodes: int) -> None:
    """∫ σ/(s²+σ²) dσ, for pixels of standard deviations s on either side of where the nodes lie."""
    sigmas = torch.from_numpy(np.geomspace(0.01, 150, nodes))
    s = torch.logspace(-1.5, 0.5, 20, dtype=torch.float64)[:, None]
    found, none, error = density_path._integral(sigmas, [sigma / (s**2 + sigma**2) for sigma in sigmas], noisy=False)
    low, high = sigmas[0], sigmas[-1]
    truth = (torch.log((s**2 + high**2) / (s**2 + low**2)) - torch.log((1 + high**2) / (1 + low**2)))[:, 0] / 2
    assert not none.any()
    off = (found - truth).abs()
    assert (off <= 1.96 * error + 1e-6).double().mean() >= 0.75
    assert 0.3 * off.square().mean() < error.square().mean() < 1000 * off.square().mean()


# The trace.


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 3, 3, padding=1)
        ).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("block", [None, 1, 2])
def test_exact_diagonals_are_those_of_the_jacobian(block: int | None) -> None:
    field = VectorField(Net(), SCHEDULE)
    field.network_batch = block
    x, sigma = randn(3, 3, 4, 4), torch.tensor(0.7, dtype=torch.float64)
    found = exact(Products(field, 0.7, x), x, 0)
    for i in range(3):
        whole = torch.autograd.functional.jacobian(lambda y: field(sigma, y), x[i : i + 1]).reshape(48, 48)
        torch.testing.assert_close(found[i].flatten(), whole.diagonal(), rtol=1e-12, atol=1e-14)


def test_probes_estimate_the_trace_without_bias_and_say_their_noise() -> None:
    field = VectorField(Net(), SCHEDULE)
    x = randn(1, 3, 4, 4)
    product = Products(field, 0.7, x)
    truth = float(exact(product, x, 0).sum())
    whole = torch.autograd.functional.jacobian(lambda y: field(torch.tensor(0.7), y), x).reshape(48, 48)
    off = whole - whole.diagonal().diag()
    for probes in (1, 2, 4):
        colours = patterns(probes, x.shape[1:]).flatten(1).double()
        kept = off * (colours.T @ colours) / len(colours)
        spread = math.sqrt(float((kept + kept.T).square().sum()) / 2)
        found = [float(probed(probes, seed=0, start=i)(product, x, 0).sum()) for i in range(200)]
        assert np.mean(found) == pytest.approx(truth, abs=3 * spread / 14)
        assert np.std(found) == pytest.approx(spread, rel=0.2)


def test_patterns_cancel_neighbours() -> None:
    found = patterns(4, (1, 6, 6))
    together = torch.einsum("pij,pkl->ijkl", found[:, 0], found[:, 0]) / 4
    for i in range(6):
        for j in range(6):
            assert together[2, 3, i, j] == (1 if (i - 2) % 2 == 0 and (j - 3) % 2 == 0 else 0)
    assert patterns(1, (5,)).equal(torch.ones(1, 5))
    assert patterns(2, (3, 2, 2))[1].mean() == 0
    assert len(patterns(64, (1, 8, 8))) == 16


def test_noise_is_measured_from_roughness() -> None:
    """Diagonals that move smoothly, with the noise of a known symmetric matrix."""
    size, nodes = 64, 21
    u = torch.linspace(-4, 4, nodes, dtype=torch.float64)
    matrix = randn(size, size)
    matrix = (matrix + matrix.T) / 2
    off = matrix - matrix.diagonal().diag()
    smooth = torch.tanh(u[:, None] + torch.linspace(-1, 1, size, dtype=torch.float64))
    diagonals = []
    for n in range(nodes):
        z = signs(50, (size,), key=(0, n)).double()
        diagonals.append(smooth[n] + z * (z @ off))
    truth = 2 * float(off.square().sum())
    found = noise_of(u, diagonals).mean()
    assert float(found) == pytest.approx(truth, rel=0.05)
    assert float(noise_of(u, [it[None] for it in smooth]).max()) < 1e-2


# Whole numbers.


@pytest.mark.parametrize("sigma", [0.002, 0.01, 0.3])
def test_entropies_and_draws_of_dequantisation(sigma: float) -> None:
    normal, even = (Dequantisation(kind, 8, sigma) for kind in ("normal", "uniform"))
    tau = 1 / 255 / sigma
    there = scipy.stats.truncnorm(-tau, tau, scale=sigma)
    assert normal.entropy == pytest.approx(float(there.entropy()), abs=1e-9)
    assert even.entropy == pytest.approx(math.log(2 / 255), abs=1e-12)
    for one, law in ((normal, there), (even, scipy.stats.uniform(-1 / 255, 2 / 255))):
        u = one.noise(2, (1, 40, 40), seed=0, start=5, draw=1)
        assert scipy.stats.kstest(u.flatten().numpy(), law.cdf).pvalue > 1e-3
        assert u[1:].equal(one.noise(1, (1, 40, 40), seed=0, start=6, draw=1))
        assert not u.equal(one.noise(2, (1, 40, 40), seed=0, start=5, draw=0))


def levels(count: int, bits: int = 8, seed: int = 0) -> Tensor:
    """Images of whole numbers, about as exact-gaussian has them."""
    width = 2 / (2**bits - 1)
    x = (randn(count, 1, 4, 4, seed=seed) * 0.4).clamp(-1, 1)
    return ((x + 1) / width).round() * width - 1


@pytest.mark.parametrize(("kind", "bits"), [("uniform", 8), ("normal", 3)])
def test_dequantised_densities_are_bounds(kind: str, bits: int) -> None:
    """Of images of whole numbers under exact-gaussian: log P is the sum of log(Φ(b) - Φ(a)) over the bins."""
    x, scale, half = levels(300, bits), math.sqrt(GAUSSIAN), 1 / (2**bits - 1)
    found = odeddim.log_density(x, model="exact-gaussian", dequantise=kind, bits=bits, steps=32)
    tau = half / SIGMA_1
    law = scipy.stats.uniform(-half, 2 * half) if kind == "uniform" else scipy.stats.truncnorm(-tau, tau, scale=SIGMA_1)
    mean = gaussian(x) - 16 * law.var() / 2 / GAUSSIAN + 16 * law.entropy()  # log p is a parabola
    assert 0.93 <= inside(found, mean) <= 0.99
    log_p = np.log(scipy.stats.norm.cdf((x + half) / scale) - scipy.stats.norm.cdf((x - half) / scale)).sum((1, 2, 3))
    assert (torch.from_numpy(log_p) >= mean - 1e-9).all()


def test_one_draw_does_not_know_its_error() -> None:
    found = odeddim.log_density(levels(2), model="exact-gaussian", draws=1)
    assert found.errors["dequantisation"].isnan().all()
    assert "not known from one draw" in str(found)
    assert bool(found.standard_error.isfinite().all())


def test_the_mean_of_draws() -> None:
    draws = torch.zeros(4, 1, len(COLUMNS), dtype=torch.float64)
    draws[:, 0, 0] = torch.tensor([1.0, 2.0, 4.0, 5.0])
    draws[:, 0, COLUMNS.index("error probes")] = 1.0
    draws[:, 0, COLUMNS.index("evaluations")] = 50
    found = dict(zip(COLUMNS, mean_of(draws, -3.0)[0].tolist(), strict=True))
    assert (found["prior"], found["dequantisation"], found["evaluations"]) == (3, -3, 200)
    assert found["error probes"] == 0.5
    student = scipy.stats.t.ppf(0.975, 3) / scipy.stats.norm.ppf(0.975)
    assert found["error dequantisation"] == pytest.approx(math.sqrt((10 / 3 - 1) / 4) * student)


# What it depends on.


def test_an_image_has_the_same_number_in_any_batch() -> None:
    world = Whole()
    x = world.images(5)
    whole = continuous(x, model=world.field, steps=8)
    for size in (1, 2, "auto"):
        again = continuous(x, model=world.field, steps=8, batch_size=size)
        for name, part in whole.terms.items():
            torch.testing.assert_close(part, again.terms[name], rtol=0, atol=1e-9)
    last = continuous(x[3:], model=world.field, steps=8, start=3)
    torch.testing.assert_close(last.nats, whole.nats[3:], rtol=0, atol=1e-9)
    assert not continuous(x[3:], model=world.field, steps=8, start=2).nats.isclose(whole.nats[3:]).any()
    torch.testing.assert_close(whole[3:].nats, whole.nats[3:])
    assert len(whole[-1]) == 1


def test_dequantisation_noise_belongs_to_an_image() -> None:
    x = levels(4)
    whole = odeddim.log_density(x, model="exact-gaussian", steps=8, draws=2)
    again = odeddim.log_density(x, model="exact-gaussian", steps=8, draws=2, batch_size=1)
    assert again.nats.equal(whole.nats)
    assert odeddim.log_density(x[2:], model="exact-gaussian", steps=8, draws=2, start=2).nats.equal(whole.nats[2:])


def test_evaluations_and_products_are_counted() -> None:
    found = continuous(randn(2, 1, 6, 6), model="exact-gaussian", steps=10, probes=4)
    assert (found.evaluations, found.products) == (11 + 11, 44)  # ab3's first step has one more
    two = odeddim.log_density(levels(2), model="exact-gaussian", steps=10, draws=2)
    assert (two.evaluations, two.products) == (44, 2 * 11 * 16)  # a small image: the exact trace


def test_conditions_and_latent_models_are_named() -> None:
    class Codec:
        image_shape, sha256 = (1, 4, 4), ""

        def encode(self, images: Tensor) -> Tensor:
            return images * 2

        def decode(self, data: Tensor) -> Tensor:
            return data / 2

        def to(self, device: object) -> None: ...

    field = odeddim.load("exact-gaussian")
    latent = VectorField(field.eps, field.schedule, shape=(1, 4, 4), codec=Codec())
    x = randn(3, 1, 4, 4) * 0.2
    found = odeddim.log_density(x, model=latent)
    torch.testing.assert_close(found.nats, gaussian(2 * x), rtol=0, atol=0.02)
    assert "the data that the autoencoder makes" in str(found)
    with pytest.raises(InputError, match="without bins"):
        odeddim.log_density(x, model=latent, dequantise="uniform")

    guided = VectorField.from_network(
        lambda x, t, labels: x * 0.9 + labels.reshape(-1, 1, 1, 1) * 1e-3, SCHEDULE, classes=4, null=3
    ).conditioned(1, guidance=2.0)
    found = continuous(x, model=guided, steps=6)
    assert "guidance" in str(found)
    assert found.evaluations == 2 * (7 + 7)


# What cannot be used.

WRONG: dict[str, tuple[dict[str, object], str]] = {
    "stochastic": ({"solver": "ddpm"}, "only decode"),
    "from zero": ({"grid": [0.0, 0.01, 1.0, 157.0]}, "end='sigma_min'"),
    "few nodes": ({"steps": 3}, "at least 5 nodes"),
    "low top": ({"grid": [0.01, 0.1, 0.3, 0.5, 1.0, 2.0]}, "images still show"),
    "probes": ({"probes": 3}, "power of two"),
    "no probes": ({"probes": 0}, "power of two"),
    "words": ({"probes": "many"}, "power of two"),
    "draws": ({"draws": 2}, "leave out draws"),
    "seed": ({"seed": -1}, "seed"),
    "kind": ({"dequantise": "gauss"}, "unknown dequantisation"),
    "bits": ({"dequantise": "uniform", "bits": 0}, "bits"),
    "levels": ({"dequantise": "uniform"}, "image 0 holds values that no pixel of 8 bits"),
    "no solver": ({"solver": 3}, "name or a row"),
    "own steps": ({"solver": "scipy-dop853"}, "nodes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case: str) -> None:
    how, words = WRONG[case]
    with pytest.raises(InputError, match=words) as caught:
        odeddim.log_density(randn(2, 1, 4, 4) * 0.1, **{"model": "exact-gaussian", "dequantise": "none", **how})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_network_must_be_differentiable() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 0.5)

    with pytest.raises(InputError, match="cannot be differentiated"):
        continuous(randn(1, 1, 4, 4), model=VectorField(network, SCHEDULE))


def test_no_gradient_is_kept_and_the_grad_mode_does_not_matter() -> None:
    """Products with the Jacobian are cut off, so a gradient of the rest would be one of another number."""
    x = randn(2, 1, 4, 4) * 0.5
    plain = continuous(x, model="exact-gaussian").nats
    found = continuous(x.clone().requires_grad_(), model="exact-gaussian").nats
    assert not found.requires_grad
    assert torch.equal(found, plain)
    with torch.inference_mode():
        assert torch.equal(continuous(x.clone(), model="exact-gaussian").nats, plain)


def test_images_of_some_values_are_refused_by_their_index() -> None:
    x = levels(4).clone()
    x[2, 0, 1, 1] += 0.003
    with pytest.raises(InputError, match="image 2 "):
        odeddim.log_density(x, model="exact-gaussian")
    x[2] = 1.5
    with pytest.raises(InputError, match="image 2 "):
        odeddim.log_density(x, model="exact-gaussian")
