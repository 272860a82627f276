"""Spherical interpolation: the paper's formula, radii, auxiliary states, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odeddim.latents.interpolate import interpolate, interpolate_grid
from odeddim.types import InputError, State


def latent(seed: int, sigma: float = 157.0, aux: int = 0, dtype: torch.dtype = torch.float64) -> State:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(1, 2, 5, 5, generator=generator, dtype=dtype) * sigma for _ in range(1 + aux)]
    return State(parts[0], sigma, tuple(parts[1:]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(2, 20))
def test_a_line_is_the_papers_formula(seed_a: int, seed_b: int, n: int) -> None:
    a, b = latent(seed_a), latent(seed_b + 2000)
    line = interpolate(a, b, n)
    va, vb = a.xbar.flatten(), b.xbar.flatten()
    theta = math.acos(float(va @ vb / (va.norm() * vb.norm())))
    for i in range(n):
        u = i / (n - 1)
        expected = (math.sin((1 - u) * theta) * va + math.sin(u * theta) * vb) / math.sin(theta)
        assert torch.allclose(line.xbar[i].flatten(), expected, rtol=1e-9, atol=1e-9)
    assert line.sigma == a.sigma
    assert torch.allclose(line.xbar[:1], a.xbar, rtol=1e-12)
    assert torch.allclose(line.xbar[-1:], b.xbar, rtol=1e-12)


def test_equal_radii_stay_and_angles_are_even() -> None:
    a, b = latent(1), latent(2)
    b = State(b.xbar * (a.xbar.norm() / b.xbar.norm()), b.sigma)
    line = interpolate(a, b, 9).xbar.flatten(1)
    assert torch.allclose(line.norm(dim=1), line[0].norm(), rtol=1e-12)
    steps = [torch.arccos((p @ q) / (p.norm() * q.norm())) for p, q in itertools.pairwise(line)]
    assert torch.allclose(torch.stack(steps), steps[0], rtol=1e-9)


def test_parallel_latents_are_finite() -> None:
    a = latent(1)
    same = interpolate(a, a, 5)
    assert torch.allclose(same.xbar, a.xbar.expand(5, -1, -1, -1), rtol=1e-12)
    longer = interpolate(a, State(a.xbar * 3, a.sigma), 3)
    assert torch.allclose(longer.xbar[1:2], a.xbar * 2, rtol=1e-9)


def test_auxiliary_states_go_along() -> None:
    a, b = latent(1, aux=2), latent(2, aux=2)
    line = interpolate(a, b, 3)
    assert len(line.aux) == 2
    # The same weights for all: x̄'s middle is w·(a+b), so each auxiliary middle must be w·(its a + its b).
    w = (line.xbar[1] / (a.xbar + b.xbar)[0]).mean()
    for k in range(2):
        assert torch.allclose(line.aux[k][1], w * (a.aux[k] + b.aux[k])[0], rtol=1e-9)
        assert torch.allclose(line.aux[k][0], a.aux[k][0])


def test_grid_between_four_corners() -> None:
    corners = (latent(1, aux=1), latent(2, aux=1), latent(3, aux=1), latent(4, aux=1))
    n = 4
    grid = interpolate_grid(corners, n)
    assert grid.xbar.shape == (n * n, 2, 5, 5)
    for row, state in ((0, corners[0]), (n - 1, corners[1]), (n * (n - 1), corners[2]), (n * n - 1, corners[3])):
        assert torch.allclose(grid.xbar[row], state.xbar[0], rtol=1e-9)
        assert torch.allclose(grid.aux[0][row], state.aux[0][0], rtol=1e-9)
    top = interpolate(corners[0], corners[1], n)
    assert torch.allclose(grid.xbar[:n], top.xbar, rtol=1e-9)
    left = interpolate(corners[0], corners[2], n)
    assert torch.allclose(grid.xbar[::n], left.xbar, rtol=1e-9)


def test_dtype_is_kept() -> None:
    line = interpolate(latent(1, dtype=torch.float32), latent(2, dtype=torch.float32), 3)
    assert line.xbar.dtype == torch.float32


def test_refusals() -> None:
    a, b = latent(1), latent(2)
    with pytest.raises(InputError, match="at least its 2 ends"):
        interpolate(a, b, 1)
    with pytest.raises(InputError, match="different noise levels"):
        interpolate(a, State(b.xbar, 3.0), 3)
    with pytest.raises(InputError, match="different shapes"):
        interpolate(a, State(b.xbar[:, :1], b.sigma), 3)
    with pytest.raises(InputError, match="opposite"):
        interpolate(a, State(-a.xbar, a.sigma), 3)
    with pytest.raises(InputError, match="zeros"):
        interpolate(a, State(0 * a.xbar, a.sigma), 3)
    with pytest.raises(InputError, match="one latent at a time"):
        interpolate(a, State(torch.cat([b.xbar, b.xbar]), b.sigma), 3)
