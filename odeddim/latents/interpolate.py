"""Spherical interpolation of latents, as in DDIM's appendix D.5: lines between two, grids between four, loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odeddim.latents.arithmetic import join
from odeddim.types import InputError, State


@dataclass(frozen=True)
class LatentPath:
    """Latents between given ones, made when they are read, as those of a `LatentFile`: a path may be of any length.

    corners: a State (K, *). places (N, m) int64 and weights (N, m) float64: point i is Σ_j weights[i, j] times the
    corner places[i, j]; each auxiliary state is combined with the same weights as x̄, so that a reversible method can
    decode every point. Where the path meets a corner, it is that corner, digit for digit.
    """

    corners: State
    places: Tensor
    weights: Tensor

    @classmethod
    def line(cls, a: State, b: State, n: int) -> LatentPath:
        """n latents on the great circle from a to b, ends included; see `interpolate`."""
        corners = _gather([a, b])
        start, end = _vectors(corners)
        return cls(corners, torch.arange(2).expand(n, 2), _slerp(start, end, _fractions(n, _segments(n))))

    @classmethod
    def grid(cls, states: Sequence[State], n: int) -> LatentPath:
        """n × n latents between four, row by row; see `interpolate_grid`."""
        if len(states) != 4:
            raise InputError(f"a grid lies between 4 latents, not {len(states)}")
        corners = _gather(states)
        fractions = _fractions(n, _segments(n))
        vectors = _vectors(corners)
        top, bottom = (_slerp(vectors[k], vectors[k + 1], fractions) for k in (0, 2))
        columns = [_slerp(p @ vectors[:2], q @ vectors[2:], fractions) for p, q in zip(top, bottom, strict=True)]
        down = torch.stack(columns, dim=1)  # (row, column, 2)
        weights = torch.cat([down[..., :1] * top, down[..., 1:] * bottom], dim=2)
        return cls(corners, torch.arange(4).expand(n * n, 4), weights.flatten(0, 1))

    @classmethod
    def loop(cls, states: Sequence[State], n: int) -> LatentPath:
        """A closed loop through K latents, n on each leg; see `interpolate_loop`."""
        if len(states) < 2 or n < 1:
            raise InputError(f"a loop takes 2 latents or more and 1 point per leg or more, not {len(states)} and {n}")
        corners = _gather(states)
        vectors = _vectors(corners)
        legs = [(k, (k + 1) % len(states)) for k in range(len(states))]
        weights = [_slerp(vectors[a], vectors[b], _fractions(n, n)) for a, b in legs]
        return cls(corners, torch.tensor(legs).repeat_interleave(n, dim=0), torch.cat(weights))

    def __len__(self) -> int:
        return len(self.weights)

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1 of the path as a State, xbar (stop-start, *): the same bits however it is cut."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"a path of {len(self)} latents has none from {start} to {stop - 1}")
        terms = list(zip(self.places[start:stop].T, self.weights[start:stop].T, strict=True))

        def points(corners: Tensor) -> Tensor:
            total = corners.new_zeros(stop - start, *corners.shape[1:], dtype=torch.float64)
            for place, weight in terms:
                total += weight.to(corners.device).reshape(-1, *[1] * (corners.ndim - 1)) * corners[place]
            return total.to(corners.dtype)

        corners = self.corners
        aux = tuple(points(part) for part in corners.aux)
        return State(points(corners.xbar), corners.sigma, aux, corners.kept, combined=True)


def interpolate(a: State, b: State, n: int) -> State:
    """n latents on the great circle from a to b, ends included (DDIM, appendix D.5).

    a, b: one latent each, xbar (1, *), at the same σ. Returns a State with xbar (n, *); each auxiliary state is
    combined with the same weights as x̄, so that a reversible method can decode every point.
    Errors: InputError for n < 2, latents that cannot be combined, of zeros, or that point in opposite directions.
    """
    path = LatentPath.line(a, b, n)
    return path.read(0, len(path))


def interpolate_grid(corners: Sequence[State], n: int) -> State:
    """n × n latents between four corners a, b, c, d: along the top (a to b) and bottom (c to d), then down the columns.

    Returns a State with xbar (n·n, *), row by row (DDIM, appendix D.5). Errors as of `interpolate`.
    """
    path = LatentPath.grid(corners, n)
    return path.read(0, len(path))


def interpolate_loop(states: Sequence[State], n: int) -> State:
    """From each of K >= 2 latents to the next on great circles, and from the last back to the first: a closed loop.

    n latents per leg, the one it starts from among them and the one it leads to not: xbar (K·n, *), and after the
    last comes the first again. Two latents make a way there and the same way back. Errors as of `interpolate`.
    """
    path = LatentPath.loop(states, n)
    return path.read(0, len(path))


def _segments(n: int) -> int:
    if n < 2:
        raise InputError(f"a line between two latents needs at least its 2 ends, not {n}")
    return n - 1


def _gather(states: Sequence[State]) -> State:
    """Latents (1, *) each as one State (K, *)."""
    for state in states:
        if len(state) != 1:
            raise InputError(f"interpolation takes one latent at a time, xbar (1, *), not {len(state)}")
    return join(states)


def _vectors(corners: State) -> Tensor:
    """(K, D) float64: each latent as one long vector."""
    return corners.xbar.flatten(1).to("cpu", torch.float64)


def _fractions(n: int, segments: int) -> Tensor:
    """(1-u, u) of u = 0, 1/segments, ..., n of them: (n, 2). Both are divided: 1 - u would not be u of the way back."""
    i = torch.arange(n, dtype=torch.float64)
    return torch.stack([segments - i, i], dim=1) / segments


def _slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """sin((1-u)θ)/sin θ and sin(uθ)/sin θ, (n, 2), with θ the angle between vectors a and b; fractions: (1-u, u)."""
    na, nb = a.norm(), b.norm()
    if float(na) == 0 or float(nb) == 0:
        raise InputError("a latent of zeros has no direction to interpolate from: choose another")
    # 2·atan2 keeps its digits where arccos loses them: for almost parallel vectors.
    theta = 2 * torch.atan2((a / na - b / nb).norm(), (a / na + b / nb).norm())
    if float(theta) < 1e-7:  # parallel: both weights tend to the straight line's
        return fractions
    if float(theta) > torch.pi - 1e-6:
        raise InputError("the two latents point in opposite directions: every great circle joins them, choose another")
    return torch.sin(fractions * theta) / torch.sin(theta)
