"""What a network is told of a noise level, and what its input is multiplied by there: (t(σ), scale(σ))."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from odeddim.ode.memo import Memo
from odeddim.ode.schedule import Schedule, Time
from odeddim.types import InputError

Labels = Callable[[float], tuple[float, float]]
"""The label t(σ) and the factor of x = scale(σ)·x̄, of one noise level."""

_REMEMBERED = 4096  # noise levels


def labels_of(schedule: Schedule, time: Time) -> Labels:
    """The labels of a schedule. A run meets every node once for each batch and direction: a node is looked up once."""
    return Memo(_Lookup(schedule, time), _REMEMBERED)


@dataclass(frozen=True)
class Relabelled:
    """Labels that are taken at another noise level: t(label_at(σ)), with the scale of σ itself."""

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
            raise InputError(f"the solver went to σ = {sigma}: give it tolerances that it can keep, or more steps")
        node = torch.tensor(sigma, dtype=torch.float64)
        return float(self.schedule.label(node, self.time)), float(self.schedule.scale(node))
