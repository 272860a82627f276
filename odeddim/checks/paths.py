"""Statistics of the path of an encode: what the field's evaluations along it say of each image.

Every figure is computed image by image in float64, so that it does not depend on the other images of the batch. Nothing
is kept of an evaluation but the one before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.plans import Callback, Plan, integrate
from odeddim.types import InputError, Solver, State

Array = NDArray[np.float64]

SUMS = ("eps_1", "eps_2", "eps_3", "rate_1", "rate_2", "rate_3")
"""DiffPath's six. With ε_n, n = 1, ..., S, the evaluations of a path of S steps and d_n = S·(ε_n - ε_{n-1}), the rate
of change of ε over the path, whose length is 1: eps_p = Σ_n Σ_i ε_n,i^p and rate_p = Σ_n Σ_i d_n,i^p, over the values i
of an image. The powers keep their signs, as in the authors' code."""

PROFILE = ("mean", "cube", "size", "roughness", "rate")
"""What the profile of an image has of each evaluation: the mean of ε, the mean of ε³, and half the logarithms of the
mean squares of ε, of the differences of direct neighbours in ε, and of d_n (not of the first evaluation)."""

_TINY = 1e-30  # a mean square below it is this


class Recorder:
    """A field that keeps statistics of its evaluations along a path.

    Args:
        field: The field.
        steps: The number of evaluations of a path, S.

    Attributes:
        sums: `SUMS` so far, (B, 6).
        profile: `PROFILE` of each evaluation so far, evaluation by evaluation, (B, 5n-1).
    """

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
        self.field, self.steps = field, steps
        self.moments = getattr(field, "moments", None)
        self.sums: Array = np.zeros((0, len(SUMS)))
        self.profile: Array = np.zeros((0, 0))
        self._before: Array | None = None

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        eps = self.field(sigma, xbar)
        self._add(np.ascontiguousarray(eps.detach().to("cpu", torch.float64).numpy()))
        return eps

    def _add(self, eps: Array) -> None:
        if self._before is None:
            self.sums, self.profile = np.zeros((len(eps), len(SUMS))), np.zeros((len(eps), 0))
        powers = _each(eps, _powers)
        figures = [powers[:, 0] / eps[0].size, powers[:, 2] / eps[0].size, _half_log(powers[:, 1] / eps[0].size)]
        figures.append(_half_log(_each(eps, _roughness)[:, 0]))
        self.sums[:, :3] += powers
        if self._before is not None:
            powers = _each((eps - self._before) * self.steps, _powers)
            figures.append(_half_log(powers[:, 1] / eps[0].size))
            self.sums[:, 3:] += powers
        self.profile = np.concatenate([self.profile, np.stack(figures, 1)], 1)
        self._before = eps


def recorded(field: VectorField, data: Tensor, plan: Plan, callback: Callback | None = None) -> tuple[State, Recorder]:
    """Encode data, and keep the statistics of the path.

    Args:
        field: The model.
        data: Where the ODE starts, (B, *) in the state's dtype.
        plan: A plan that `check_path` lets pass.
        callback: As of `odeddim.plans.integrate`.

    Returns:
        The latents, and what was recorded.
    """
    field.check(data)
    recorder = Recorder(field, plan.steps or 0)
    start = data if field.device is None else data.to(field.device)
    return integrate(recorder, State(start, float(plan.nodes[0])), plan, callback=callback), recorder


def check_path(row: Solver) -> None:
    """Raise an InputError unless a solver evaluates the field once in each step: the path is those evaluations."""
    if row.nfe != 1 or row.warmup:
        raise InputError(
            f"scores need a solver with one evaluation a step, and {row.name!r} has others: give another one, such as "
            "solver='euler'"
        )


def _each(eps: Array, figures: Callable[[Array], tuple[float, ...]]) -> Array:
    """Figures of each image, (B, n): image by image, because the order of a sum over a batch depends on the batch."""
    return np.array([figures(np.ascontiguousarray(image)) for image in eps], np.float64)


def _powers(image: Array) -> tuple[float, ...]:
    squares = image * image
    return float(image.sum()), float(squares.sum()), float((squares * image).sum())


def _roughness(image: Array) -> tuple[float, ...]:
    """The mean square of the differences of direct neighbours, of images (C, H, W) below and beside each other."""
    axes = range(-1, -image.ndim, -1) if image.ndim >= 3 else (-1,)
    apart = [np.diff(image, axis=axis) for axis in axes]
    count = sum(each.size for each in apart)
    return (sum(float(np.square(each).sum()) for each in apart) / max(count, 1),)


def _half_log(squares: Array) -> Array:
    return 0.5 * np.log(np.maximum(squares, _TINY))
