"""Latents as vectors: means, directions, shifts along them, distances, neighbours.

Auxiliary states take the same linear combination as x̄, as along a path (`interpolate`): what a reversible run keeps
books of is affine in (x̄, aux), so that the result can be decoded by the same run. Latents that are combined must have
been kept by one run; those only compared need not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from odeddim.types import InputError, State

CHUNK = 2**24  # numbers cast to float64 at a time: 128 MiB


def check_alike(first: State, other: State) -> None:
    """Raises InputError unless the two can be combined: shape, noise level and what was kept with them must agree."""
    _check_comparable(first, other)
    if other.kept != first.kept or len(other.aux) != len(first.aux):
        raise InputError(
            "latents that different reversible runs have kept cannot be combined: encode both with one solver, grid "
            f"and dtype (kept by {first.kept or 'none'!r} and {other.kept or 'none'!r})"
        )


def mean(batches: Iterable[State]) -> State:
    """The mean of all latents of all batches: xbar (B, *) each -> xbar (1, *) float64, auxiliary states likewise.

    Holds the first batch and one more. How the latents are cut into batches does not matter, bit for bit; the error
    is that of rounding once or twice, however many they are (W. Kahan, Further remarks on reducing truncation errors,
    1965).
    Errors: InputError without any latents, or for batches that cannot be combined.
    """
    first: State | None = None
    total = lost = torch.zeros((), dtype=torch.float64)
    count = 0
    for batch in batches:
        first = batch if first is None else first
        check_alike(first, batch)
        for row in zip(batch.xbar, *batch.aux, strict=True):
            term = torch.stack(row).to(torch.float64) - lost
            grown = total + term
            lost = (grown - total) - term
            total = grown
            count += 1
    if first is None or count == 0:
        raise InputError("there are no latents to take the mean of: give at least one")
    means = (total / count).unsqueeze(1)  # x̄'s and each auxiliary state's, (1, *)
    return State(means[0], first.sigma, tuple(means[1:]), first.kept, combined=True)


def direction(from_mean: State, to_mean: State) -> State:
    """to_mean - from_mean, (1, *) each: the way from one group of latents to another, float64.

    A difference and no latent: it does not lie on their sphere, and decoding it shows nothing. It is for `shift`.
    Errors: InputError for latents that cannot be combined.
    """
    _check_one(from_mean)
    _check_one(to_mean)
    check_alike(from_mean, to_mean)
    return _plus(to_mean, from_mean, -1.0)


def shift(state: State, direction: State, by: float, keep_norm: bool = True) -> State:
    """x̄ + by·d of each latent: state (B, *), direction (1, *) -> (B, *) in the state's dtype.

    keep_norm: each is brought back to the norm it had, its auxiliary states by the same factor. Latents of images lie
    close to a sphere of radius √D (‖x_T‖ = √D ± √(1/2)), which a plain sum leaves.
    Errors: InputError for latents that cannot be combined, a `by` that is not finite, a latent shifted onto 0.
    """
    _check_one(direction)
    check_alike(state, direction)
    _check_finite(by)
    moved = _plus(state, direction, by)
    if keep_norm:
        before, after = _norms(state.xbar), _norms(moved.xbar)
        if bool((after == 0).any()):
            raise InputError(
                f"latent {int(after.argmin())} shifted by {by:g} is 0, which no factor brings back to its norm: "
                "shift by another number"
            )
        factors = (before / after).reshape(-1, *[1] * (state.xbar.ndim - 1))
        moved = State(moved.xbar * factors, moved.sigma, tuple(part * factors for part in moved.aux), moved.kept)
    aux = tuple(part.to(state.xbar.dtype) for part in moved.aux)
    return State(moved.xbar.to(state.xbar.dtype), moved.sigma, aux, moved.kept, combined=True)


class Readable(Protocol):
    """Latents that are read as they are asked for: a file, say."""

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1 as a State, xbar (stop-start, *)."""


@dataclass(frozen=True)
class Shifted:
    """Latents moved along a direction, made when they are read, as those of a `LatentFile`: there may be any number.

    indices: which of `latents`; by: how far. Row by row: the first latent by all amounts, then the second. See `shift`.
    Errors: InputError without any row, or for an amount that is not finite.
    """

    latents: Readable
    indices: Sequence[int]
    direction: State
    by: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self):
            raise InputError("there is nothing to shift: give at least one latent and one amount")
        for by in self.by:
            _check_finite(by)

    def __len__(self) -> int:
        return len(self.indices) * len(self.by)

    def read(self, start: int, stop: int) -> State:
        """Rows start, ..., stop-1 as a State, xbar (stop-start, *): the same bits however they are cut."""
        if not 0 <= start < stop <= len(self):
            raise InputError(f"of {len(self)} shifted latents there are none from {start} to {stop - 1}")
        amounts = len(self.by)
        rows: list[State] = []
        for place in range(start // amounts, (stop - 1) // amounts + 1):
            index, first = self.indices[place], place * amounts
            latent = self.latents.read(index, index + 1)
            # One by one: torch's order of summation, and so the norm's last bit, may depend on the batch.
            some = self.by[max(start - first, 0) : stop - first]
            rows += [shift(latent, self.direction, by) for by in some]
        return join(rows)


def join(states: Sequence[State]) -> State:
    """All latents of one state or more in one, in their order. Errors: InputError for those that cannot be combined."""
    first = states[0]
    for state in states:
        check_alike(first, state)
    aux = tuple(torch.cat(parts) for parts in zip(*(state.aux for state in states), strict=True))
    combined = any(state.combined for state in states)
    return State(torch.cat([state.xbar for state in states]), first.sigma, aux, first.kept, combined=combined)


def rms(difference: Tensor) -> Tensor:
    """Root mean square of each image, (B, *) -> (B,) float64 on the CPU.

    One by one in numpy: torch's order of summation depends on batch and threads.
    """
    rows = (np.ascontiguousarray(row.to("cpu", torch.float64).numpy()) for row in difference.detach())
    return torch.tensor([math.sqrt(np.square(row).mean()) for row in rows], dtype=torch.float64)


def apart_by_chance(first: int, second: int, shared: int, size: int) -> tuple[float, float]:
    """The rms between the means of two groups of independent white noise, and its standard deviation.

    first, second: how many latents the groups have; shared: how many are in both; size: D, the values of a latent.
    Each value of the difference is normal with the variance 1/n + 1/m - 2s/(nm).
    """
    expected = math.sqrt((first + second - 2 * shared) / (first * second))
    return expected, expected / math.sqrt(2 * size)


def distances(state: State, others: State) -> Tensor:
    """‖x_T,a - x_T,b‖/√D of every latent a of state (B, *) and b of others (M, *): (B, M) float64.

    Independent white noise is √2 ± 1/√D apart; a latent is 0 from itself, exactly. Differences come before squares,
    so that small distances keep their digits, and no pair's figure depends on the others. aux is ignored.
    Errors: InputError for latents of different shapes or noise levels.
    """
    _check_comparable(state, others)
    a, b = state.xbar.flatten(1).to(torch.float64), others.xbar.flatten(1)
    size = a.shape[1]
    apart = a.new_empty(len(a), len(b))
    at_once = max(1, CHUNK // size)
    for start in range(0, len(b), at_once):
        rows = slice(start, start + at_once)
        apart[:, rows] = torch.cdist(a, b[rows].to(a), compute_mode="donot_use_mm_for_euclid_dist")
    return apart / math.sqrt(size * (1 + state.sigma**2))


def nearest(query: State, batches: Iterable[tuple[int, State]], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of many latents to each of query (B, *): their distances (B, k) float64, rising, and indices int64.

    batches: (index of the first latent, State (m, *)), in any order and of any sizes, one of which is held at a time.
    Of equal distances (`distances`) the lower index comes first.
    Errors: InputError for k < 1, fewer than k latents, latents of different shapes or noise levels.
    """
    if k < 1:
        raise InputError(f"the number of nearest latents must be at least 1, not {k}")
    device, rows = query.xbar.device, query.xbar.shape[0]
    found = torch.empty(rows, 0, dtype=torch.float64, device=device)
    indices = torch.empty(rows, 0, dtype=torch.int64, device=device)
    for start, batch in batches:
        new = torch.arange(start, start + batch.xbar.shape[0], device=device).expand(rows, -1)
        found = torch.cat([found, distances(query, batch)], dim=1)
        indices, order = torch.cat([indices, new], dim=1).sort(dim=1)
        found, order = found.gather(1, order).sort(dim=1, stable=True)  # stable: ties stay in the order of the indices
        found, indices = found[:, :k], indices.gather(1, order)[:, :k]
    if found.shape[1] < k:
        raise InputError(f"there are only {found.shape[1]} latents to find the {k} nearest in: ask for fewer")
    return found, indices


def _plus(state: State, other: State, factor: float) -> State:
    """state + factor·other, float64."""

    def add(a: Tensor, b: Tensor) -> Tensor:
        return a.to(torch.float64) + factor * b.to(a.device, torch.float64)

    aux = tuple(add(a, b) for a, b in zip(state.aux, other.aux, strict=True))
    return State(add(state.xbar, other.xbar), state.sigma, aux, state.kept)


def _norms(xbar: Tensor) -> Tensor:
    """(B,) float64."""
    norms: Tensor = torch.linalg.vector_norm(xbar.flatten(1), dim=1, dtype=torch.float64)
    return norms


def _check_one(state: State) -> None:
    if state.xbar.shape[0] != 1:
        raise InputError(f"a direction is made of one latent each, xbar (1, *), not of {state.xbar.shape[0]}")


def _check_finite(by: float) -> None:
    if not math.isfinite(by):
        raise InputError(f"a latent can be shifted by a finite number only, not by {by}")


def _check_comparable(first: State, other: State) -> None:
    a, b = tuple(first.xbar.shape[1:]), tuple(other.xbar.shape[1:])
    if a != b:
        raise InputError(f"latents of different shapes belong to different spaces: {a} and {b}")
    if first.sigma != other.sigma:
        raise InputError(f"latents at different noise levels cannot be combined: σ = {first.sigma}, {other.sigma}")
