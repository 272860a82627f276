"""Spherical interpolation: the paper's formula, radii, auxiliary states, slices of paths, loops, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odeddim.latents.interpolate import LatentPath, interpolate, interpolate_grid, interpolate_loop
from odeddim.types import InputError, State


def latent(seed: int, sigma: float = 157.0, aux: int = 0, dtype: torch.dtype = torch.float64) -> State:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(1, 2, 5, 5, generator=generator, dtype=dtype) * sigma for _ in range(1 + aux)]
    return State(parts[0], sigma, tuple(parts[1:]))


@settings(max_examples=50)
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


def path(kind: str, n: int, aux: int, dtype: torch.dtype) -> tuple[LatentPath, State]:
    """A path of each kind, by itself and all at once."""
    latents = [latent(seed, aux=aux, dtype=dtype) for seed in range(4)]
    if kind == "line":
        return LatentPath.line(latents[0], latents[1], n), interpolate(latents[0], latents[1], n)
    if kind == "grid":
        return LatentPath.grid(latents, n), interpolate_grid(latents, n)
    return LatentPath.loop(latents, n), interpolate_loop(latents, n)


KINDS = ("line", "grid", "loop")


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 7),
    aux=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    cuts=st.lists(st.integers(0, 49), max_size=6),
)
def test_a_path_in_pieces_is_the_whole_path(kind: str, n: int, aux: int, dtype: torch.dtype, cuts: list[int]) -> None:
    points, whole = path(kind, n, aux, dtype)
    count = {"line": n, "grid": n * n, "loop": 4 * n}[kind]
    assert len(points) == len(whole.xbar) == count
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    pieces = [points.read(start, stop) for start, stop in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat([piece.xbar for piece in pieces]), whole.xbar)
    assert whole.xbar.dtype == dtype
    for k in range(aux):
        assert torch.equal(torch.cat([piece.aux[k] for piece in pieces]), whole.aux[k])
    assert {piece.sigma for piece in pieces} == {whole.sigma} == {157.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_corners_are_met_digit_for_digit(kind: str, dtype: torch.dtype) -> None:
    n = 7
    _, whole = path(kind, n, 1, dtype)
    rows = {"line": [0, n - 1], "grid": [0, n - 1, n * (n - 1), n * n - 1], "loop": [0, n, 2 * n, 3 * n]}[kind]
    for seed, row in enumerate(rows):
        corner = latent(seed, aux=1, dtype=dtype)
        assert torch.equal(whole.xbar[row], corner.xbar[0])
        assert torch.equal(whole.aux[0][row], corner.aux[0][0])


def test_a_path_may_be_longer_than_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (State(torch.randn(1, 100_000, generator=generator), 1.0) for _ in range(2))
    points = LatentPath.line(a, b, 2**20)  # 0.4 TB
    assert torch.equal(points.read(2**20 - 1, 2**20).xbar, b.xbar)


@settings(max_examples=30)
@given(count=st.integers(2, 6), n=st.integers(1, 8))
def test_a_loop_is_lines_end_to_end(count: int, n: int) -> None:
    latents = [latent(seed, aux=1) for seed in range(count)]
    loop = interpolate_loop(latents, n)
    assert loop.xbar.shape == (count * n, 2, 5, 5)
    for k, start in enumerate(latents):
        line = interpolate(start, latents[(k + 1) % count], n + 1)
        assert torch.allclose(loop.xbar[k * n : (k + 1) * n], line.xbar[:-1], rtol=1e-12)
        assert torch.allclose(loop.aux[0][k * n : (k + 1) * n], line.aux[0][:-1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loop_of_two_comes_back_the_way_it_went(dtype: torch.dtype) -> None:
    n = 49  # 1 - 1/49·i is not (49 - i)/49 for many an i
    loop = interpolate_loop([latent(1, dtype=dtype), latent(2, dtype=dtype)], n).xbar
    assert torch.equal(loop[n + 1 :], loop[1:n].flip(0))


def test_steps_of_a_loop_are_even_over_its_seams() -> None:
    corners = [latent(seed) for seed in range(3)]
    corners = [State(c.xbar / c.xbar.norm(), c.sigma) for c in corners]
    points = interpolate_loop(corners, 5).xbar.flatten(1)
    steps = [torch.arccos((p @ q).clamp(max=1)) for p, q in zip(points, points.roll(-1, 0), strict=True)]
    for leg in range(3):
        angle = torch.arccos(corners[leg].xbar.flatten() @ corners[(leg + 1) % 3].xbar.flatten())
        assert torch.allclose(torch.stack(steps[5 * leg : 5 * leg + 5]), angle / 5, rtol=1e-9)


def test_dtype_is_kept() -> None:
    line = interpolate(latent(1, dtype=torch.float32), latent(2, dtype=torch.float32), 3)
    assert line.xbar.dtype == torch.float32


def test_refusals() -> None:
    a, b = latent(1), latent(2)
    with pytest.raises(InputError, match="at least 2 points"):
        interpolate(a, b, 1)
    with pytest.raises(InputError, match="different noise levels"):
        interpolate(a, State(b.xbar, 3.0), 3)
    with pytest.raises(InputError, match="different shapes"):
        interpolate(a, State(b.xbar[:, :1], b.sigma), 3)
    with pytest.raises(InputError, match="opposite"):
        interpolate(a, State(-a.xbar, a.sigma), 3)
    with pytest.raises(InputError, match="zeros"):
        interpolate(a, State(0 * a.xbar, a.sigma), 3)
    with pytest.raises(InputError, match="4 latents, not 3"):
        interpolate_grid([a, b, a], 3)
    with pytest.raises(InputError, match="at least 2 latents"):
        interpolate_loop([a], 3)
    with pytest.raises(InputError, match="1 point for each leg"):
        interpolate_loop([a, b], 0)
    with pytest.raises(InputError, match="different reversible runs"):
        interpolate_loop([a, b, State(b.xbar, b.sigma, (b.xbar,), "bdia")], 3)
    for start, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(InputError, match="a path of 3 latents"):
            LatentPath.line(a, b, 3).read(start, stop)
    with pytest.raises(InputError, match="of one latent each"):
        interpolate(a, State(torch.cat([b.xbar, b.xbar]), b.sigma), 3)
