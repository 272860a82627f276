"""Latents as vectors: means, directions, shifts, distances and neighbours, in batches of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odeddim.latents import arithmetic
from odeddim.latents.arithmetic import direction, distances, mean, nearest, shift
from odeddim.types import InputError, State

DTYPES = st.sampled_from([torch.float32, torch.float64])
SIGMA = 157.0


def latents(count: int, seed: int = 0, aux: int = 0, dtype: torch.dtype = torch.float64, sigma: float = SIGMA) -> State:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, 2, 3, 3, generator=generator, dtype=dtype) * sigma for _ in range(1 + aux)]
    return State(parts[0], sigma, tuple(parts[1:]), "bdia" if aux else "")


def rows(state: State, start: int, stop: int) -> State:
    return State(state.xbar[start:stop], state.sigma, tuple(part[start:stop] for part in state.aux), state.kept)


def in_batches(state: State, cuts: list[int]) -> Iterator[tuple[int, State]]:
    count = len(state.xbar)
    bounds = [0, *sorted(min(cut, count) for cut in cuts), count]
    for start, stop in itertools.pairwise(bounds):
        yield start, rows(state, start, stop)


CUTS = st.lists(st.integers(0, 30), max_size=5)


@settings(max_examples=50)
@given(count=st.integers(1, 30), seed=st.integers(0, 1000), aux=st.integers(0, 2), dtype=DTYPES, cuts=CUTS)
def test_a_mean_in_batches_is_the_mean(count: int, seed: int, aux: int, dtype: torch.dtype, cuts: list[int]) -> None:
    state = latents(count, seed, aux, dtype)
    found = mean(batch for _, batch in in_batches(state, cuts))
    assert found.xbar.shape == (1, 2, 3, 3)
    assert (found.sigma, found.kept, len(found.aux)) == (state.sigma, state.kept, aux)
    whole = mean([state])
    for part, at_once, given_part in zip(
        (found.xbar, *found.aux), (whole.xbar, *whole.aux), (state.xbar, *state.aux), strict=True
    ):
        assert part.dtype == torch.float64
        assert torch.equal(part, at_once)
        for value, column in zip(part.flatten().tolist(), given_part.flatten(1).T.tolist(), strict=True):
            size = math.fsum(abs(x) for x in column) / count
            assert abs(value - math.fsum(column) / count) <= 1e-15 * size


def test_a_mean_of_many_keeps_its_digits() -> None:
    """0.1 is no float: summed up plainly, 20,000 of them are off by 1e-13 and more."""
    state = State(torch.full((20_000, 1), 0.1, dtype=torch.float64), 1.0)
    plain = 0.0
    for _ in range(20_000):
        plain += 0.1
    assert abs(plain / 20_000 - 0.1) > 1e-14
    assert abs(float(mean([state]).xbar) - 0.1) <= 1e-16


def test_a_direction_leads_from_one_mean_to_the_other() -> None:
    a, b = mean([latents(5, 1, aux=2)]), mean([latents(4, 2, aux=2)])
    way = direction(a, b)
    assert (way.sigma, way.kept) == (a.sigma, "bdia")
    assert torch.equal(way.xbar, b.xbar - a.xbar)
    assert torch.equal(way.aux[1], b.aux[1] - a.aux[1])
    there = shift(a, way, 1.0, keep_norm=False)
    assert torch.allclose(there.xbar, b.xbar, rtol=1e-12, atol=1e-12)
    assert torch.allclose(there.aux[0], b.aux[0], rtol=1e-12, atol=1e-12)


@settings(max_examples=50)
@given(count=st.integers(1, 5), by=st.floats(-3, 3), aux=st.integers(0, 2), dtype=DTYPES)
def test_a_shift(count: int, by: float, aux: int, dtype: torch.dtype) -> None:
    state, way = latents(count, 1, aux, dtype), latents(1, 2, aux)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-10}
    plain = shift(state, way, by, keep_norm=False)
    kept = shift(state, way, by)
    for moved in (plain, kept):
        assert moved.xbar.dtype == dtype
        assert all(part.dtype == dtype for part in moved.aux)
        assert (moved.sigma, moved.kept) == (state.sigma, state.kept)
    norms = [part.xbar.flatten(1).norm(dim=1) for part in (state, plain, kept)]
    assert torch.allclose(norms[2], norms[0], **tolerance)
    factor = (norms[0] / norms[1]).reshape(-1, 1, 1, 1)
    given_parts, ways = (state.xbar, *state.aux), (way.xbar, *way.aux)
    for k, (part, towards) in enumerate(zip(given_parts, ways, strict=True)):
        sum_of = part + by * towards.to(dtype)
        assert torch.allclose((plain.xbar, *plain.aux)[k], sum_of, **tolerance)
        assert torch.allclose((kept.xbar, *kept.aux)[k], factor * sum_of, **tolerance)
    alone = shift(rows(state, 0, 1), way, by)
    assert torch.equal(alone.xbar[0], kept.xbar[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_by_nothing_changes_no_bit(dtype: torch.dtype) -> None:
    state = latents(3, 1, 1, dtype)
    moved = shift(state, latents(1, 2, 1), 0.0)
    assert torch.equal(moved.xbar, state.xbar)
    assert torch.equal(moved.aux[0], state.aux[0])


@settings(max_examples=30)
@given(a=st.integers(0, 4), b=st.integers(0, 9), dtype=DTYPES, chunk=st.sampled_from([1, 40, 2**24]))
def test_distances_are_those_of_unit_latents(a: int, b: int, dtype: torch.dtype, chunk: int) -> None:
    state, others = latents(a, 1, dtype=dtype), latents(b, 2, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "CHUNK", chunk)
        found = distances(state, others)
    x, y = (part.xbar.double().flatten(1) / math.sqrt(1 + SIGMA**2) for part in (state, others))
    expected = ((x[:, None] - y[None]) ** 2).mean(2).sqrt()
    assert found.shape == (a, b)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-13, atol=0)
    assert torch.equal(found, distances(state, others))
    for i in range(a):
        for j in range(b):
            assert torch.equal(found[i, j], distances(rows(state, i, i + 1), rows(others, j, j + 1))[0, 0])


def test_distances_from_oneself_and_to_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    state = State(torch.randn(40, 3, 16, 16, generator=generator), 0.0)
    found = distances(state, state)
    assert torch.equal(found.diagonal(), torch.zeros(40, dtype=torch.float64))
    assert torch.equal(found, found.T)
    others = found[~torch.eye(40, dtype=torch.bool)]
    deviation = 1 / math.sqrt(768)
    assert abs(float(others.mean()) - math.sqrt(2)) < deviation / 4
    assert 0.8 * deviation < float(others.std()) < 1.2 * deviation


def test_small_distances_keep_their_digits() -> None:
    """1e-11 apart at values near 1: of a² - 2ab + b² nothing would be left."""
    step = 2.0**-37
    a = torch.ones(1, 1000, dtype=torch.float64)
    found = distances(State(a, 0.0), State(a + step, 0.0))
    assert abs(float(found) / step - 1) < 1e-13


@settings(max_examples=50)
@given(
    count=st.integers(1, 30),
    queries=st.integers(1, 4),
    data=st.data(),
    dtype=DTYPES,
    cuts=CUTS,
    backwards=st.booleans(),
)
def test_nearest_of_any_batches(
    count: int, queries: int, data: st.DataObject, dtype: torch.dtype, cuts: list[int], backwards: bool
) -> None:
    """Among latents of which many are the same, so that ties are everywhere: as numpy's sort by (distance, index)."""
    k = data.draw(st.integers(1, count))
    kinds = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    state = State(latents(5, 1, dtype=dtype).xbar[kinds], SIGMA)
    query = latents(queries, 2, dtype=dtype)
    batches = list(in_batches(state, cuts))
    found, indices = nearest(query, reversed(batches) if backwards else iter(batches), k)
    every = distances(query, state).numpy()
    expected = np.stack([np.lexsort((np.arange(count), row))[:k] for row in every])
    assert (found.dtype, indices.dtype) == (torch.float64, torch.int64)
    assert torch.equal(indices, torch.from_numpy(expected))
    assert torch.equal(found, torch.from_numpy(np.take_along_axis(every, expected, 1)))


def test_the_nearest_latent_of_one_among_them_is_itself() -> None:
    state = latents(9, aux=1)  # kept by one run and not by the other: only x̄ is compared
    found, indices = nearest(State(state.xbar[4:6], SIGMA), [(100, state)], 1)
    assert indices.tolist() == [[104], [105]]
    assert found.tolist() == [[0.0], [0.0]]


def test_refusals() -> None:
    a = latents(2)
    one = rows(a, 0, 1)
    others = {
        "different shapes": State(a.xbar[:, :1], SIGMA),
        "different noise levels": State(a.xbar, 3.0),
        "different reversible runs": State(a.xbar, SIGMA, (a.xbar,), "bdia"),
    }
    for words, other in others.items():
        with pytest.raises(InputError, match=words):
            mean([a, other])
        with pytest.raises(InputError, match=words):
            direction(one, rows(other, 0, 1))
        with pytest.raises(InputError, match=words):
            shift(a, rows(other, 0, 1), 1.0)
        if words != "different reversible runs":
            with pytest.raises(InputError, match=words):
                distances(a, other)
            with pytest.raises(InputError, match=words):
                nearest(a, [(0, other)], 1)
    for batches in ([], [rows(a, 0, 0)]):
        with pytest.raises(InputError, match="no latents"):
            mean(batches)
    for first, second in ((a, one), (one, a)):
        with pytest.raises(InputError, match="of one latent each"):
            direction(first, second)
    with pytest.raises(InputError, match="of one latent each"):
        shift(a, a, 1.0)
    for by in (math.nan, math.inf):
        with pytest.raises(InputError, match="finite"):
            shift(a, one, by)
    with pytest.raises(InputError, match="latent 0 shifted by -1 is 0"):
        shift(a, one, -1.0)
    with pytest.raises(InputError, match="at least 1"):
        nearest(a, [(0, a)], 0)
    with pytest.raises(InputError, match="only 2 latents"):
        nearest(a, [(0, one), (1, one)], 3)
