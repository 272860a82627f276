"""The label t(σ) that a network takes for a noise level, and the factor scale(σ) of its input there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from odeddim.ode.memo import Memo
from odeddim.ode.schedule import Schedule, Time
from odeddim.types import InputError

Labels = Callable[[float], tuple[float, float]]
"""A function from a noise level σ to its label t(σ) and to the factor in x = scale(σ)·x̄."""

_REMEMBERED = 4096  # noise levels


def labels_of(schedule: Schedule, time: Time) -> Labels:
    """The labels of a schedule. Results are remembered, because a run meets each node once per batch and direction.

    Args:
        schedule: The schedule.
        time: A name of `odeddim.ode.schedule.TIMES`, or a function of σ.

    Returns:
        The function from σ to (t(σ), scale(σ)).
    """
    return Memo(_Lookup(schedule, time), _REMEMBERED)


@dataclass(frozen=True)
class Relabelled:
    """Labels that are taken at another noise level: t(label_at(σ)), with the scale of σ itself.

    Attributes:
        own: The labels of the model.
        label_at: A function from a noise level to the one whose label is taken.
    """

    own: Labels
    label_at: Callable[[float], float]

    def __call__(self, sigma: float) -> tuple[float, float]:
        return self.own(self.label_at(sigma))[0], self.own(sigma)[1]


@dataclass(frozen=True)
class _Lookup:
    schedule: Schedule
    time: Time

    def __call__(self, sigma: float) -> tuple[float, float]:
        if not math.isfinite(sigma):
            raise InputError(f"the solver reached σ = {sigma}: give larger rtol=... and atol=..., or more steps")
        node = torch.tensor(sigma, dtype=torch.float64)
        return float(self.schedule.label(node, self.time)), float(self.schedule.scale(node))
