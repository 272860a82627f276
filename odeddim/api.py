"""solve, encode, decode, sample: integrations of the one ODE.

Shapes: images and latents are (B, C, H, W), images in [-1, 1]. A latent `x_T` has unit variance, x_T = x̄/√(1+σ_T²),
which for DDPM's networks is the network's input; a `State` holds x̄ = x/√α at its σ. Results lie on the model's device,
in the state's dtype: float64 if the input was float64, else float32, whatever the network uses.

A latent model's ODE moves the data that its autoencoder makes of images: images are what goes in and comes out here,
and latents have the data's shape. `integrate` is the bare ODE, and `field.on_data()` a model whose images are its data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odeddim import defaults, solvers
from odeddim.latents.interpolate import interpolate as interpolate
from odeddim.models import DEFAULT, load
from odeddim.ode.devices import products
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Grid, Plan, check_encodes, integrate
from odeddim.solvers.stochastic import noise as noise
from odeddim.types import InputError, Solver, State

Model: TypeAlias = str | Path | VectorField
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
    plan: Plan | None = None,
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
    plan = _planned(field, plan, solver, defaults.SOLVE, steps, grid, end, settings)
    state = _at_the_top(field.schedule, plan, state_dtype(x_T))
    return to_images(field, integrate(field, state, plan).xbar)


def encode(
    x_0: Tensor,
    solver: str | Solver = defaults.ENCODE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    plan: Plan | None = None,
    **settings: Any,
) -> State:
    """Encode images to their latents: x_0 (B, C, H, W) in [-1, 1] -> State at σ_T; its `.x` has unit variance.

    Arguments and errors as of `solve`. The ODE is the same one, walked along rising noise levels, and every
    evaluation is made at the source's label (a solver that inverts another's decoding makes them where that does). A
    reversible solver's state keeps in `aux` what its way back needs; `report` is what a solver says of each image.
    """
    field = load(model)
    plan = _planned(field, plan, solver, defaults.ENCODE, steps, grid, end, settings)
    check_encodes(plan.solver)
    return integrate(field, State(to_data(field, x_0), float(plan.nodes[0])), plan)


def decode(
    state: State,
    solver: str | Solver | None = None,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    plan: Plan | None = None,
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
    usual = defaults.for_decoding(state.kept, state.combined)
    plan = _planned(field, plan, solver or usual, usual, steps, grid, end, settings)
    row = plan.solver
    if not math.isclose(state.sigma, plan.top, rel_tol=1e-12):
        raise InputError(f"the latent lies at σ = {state.sigma:.9g}, but the grid ends at σ = {plan.top:.9g}")
    kept_by = state.kept.partition(" ")[0]
    if kept_by not in ("", row.name) and not (state.combined or row.stochastic):
        warnings.warn(
            f"the latents were kept by {kept_by!r} for its way back, and {row.name!r} starts from x̄ alone: the images "
            f"do not come back exactly; decode with {kept_by!r} for that",
            stacklevel=2,
        )
    aux = tuple(state_dtype(part) for part in state.aux)
    state = replace(state, xbar=state_dtype(state.xbar), aux=aux)
    return to_images(field, integrate(field, state, plan).xbar)


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
    plan: Plan | None = None,
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
    usual = defaults.for_sampling(eta)
    plan = _planned(field, plan, solver or usual, usual, steps, grid, end, settings)
    plan = plan.with_solver(with_noise(plan.solver, eta=eta, seed=seed, start=start))
    state = _at_the_top(field.schedule, plan, noise(n, shape, seed=seed, start=start))
    return to_images(field, integrate(field, state, plan).xbar)


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
    """The row that samples: a stochastic one with its noise of (seed, start + image, step), and `ddim-eta` for η > 0.

    Errors: InputError for an η above 0 of other solvers than "euler" and "ddim-eta".
    """
    if row.name == "euler" and eta:
        row = solvers.get("ddim-eta")
    if row.stochastic:
        return row.with_settings(eta=eta, seed=seed, first=start)
    if eta:
        raise InputError(f"eta = {eta:g} is DDIM's stochastic family: it needs solver 'euler', not {row.name!r}")
    return row


def plan(
    model: Model = DEFAULT,
    solver: str | Solver = defaults.SOLVE,
    *,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    **settings: Any,
) -> Plan:
    """What a run will do, decided before it runs: for `plan=` of `solve`, `encode`, `decode` and `sample`, and a file.

    Args:
        model: As of `load`; its noise levels bound the nodes.
        solver: A name of `odeddim.solvers.names()`, or a row of one's own.
        steps: The number of steps; 50 unless given.
        grid: A name of `odeddim.ode.grids.NAMES`, a file, the nodes themselves, or None for the solver's own.
        end: "zero" or "sigma_min" (see `odeddim.ode.grids`).
        **settings: The solver's own, such as rtol.

    Returns:
        The plan: `print(plan)` says it in words, `plan.save("plan.json")` keeps it.

    Raises:
        InputError: For what cannot be used.

    Example:
        >>> import odeddim
        >>> print(odeddim.plan(solver="dpmpp-2m", steps=20))
        dpmpp-2m, log grid, 20 steps, end zero
    """
    return Plan.of(load(model).schedule, solver, steps, grid, end, settings)


def _planned(
    field: VectorField,
    plan: Plan | None,
    solver: str | Solver,
    usual: str,
    steps: int | None,
    grid: Grid,
    end: str,
    settings: Mapping[str, Any],
) -> Plan:
    """The plan given, checked for this model, or that of the other arguments; an InputError for both at once."""
    if plan is None:
        return Plan.of(field.schedule, solver, steps, grid, end, settings)
    said = {"solver": solver != usual, "steps": steps is not None, "grid": grid is not None, "end": end != "zero"}
    said |= dict.fromkeys(settings, True)
    if named := [name for name, given in said.items() if given]:
        raise InputError(f"plan= says how to run: leave out {named[0]}=, or make another plan with it")
    if not isinstance(plan, Plan):
        raise InputError(f"plan= takes a Plan, as odeddim.plan makes it, not {type(plan).__name__}")
    return plan.on(field.schedule)


def _at_the_top(schedule: Schedule, plan: Plan, x_T: Tensor) -> State:
    """x_T of unit variance as a State at the top of a plan, which must be high enough for noise to be all there is.

    Other code's lists stop short of σ_T (DDIM's quadratic one at 0.8·T), and published figures were made with them: the
    noise is taken to lie where they end. The limit is the bridges': below it an image is seen, and noise is none.
    """
    sigma, least = plan.top, min(LOWEST_TOP, schedule.sigma_max)
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
