"""solve, encode, decode, sample: integrations of the one ODE. The only core module that sees solvers.

Shapes: images and latents are (B, C, H, W), images in [-1, 1]. A latent `x_T` has unit variance, x_T = x̄/√(1+σ_T²),
which for DDPM's networks is the network's input; a `State` holds x̄ = x/√α at its σ. Results lie on the model's device,
in the state's dtype: float64 if the input was float64, else float32, whatever the network uses.

A latent model's ODE moves the data that its autoencoder makes of images: images are what goes in and comes out here,
and latents have the data's shape. `integrate` is the bare ODE, and `field.on_data()` a model whose images are its data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odeddim import defaults, solvers
from odeddim.latents.interpolate import interpolate as interpolate
from odeddim.models import DEFAULT, load
from odeddim.ode import grids
from odeddim.ode.devices import products
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.solvers.stochastic import ONLY_DECODES
from odeddim.solvers.stochastic import noise as noise
from odeddim.types import Field, InputError, Solver, State, pick

Model: TypeAlias = str | Path | VectorField
Grid: TypeAlias = str | Path | Tensor | Sequence[float] | None
LOWEST = 1e-6  # of σ_1: nodes below would only add rounding
LOWEST_TOP = 5.0
"""Noise below which an image shines through: its share of x is then more than 1/√(1+5²) = 20%."""


def solve(
    x_T: Tensor,
    solver: str | Solver = defaults.SOLVE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> Tensor:
    """Decode latents to images: x_T (B, C, H, W) of unit variance -> x_0 (B, C, H, W).

    solver: a name of `odeddim.solvers.names()` or a row of one's own. steps: 50 unless given. grid: a name of
    `odeddim.ode.grids.NAMES`, a file, the nodes themselves (rising σ), or None for the solver's own. x_T lies at its
    last node, which may be below σ_T, as in DDIM's own quadratic list, but not below σ = 5, where images show through.
    end: "zero" or "sigma_min" (see `odeddim.ode.grids`). settings: the solver's own (`Solver.settings`), such as rtol.
    Errors: InputError for what cannot be used, BudgetExceeded (with the best so far) when max_nfe is reached.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    state = _at_the_top(field.schedule, nodes, state_dtype(x_T))
    return to_images(field, integrate(field, state, nodes.flip(0), row).xbar)


def encode(
    x_0: Tensor,
    solver: str | Solver = defaults.ENCODE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> State:
    """Encode images to their latents: x_0 (B, C, H, W) in [-1, 1] -> State at σ_T; its `.x` has unit variance.

    Arguments and errors as of `solve`. The ODE is the same one, walked along rising noise levels, and every
    evaluation is made at the source's label (a solver that inverts another's decoding makes them where that does). A
    reversible solver's state keeps in `aux` what its way back needs; `report` is what a solver says of each image.
    """
    field = load(model)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    check_encodes(row)
    return integrate(field, State(to_data(field, x_0), float(nodes[0])), nodes, row)


def decode(
    state: State,
    solver: str | Solver | None = None,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> Tensor:
    """Decode a State to images x_0 (B, C, H, W): the inverse direction of `encode`, with any solver.

    Arguments and errors as of `solve`; the grid must end at the state's σ, and `end` be the one it was encoded with.
    Unless a solver is named it is the one that kept the state's way back, if one did, and `solve`'s otherwise.
    With the reversible solver, the nodes and the batch that encoded, the images are those encoded, bit for bit. Warns
    where another solver, other nodes, settings or another dtype of the state make that impossible; a network that
    answers otherwise than it did (its dtype, device or batch, threads, another PyTorch) is not seen here.
    """
    if not isinstance(state, State):
        raise InputError(
            f"decode takes a State, as encode gives it, not {type(state).__name__}; solve takes x_T itself"
        )
    field = load(model)
    solver = solver or defaults.for_decoding(state.kept, state.combined)
    row, nodes = plan(field.schedule, solver, steps, grid, end, settings)
    if not math.isclose(state.sigma, float(nodes[-1]), rel_tol=1e-12):
        raise InputError(f"the latent lies at σ = {state.sigma:.9g}, but the grid ends at σ = {float(nodes[-1]):.9g}")
    kept_by = state.kept.partition(" ")[0]
    if kept_by not in ("", row.name) and not (state.combined or row.stochastic):
        warnings.warn(
            f"the latents were kept by {kept_by!r} for its way back, and {row.name!r} starts from x̄ alone: the images "
            f"do not come back exactly; decode with {kept_by!r} for that",
            stacklevel=2,
        )
    aux = tuple(state_dtype(part) for part in state.aux)
    state = replace(state, xbar=state_dtype(state.xbar), aux=aux)
    return to_images(field, integrate(field, state, nodes.flip(0), row).xbar)


def sample(
    n: int,
    solver: str | Solver | None = None,
    *,
    seed: int = 0,
    eta: float | None = None,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    **settings: Any,
) -> Tensor:
    """n images (n, C, H, W) from noise of (seed, image index): image i is the same whatever n or the batch.

    solver: as `odeddim.defaults.for_sampling` has it unless given. eta: DDIM's η (eq. 16), of "euler", whose stochastic
    form is "ddim-eta"; 0 is the ODE, None the solver's own.
    start: the index of the first image. shape: (C, H, W) of the noise, for models that take any. Otherwise as `solve`.
    """
    field = load(model)
    shape = shape or field.shape
    if shape is None:
        raise InputError(f"the model {field.name!r} takes any shape: say which one to sample, shape=(C, H, W)")
    row, nodes = plan(field.schedule, solver or defaults.for_sampling(eta), steps, grid, end, settings)
    row = with_noise(row, eta=eta, seed=seed, start=start)
    state = _at_the_top(field.schedule, nodes, noise(n, shape, seed=seed, start=start))
    return to_images(field, integrate(field, state, nodes.flip(0), row).xbar)


def to_data(field: VectorField, images: Tensor) -> Tensor:
    """What the ODE of a model begins at, (B, *): the images (B, C, H, W), or what a latent model's autoencoder makes
    of them. Errors: InputError for images that it is not made for.
    """
    images = state_dtype(images)
    if field.codec is None:
        return images
    field.check(images, field.codec.image_shape)
    with products(field.device):
        return field.codec.encode(images)


def to_images(field: VectorField, data: Tensor) -> Tensor:
    """The images (B, C, H, W) of what the ODE of a model ends at: the inverse direction of `to_data`."""
    with products(field.device):
        return data if field.codec is None else field.codec.decode(data)


def with_noise(row: Solver, *, eta: float | None = None, seed: int = 0, start: int = 0) -> Solver:
    """The row that samples: a stochastic row with its noise of (seed, start + image, step), or any other as it is.

    For η > 0 a row is replaced by its stochastic form (`Solver.stochastic_form`).
    Errors: InputError for an η above 0 of a row that has no stochastic form and is not "ddim-eta".
    """
    if row.stochastic_form and eta:
        row = solvers.get(row.stochastic_form)
    if row.stochastic:
        return row.with_settings(eta=eta, seed=seed, first=start)
    if eta:
        raise InputError(f"eta = {eta:g} is DDIM's stochastic family: it needs solver 'euler', not {row.name!r}")
    return row


def check_encodes(row: Solver) -> None:
    """Raises InputError for a solver that only decodes."""
    if row.stochastic:
        raise InputError(f"solver {row.name!r} {ONLY_DECODES}")


def plan(
    schedule: Schedule,
    solver: str | Solver,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    settings: dict[str, Any] | None = None,
    *,
    top: float | None = None,
) -> tuple[Solver, Tensor]:
    """What a run will do: the solver's row with its settings, and the nodes (N+1,) float64, rising.

    Of nodes given to an adaptive solver, which chooses its own, only the ends are kept. top: where a named grid ends
    in place of σ_T.
    """
    pick(end, grids.ENDS, "end")
    row = solvers.get(solver) if isinstance(solver, str) else solver
    if not isinstance(row, Solver):
        raise InputError(f"a solver is a name or a row of the table (odeddim.Solver), not {row!r}")
    row = row.with_settings(**(settings or {}))
    named = grid is None or isinstance(grid, (str, Path))
    if row.adaptive and (steps is not None or (named and grid is not None)):
        raise InputError(f"solver {row.name!r} chooses its own steps: leave out steps and grid, and give rtol and atol")
    if row.adaptive and named:
        ends = [0.0 if end == "zero" else schedule.sigma_min, top or schedule.sigma_max]
        nodes = torch.tensor(ends, dtype=torch.float64)
    elif named:
        nodes = grids.grid(str(grid or row.grid), schedule, steps, end=end, top=top)
    else:
        nodes = grids.check_nodes(grid, steps=steps)  # type: ignore[arg-type]
        if end == "sigma_min" and float(nodes[0]) == 0:
            raise InputError("the nodes given begin at σ = 0, which is end 'zero', not 'sigma_min'")
    return row, _on_schedule(nodes, schedule, adaptive=row.adaptive)


def integrate(field: VectorField | Field, state: State, sigmas: Tensor, solver: Solver) -> State:
    """Walk a state along nodes, rising or falling, (N+1,) float64. The only place that knows the end at σ = 0.

    Between 0 and its neighbour lies one Euler step, as in the paper: x̄ + σ·ε with ε from the step's source. The
    solver gets the other nodes, all positive; one that goes to 0 itself gets them all. Gradients are off.
    """
    field, state = _ready(field, replace(state, report={}))
    with torch.no_grad():
        if solver.to_zero:
            return solver.run(field, state, sigmas)
        leaves_zero = float(sigmas[0]) == 0
        if leaves_zero:
            state = _euler(field, state, sigmas[0], sigmas[1])
            sigmas = sigmas[1:]
        lands_on_zero = float(sigmas[-1]) == 0
        inner = sigmas[:-1] if lands_on_zero else sigmas
        if len(inner) > 1:
            state = solver.run(field, state, inner)
        if lands_on_zero:
            state = _euler(field, state, sigmas[-2], sigmas[-1])
    if "evaluations" in state.report and leaves_zero + lands_on_zero:
        spent = state.report["evaluations"] + leaves_zero + lands_on_zero
        state = replace(state, report={**state.report, "evaluations": spent})
    return state


def _euler(field: Field, state: State, source: Tensor, target: Tensor) -> State:
    eps = field(source, state.xbar)
    return replace(state, xbar=torch.add(state.xbar, eps, alpha=float(target - source)), sigma=float(target))


def _on_schedule(nodes: Tensor, schedule: Schedule, *, adaptive: bool) -> Tensor:
    """Nodes within the model's range: a top within a rounded figure of σ_T is σ_T; above it the model knows nothing."""
    top = schedule.sigma_max
    if float(nodes[-1]) > top * (1 + 1e-5):
        raise InputError(
            f"the grid ends at σ = {float(nodes[-1]):.9g}, above the model's σ_T = {top:.9g}: end it there"
        )
    if math.isclose(float(nodes[-1]), top, rel_tol=1e-5):
        nodes = torch.cat([nodes[:-1], nodes.new_tensor([top])])
    first = nodes[1] if float(nodes[0]) == 0 else nodes[0]
    if float(first) < schedule.sigma_min * LOWEST:
        raise InputError(
            f"the grid's node σ = {float(first):.3g} is too close to 0: put it at 0, or {LOWEST}·σ_1 or more"
        )
    if adaptive and float(nodes[0]) == 0:
        # The step from 0 is Euler's and nobody controls its error: it must be the shortest that the model knows.
        return nodes.new_tensor([0.0, min(schedule.sigma_min, float(first)), float(nodes[-1])])
    return nodes[[0, -1]] if adaptive else nodes


def _at_the_top(schedule: Schedule, nodes: Tensor, x_T: Tensor) -> State:
    """x_T of unit variance as a State at the top of the grid, which must be high enough for noise to be all there is.

    Other code's lists stop short of σ_T (DDIM's quadratic one at 0.8·T), and published figures were made with them: the
    noise is taken to lie where they end. The limit is the bridges': below it an image is seen, and noise is none.
    """
    sigma, least = float(nodes[-1]), min(LOWEST_TOP, schedule.sigma_max)
    if sigma < least:
        raise InputError(
            f"a run from x_T begins with noise, but the grid ends at σ = {sigma:.6g}, where images still show through "
            f"it: end the grid at σ = {least:.6g} at least (the model's σ_T is {schedule.sigma_max:.6g}), or decode a "
            "State of that noise level"
        )
    return State(x_T * math.sqrt(1 + sigma**2), sigma)


def state_dtype(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise InputError(
            f"images and latents are torch tensors (B, C, H, W), not {type(x).__name__}: torch.as_tensor(...)"
        )
    if not x.is_floating_point():
        raise InputError(f"images and latents are floating point, images in [-1, 1], not {x.dtype}")
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _ready(field: VectorField | Field, state: State) -> tuple[Field, State]:
    """The state on the field's device, checked against what the model takes."""
    if isinstance(field, VectorField):
        field.check(state.xbar)
        if field.device is not None:
            aux = tuple(part.to(field.device) for part in state.aux)
            state = replace(state, xbar=state.xbar.to(field.device), aux=aux)
    return field, state
