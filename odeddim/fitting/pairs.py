"""Fine solutions of some noises or images: what a rule is fitted to, and what its errors are measured against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.plans import Plan, integrate
from odeddim.types import State

REFERENCE = ("ab4", "log", 100)
"""The solver, the grid and the steps of the fine solutions."""


@dataclass(frozen=True)
class Pairs:
    """Solutions of the ODE of some images, known at both ends, and of the first few of them at levels between.

    Attributes:
        low: x̄ where the images lie, (B, *).
        high: x̄ at σ_T, (B, *).
        levels: Rising noise levels, (L,) float64, from the lowest positive one to σ_T.
        path: x̄ of the first S images at these levels, (S, L, *).
    """

    low: Tensor
    high: Tensor
    levels: Tensor
    path: Tensor

    def __len__(self) -> int:
        return len(self.low)

    @property
    def known(self) -> Pairs:
        """The images whose x̄ is known between the ends too."""
        count = len(self.path)
        return replace(self, low=self.low[:count], high=self.high[:count])

    def at(self, sigma: float) -> Tensor:
        """x̄ of the first S images at a noise level, (S, *): by the cubic through four levels in log σ.

        Below the lowest level it is x̄ where the images lie.
        """
        if sigma < float(self.levels[0]) * (1 - 1e-9):
            return self.low[: len(self.path)]
        logs, here = self.levels.log(), math.log(sigma)
        first = min(max(int(torch.searchsorted(logs, here)) - 2, 0), len(logs) - 4)
        near = logs[first : first + 4].tolist()
        total = torch.zeros_like(self.path[:, 0])
        for j, own in enumerate(near):
            weight = math.prod((here - other) / (own - other) for other in near if other != own)
            total.add_(self.path[:, first + j], alpha=weight)
        return total

    @staticmethod
    def joined(parts: Sequence[Pairs]) -> Pairs:
        """The solutions of several batches, in their order."""
        whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("low", "high", "path")}
        return Pairs(levels=parts[0].levels, **whole)


def reference(field: VectorField, end: str) -> Plan:
    """The plan of the fine solutions of a model."""
    solver, grid, steps = REFERENCE
    return Plan.of(field.schedule, solver, steps, grid, end)


def solved(
    field: VectorField, start: Tensor, plan: Plan, direction: str, kept: int, advance: Callable[[int], Any]
) -> Pairs:
    """The fine solutions of a batch.

    Args:
        field: The model, without its codec.
        start: The data (B, *) of images, or x̄ at σ_T, by the direction.
        plan: The plan of `reference`.
        direction: "encode" or "decode".
        kept: The number of images whose x̄ is kept at the levels between.
        advance: Called with the number of steps that were made.

    Returns:
        The solutions, on the CPU.
    """
    down = direction == "decode"
    levels = plan.nodes[plan.nodes > 0]
    begin = plan.top if down else float(plan.nodes[0])
    seen = {begin: start[:kept].cpu()}

    def keep(step: int, sigma: float, xbar: Tensor) -> None:
        seen[sigma] = xbar[:kept].cpu()
        advance(1)

    end = integrate(field, State(start, begin), plan, callback=keep).xbar.cpu()
    path = torch.stack([seen[sigma] for sigma in levels.tolist()], dim=1)
    low, high = (end, start.cpu()) if down else (start.cpu(), end)
    return Pairs(low, high, levels, path)
