"""solve, encode, decode, sample: integrations of the one ODE. The only core module that sees solvers.

Shapes: images and latents are (B, C, H, W), images in [-1, 1]. A latent `x_T` is in the units of the network's input;
a `State` holds x̄ = x/√α at its σ. Results lie on the model's device, in the state's dtype: float64 if the input was
float64, else float32, whatever the network uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from odeddim import grids, solvers
from odeddim.field import VectorField
from odeddim.latents.interpolate import interpolate as interpolate
from odeddim.models import DEFAULT, load
from odeddim.schedule import Schedule
from odeddim.types import Field, InputError, Solver, State

Model: TypeAlias = str | Path | VectorField
Grid: TypeAlias = str | Tensor | Sequence[float] | None


def solve(
    x_T: Tensor,
    solver: str | Solver = "euler",
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> Tensor:
    """Decode latents to images: x_T (B, C, H, W) in the units of the network's input -> x_0 (B, C, H, W).

    solver: a name of `odeddim.solvers.names()` or a row of one's own. steps: 50 unless given. grid: a name of
    `odeddim.grids.NAMES`, a file, the nodes themselves (rising σ), or None for the solver's own.
    end: "zero" or "sigma_min" (see `odeddim.grids`). settings: rtol, atol, max_nfe for adaptive solvers.
    Errors: InputError for what cannot be used, BudgetExceeded (with the best so far) when max_nfe is reached.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    sigma_T = float(nodes[-1])
    xbar = _state_dtype(x_T) / float(field.schedule.scale(nodes[-1]))
    return integrate(field, State(xbar, sigma_T), nodes.flip(0), row).xbar


def encode(
    x_0: Tensor,
    solver: str | Solver = "euler",
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> State:
    """Encode images to their latents: x_0 (B, C, H, W) in [-1, 1] -> State at σ_T; its `.x` has unit variance.

    Arguments and errors as of `solve`. The ODE is the same one, walked along rising noise levels, and every
    evaluation is made at the source's label.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    return integrate(field, State(_state_dtype(x_0), float(nodes[0])), nodes, row)


def decode(
    state: State,
    solver: str | Solver = "euler",
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> Tensor:
    """Decode a State to images x_0 (B, C, H, W): the inverse direction of `encode`, with any solver.

    Arguments and errors as of `solve`; the grid must end at the state's σ.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    if not math.isclose(state.sigma, float(nodes[-1]), rel_tol=1e-12):
        raise InputError(f"the latent lies at σ = {state.sigma:.9g}, but the grid ends at σ = {float(nodes[-1]):.9g}")
    return integrate(field, state, nodes.flip(0), row).xbar


def sample(
    n: int,
    solver: str | Solver = "euler",
    *,
    seed: int = 0,
    eta: float = 0.0,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    **settings: Any,
) -> Tensor:
    """n images (n, C, H, W) from noise of (seed, image index): image i is the same whatever n or the batch.

    eta: DDIM's η (eq. 16); 0 is the ODE; above 0 it adds noise and needs solver "euler", whose stochastic form it is.
    start: the index of the first image. shape: (C, H, W), for models that take any. Otherwise as `solve`.
    """
    field = load(model)
    shape = shape or field.shape
    if shape is None:
        raise InputError(f"the model {field.name!r} takes any shape: say which one to sample, shape=(C, H, W)")
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    state = State(noise(n, shape, seed=seed, start=start).mul(math.sqrt(1 + float(nodes[-1]) ** 2)), float(nodes[-1]))
    if eta == 0:
        return integrate(field, state, nodes.flip(0), row).xbar
    if row.name != "euler":
        raise InputError(f"eta = {eta} is DDIM's stochastic family: it needs solver 'euler', not {row.name!r}")

    def step_noise(step: int) -> Tensor:
        return noise(n, shape, seed=seed, start=start, step=step + 1).to(field.device)

    from odeddim.solvers.stochastic import ddim

    _, state = _ready(field, state)
    with torch.no_grad():
        return ddim(field, state, nodes.flip(0), eta=eta, noise=step_noise).xbar


def noise(n: int, shape: tuple[int, ...], *, seed: int = 0, start: int = 0, step: int = 0) -> Tensor:
    """Standard normal noise (n, *shape), float32: image i's depends on (seed, start + i, step) only."""
    images = []
    for i in range(start, start + n):
        # SeedSequence hashes the three numbers into one: neighbours get unrelated streams.
        key = np.random.SeedSequence([seed, i, step]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(key[0]) << 32 | int(key[1]))
        images.append(torch.randn(shape, generator=generator))
    return torch.stack(images) if images else torch.empty(0, *shape)


def plan(
    schedule: Schedule,
    solver: str | Solver,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    settings: dict[str, Any] | None = None,
) -> tuple[Solver, Tensor]:
    """What a run will do: the solver's row with its settings, and the nodes (N+1,) float64, rising."""
    row = solvers.get(solver) if isinstance(solver, str) else solver
    row = row.with_settings(**(settings or {}))
    if grid is None or isinstance(grid, str):
        if row.adaptive and grid is None:
            # It chooses its own steps: all it needs is where to start (σ_1, after the end's step) and to stop.
            return row, grids.grid("log", schedule, 2 if end == "zero" else 1, end=end)
        return row, grids.grid(grid or row.grid, schedule, steps, end=end)
    return row, grids.check_nodes(grid, steps=steps)


def integrate(field: VectorField | Field, state: State, sigmas: Tensor, solver: Solver) -> State:
    """Walk a state along nodes, rising or falling, (N+1,) float64. The only place that knows the end at σ = 0.

    Between 0 and its neighbour lies one Euler step, as in the paper: x̄ + σ·ε with ε from the step's source. The
    solver gets the other nodes, all positive. Gradients are off.
    """
    field, state = _ready(field, state)
    with torch.no_grad():
        if float(sigmas[0]) == 0:
            state = _euler(field, state, sigmas[0], sigmas[1])
            sigmas = sigmas[1:]
        lands_on_zero = float(sigmas[-1]) == 0
        inner = sigmas[:-1] if lands_on_zero else sigmas
        if len(inner) > 1:
            state = solver.run(field, state, inner)
        if lands_on_zero:
            state = _euler(field, state, sigmas[-2], sigmas[-1])
    return state


def _euler(field: Field, state: State, source: Tensor, target: Tensor) -> State:
    eps = field(source, state.xbar)
    return State(torch.add(state.xbar, eps, alpha=float(target - source)), float(target), state.aux)


def _state_dtype(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise InputError(f"images and latents are floating point, images in [-1, 1], not {x.dtype}")
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _ready(field: VectorField | Field, state: State) -> tuple[Field, State]:
    """The state on the field's device, checked against what the model takes."""
    if isinstance(field, VectorField):
        field.check(state.xbar)
        if field.device is not None:
            aux = tuple(part.to(field.device) for part in state.aux)
            state = State(state.xbar.to(field.device), state.sigma, aux)
    return field, state
