"""How wrong the flow of a model's Gaussian is, and how wrong solvers are: the curves by which `top="gaussian"` chooses.

Fine runs of the model from some noises and some images are the truth. Each curve is a median over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeddim import solvers
from odeddim.latents.arithmetic import rms
from odeddim.ode.field import VectorField
from odeddim.ode.gaussian import Gaussian
from odeddim.plans import Plan, integrate
from odeddim.solvers.stochastic import noise
from odeddim.types import State

SOLVERS = ("ab2", "dpmpp-2m")
"""The best of these at each number of evaluations is what a Gaussian must gain on, on the better of `GRIDS`."""
GRIDS = ("log", "karras")
EVALUATIONS = (3, 6, 12, 24)
FINE, FINE_STEPS = "unipc-2", 60
LEVELS = 8
LOWEST, HIGHEST = 1.0, 0.4
"""The ladder of noise levels goes from this noise level to this part of σ_T."""
SEED = 2**31 - 17
"""Of the noises: seeds that people choose are smaller."""


def measured(
    field: VectorField, gaussian: Gaussian, data: Tensor, advance: Callable[[float], Any] = lambda _: None
) -> dict[str, Tensor]:
    """The errors of the Gaussian's flow and of solvers on a model.

    Args:
        field: The model, without an autoencoder (`on_data`).
        gaussian: The Gaussian.
        data: Images that the Gaussian was not made of, (n, *), as many as noises are taken.
        advance: Called with the evaluations of all images that each part has taken.

    Returns:
        `odeddim.ode.tops.CURVES`, by name, (levels,) or (numbers,) float64 each.
    """
    low, high = field.schedule.sigma_min, field.schedule.sigma_max
    fine = Plan.of(field.schedule, FINE, FINE_STEPS, "log", "sigma_min")
    fresh = noise(len(data), tuple(data.shape[1:]), seed=SEED).to(data)
    down, up = (_path(field, State(x, sigma), fine) for x, sigma in ((fresh * math.hypot(1, high), high), (data, low)))
    advance(2 * FINE_STEPS)
    ladder = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST * high), LEVELS, dtype=torch.float64)
    places = sorted({int((fine.nodes / sigma).log().abs().argmin()) for sigma in ladder})
    found: dict[str, list[float]] = {name: [] for name in ("gaussian_decode", "gaussian_encode")}
    for place in places:
        sigma = float(fine.nodes[place])
        start = State(gaussian.carry(down[high], high, sigma), sigma)
        rest = Plan(fine.solver, fine.nodes[: place + 1], "log")
        found["gaussian_decode"].append(_median(integrate(field, start, rest).xbar - down[low]))
        found["gaussian_encode"].append(_median(gaussian.carry(up[sigma], sigma, high) - up[high]) / high)
        advance(place)
    for way, path, scale in (("decode", down, 1.0), ("encode", up, high)):
        found[f"solver_{way}"] = [_best(field, count, path, way == "encode", advance) / scale for count in EVALUATIONS]
    curves = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
    return {"sigma": fine.nodes[places], "evaluations": torch.tensor(EVALUATIONS, dtype=torch.float64), **curves}


def most_evaluations(field: VectorField) -> int:
    """The evaluations per image that `measured` takes, or a few more."""
    solving = 2 * len(SOLVERS) * len(GRIDS) * sum(EVALUATIONS)
    return 2 * FINE_STEPS + LEVELS * FINE_STEPS + solving


def _path(field: VectorField, start: State, plan: Plan) -> dict[float, Tensor]:
    """x̄ at each node of a run, by its noise level."""
    path = {float(plan.nodes[0 if start.sigma < plan.top else -1]): start.xbar}

    def keep(step: int, sigma: float, xbar: Tensor) -> None:
        path[sigma] = xbar

    integrate(field, start, plan, callback=keep)
    return path


def _best(
    field: VectorField, count: int, path: dict[float, Tensor], up: bool, advance: Callable[[float], Any]
) -> float:
    """The smallest error of `SOLVERS` on `GRIDS` with so many evaluations, in the direction of a path."""
    low, high = min(path), max(path)
    start, end = (low, high) if up else (high, low)
    errors = []
    for name in SOLVERS:
        row = solvers.get(name)
        for grid in GRIDS:
            plan = Plan.of(field.schedule, row, count - sum(row.warmup), grid, "sigma_min")
            errors.append(_median(integrate(field, State(path[start], start), plan).xbar - path[end]))
            advance(count)
    return min(errors)


def _median(apart: Tensor) -> float:
    return float(rms(apart).median())
