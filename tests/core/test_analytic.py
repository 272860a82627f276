"""The exact fields against automatic differentiation of their log-density, and the closed-form flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odeddim.ode.analytic import Gaussian, GaussianMixture
from odeddim.types import InputError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def eps_by_autograd(field: GaussianMixture, sigma: float, xbar: Tensor) -> Tensor:
    """ε = -σ·∇log p_σ (Song et al. 2021), the density written with torch.distributions."""
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    scale = torch.tensor((field.std**2 + sigma**2) ** 0.5, dtype=torch.float64)
    xbar = xbar.clone().requires_grad_()
    if field.means.ndim == 1:
        density = MixtureSameFamily(Categorical(field.weights), Normal(field.means, scale.expand(len(field.means))))
        log_p = density.log_prob(xbar).sum()
    else:
        means = field.means.flatten(1)
        parts = Independent(Normal(means, scale.expand_as(means)), 1)
        log_p = MixtureSameFamily(Categorical(field.weights), parts).log_prob(xbar.flatten(1)).sum()
    (score,) = torch.autograd.grad(log_p, xbar)
    return -sigma * score


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 157.0])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 4, 4)])
def test_eps_is_the_score(shape: tuple[int, ...], sigma: float) -> None:
    means = torch.randn(shape, dtype=torch.float64, generator=generator())
    field = GaussianMixture(means, std=0.2, weights=torch.tensor([0.2, 0.5, 0.3]))
    xbar = torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=generator()) * (0.5 + sigma)
    expected = eps_by_autograd(field, sigma, xbar)
    assert torch.allclose(field(torch.tensor(sigma, dtype=torch.float64), xbar), expected, rtol=1e-9, atol=1e-11)
    per_image = field(torch.full((5,), sigma, dtype=torch.float64), xbar)
    assert torch.allclose(per_image, expected, rtol=1e-9, atol=1e-11)


def test_finite_data_set_denoises_to_the_nearest_image() -> None:
    data = torch.randn(6, 1, 3, 3, dtype=torch.float64, generator=generator())
    field = GaussianMixture.finite(data)
    sigma = 0.01
    xbar = data + sigma * torch.randn(data.shape, dtype=torch.float64, generator=generator())
    x0 = xbar - sigma * field(torch.tensor(sigma, dtype=torch.float64), xbar)
    assert torch.allclose(x0, data, atol=1e-12)


def test_gaussian_flow_solves_its_own_ode() -> None:
    field = Gaussian(torch.tensor([0.3, -0.2]), std=0.4)
    xbar = torch.randn(4, 2, dtype=torch.float64, generator=generator())
    h = 1e-5
    slope = (field.flow(xbar, 1.5, 1.5 + h) - field.flow(xbar, 1.5, 1.5 - h)) / (2 * h)
    assert torch.allclose(slope, field(torch.tensor(1.5), xbar), atol=1e-9)
    assert torch.allclose(field.flow(field.flow(xbar, 0.01, 100.0), 100.0, 0.01), xbar, rtol=1e-12)


def test_refusals() -> None:
    with pytest.raises(InputError, match="mixture"):
        GaussianMixture(torch.zeros(2), std=-1)
    with pytest.raises(InputError, match="mixture"):
        GaussianMixture(torch.zeros(2), std=1, weights=torch.tensor([1.0]))
