"""How good each latent is, by figures of its own, and as many steps for each image as a tolerance asks for.

A certificate is made of runs, not of promises: the image is decoded again, and the same run with half and a quarter of
its steps tells how far the latent is from the ODE's. Two different things: a method may come back exactly from a latent
that is wrong.

But for `certify`, images are here what the ODE moves: of latent models the data that `odeddim.api.to_data` gives.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim import defaults
from odeddim.api import Grid, Model, check_encodes, integrate, plan, state_dtype, to_data
from odeddim.field import VectorField
from odeddim.latents.quality import FIGURES, richardson, statistics
from odeddim.models import DEFAULT, load
from odeddim.types import InputError, Solver, State, pick

CERTIFICATE = ("round_trip", "latent_error", "evaluations", *FIGURES)
"""What is certified of each latent.

round_trip: rms over pixels of the image decoded again minus the image, images in [-1, 1]; of latent models over their
data, which have a variance of about 1. latent_error: an estimate of the rms distance of x_T to the ODE's
(`odeddim.latents.quality.richardson`), NaN where a run has too few steps for one. evaluations: of the network, to
encode, NaN where a solver does not tell them of each image. The others are statistics of x_T
(`odeddim.latents.quality.statistics`).
"""

BADNESS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "round_trip": lambda value: value,
    "latent_error": lambda value: value,
    "evaluations": lambda value: value,
    "norm": lambda value: (value - 1).abs(),
    "mean": lambda value: value.abs(),
    "variance": lambda value: (value - 1).abs(),
    "kurtosis": lambda value: (value - 3).abs(),
    "autocorrelation": lambda value: value.abs(),
    "normality": lambda value: -value,
}
"""How bad a figure of the certificate is, the larger the worse: what sorts the worst images to the front."""

LADDER = (10, 20, 40, 80, 160, 320, 640)
"""The numbers of steps that a tolerance tries, one after the other."""

_COARSER = 8.0  # by how much tolerances are loosened in place of half the steps: errors follow them about in proportion


def certify(
    x_0: Tensor,
    solver: str | Solver = defaults.ENCODE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> tuple[State, dict[str, Tensor]]:
    """Encode images and say how good each latent is: x_0 (B, C, H, W) in [-1, 1] -> State, figures (B,) by name.

    Arguments and errors as of `odeddim.encode`; the figures are those of `CERTIFICATE`, of a latent model in the units
    of its data: what its autoencoder loses is not in them. It takes 2.75 times the evaluations of encoding.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    check_encodes(row)
    start = State(to_data(field, x_0), float(nodes[0]))
    state = integrate(field, start, nodes, row)
    spent = torch.full((len(x_0),), evaluations(row, nodes), dtype=torch.float64)
    return state, certificate(start.xbar, state, row, nodes, field, state.report.get("evaluations", spent))


def certificate(
    x_0: Tensor, state: State, row: Solver, nodes: Tensor, field: VectorField, evaluations: Tensor
) -> dict[str, Tensor]:
    """The figures of `CERTIFICATE` for latents that are there already: (B,) float64 each, on the CPU.

    x_0: the images (B, C, H, W) in the state's dtype; state: what `row` over `nodes` made of them, `evaluations` (B,).
    """
    again = integrate(field, state, nodes.flip(0), row).xbar
    start = State(x_0, float(nodes[0]))
    coarse = [
        integrate(field, start, its_nodes, its_row).x
        for its_row, its_nodes in coarser(row, nodes, field.schedule.sigma_min)
    ]
    x_T = state.x
    unknown = torch.full((len(x_0),), torch.nan, dtype=torch.float64)
    return {
        "round_trip": rms(again - x_0.to(again.device)),
        "latent_error": richardson(x_T, coarse[0], coarse[1], _ratio(row)) if coarse else unknown,
        "evaluations": evaluations.to("cpu", torch.float64),
        **statistics(x_T),
    }


def certificate_of_rungs(
    x_0: Tensor, state: State, row: Solver, nodes_of: Callable[[int], Tensor], field: VectorField
) -> dict[str, Tensor]:
    """The same for latents that `encode_to` made, each over as many steps as its `report` says."""
    steps = state.report["steps"]
    whole = {name: torch.full((len(steps),), torch.nan, dtype=torch.float64) for name in CERTIFICATE}
    for count in sorted(set(steps.tolist())):
        rows = (steps == count).nonzero()[:, 0]
        some = State(state.xbar[rows.to(state.xbar.device)], state.sigma)
        spent = state.report["evaluations"][rows]
        for name, values in certificate(x_0[rows], some, row, nodes_of(count), field, spent).items():
            whole[name][rows] = values
    return whole


def evaluations(row: Solver, nodes: Tensor) -> float:
    """How many evaluations an image takes to encode, NaN if that depends on the image."""
    if row.adaptive or row.evaluations(1) is None:
        return math.nan
    calls = 0

    def field(sigma: Tensor, xbar: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return xbar * 0

    integrate(field, State(nodes.new_zeros(1, 1), float(nodes[0])), nodes, row)
    return calls


def worst(figures: Mapping[str, Tensor], by: str) -> Tensor:
    """The images in the order of one of their figures, the worst first, those without it before all: (N,) int64."""
    badness = BADNESS[pick(by, BADNESS, "figure")](figures[by].double())
    return torch.argsort(badness.nan_to_num(torch.inf), descending=True, stable=True)


def coarser(row: Solver, nodes: Tensor, lowest: float) -> list[tuple[Solver, Tensor]]:
    """The same run with half and a quarter of its steps, or looser tolerances; none where it has too few.

    The nodes are every second and every fourth one, the ends among them. lowest: the model's σ_1. A first step from 0
    that ends there is the same in every run; one that goes on beyond has an error to be seen, as on the grid "linear".
    """
    if row.adaptive:
        defaults = inspect.signature(row.run).parameters
        loose = [{name: defaults[name].default * _COARSER**k for name in ("rtol", "atol")} for k in (1, 2)]
        return [(row.with_settings(**tolerances), nodes) for tolerances in loose]
    fixed = 1 if float(nodes[0]) == 0 and float(nodes[1]) <= lowest * (1 + 1e-9) else 0
    steps = len(nodes) - 1 - fixed
    if steps < 4:
        return []
    kept = [torch.linspace(fixed, len(nodes) - 1, steps // part + 1).round().long() for part in (2, 4)]
    return [(row, torch.cat([nodes[:fixed], nodes[rows]])) for rows in kept]


def _ratio(row: Solver) -> int:
    """log2 of the factor by which errors fall from one of `coarser`'s runs to the next, at best."""
    return 3 if row.adaptive else row.order


def rms(difference: Tensor) -> Tensor:
    """Root mean square of each image, (B, *) -> (B,) float64 on the CPU.

    One by one in numpy: torch's order of summation depends on batch and threads.
    """
    rows = (np.ascontiguousarray(row.to("cpu", torch.float64).numpy()) for row in difference.detach())
    return torch.tensor([math.sqrt(np.square(row).mean()) for row in rows], dtype=torch.float64)


Rung = tuple[int, Tensor]
"""A number of steps and the nodes of a run with so many."""


def encode_to(
    tolerance: float, x_0: Tensor, row: Solver, rungs: Sequence[Rung], field: VectorField
) -> tuple[State, dict[str, Tensor]]:
    """Encode each image with the fewest steps whose round trip keeps the tolerance: -> State, figures (B,) by name.

    tolerance: most rms over pixels of the image decoded again minus the image x_0 (B, C, H, W). Of images that keep it
    with none of the rungs the last is taken. `State.report` has "steps" and "evaluations", all that were spent on the
    image, the figures "round_trip".
    Errors: InputError for rows that come back exactly whatever the latent, which a tolerance says nothing about.
    """
    if row.reversible:
        raise InputError(
            f"solver {row.name!r} comes back exactly with any number of steps, from a latent that may be wrong: "
            "a tolerance of the round trip needs another one, as ab3"
        )
    x_0 = state_dtype(x_0)
    found = torch.empty_like(x_0, device=field.device)
    steps, spent = torch.zeros(len(x_0), dtype=torch.int64), torch.zeros(len(x_0), dtype=torch.int64)
    error = torch.full((len(x_0),), torch.inf, dtype=torch.float64)
    left = torch.arange(len(x_0))
    sigma = 0.0
    for count, nodes in rungs:
        images, before = x_0[left], field.rows
        state = integrate(field, State(images, float(nodes[0])), nodes, row)
        again = integrate(field, state, nodes.flip(0), row).xbar
        found[left.to(found.device)], sigma = state.xbar, state.sigma
        error[left] = rms(again - images.to(again.device))
        steps[left] = count
        spent[left] += (field.rows - before) // len(left)
        left = left[~(error[left] <= tolerance)]
        if not len(left):
            break
    return State(found, sigma, report={"steps": steps, "evaluations": spent}), {"round_trip": error}


def decode_to(
    tolerance: float, state: State, row: Solver, rungs: Sequence[Rung], field: VectorField
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode each latent with the fewest steps that change its image by the tolerance at most, against the rung before.

    Returns the images (B, C, H, W), the steps (B,), and by how much (rms over pixels, (B,)) the last doubling of them
    changed the image: above the tolerance for those that do not keep it with any of the rungs.
    """
    plain = replace(state, aux=(), kept="", report={})  # what an exact way back needs belongs to one list of nodes
    left = torch.arange(len(state.xbar))
    images = torch.empty_like(state.xbar, device=field.device)
    steps, change = torch.zeros(len(left), dtype=torch.int64), torch.full((len(left),), torch.inf, dtype=torch.float64)
    for k, (count, nodes) in enumerate(rungs):
        some = replace(plain, xbar=plain.xbar[left.to(plain.xbar.device)])
        now, place = integrate(field, some, nodes.flip(0), row).xbar, left.to(images.device)
        if k:
            change[left] = rms(now - images[place])
        images[place], steps[left] = now, count
        left = left[~(change[left] <= tolerance)]
        if not len(left):
            break
    return images, steps, change


def decode_as_encoded(state: State, row: Solver, nodes_of: Callable[[int], Tensor], field: VectorField) -> Tensor:
    """Decode latents that `encode_to` made, each over as many steps as its `report` says; (B, C, H, W)."""
    images = torch.empty_like(state.xbar, device=field.device)
    steps = state.report["steps"]
    for count in sorted(set(steps.tolist())):
        rows = (steps == count).nonzero()[:, 0].to(state.xbar.device)
        some = State(state.xbar[rows], state.sigma)
        images[rows.to(images.device)] = integrate(field, some, nodes_of(count).flip(0), row).xbar
    return images
