"""The grid "xue": noise levels that minimise a bound of the error of a multistep solver, from the schedule alone.

A multistep solver of order 3 in the data chart is a weighted sum of the predicted images at the nodes. If these are
wrong by δ_n = σ_n, in units of x̄, the result is wrong by at most Σ |Σ weights of image n|·δ_n. The weights depend on
the nodes alone, and so the nodes can be chosen. The bound is that of the authors' code: the first and last step have
order 1, the second and the last but one order 2, and the errors of the first three steps are added up by themselves.
The authors do the latter up to 7 steps. Here it is done for all numbers: with 8 and more, the least of the other bound
lies where weights of two steps cancel, on grids that are far worse than "log".

Source: Xue et al. 2024, arXiv 2402.17376, eq. 12 to 16.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

POWERS = (1, 2)
MOST_INTERVALS = 24  # longer grids have the density of one with so many intervals
ALONE = 3
_FARTHEST = 4.0  # of the log of an interval from the mean: e^8 lie between the longest and the shortest
_TINY = 1e-30


@functools.lru_cache(maxsize=256)
def xue_positions(low: float, high: float, intervals: int, power: int) -> tuple[float, ...]:
    """The positions in log σ, from 0 to 1, of the nodes from low to high.

    Args:
        low: The lowest noise level.
        high: The highest noise level.
        intervals: The number of intervals between the nodes, at least 1.
        power: p: the error of a predicted image is σ (p = 1, for models of pixels) or σ²/√(1+σ²) (p = 2, for latent
            models).

    Returns:
        The positions, intervals + 1 of them, rising.
    """
    if intervals == 1:
        return (0.0, 1.0)
    if intervals > MOST_INTERVALS:
        from scipy.interpolate import PchipInterpolator

        made = xue_positions(low, high, MOST_INTERVALS, power)
        between = PchipInterpolator(np.linspace(0, 1, len(made)), made)
        return tuple(between(np.linspace(0, 1, intervals + 1)).tolist())
    from scipy.optimize import minimize

    span = math.log(high / low)

    def objective(logs: Any) -> tuple[float, Any]:
        tilted = np.exp(
            logs + np.eye(intervals) * (_TINY * 1j)
        )  # a complex step in each: derivatives to the last digit
        value = bound(-math.log(high) + span * _reached(tilted), power)
        return float(value.real[0]), value.imag / _TINY

    limits = [(-_FARTHEST, _FARTHEST)] * intervals
    found = [minimize(objective, logs, jac=True, bounds=limits) for logs in _starts(low, high, intervals)]
    best = min(found, key=lambda result: float(result.fun))
    positions = 1 - _reached(np.exp(best.x)[None])[0, ::-1]
    return (0.0, *(round(float(place), 6) for place in positions[1:-1]), 1.0)


def _reached(parts: Any) -> Any:
    """The fractions of the whole that are reached by parts (K, N): (K, N+1), from 0 to 1."""
    sums = np.cumsum(parts, axis=1) / parts.sum(axis=1, keepdims=True)
    return np.concatenate([np.zeros_like(sums[:, :1]), sums], axis=1)


def _starts(low: float, high: float, intervals: int) -> list[Any]:
    """Where searches start: the logs of the intervals, down from high, of the grids "log" and "karras"."""
    u = np.linspace(0, 1, intervals + 1)
    levels = (high ** (1 / 7) + u * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    logs = np.log(-np.diff(np.log(levels)))
    return [np.zeros(intervals), (logs - logs.mean()).clip(-_FARTHEST, _FARTHEST)]


def bound(lambdas: Any, power: int) -> Any:
    """The bound of the error, for grids (K, N+1) of λ = -log σ, rising; real or complex numbers.

    Args:
        lambdas: The grids.
        power: As of `xue_positions`.

    Returns:
        (K,), like the grids.
    """
    steps, sigmas = lambdas.shape[1] - 1, np.exp(-lambdas)
    wrong = sigmas if power == 1 else sigmas**2 / np.sqrt(1 + sigmas**2)
    total, weights = 0.0, np.zeros_like(lambdas[:, :-1])
    kinds = ((min(3, step + 1, steps - step), step < ALONE, step) for step in range(steps))
    for (order, alone), group in itertools.groupby(kinds, key=lambda kind: kind[:2]):
        run = [step for *_, step in group]
        first, stop = run[0] - order + 1, run[-1] - order + 2  # the oldest nodes that these steps use
        parts = [
            part * wrong[:, first + n : stop + n]
            for n, part in enumerate(_weights(lambdas, run[0], run[-1] + 1, order))
        ]
        if order == 1:
            total = total + _magnitude(parts[0]).sum(axis=1)
        elif alone:
            total = total + np.sqrt(sum(part**2 for part in parts)).sum(axis=1)
        else:
            for n, part in enumerate(parts):
                weights[:, first + n : stop + n] += part
    return total + _magnitude(weights).sum(axis=1)


def _weights(lambdas: Any, start: int, stop: int, order: int) -> list[Any]:
    """The weights of the predicted images in the steps from `start` to before `stop`, the oldest image first.

    ∫ e^λ·L_j dλ over a step, where L_j is the polynomial in λ that is 1 at image j and 0 at the others.
    """
    here, there = lambdas[:, start:stop], lambdas[:, start + 1 : stop + 1]
    known = [lambdas[:, start - back : stop - back] for back in range(order - 1, -1, -1)]
    h = there - here
    moments = [-np.expm1(-h)]  # ∫ e^(v-h)·v^k dv from 0 to h
    for k in range(1, order):
        moments.append(h**k - k * moments[-1])
    found = []
    for j, node in enumerate(known):
        basis = [np.ones_like(h)]  # the coefficients of L_j in powers of λ - λ_here
        for i, other in enumerate(known):
            if i != j:
                at = [part * (here - other) for part in basis] + [0 * h]
                up = [0 * h, *basis]
                basis = [(a + b) / (node - other) for a, b in zip(at, up, strict=True)]
        found.append(np.exp(there) * sum(part * moment for part, moment in zip(basis, moments, strict=True)))
    return found


def _magnitude(values: Any) -> Any:
    """The absolute value, in a form that a complex step goes through."""
    return np.where(values.real < 0, -values, values)
