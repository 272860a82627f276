"""Spherical interpolation of latents, as in DDIM's appendix D.5: lines between two, grids between four."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odeddim.types import InputError, State


def interpolate(a: State, b: State, n: int) -> State:
    """n latents on the great circle from a to b, ends included (DDIM, appendix D.5).

    a, b: one latent each, xbar (1, *), at the same σ. Returns a State with xbar (n, *); each auxiliary state is
    combined with the same weights as x̄, so that a reversible method can decode every point.
    """
    _check(n, a, b)
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    weights_a, weights_b = _slerp_weights(a.xbar, b.xbar, u)
    return _combine([(weights_a, a), (weights_b, b)])


def interpolate_grid(corners: Sequence[State], n: int) -> State:
    """n × n latents between four corners a, b, c, d: along the top (a to b) and bottom (c to d), then down the columns.

    Returns a State with xbar (n·n, *), row by row (DDIM, appendix D.5).
    """
    a, b, c, d = corners
    top, bottom = interpolate(a, b, n), interpolate(c, d, n)
    columns = [interpolate(_one(top, j), _one(bottom, j), n) for j in range(n)]

    def interleave(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, dim=1).flatten(0, 1)

    xbar = interleave([column.xbar for column in columns])
    aux = tuple(interleave([column.aux[k] for column in columns]) for k in range(len(top.aux)))
    return State(xbar, top.sigma, aux, top.kept)


def _check(n: int, *states: State) -> None:
    if n < 2:
        raise InputError(f"a line between two latents needs at least its 2 ends, not {n}")
    first = states[0]
    for state in states:
        if state.xbar.shape[0] != 1:
            raise InputError(f"interpolation takes one latent at a time, xbar (1, *), not {state.xbar.shape[0]}")
        if state.xbar.shape != first.xbar.shape:
            raise InputError("latents of different shapes cannot be combined")
        if state.kept != first.kept or len(state.aux) != len(first.aux):
            raise InputError("latents that different reversible runs have kept cannot be combined")
        if state.sigma != first.sigma:
            raise InputError(f"latents at different noise levels cannot be combined: σ = {first.sigma}, {state.sigma}")


def _slerp_weights(a: Tensor, b: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """sin((1-u)θ)/sin θ and sin(uθ)/sin θ, (n,) each, with θ the angle between a and b as one long vector each."""
    va, vb = a.flatten().to(torch.float64), b.flatten().to(torch.float64)
    na, nb = va.norm(), vb.norm()
    if float(na) == 0 or float(nb) == 0:
        raise InputError("a latent of zeros has no direction to interpolate from")
    # 2·atan2 keeps its digits where arccos loses them: for almost parallel vectors.
    theta = float(2 * torch.atan2((va / na - vb / nb).norm(), (va / na + vb / nb).norm()))
    if theta < 1e-7:  # parallel: both weights tend to the straight line's
        return 1 - u, u
    if theta > torch.pi - 1e-6:
        raise InputError("the two latents point in opposite directions: every great circle joins them, choose another")
    sine = torch.sin(torch.tensor(theta, dtype=torch.float64))
    return torch.sin((1 - u) * theta) / sine, torch.sin(u * theta) / sine


def _combine(parts: list[tuple[Tensor, State]]) -> State:
    def blend(tensors: list[Tensor]) -> Tensor:
        total = sum(
            weights.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.device) * tensor.to(torch.float64)
            for (weights, _), tensor in zip(parts, tensors, strict=True)
        )
        assert isinstance(total, Tensor)
        return total.to(tensors[0].dtype)

    first = parts[0][1]
    aux = tuple(blend([state.aux[k] for _, state in parts]) for k in range(len(first.aux)))
    return State(blend([state.xbar for _, state in parts]), first.sigma, aux, first.kept)


def _one(state: State, i: int) -> State:
    return State(state.xbar[i : i + 1], state.sigma, tuple(part[i : i + 1] for part in state.aux), state.kept)
