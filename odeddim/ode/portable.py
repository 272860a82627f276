"""Portable runs: what the model must be, and how sure it is that another machine finds the same bits.

A run rounds the answers of the network (`odeddim.solvers._portable`). Another machine's answers differ by a little, so
those that lie nearer to an edge than that may be rounded to the other side. How much they may differ is not known for a
network in general. It is estimated for the network at hand: the same evaluations are made one image at a time and
together, and with noise levels and inputs that differ in their last bits, as a label from another libm does; `SAFETY`
times the largest difference is taken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from odeddim.ode.conditions import Classes
from odeddim.ode.field import VectorField
from odeddim.solvers._portable import EDGE, GRID, HALF
from odeddim.solvers.stochastic import noise
from odeddim.types import Field, InputError, State

MARGIN = "margin"
"""What the report of a portable run calls the least distance of an image's answers to an edge, (B,), over how much
another machine's may differ: at least 1 for an image that is certified."""
SAMPLES = 4
SAFETY = 16
LAST_BITS = 2.0**-51
NOISE_EDGE = 2.0**-46
"""How much the normal numbers of another libm may differ: 16 times what float64 resolves of the largest."""
NOT_CERTIFIED = (
    "{} not certified portable: a number came so near to a rounding edge that another machine may round it otherwise "
    "(other steps, or another solver, move it away)"
)

_found: WeakKeyDictionary[Any, dict[Hashable, float]] = WeakKeyDictionary()
"""What `tolerance` has found, by the network."""


def check_portable(field: Field) -> None:
    """Raise an InputError if the runs of a model cannot be portable.

    Args:
        field: The model, or another field, which must answer in float64.
    """
    if not isinstance(field, VectorField):
        return
    if field.guide is not None:
        check_portable(field.guide)
    if field.dtype not in (None, torch.float64):
        kept = "its dtype is fixed" if field.keeps_dtype else "give dtype='float64'"
        raise InputError(f"portable=True needs the network in float64, not {str(field.dtype)[6:]}: {kept}")
    parts = {
        "an autoencoder": field.codec is not None,
        "prompts": not isinstance(field.conditions, (Classes, type(None))),
    }
    if has := [name for name, there in parts.items() if there]:
        raise InputError(
            f"portable=True rounds the answers of the network alone, and the model {field.name!r} has {has[0]}, "
            "whose numbers another machine finds otherwise: leave out portable=True"
        )


def certified(field: Field, state: State, sigmas: Tensor) -> State:
    """The end of a portable run with its margins.

    Args:
        field: The field of the run.
        state: The end, with `EDGE` in its report.
        sigmas: The noise levels of the run.

    Returns:
        The state, with `MARGIN` in its report in place of it.
    """
    report = dict(state.report)
    margin = report.pop(EDGE).double() / tolerance(field, state.xbar, sigmas)
    return replace(state, report={**report, MARGIN: margin})


def tolerance(field: Field, like: Tensor, sigmas: Tensor) -> float:
    """How much another machine's answers may differ, in units of the grid: an estimate (see above).

    Args:
        field: The field.
        like: Data of the shape and on the device of the run's, (B, *).
        sigmas: The noise levels of the run.

    Returns:
        The difference; evaluated once for each network, condition, shape of data and range of noise levels.
    """
    levels = sorted(float(sigma) for sigma in sigmas if sigma > 0)
    levels = sorted({levels[0], levels[len(levels) // 2], levels[-1]})
    under = field.condition.words if isinstance(field, VectorField) else ""
    key = (under, tuple(like.shape[1:]), str(like.device), *levels)
    network = field.eps if isinstance(field, VectorField) else field
    try:
        known = _found.setdefault(network, {})
    except TypeError:  # no weak reference to it
        known = {}
    if key not in known:
        known[key] = SAFETY * max(_spread(field, sigma, like) for sigma in levels) / GRID
    return known[key]


def _spread(field: Field, sigma: float, like: Tensor) -> float:
    """The largest difference between answers that would be equal in exact arithmetic."""
    twin: Any = field
    if isinstance(field, VectorField):  # whose counters and progress bar are not to see this
        twin = copy.copy(field)
        twin.watch, twin.network_batch = None, None
    z = noise(SAMPLES, tuple(like.shape[1:])).to(like.device, torch.float64)
    at, x = torch.tensor(sigma, dtype=torch.float64), z * (1 + sigma**2) ** 0.5
    together = twin(at, x)
    alone = torch.cat([twin(at, x[i : i + 1]) for i in range(SAMPLES)])
    moved = twin(at * (1 + LAST_BITS), x * (1 + LAST_BITS))
    least = float(together.abs().max()) * LAST_BITS / 2  # where no difference shows, as of elementwise fields
    return max(least, *(float((together - other).abs().max()) for other in (alone, moved)))


def uncertain(margin: Tensor) -> list[int]:
    """The images, by their place in the batch, that are not certified: margin (B,)."""
    return [i for i, value in enumerate(margin.tolist()) if not value >= 1]


def noise_for(plan: Any, n: int, shape: tuple[int, ...], seed: int, start: int) -> tuple[Tensor, Tensor | None]:
    """The noise x_T of images: `noise`, or for a portable plan noise that is the same on any machine.

    Args:
        plan: The plan of the run.
        n, shape, seed, start: As of `noise`.

    Returns:
        The noise, (n, *shape), and the margins of a portable plan, (n,). The former is then float64.
    """
    if plan.portable:
        return portable_noise(n, shape, seed=seed, start=start)
    return noise(n, shape, seed=seed, start=start), None


def portable_noise(n: int, shape: tuple[int, ...], *, seed: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal noise that depends, for image i, on (seed, start + i) only, on any machine.

    The bits are those of NumPy's PCG64, whose stream does not change with NumPy's version; the normal numbers of them
    are rounded to multiples of `GRID`.

    Args:
        n, shape, seed, start: As of `noise`.

    Returns:
        The noise, (n, *shape) float64 on the CPU, and the margin of each image, (n,).

    Raises:
        InputError: If n, seed or start is negative.

    Source:
        O'Neill 2014, PCG: a family of simple fast space-efficient statistically good algorithms (HMC-CS-2014-0905).

    Example:
        >>> from odeddim.ode.portable import portable_noise
        >>> many, margin = portable_noise(3, (1, 2, 2))
        >>> torch.equal(many[2:], portable_noise(1, (1, 2, 2), start=2)[0]), bool((margin >= 1).all())
        (True, True)
    """
    noise(0, shape, seed=seed, start=start)  # or a sentence
    rows = [
        np.random.PCG64(np.random.SeedSequence([seed, i, 0])).random_raw(math.prod(shape)) >> 12
        for i in range(start, start + n)
    ]
    uniform = torch.from_numpy((np.stack(rows) + 0.5) * 2.0**-52) if rows else torch.empty(0, math.prod(shape))
    normal = torch.special.ndtri(uniform.double()) / GRID
    whole = normal.round()
    edge = HALF - (normal - whole).abs().amax(1) if rows else torch.empty(0, dtype=torch.float64)
    return (whole * GRID).reshape(-1, *shape), edge / (NOISE_EDGE / GRID)


def narrowed(state: State, margin: Tensor | None) -> State:
    """The end of a portable run whose start had margins of its own, (B,); None for any other."""
    if margin is None:
        return state
    return replace(state, report={**state.report, MARGIN: state.report[MARGIN].minimum(margin)})
