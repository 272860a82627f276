"""Grids by GITS: the nodes among those of a fine run between which few steps of DDIM bend away least.

A teacher walks down from noise along a fine grid. From each of its points one step of DDIM leads to each later node;
what that step costs is how much farther its end is from the chord of the whole run, the straight line between the noise
and the image, than the teacher's point there, on average over the runs. The path of K steps with the least sum is found
exactly, by dynamic programming. A cost counts the more, the later its step is: by γ to the power of the steps before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim.api import Model, at_the_top, noise
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.ode.grids import ENDS
from odeddim.plans import Plan, integrate
from odeddim.types import InputError, OdeSettings, Solver, pick

TEACHER, INTERVALS = "ipndm", 60
"""The run whose points the nodes are chosen from: a solver, on the grid "karras" with so many steps."""
NOISES = 256
EMPHASIS = 1.15
NAME = "gits"


@torch.no_grad()
def gits_plan(
    solver: str | Solver,
    steps: int,
    *,
    model: Model = DEFAULT,
    end: str = "zero",
    count: int = NOISES,
    seed: int = 0,
    emphasis: float = EMPHASIS,
    shape: tuple[int, ...] | None = None,
    batch_size: int = 16,
    advance: Callable[[int], Any] = lambda noises: None,
    **settings: Unpack[OdeSettings],
) -> Plan:
    """A plan whose nodes GITS chooses, from the model's own runs: for decoding with few steps.

    It takes 60 evaluations for each noise. The same call gives the same plan.

    Args:
        solver: The solver of the plan; the nodes are chosen by steps of DDIM, whatever it is.
        steps: The number of steps: with end="zero" 2 to 61, the last of which leads to σ = 0, and else 1 to 60.
        model: As of `odeddim.load`.
        end: "zero" or "sigma_min" (see `odeddim.ode.grids`).
        count: The number of noises.
        seed: Their seed: `odeddim.noise(count, shape, seed=seed)`.
        emphasis: γ, how much more each step counts than the one before it, nearer to the noise.
        shape: The shape of the data, for models that take several.
        batch_size: The number of noises in work at once. All their points are in memory, (61, B, *) twice.
        advance: Called with the numbers of noises that are done, one after another.
        **settings: The solver's settings.

    Returns:
        The plan, named "gits", with the model in its notes.

    Raises:
        InputError: If the solver is adaptive, or an argument is out of range.

    Source:
        Chen et al. 2024, arXiv 2405.11326, Algorithm 1, with the deviation as its cost.

    Example:
        >>> plan = odeddim.gits_plan("euler", 5, model="exact-mixture", shape=(1, 4, 4), count=8)
        >>> print(plan, plan.nodes.shape)
        euler, gits grid, 5 steps, end zero torch.Size([6])
    """
    field = load(model)
    intervals = steps - (pick(end, ENDS, "end") == "zero")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= intervals <= INTERVALS:
        low = 1 + (end == "zero")
        raise InputError(f"steps of a grid by GITS with end={end!r} are {low} to {low + INTERVALS - 1}, not {steps!r}")
    if count < 1 or batch_size < 1 or not emphasis > 0:
        raise InputError(f"count, batch_size and emphasis must be positive, not {count}, {batch_size} and {emphasis}")
    row = Plan.of(field.schedule, solver, None, None, end, settings).solver
    if row.adaptive:
        raise InputError(f"solver {row.name!r} chooses its own steps, so it has no grid: give one with fixed steps")
    teacher = Plan.of(field.schedule, TEACHER, INTERVALS, "karras", "sigma_min")
    path = cheapest_path(costs(field, teacher, count, seed, shape, batch_size, advance), intervals, emphasis)
    nodes = teacher.nodes.flip(0)[path].flip(0)
    if end == "zero":
        nodes = torch.cat([nodes.new_zeros(1), nodes])
    found = replace(Plan.of(field.schedule, row, steps, nodes, end), grid=NAME)
    return found.noted(field, **{"made by": f"GITS (arXiv 2405.11326), {count} noises, seed {seed}, γ = {emphasis:g}"})


def costs(
    field: VectorField,
    teacher: Plan,
    count: int,
    seed: int,
    shape: tuple[int, ...] | None = None,
    batch_size: int = 16,
    advance: Callable[[int], Any] = lambda noises: None,
) -> Any:
    """What one step of DDIM costs, between any two points of a teacher's run.

    Args:
        field: The model.
        teacher: The run, of a solver that evaluates each node but the last once.
        count, seed, shape, batch_size, advance: As of `gits_plan`.

    Returns:
        (N+1, N+1) float64, numpy: row i, column j > i is the cost of the step from node i to node j, counted down from
        the noise; 0 elsewhere.
    """
    field, where = field.on_data(), field.shape_of_data(shape)
    sigmas = teacher.nodes.flip(0)
    total = np.zeros((len(sigmas), len(sigmas)))
    for first in range(0, count, batch_size):
        size = min(batch_size, count - first)
        points: list[tuple[Tensor, Tensor]] = []

        def watched(sigma: Tensor, xbar: Tensor, points: list[tuple[Tensor, Tensor]] = points) -> Tensor:
            eps = field(sigma, xbar)
            points.append((xbar.flatten(1), eps.flatten(1)))
            return eps

        start = at_the_top(field.schedule, teacher, noise(size, where, seed=seed, start=first))
        if field.device is not None:
            start = start.to(field.device)
        end = integrate(watched, start, teacher).xbar.flatten(1)
        total += size / count * _costs(sigmas, points, end)
        advance(size)
    return total


def _costs(sigmas: Tensor, points: list[tuple[Tensor, Tensor]], end: Tensor) -> Any:
    """The costs of one batch, of points (x̄ₙ, εₙ), (B, D) each, and the end (B, D)."""
    chord = end.double() - points[0][0].double()
    chord /= chord.norm(dim=1, keepdim=True)

    def across(vectors: Tensor) -> Tensor:
        """Their part across the chord, (B, D) float64."""
        vectors = vectors.double()
        return vectors - (vectors * chord).sum(1, keepdim=True) * chord

    found = np.zeros((len(sigmas), len(sigmas)))
    teacher = [across(end.double() - xbar.double()).norm(dim=1).mean() for xbar, _ in points]
    teacher.append(torch.zeros_like(teacher[0]))
    for i, (xbar, eps) in enumerate(points):
        off, slope = across(end.double() - xbar.double()), across(eps)
        for j in range(i + 1, len(sigmas)):
            step = float(sigmas[j] - sigmas[i])
            found[i, j] = float((off - step * slope).norm(dim=1).mean() - teacher[j])
    return found


def cheapest_path(cost: Any, steps: int, emphasis: float) -> list[int]:
    """The path from the first node to the last in so many steps with the least Σ γ^k·cost of step k, exactly.

    Args:
        cost: (N+1, N+1), the cost of a step from node i to node j > i.
        steps: The number of steps, 1 to N.
        emphasis: γ.

    Returns:
        The nodes, steps + 1 of them, rising.
    """
    last = len(cost) - 1
    rising = np.triu(np.ones_like(cost, dtype=bool), 1)
    allowed = np.where(rising, cost, np.inf)
    least = allowed[:, last].copy()  # from each node to the last in one step
    best: list[Any] = []
    for _ in range(steps - 1):
        through = allowed + emphasis * least
        best.append(through.argmin(axis=1))
        least = through.min(axis=1)
    path = [0]
    for onward in reversed(best):
        path.append(int(onward[path[-1]]))
    return [*path, last]
