"""Latents as vectors: means, directions, shifts along them, distances, neighbours.

Auxiliary states are combined with the same weights as x̄, here and along a path (`interpolate`): what a reversible run
computes is affine in (x̄, aux), so the same run can decode the result. Latents can be combined only if the same solver
kept their aux on the same nodes; to compare them this does not matter.
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

CHUNK = 2**24  # the most numbers cast to float64 at a time: 128 MiB


def check_alike(first: State, other: State) -> None:
    """Raise an InputError unless two states can be combined.

    Args:
        first: A state, xbar (B, *).
        other: Another one.

    Raises:
        InputError: If they differ in shape, noise level, or in what a solver has kept for the way back.
    """
    _check_comparable(first, other)
    if other.kept != first.kept or len(other.aux) != len(first.aux):
        raise InputError(
            f"latents of different reversible runs cannot be combined (kept by {first.kept or 'none'!r} and by "
            f"{other.kept or 'none'!r}): encode both with one solver, grid and dtype"
        )


def mean(batches: Iterable[State]) -> State:
    """The mean of many latents.

    Two batches are held at a time. The result does not depend on how the latents are cut into batches, bit for bit, and
    its error is that of one or two roundings, however many latents there are.

    Args:
        batches: The latents, in states with xbar (B, *).

    Returns:
        A state with xbar (1, *) float64, and auxiliary states likewise.

    Raises:
        InputError: If there are no latents, or they cannot be combined.

    Source:
        W. Kahan, Further remarks on reducing truncation errors, 1965.
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
        raise InputError("there are no latents, so there is no mean: give at least one")
    means = (total / count).unsqueeze(1)  # of x̄ and of each auxiliary state, (1, *)
    return State(means[0], first.sigma, tuple(means[1:]), first.kept, combined=True, plan=first.plan)


def direction(from_mean: State, to_mean: State) -> State:
    """The direction to_mean - from_mean, from one group of latents to another, for `shift`.

    A direction is a difference and not a latent: it does not lie on the sphere of latents, and its image has no
    meaning.

    Args:
        from_mean: A latent, xbar (1, *).
        to_mean: A latent, xbar (1, *).

    Returns:
        A state with xbar (1, *) float64.

    Raises:
        InputError: If the latents cannot be combined.
    """
    _check_one(from_mean)
    _check_one(to_mean)
    check_alike(from_mean, to_mean)
    return _plus(to_mean, from_mean, -1.0)


def shift(state: State, direction: State, by: float, keep_norm: bool = True) -> State:
    """Move latents along a direction: x̄ + by·d.

    Args:
        state: The latents, xbar (B, *).
        direction: The direction d, xbar (1, *).
        by: How far.
        keep_norm: Whether each latent is scaled to the norm that it had, and its auxiliary states by the same factor.
            Latents of images lie close to a sphere of radius √D (‖x_T‖ = √D ± √(1/2)), which a plain sum leaves.

    Returns:
        The moved latents, xbar (B, *) in the state's dtype.

    Raises:
        InputError: If the latents cannot be combined, `by` is not finite, or a latent is moved to 0.
    """
    _check_one(direction)
    check_alike(state, direction)
    _check_finite(by)
    moved = _plus(state, direction, by)
    if keep_norm:
        before, after = _norms(state.xbar), _norms(moved.xbar)
        if bool((after == 0).any()):
            raise InputError(
                f"latent {int(after.argmin())} shifted by {by:g} is 0, and 0 cannot be scaled to the norm it had: "
                "shift by another number"
            )
        factors = (before / after).reshape(-1, *[1] * (state.xbar.ndim - 1))
        moved = State(moved.xbar * factors, moved.sigma, tuple(part * factors for part in moved.aux), moved.kept)
    aux = tuple(part.to(state.xbar.dtype) for part in moved.aux)
    return State(moved.xbar.to(state.xbar.dtype), moved.sigma, aux, moved.kept, combined=True, plan=state.plan)


class Readable(Protocol):
    """Latents that are read or made when they are needed, such as those of a `LatentFile`."""

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1 as a State, xbar (stop-start, *)."""


@dataclass(frozen=True)
class Shifted:
    """Latents moved along a direction by several amounts each. They are made when they are read, in any number.

    The first latent moved by each amount comes first, then the second latent. See `shift`.

    Attributes:
        latents: The latents.
        indices: Which of them are moved.
        direction: The direction, xbar (1, *).
        by: The amounts.

    Raises:
        InputError: If there is no latent or no amount, or an amount is not finite.
    """

    latents: Readable
    indices: Sequence[int]
    direction: State
    by: Sequence[float]

    def __post_init__(self) -> None:
        if not len(self):
            raise InputError("a shift needs latents and amounts: give at least one of each")
        for by in self.by:
            _check_finite(by)

    def __len__(self) -> int:
        return len(self.indices) * len(self.by)

    def read(self, start: int, stop: int) -> State:
        """Rows start, ..., stop-1 as a State, xbar (stop-start, *): the same bits whatever rows are read together."""
        if not 0 <= start < stop <= len(self):
            raise InputError(f"of {len(self)} shifted latents there are none from {start} to {stop - 1}: read others")
        amounts = len(self.by)
        rows: list[State] = []
        for place in range(start // amounts, (stop - 1) // amounts + 1):
            index, first = self.indices[place], place * amounts
            latent = self.latents.read(index, index + 1)
            # One by one, because torch's order of summation, and so the norm's last bit, may depend on the batch.
            some = self.by[max(start - first, 0) : stop - first]
            rows += [shift(latent, self.direction, by) for by in some]
        return join(rows)


def join(states: Sequence[State]) -> State:
    """All latents of several states in one state.

    Args:
        states: At least one state, xbar (B, *) each.

    Returns:
        The state, with the latents in their order.

    Raises:
        InputError: If the latents cannot be combined.
    """
    first = states[0]
    for state in states:
        check_alike(first, state)
    aux = tuple(torch.cat(parts) for parts in zip(*(state.aux for state in states), strict=True))
    combined = any(state.combined for state in states)
    plan = first.plan if all(state.plan == first.plan for state in states[1:]) else None
    xbar = torch.cat([state.xbar for state in states])
    return State(xbar, first.sigma, aux, first.kept, combined=combined, plan=plan)


def rms(difference: Tensor) -> Tensor:
    """The root of the mean square over the values of each image.

    Images are taken one by one in numpy, because torch's order of summation depends on the batch and the threads.

    Args:
        difference: The values, (B, *).

    Returns:
        The rms, (B,) float64 on the CPU.
    """
    rows = (np.ascontiguousarray(row.to("cpu", torch.float64).numpy()) for row in difference.detach())
    return torch.tensor([math.sqrt(np.square(row).mean()) for row in rows], dtype=torch.float64)


def apart_by_chance(first: int, second: int, shared: int, size: int) -> tuple[float, float]:
    """The rms between the means of two groups of independent white noise, and its standard deviation.

    Each value of the difference is normal with the variance 1/n + 1/m - 2s/(nm).

    Args:
        first: The number n of latents in the first group.
        second: The number m of latents in the second group.
        shared: The number s of latents in both.
        size: The number D of values of a latent.

    Returns:
        The rms, and its standard deviation.
    """
    expected = math.sqrt((first + second - 2 * shared) / (first * second))
    return expected, expected / math.sqrt(2 * size)


def distances(state: State, others: State) -> Tensor:
    """The distance ‖x_T,a - x_T,b‖/√D between each latent a of a state and each latent b of another.

    Independent latents of white noise are √2 ± 1/√D apart, and a latent is exactly 0 from itself. Differences are taken
    before squares, so small distances keep their digits, and the figure of a pair does not depend on the others.

    Args:
        state: The latents a, xbar (B, *).
        others: The latents b, xbar (M, *). aux is ignored.

    Returns:
        The distances, (B, M) float64.

    Raises:
        InputError: If the latents have different shapes or noise levels.
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
    """The k nearest of many latents, by `distances`. Of equal distances, the lower index comes first.

    Args:
        query: The latents whose neighbours are searched, xbar (B, *).
        batches: The latents to search in: pairs of the index of the first latent and a State (m, *), in any order and
            of any sizes. One is held at a time.
        k: The number of neighbours.

    Returns:
        The distances, (B, k) float64, rising, and the indices, (B, k) int64.

    Raises:
        InputError: If k < 1, there are fewer than k latents, or the shapes or noise levels differ.
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
        raise InputError(f"a direction needs states of one latent each, xbar (1, *), not {state.xbar.shape[0]}")


def _check_finite(by: float) -> None:
    if not math.isfinite(by):
        raise InputError(f"the amount of a shift must be a finite number, not {by}")


def _check_comparable(first: State, other: State) -> None:
    a, b = tuple(first.xbar.shape[1:]), tuple(other.xbar.shape[1:])
    if a != b:
        raise InputError(f"latents of different shapes cannot be combined or compared: {a} and {b}")
    if first.sigma != other.sigma:
        raise InputError(
            f"latents at different noise levels cannot be combined or compared: σ = {first.sigma} and {other.sigma}"
        )
