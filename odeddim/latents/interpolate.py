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
    """Latents between given latents, the corners. They are made when they are read, so a path may have any length.

    Point i is Σ_j weights[i, j] times the corner places[i, j]. Each auxiliary state is combined with the same weights
    as x̄, so a reversible solver can decode every point. A point at a corner is that corner, bit for bit.

    Attributes:
        corners: The corners, a State (K, *).
        places: The corners of each point, (N, m) int64.
        weights: Their weights, (N, m) float64.
    """

    corners: State
    places: Tensor
    weights: Tensor

    @classmethod
    def line(cls, a: State, b: State, n: int) -> LatentPath:
        """The path of `interpolate`: n latents on the great circle from a to b, ends included."""
        corners = _gather([a, b])
        start, end = _vectors(corners)
        return cls(corners, torch.arange(2).expand(n, 2), _slerp(start, end, _fractions(n, _segments(n))))

    @classmethod
    def grid(cls, states: Sequence[State], n: int) -> LatentPath:
        """The path of `interpolate_grid`: n × n latents between four corners, row by row."""
        if len(states) != 4:
            raise InputError(f"a grid needs 4 latents, not {len(states)}")
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
        """The path of `interpolate_loop`: a closed loop through K latents, with n latents on each leg."""
        if len(states) < 2 or n < 1:
            raise InputError(
                f"a loop needs at least 2 latents and at least 1 point for each leg, not {len(states)} and {n}"
            )
        corners = _gather(states)
        vectors = _vectors(corners)
        legs = [(k, (k + 1) % len(states)) for k in range(len(states))]
        weights = [_slerp(vectors[a], vectors[b], _fractions(n, n)) for a, b in legs]
        return cls(corners, torch.tensor(legs).repeat_interleave(n, dim=0), torch.cat(weights))

    def __len__(self) -> int:
        return len(self.weights)

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1 as a State, xbar (stop-start, *): the same bits whatever is read together."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"a path of {len(self)} latents has none from {start} to {stop - 1}: read others")
        terms = list(zip(self.places[start:stop].T, self.weights[start:stop].T, strict=True))

        def points(corners: Tensor) -> Tensor:
            total = corners.new_zeros(stop - start, *corners.shape[1:], dtype=torch.float64)
            for place, weight in terms:
                total += weight.to(corners.device).reshape(-1, *[1] * (corners.ndim - 1)) * corners[place]
            return total.to(corners.dtype)

        corners = self.corners
        aux = tuple(points(part) for part in corners.aux)
        return State(points(corners.xbar), corners.sigma, aux, corners.kept, combined=True, plan=corners.plan)


def interpolate(a: State, b: State, n: int) -> State:
    """Interpolate between two latents on the great circle through them (slerp), ends included.

    Each auxiliary state is combined with the same weights as x̄, so a reversible solver can decode every point.

    Args:
        a: A latent, xbar (1, *).
        b: A latent, xbar (1, *), at the same σ.
        n: The number of latents, at least 2.

    Returns:
        A State with xbar (n, *), in the dtype of a.

    Raises:
        InputError: If n < 2, the latents cannot be combined, one is 0, or they point in opposite directions.

    Source:
        Song et al. 2020, arXiv 2010.02502, appendix D.5.

    Example:
        >>> a, b = odeddim.State(odeddim.noise(2, (1, 28, 28)), 157.4)
        >>> between = odeddim.interpolate(a, b, 5)
        >>> len(between), between[0].xbar.equal(a.xbar)
        (5, True)
    """
    path = LatentPath.line(a, b, n)
    return path.read(0, len(path))


def interpolate_grid(corners: Sequence[State], n: int) -> State:
    """Interpolate between four latents: along the top (a to b) and the bottom (c to d), then down the columns.

    Args:
        corners: The latents a, b, c, d, xbar (1, *) each.
        n: The number of latents on each side, at least 2.

    Returns:
        A State with xbar (n·n, *), row by row.

    Raises:
        InputError: As of `interpolate`, or if there are not four latents.

    Source:
        Song et al. 2020, arXiv 2010.02502, appendix D.5.
    """
    path = LatentPath.grid(corners, n)
    return path.read(0, len(path))


def interpolate_loop(states: Sequence[State], n: int) -> State:
    """Interpolate on a closed loop: from each latent to the next on great circles, and from the last to the first.

    Each leg includes the latent where it starts and not the one where it ends. A loop through two latents goes there
    and back the same way.

    Args:
        states: K >= 2 latents, xbar (1, *) each.
        n: The number of latents on each leg, at least 1.

    Returns:
        A State with xbar (K·n, *).

    Raises:
        InputError: As of `interpolate`, or if there are fewer than two latents.
    """
    path = LatentPath.loop(states, n)
    return path.read(0, len(path))


def _segments(n: int) -> int:
    if n < 2:
        raise InputError(f"a line between two latents has at least 2 points, its ends, not {n}")
    return n - 1


def _gather(states: Sequence[State]) -> State:
    """Latents (1, *) each as one State (K, *)."""
    for state in states:
        if len(state) != 1:
            raise InputError(f"interpolation needs states of one latent each, xbar (1, *), not {len(state)}")
    return join(states)


def _vectors(corners: State) -> Tensor:
    """(K, D) float64: each latent as one long vector."""
    return corners.xbar.flatten(1).to("cpu", torch.float64)


def _fractions(n: int, segments: int) -> Tensor:
    """(1-u, u) for the n fractions u = 0, 1/segments, ...: (n, 2).

    Both are computed by division: 1 - u is not, bit for bit, the fraction u of the same point on the way back.
    """
    i = torch.arange(n, dtype=torch.float64)
    return torch.stack([segments - i, i], dim=1) / segments


def _slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """sin((1-u)θ)/sin θ and sin(uθ)/sin θ, (n, 2), with θ the angle between vectors a and b; fractions: (1-u, u)."""
    na, nb = a.norm(), b.norm()
    if float(na) == 0 or float(nb) == 0:
        raise InputError("a latent of zeros has no direction, so it cannot be interpolated: give another latent")
    # For almost parallel vectors 2·atan2 keeps the digits that arccos loses.
    theta = 2 * torch.atan2((a / na - b / nb).norm(), (a / na + b / nb).norm())
    if float(theta) < 1e-7:  # parallel: the weights tend to those of a straight line
        return fractions
    if float(theta) > torch.pi - 1e-6:
        raise InputError(
            "the two latents point in opposite directions, so many great circles join them: give another latent"
        )
    return torch.sin(fractions * theta) / torch.sin(theta)
