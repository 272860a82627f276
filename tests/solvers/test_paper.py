"""Euler through x̄ is DDIM: eq. 12 with σ_t = 0 in x and α, and diffusers' DDIMScheduler, on the same nodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import odeddim
from odeddim.ode.analytic import GaussianMixture

LINEAR = odeddim.Schedule.linear()
MIXTURE = GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15)
STEPS = (1, 2, 3, 7, 10, 20, 50, 100, 1000)


def alphas() -> list[float]:
    """α_0, ..., α_T by the paper's definition: α_0 := 1, α_t = Π (1 - β_s); written without odeddim."""
    products = [1.0]
    for i in range(1000):
        products.append(products[-1] * (1 - (1e-4 + (0.02 - 1e-4) * i / 999)))
    return products


def tau(kind: str, steps: int) -> list[int]:
    """The paper's sub-sequence, appendix D.2, τ_0 = 0 in front; where the floor would repeat a level, the next one."""
    seen = [0]
    for i in range(1, steps + 1):
        value = 1000 * i // steps if kind == "linear" else 1000 * i * i // steps**2
        seen.append(max(value, seen[-1] + 1))
    return seen


def latents(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_is_equation_12(steps: int, kind: str) -> None:
    """Decoding; eps in x and t, as the paper writes it, with the label t - 1 of its code."""
    field = odeddim.VectorField(MIXTURE.network(LINEAR), LINEAR)
    alpha, nodes = alphas(), tau(kind, steps)
    x = x_T = latents()
    for i in range(steps, 0, -1):
        t, s = nodes[i], nodes[i - 1]
        eps = field.eps(x, torch.full((2,), t - 1.0, dtype=torch.float64))
        x0 = (x - math.sqrt(1 - alpha[t]) * eps) / math.sqrt(alpha[t])
        x = math.sqrt(alpha[s]) * x0 + math.sqrt(1 - alpha[s]) * eps
    ours = odeddim.solve(x_T, "euler", model=field, steps=steps, grid=kind)
    assert field.nfe == steps
    assert float((ours - x).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("steps", STEPS)
def test_encoding_is_equation_14_reversed(steps: int, kind: str) -> None:
    """Encoding: the same steps upwards, ε at the source, whose label is held at 0 for the image itself."""
    field = odeddim.VectorField(MIXTURE.network(LINEAR), LINEAR)
    alpha, nodes = alphas(), tau(kind, steps)
    x = x_0 = latents() / 3
    for i in range(steps):
        s, t = nodes[i], nodes[i + 1]
        eps = field.eps(x, torch.full((2,), max(s - 1.0, 0.0), dtype=torch.float64))
        shift = math.sqrt((1 - alpha[t]) / alpha[t]) - math.sqrt((1 - alpha[s]) / alpha[s])
        x = math.sqrt(alpha[t]) * (x / math.sqrt(alpha[s]) + shift * eps)
    state = odeddim.encode(x_0, "euler", model=field, steps=steps, grid=kind)
    assert float((state.x - x).abs().max()) < 1e-12


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 20, 50, 100, 1000])
def test_euler_is_diffusers_ddim(steps: int, spacing: str) -> None:
    """For S that divide T: for others DDIMScheduler's step does not end where its next one begins (T // S)."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by the test extra")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    field = odeddim.VectorField(MIXTURE.network(LINEAR), LINEAR)
    x_T = latents().float()
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(field.eps(x, torch.full((2,), float(t))), t, x).prev_sample
    labels = scheduler.timesteps.flip(0)
    nodes = torch.cat([torch.zeros(1, dtype=torch.float64), LINEAR.levels[labels]])
    ours = odeddim.solve(x_T, "euler", model=field, grid=nodes)
    assert ours.dtype == torch.float32
    # diffusers multiplies α up in float32: 8e-5 relative in σ_1; its x_0 is as far off, not ours.
    assert float((ours - x).abs().max()) < 1e-5
    if spacing == "trailing":
        assert torch.equal(odeddim.grid("linear", LINEAR, steps), nodes)
