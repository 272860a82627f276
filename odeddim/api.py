"""solve, encode, decode, sample: integrations of the one ODE.

Shapes: images and latents are (B, C, H, W), images in [-1, 1]. A latent `x_T` has unit variance, x_T = x̄/√(1+σ_T²),
which for DDPM's networks is the network's input; a `State` holds x̄ = x/√α at its σ. Results lie on the model's device,
in the state's dtype: float64 if the input was float64, else float32, whatever the network uses.

A latent model's ODE moves the data that its autoencoder makes of images: images are what goes in and comes out here,
and latents have the data's shape. `integrate` is the bare ODE, and `field.on_data()` a model whose images are its data.

Many images are run in batches, `batch_size=64` or "auto", and the results are put together where the input lies, for
they need not fit into the memory of a GPU. They are those of one run of all images: the same bits if the network gives
an image the same bits in any batch, as exact fields, element-wise networks and fields with a `network_batch` do, and
otherwise up to the last digits of the network. Only torchdiffeq's adaptive solvers give the images of a batch common
steps, so that their results depend on it.

`solve`, `encode`, `decode` and `sample` are differentiable as torch's own functions are: where gradients are on, and
the input, the network's parameters or a tensor inside the field need one, the result carries it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults, solvers
from odeddim.latents.decoding import decoding_plan
from odeddim.latents.interpolate import interpolate as interpolate
from odeddim.models import DEFAULT, load
from odeddim.models.objects import DiffusersObject
from odeddim.ode.devices import products
from odeddim.ode.field import VectorField
from odeddim.ode.portable import MARGIN, NOT_CERTIFIED, narrowed, noise_for, uncertain
from odeddim.ode.schedule import Schedule
from odeddim.plans import Callback, Grid, Plan, check_encodes, integrate
from odeddim.runs.batches import Batches, BatchSize
from odeddim.runs.parallel import Parallel
from odeddim.runs.progress import Progress
from odeddim.solvers.stochastic import noise as noise
from odeddim.types import Gradients, InputError, OdeSettings, Settings, Solver, State

Model: TypeAlias = str | Path | VectorField | DiffusersObject
"""A model as `load` takes it: a name, a path, a VectorField, or a pipeline of diffusers."""
LOWEST_TOP = 5.0
"""Noise below which an image shines through: its share of x is then more than 1/√(1+5²) = 20%."""


def solve(
    x_T: Tensor | np.ndarray,
    solver: str | Solver = defaults.SOLVE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    top: str | None = None,
    plan: Plan | None = None,
    batch_size: BatchSize = None,
    progress: Progress = False,
    callback: Callback | None = None,
    gradients: Gradients = None,
    parallel: Parallel | int | None = None,
    portable: bool = False,
    **settings: Unpack[Settings],
) -> Tensor:
    """Decode latents to images: the ODE from noise to the data.

    Args:
        x_T: The latents, (B, C, H, W) of unit variance, a tensor or a NumPy array, float32 or float64 (smaller dtypes
            become float32). They lie at the grid's last node, which may be below σ_T but not below σ = 5, where images
            show through the noise.
        solver: A name of `odeddim.solvers.names()`, or a row of your own.
        model: A built-in name, the path of a model, a VectorField, or a pipeline of diffusers; see `load`.
        steps: The number of steps, 50 by default. Adaptive solvers take none.
        grid: A name of `odeddim.ode.grids.NAMES`, the path of a grid file, the nodes themselves (rising σ), or None for
            the grid that the solver recommends. Adaptive solvers keep only the ends of nodes, and take no name.
        end: Where the image lies: "zero" (σ = 0, as in the paper) or "sigma_min" (the model's lowest σ).
        top: "gaussian:σ_s" for a run whose solver goes up to the noise level σ_s only, from where the Gaussian of the
            model's data carries, exactly and at no evaluation; "gaussian" for the σ_s that suits the number of
            evaluations, which may be none; "model" or None for none. See `odeddim.ode.tops`.
        plan: What to run, as `plan` makes it, in place of solver, steps, grid, end, top and settings.
        batch_size: The number of images in work at once; None for all. "auto" finds how many fit: it begins with all
            of them (on a CPU with 32), goes down to the next power of two whenever memory runs out, and remembers what
            fits this model and solver until the process ends. With a batch size the result lies where x_T does.
        progress: True for a bar in a terminal and a notebook, and lines at growing intervals elsewhere; or a function,
            called as progress(done, total) with numbers of images, of which a batch under way counts in part.
        callback: Called as callback(step, sigma, xbar) after each step of a batch, see `integrate`. Batches come one
            after another, and one that did not fit comes again.
        gradients: How gradients are found, where they are on and x_T, the network's parameters or a tensor inside the
            field need one: "reversible" rebuilds the states of a reversible solver backwards, exactly; "checkpoint"
            evaluates the network again at each state; "direct" keeps all that the network computes, whose memory grows
            with the steps. None takes the first of these that the solver has (`Solver.gradients`). Of a reversible
            solver the last two do its operations in floating point, not exactly. `VectorField.nfe` counts the
            evaluations of a backward pass too.
        parallel: A window, or a `Parallel` with a tolerance too: so many evaluations of each image are made in one
            batch, in rounds until the result is that of the run to this tolerance. For a solver of the one-step or the
            multistep family, without gradients; the callback is called once a batch, at its end. None evaluates one
            node after the other.
        portable: Whether the bits are to be the same for any number of threads, batch, backend and machine, which takes
            a network in float64 and a solver with fixed steps (docs/portable.md). A model that is named is loaded so. A
            warning names the images for which that is not certified.
        **settings: The solver's own settings, such as rtol; `odeddim.types.Settings` has all of them. Settings that
            only a row of your own has go through its `Solver.with_settings`.

    Returns:
        The images x_0, (B, C, H, W), nominally in [-1, 1] and not clipped, in the state's dtype on the model's device.

    Raises:
        InputError: An argument cannot be used.
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13 and 14.

    Example:
        >>> x_T = odeddim.noise(2, (1, 28, 28), seed=0)
        >>> odeddim.solve(x_T, solver="euler", steps=2).shape
        torch.Size([2, 1, 28, 28])
    """
    field = _loaded(model, portable, plan)
    plan = _portably(planned(field, plan, solver, defaults.SOLVE, steps, grid, end, settings, top), portable)
    state = at_the_top(field.schedule, plan, state_dtype(x_T))
    return _decoded(Batches(field, in_parallel(plan, parallel), batch_size, progress, callback), state, gradients)


def encode(
    x_0: Tensor | np.ndarray,
    solver: str | Solver = defaults.ENCODE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    top: str | None = None,
    start: str | None = None,
    plan: Plan | None = None,
    batch_size: BatchSize = None,
    progress: Progress = False,
    callback: Callback | None = None,
    gradients: Gradients = None,
    parallel: Parallel | int | None = None,
    portable: bool = False,
    **settings: Unpack[Settings],
) -> State:
    """Encode images to their latents: the same ODE, walked along rising noise levels.

    Every evaluation is made at the label of the step's source; a solver that inverts the decoding of another one makes
    them where that decoding does.

    Args:
        x_0: The images, (B, C, H, W) in [-1, 1], a tensor or a NumPy array, float32 or float64 (smaller dtypes become
            float32).
        solver: A name of `odeddim.solvers.names()`, or a row of your own; not one that adds noise.
        model, steps, grid, end, top, plan, batch_size, progress, callback, gradients, parallel, portable, **settings:
            As of `solve`. Portable latents have in their report the "margin" of each: at least 1 if it is certified.
        start: "forward:K" makes the first K steps by adding noise to the image, x̄ = x_0 + σ_K·z, and lets the solver go
            on from there, with N - K evaluations less in all: the latents are whiter, and their images do not come back
            (arXiv 2410.23530). "forward:K:SEED" has another seed than 0; image i gets the noise of (seed, i). Not for
            reversible and adaptive solvers. None: the solver makes all steps.

    Returns:
        The State at the grid's last node, σ_T by default: its `State.x` has unit variance there. Its `aux` holds what a
        reversible solver needs for the exact way back, and its `report` what the solver says of each image.

    Raises:
        InputError: An argument cannot be used.
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, section 4.3 and eq. 14.

    Example:
        >>> images = odeddim.solve(odeddim.noise(2, (1, 28, 28)), steps=2)
        >>> state = odeddim.encode(images, "belm", steps=4)
        >>> state.x.shape, state.x.dtype
        (torch.Size([2, 1, 28, 28]), torch.float32)
    """
    field = _loaded(model, portable, plan)
    plan = _portably(planned(field, plan, solver, defaults.ENCODE, steps, grid, end, settings, top, start), portable)
    check_encodes(plan.solver)
    images = state_dtype(x_0)
    if batch_size is not None or images.ndim < 2:  # before hours of work on those before it
        field.check(images, field.image_sizes)

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> State:
        begin = plan.begun(to_data(field, images[rows]), rows.start)
        return _told(integrate(field, begin, plan, callback=callback, gradients=gradients), rows)

    batches = Batches(field, in_parallel(plan, parallel), batch_size, progress, callback)
    state = batches.run(batch, len(images), images.device, "encoding", tuple(images.shape[1:]))
    return replace(state, plan=encoded_by(field, plan, len(images), batch_size, parallel))


def decode(
    state: State,
    solver: str | Solver | None = None,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str | None = None,
    top: str | None = None,
    plan: Plan | None = None,
    batch_size: BatchSize = None,
    progress: Progress = False,
    callback: Callback | None = None,
    gradients: Gradients = None,
    parallel: Parallel | int | None = None,
    portable: bool | None = None,
    **settings: Unpack[Settings],
) -> Tensor:
    """Decode a State to images: the inverse direction of `encode`, with any solver.

    With the reversible solver, the nodes and the batch that encoded, the images are those encoded, bit for bit. A
    warning says where another solver, other nodes or settings, or another dtype of the state make that impossible. A
    network that answers otherwise than it did (its dtype, device, batch, threads, PyTorch) is not noticed here.

    Args:
        state: The latents, xbar (B, C, H, W) at the noise level where the grid ends.
        solver: A name of `odeddim.solvers.names()`, or a row of your own.
        model, steps, grid, end, top, plan, batch_size, progress, callback, gradients, parallel, portable, **settings:
            As of `solve`. What is not given of the run is as the state was encoded (`State.plan`).
            Latents made of others are decoded by the solver of `solve`, and so are a state that was not encoded, and
            one that was encoded under another condition or by another model (a warning says so): its exact way back
            leads to the images that were encoded. `end` is always that of the encoding.

    Returns:
        The images x_0, (B, C, H, W), nominally in [-1, 1] and not clipped, in the state's dtype on the model's device.

    Raises:
        InputError: An argument cannot be used, or the grid does not end at the state's σ.
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13 and 14.

    Example:
        >>> images = odeddim.solve(odeddim.noise(2, (1, 28, 28)), steps=2)
        >>> state = odeddim.encode(images, "belm", steps=4)
        >>> torch.equal(odeddim.decode(state), images)
        True
    """
    if not isinstance(state, State):
        raise InputError(
            f"decode takes a State, as encode gives it, not {type(state).__name__}; solve takes x_T itself"
        )
    field = _loaded(model, portable, plan or state.plan)
    state, plan = to_decode(field, state, solver, steps, grid, end, plan, settings, top, portable)
    return _decoded(Batches(field, in_parallel(plan, parallel), batch_size, progress, callback), state, gradients)


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
    top: str | None = None,
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    plan: Plan | None = None,
    batch_size: BatchSize = None,
    progress: Progress = False,
    callback: Callback | None = None,
    gradients: Gradients = None,
    parallel: Parallel | int | None = None,
    portable: bool = False,
    **settings: Unpack[OdeSettings],
) -> Tensor:
    """Generate images from noise: image i is the same whatever n and the batch are.

    Args:
        n: The number of images.
        solver: A name of `odeddim.solvers.names()`, or a row of your own. By default that of `solve`, and "ddim-eta"
            for an `eta` above 0.
        seed: The noise of an image depends on (seed, its index) only.
        eta: How much noise a stochastic solver adds, 0 for none; None for the solver's own. Of "euler" and "ddim-eta"
            it is DDIM's η, between 0 (the ODE) and 1 (DDPM).
        model, steps, grid, end, top, plan, progress, callback, gradients, parallel, portable, **settings: As of
            `solve`. The noise of portable images is another one, which is the same on any machine.
        batch_size: As of `solve`; with a batch size the images are put together on the CPU.
        shape: The (C, H, W) of the images, for models that take several sizes or any; by default the model's own.
        start: The index of the first image.

    Returns:
        The images, (n, C, H, W) float32, nominally in [-1, 1] and not clipped, on the model's device.

    Raises:
        InputError: An argument cannot be used, the model takes no such shape, or it takes any and none is given.
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 12 and 16.

    Example:
        >>> images = odeddim.sample(2, steps=5, seed=1)
        >>> torch.allclose(images[1:], odeddim.sample(1, steps=5, seed=1, start=1), atol=1e-4)
        True
    """
    field = _loaded(model, portable, plan)
    where = field.shape_of_data(shape)
    usual = defaults.for_sampling(eta)
    plan = _portably(planned(field, plan, solver or usual, usual, steps, grid, end, settings, top), portable)
    plan = plan.with_solver(with_noise(plan.solver, eta=eta, seed=seed, start=start))

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> Tensor:
        count, first = rows.stop - rows.start, start + rows.start
        end = from_noise(field, plan, count, where, seed, first, callback=callback, gradients=gradients)
        return to_images(field, _told(end, rows).xbar)

    batches = Batches(field, in_parallel(plan, parallel), batch_size, progress, callback)
    return batches.run(batch, n, torch.device("cpu"), "sampling", where)


def from_noise(
    field: VectorField, plan: Plan, n: int, shape: tuple[int, ...], seed: int, start: int, **how: Any
) -> State:
    """The ends of runs down from noise, with their margins if the plan is portable.

    Args:
        field: The model.
        plan: The plan.
        n, shape, seed, start: Of the noise, as of `noise`; the shape is that of the data.
        **how: callback and gradients, as of `integrate`.
    """
    fresh, margin = noise_for(plan, n, shape, seed, start)
    return narrowed(integrate(field, at_the_top(field.schedule, plan, fresh), plan, **how), margin)


def _loaded(model: Model, portable: bool | None, plan: Plan | None) -> VectorField:
    """The model; in float64 if it is named, and the run is portable: as asked, or as the plan says."""
    portable = portable or getattr(plan, "portable", False)
    return load(model, dtype="float64") if portable and isinstance(model, (str, Path)) else load(model)


def _portably(plan: Plan, portable: bool | None) -> Plan:
    """The plan, portable if that was asked for."""
    return plan.portably() if portable else plan


def _told(end: State, rows: slice) -> State:
    """The end of a run of these images. If it is portable, a warning names those that are not certified."""
    if MARGIN in end.report and (places := uncertain(end.report[MARGIN])):
        named = ", ".join(str(rows.start + place) for place in places)
        warnings.warn(NOT_CERTIFIED.format(f"images {named} are"), stacklevel=4)
    return end


def in_parallel(plan: Plan, parallel: Parallel | int | None) -> Plan:
    """What runs: the plan, or its run in parallel. It is the plan itself that is kept with the results."""
    made = Parallel.of(parallel)
    return plan if made is None else made.on(plan)


def encoded_by(
    field: VectorField, plan: Plan, total: int, batch_size: BatchSize, parallel: Parallel | int | None = None
) -> Plan:
    """The plan with the model in its notes, and with the batch that its network saw, if that was the same throughout.

    Args:
        field: The model.
        plan: The plan that encoded.
        total: The number of images.
        batch_size, parallel: As of `encode`.
    """
    seen = field.network_batch or (total if batch_size is None else batch_size)
    alike = isinstance(seen, int) and (seen == field.network_batch or total % seen == 0)
    made = Parallel.of(parallel)
    alike = alike and (made is None or field.network_batch is not None)  # windows are of many lengths
    notes: dict[str, Any] = {"network_batch": seen} if alike else {}
    notes |= {} if made is None else {"parallel": made.to_dict()}
    return plan.noted(field, **notes)


def to_decode(
    field: VectorField,
    state: State,
    solver: str | Solver | None,
    steps: int | None,
    grid: Grid,
    end: str | None,
    plan: Plan | None,
    settings: Mapping[str, Any],
    top: str | None = None,
    portable: bool | None = None,
) -> tuple[State, Plan]:
    """The state from which `decode` starts, and the plan that it walks.

    Args:
        field: The model.
        state, solver, steps, grid, end, plan, settings, top, portable: As of `decode`, which warns and raises alike.

    Returns:
        The state, without a way back that is another model's, and the plan.
    """
    if state.plan is not None and state.plan.unlike(field):
        if others := state.plan.of_another(field):
            warnings.warn(f"the latents were encoded {others}: a bridge, which starts from x̄ alone", stacklevel=3)
        state = replace(state, aux=(), kept="", combined=True)  # the way back is that of the network that encoded
    if plan is None and state.plan is not None:
        if end not in (None, state.plan.end):
            raise InputError(f"the images of the state lie at the end {state.plan.end!r}: leave out end={end!r}")
        own = state.plan if portable is None else state.plan.portably(False)
        plan = decoding_plan(
            own, field.schedule, solver, steps, grid, settings,
            top=top, moments=field.moments, alone=state.combined,
        )  # fmt: skip
        plan = _portably(plan, portable)
    else:
        usual = defaults.for_decoding(state.kept, state.combined)
        plan = _portably(
            planned(field, plan, solver or usual, usual, steps, grid, end or "zero", settings, top), portable
        )
    row = plan.solver
    if not plan.ends_at(state.sigma):
        raise InputError(f"the latent lies at σ = {state.sigma:.9g}, but the grid ends at σ = {plan.top:.9g}")
    kept_by = state.kept.partition(" ")[0]
    if kept_by not in ("", row.name) and not (state.combined or row.stochastic):
        warnings.warn(
            f"the latents were kept by {kept_by!r} for its way back, and {row.name!r} starts from x̄ alone: the images "
            f"do not come back exactly; decode with {kept_by!r} for that",
            stacklevel=3,
        )
    aux = tuple(state_dtype(part) for part in state.aux)
    return replace(state, xbar=state_dtype(state.xbar), aux=aux), plan


def _decoded(batches: Batches, state: State, gradients: Gradients) -> Tensor:
    """The images of latents, batch by batch."""
    field = batches.field
    if batches.size is not None or state.xbar.ndim < 2:
        field.check(state.xbar)

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> Tensor:
        part = state if batches.size is None else state[rows]
        end = integrate(field, part, plan, callback=callback, gradients=gradients)
        return to_images(field, _told(end, rows).xbar)

    return batches.run(batch, len(state), state.xbar.device, "decoding", tuple(state.xbar.shape[1:]))


def to_data(field: VectorField, images: Tensor) -> Tensor:
    """What a model's ODE begins at: the images, or what a latent model's autoencoder makes of them.

    Args:
        field: The model.
        images: (B, C, H, W) in [-1, 1].

    Returns:
        The data, (B, *), float64 if the images are, else float32; on the model's device if there is an autoencoder.

    Raises:
        InputError: The images are not floating point tensors, or of no size that the model takes.
    """
    images = state_dtype(images)
    if field.codec is None:
        return images
    field.check(images, field.image_sizes)
    with products(field.device):
        return field.codec.encode(images)


def to_images(field: VectorField, data: Tensor) -> Tensor:
    """The images of the data that a model's ODE ends at: the inverse direction of `to_data`.

    Args:
        field: The model.
        data: (B, *), float32 or float64.

    Returns:
        The images, (B, C, H, W), nominally in [-1, 1] and not clipped: the data itself if there is no autoencoder.
    """
    with products(field.device):
        return data if field.codec is None else field.codec.decode(data)


def with_noise(row: Solver, *, eta: float | None = None, seed: int = 0, start: int = 0) -> Solver:
    """The row that samples: a stochastic one with its noise settled, and for η > 0 the row's stochastic form.

    Args:
        row: The solver's row.
        eta: The amount of noise, such as DDIM's η; None for the row's own.
        seed, start: The noise of image i in step n depends on (seed, start + i, n) only.

    Returns:
        The row with these settings; a row of the ODE as it is.

    Raises:
        InputError: η is above 0 for a row that has no stochastic form, and is none.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 16.
    """
    if row.stochastic_form and eta:
        row = solvers.get(row.stochastic_form)
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
    top: str | None = None,
    start: str | None = None,
    portable: bool = False,
    **settings: Unpack[Settings],
) -> Plan:
    """What a run will do, decided before it runs: for `plan=` of `solve`, `encode`, `decode` and `sample`, and a file.

    Args:
        model: As of `load`; its noise levels bound the nodes.
        solver: A name of `odeddim.solvers.names()`, or a row of one's own.
        steps: The number of steps; 50 unless given.
        grid: A name of `odeddim.ode.grids.NAMES`, a file, the nodes themselves, or None for the solver's own.
        end: "zero" or "sigma_min" (see `odeddim.ode.grids`).
        top: As of `solve`.
        start: How an encoding begins, such as "forward:3", see `encode`.
        portable: As of `solve`.
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
    made = planned(load(model), None, solver, defaults.SOLVE, steps, grid, end, settings, top, start)
    return _portably(made, portable)


def planned(
    field: VectorField,
    plan: Plan | None,
    solver: str | Solver,
    usual: str,
    steps: int | None,
    grid: Grid,
    end: str,
    settings: Mapping[str, Any],
    top: str | None = None,
    start: str | None = None,
) -> Plan:
    """The plan given, checked for this model, or that of the other arguments; an InputError for both at once."""
    if plan is None:
        if top is not None and not isinstance(top, str):
            raise InputError(f"top= takes 'model', 'gaussian' or 'gaussian:σ', not {top!r}")
        return Plan.of(field.schedule, solver, steps, grid, end, settings, top=top, moments=field.moments, start=start)
    said = {"solver": solver != usual, "steps": steps is not None, "grid": grid is not None, "end": end != "zero"}
    said |= {key: value is not None for key, value in {"top": top, "start": start, **settings}.items()}
    if not isinstance(plan, Plan):
        raise InputError(f"plan= takes a Plan, as odeddim.plan makes it, not {type(plan).__name__}")
    return plan.alone(field.schedule, said)


def at_the_top(schedule: Schedule, plan: Plan, x_T: Tensor) -> State:
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


def state_dtype(x: Tensor | np.ndarray) -> Tensor:
    """An image or latent tensor, or NumPy array, in the state's dtype: float64 if it is that, else float32.

    Raises:
        InputError: It is neither, or not floating point.
    """
    if not isinstance(x, (Tensor, np.ndarray)):
        raise InputError(
            f"images and latents are tensors or NumPy arrays (B, C, H, W), not {type(x).__name__}: "
            "torch.as_tensor(...) makes one"
        )
    if not (x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"):
        raise InputError(
            f"images and latents are floating point, images in [-1, 1], not {x.dtype}: pixels from 0 to 255 become "
            "that by x / 127.5 - 1"
        )
    if isinstance(x, np.ndarray):  # torch takes no other byte order, no longer numbers and no negative strides
        return torch.from_numpy(np.ascontiguousarray(x, np.float64 if x.dtype.itemsize >= 8 else np.float32))
    return x if x.dtype == torch.float64 else x.to(torch.float32)
