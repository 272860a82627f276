"""The certificate of each latent, and runs with as many steps for each image as a tolerance needs.

A certificate is measured: the latent is decoded again, and the image is encoded again by a more accurate run, whose
latent tells how far this one is from the ODE's. These are two different errors: a solver may come back exactly from a
latent that is wrong.

Except in `certify`, images are here what the ODE moves: for latent models the data that `odeddim.api.to_data` returns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults, solvers
from odeddim.api import Model, planned, state_dtype, to_data
from odeddim.checks.whiteness import FIGURES, statistics
from odeddim.latents.arithmetic import rms
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.ode.grids import is_named
from odeddim.ode.schedule import Schedule
from odeddim.plans import Grid, Plan, check_encodes, integrate
from odeddim.types import InputError, Settings, Solver, State, pick

CERTIFICATE = ("round_trip", "latent_error", "evaluations", *FIGURES)
"""The figures of a certificate.

round_trip: The rms over pixels of the image decoded again minus the image, with images in [-1, 1]; for latent models
over their data, whose variance is about 1.
latent_error: An estimate of the rms distance of x_T to the ODE's (`latent_error`).
evaluations: Evaluations of the network to encode; NaN if the solver does not report them for each image.
The others are statistics of x_T (`odeddim.checks.whiteness.statistics`).
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
"""How bad the values of each figure are, the larger the worse. They sort the worst images to the front."""

LADDER = (10, 20, 40, 80, 160, 320, 640)
"""The numbers of steps that a tolerance tries, one after the other."""

REFERENCE = "unipc-3"
"""The solver that others are compared with, over even steps in log σ: its error has little in common with theirs."""

MORE = 2
"""The evaluations of the reference run over those of the run that it judges."""

LEAST = 40
"""The fewest evaluations of the reference run: with fewer it is no more accurate than what it judges."""


Rungs = Mapping[int, Plan]
"""Plans of one solver by their numbers of steps, rising: what a tolerance tries, one after the other."""


@torch.no_grad()
def certify(
    x_0: Tensor,
    solver: str | Solver = defaults.ENCODE,
    *,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str = "zero",
    plan: Plan | None = None,
    **settings: Unpack[Settings],
) -> tuple[State, dict[str, Tensor]]:
    """Encode images and measure how good each latent is.

    It takes 4 times the evaluations of encoding, and more if those are few or differ from image to image.

    Args:
        x_0: The images, (B, C, H, W) in [-1, 1], float32 or float64.
        solver, model, steps, grid, end, plan, **settings: As of `odeddim.encode`.

    Returns:
        The State, as `odeddim.encode` returns it, and the figures of `odeddim.checks.certificate.CERTIFICATE` by name,
        (B,) float64 on the CPU. For a latent model they are in the units of its data, without what its autoencoder
        loses.

    Raises:
        InputError: If an argument cannot be used.
        BudgetExceeded: If an adaptive run reaches max_nfe; the error holds the best state so far.

    Example:
        >>> images = odeddim.sample(2, model="exact-gaussian", steps=5, shape=(1, 4, 4))
        >>> state, figures = odeddim.certify(images, "belm", model="exact-gaussian", steps=10)
        >>> figures["latent_error"].shape, bool((figures["round_trip"] < 1e-6).all())
        (torch.Size([2]), True)
    """
    field = load(model)
    plan = planned(field, plan, solver, defaults.ENCODE, steps, grid, end, settings)
    check_encodes(plan.solver)
    start = State(to_data(field, x_0), float(plan.nodes[0]))
    state = integrate(field, start, plan)
    spent = torch.full((len(x_0),), plan.evaluations, dtype=torch.float64)
    return state, certificate(start.xbar, state, plan, field, state.report.get("evaluations", spent))


def certificate(x_0: Tensor, state: State, plan: Plan, field: VectorField, evaluations: Tensor) -> dict[str, Tensor]:
    """The certificate of latents that were encoded before.

    Args:
        x_0: The images, (B, *), in the state's dtype.
        state: Their latents, as the plan encoded them.
        plan: The plan.
        field: The model.
        evaluations: The evaluations that each image took, (B,).

    Returns:
        The figures of `CERTIFICATE` by name, (B,) float64 each, on the CPU.
    """
    again = integrate(field, state, plan).xbar
    return {
        "round_trip": rms(again - x_0.to(again.device)),
        "latent_error": latent_error(x_0, state, plan, field, evaluations),
        "evaluations": evaluations.to("cpu", torch.float64),
        **statistics(state.x),
    }


def latent_error(x_0: Tensor, state: State, plan: Plan, field: VectorField, evaluations: Tensor) -> Tensor:
    """An estimate of how far each latent is from the ODE's.

    It is the distance to the latent of another run from the same image, `reference`, with `MORE` times the evaluations
    of a run of the plan, and at least `LEAST`. If the solver chooses its evaluations image by image, the number is the
    next larger one of `LADDER`, at most its last.

    Args:
        x_0, state, plan, field, evaluations: As of `certificate`.

    Returns:
        The rms of the difference of the two x_T, (B,) float64 on the CPU.
    """
    error = torch.empty(len(x_0), dtype=torch.float64)
    for count, rows in _groups(_more(plan, evaluations)):
        x_T = reference(State(x_0[rows], float(plan.nodes[0])), plan, count, field).x
        error[rows] = rms(state.x[rows.to(state.xbar.device)].to(x_T.device) - x_T)
    return error


def reference(start: State, plan: Plan, count: int, field: VectorField) -> State:
    """The result of the run that others are judged by: `REFERENCE` over even steps in log σ.

    The node next to 0 is σ_1, whatever the plan has, because the error of a longer Euler step, such as that of the grid
    "linear", is to be part of the estimate.

    Args:
        start: The state where the run starts, at the first node of the plan or at the last.
        plan: The plan, whose ends are those of the run.
        count: The evaluations of the run.
        field: The model.

    Returns:
        The state at the other end of the plan.
    """
    row, nodes = solvers.get(REFERENCE), plan.nodes
    low, high = nodes[[0, -1]].tolist()
    ends = [0.0] if low == 0 else []
    lowest = low or min(field.schedule.sigma_min, float(nodes[nodes > 0].min()))
    steps = count - sum(row.warmup) - len(ends)
    inner = lowest * (high / lowest) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    inner[-1] = high  # exactly
    rising = torch.cat([nodes.new_tensor(ends), inner])
    return integrate(field, start, Plan(row, rising, "log", plan.end))


def certificate_of_rungs(x_0: Tensor, state: State, rungs: Rungs, field: VectorField) -> dict[str, Tensor]:
    """The certificate of latents that `encode_to` made, each with as many steps as its `report` says.

    Args:
        x_0: The images, (B, *), in the state's dtype.
        state: Their latents.
        rungs: The plans that `encode_to` tried.
        field: The model.

    Returns:
        The figures of `CERTIFICATE` by name, (B,) float64 each, on the CPU.
    """
    steps = state.report["steps"]
    whole = {name: torch.full((len(steps),), torch.nan, dtype=torch.float64) for name in CERTIFICATE}
    for count, rows in _groups(steps):
        some = State(state.xbar[rows.to(state.xbar.device)], state.sigma)
        spent = state.report["evaluations"][rows]
        for name, values in certificate(x_0[rows], some, rungs[count], field, spent).items():
            whole[name][rows] = values
    return whole


def worst(figures: Mapping[str, Tensor], by: str) -> Tensor:
    """The order of images by one of their figures, the worst first.

    Args:
        figures: The figures, (N,) by name.
        by: The name of the figure.

    Returns:
        The indices of the images, (N,) int64; images whose figure is NaN come before all others.

    Raises:
        InputError: If there is no such figure.
    """
    badness = BADNESS[pick(by, BADNESS, "figure")](figures[by].double())
    return torch.argsort(badness.nan_to_num(torch.inf), descending=True, stable=True)


def _more(plan: Plan, spent: Tensor) -> Tensor:
    """The evaluations of the reference run for each image, (B,) int64, given those of the image, (B,)."""
    own = plan.evaluations
    if not math.isnan(own):
        return torch.full((len(spent),), max(LEAST, int(MORE * own)))
    rungs = torch.tensor([count for count in LADDER if count >= LEAST])  # few different numbers make large batches
    return rungs[torch.searchsorted(rungs, MORE * spent.to("cpu", torch.float64)).clamp(max=len(rungs) - 1)]


def _groups(counts: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The images by their count, (B,): each count with the indices of its images, (b,) int64."""
    for count in sorted(set(counts.tolist())):
        yield count, (counts == count).nonzero()[:, 0]


def rungs_of(
    schedule: Schedule, solver: str | Solver, steps: int | None, grid: Grid, end: str, settings: Mapping[str, object]
) -> Rungs:
    """The plans that a tolerance tries: the same run with more and more steps (`LADDER`), as far as the grid has room.

    Args:
        schedule: The noise levels of the model.
        solver, grid, end, settings: As of `Plan.of`.
        steps: The number of steps, which must be None.

    Returns:
        The plans by their numbers of steps.

    Raises:
        InputError: If the solver is adaptive, steps are given, or the grid has steps of its own or ends at another
            noise level with each number of steps.
    """
    row = solvers.get(solver) if isinstance(solver, str) else solver
    if row.adaptive:
        raise InputError(f"tol=... chooses the steps, as solver {row.name!r} does itself: give rtol=... and atol=...")
    if steps is not None or (grid is not None and not (isinstance(grid, str) and is_named(grid))):
        raise InputError("tol=... chooses the steps: leave out steps=..., and name the grid")
    rungs = {LADDER[0]: Plan.of(schedule, row, LADDER[0], grid, end, settings)}
    for count in LADDER[1:]:
        with contextlib.suppress(InputError):  # grids of whole labels have no room for more than the model has
            rungs[count] = Plan.of(schedule, row, count, grid, end, settings)
    if len({plan.top for plan in rungs.values()}) > 1:
        raise InputError(
            f"tol=... compares numbers of steps, but the grid {grid!r} ends at another noise level for each of them: "
            "give grid='trailing' or grid='linear'"
        )
    return rungs


def encode_to(tolerance: float, x_0: Tensor, rungs: Rungs, field: VectorField) -> tuple[State, dict[str, Tensor]]:
    """Encode each image with the fewest steps whose round trip keeps the tolerance.

    Args:
        tolerance: The largest rms over pixels of the image decoded again minus the image.
        x_0: The images, (B, *).
        rungs: The plans to try, of `rungs_of`. An image that keeps the tolerance with none of them has the last.
        field: The model.

    Returns:
        The State, whose `report` has the "steps" and all "evaluations" of each image; and the figure "round_trip" (B,).

    Raises:
        InputError: If the solver is reversible: it comes back exactly even from a wrong latent, so any number of steps
            would keep the tolerance.
    """
    row = next(iter(rungs.values())).solver
    if row.reversible:
        raise InputError(
            f"solver {row.name!r} comes back exactly with any number of steps, even from a wrong latent, so tol=... "
            f"cannot choose the steps: give another solver, such as solver='{defaults.TOLERANCE}'"
        )
    x_0 = state_dtype(x_0)
    found = torch.empty_like(x_0, device=field.device)
    steps, spent = torch.zeros(len(x_0), dtype=torch.int64), torch.zeros(len(x_0), dtype=torch.int64)
    error = torch.full((len(x_0),), torch.inf, dtype=torch.float64)
    left = torch.arange(len(x_0))
    sigma = 0.0
    for count, plan in rungs.items():
        images, before = x_0[left], field.rows
        state = integrate(field, State(images, float(plan.nodes[0])), plan)
        again = integrate(field, state, plan).xbar
        found[left.to(found.device)], sigma = state.xbar, state.sigma
        error[left] = rms(again - images.to(again.device))
        steps[left] = count
        spent[left] += (field.rows - before) // len(left)
        left = left[~(error[left] <= tolerance)]
        if not len(left):
            break
    return State(found, sigma, report={"steps": steps, "evaluations": spent}), {"round_trip": error}


def decode_to(tolerance: float, state: State, rungs: Rungs, field: VectorField) -> tuple[Tensor, Tensor, Tensor]:
    """Decode each latent with the fewest steps whose image is within the tolerance of the ODE's, by an estimate.

    The estimate is the distance to the image of the `reference`, rms over pixels, as in `latent_error`. The image of
    half the steps would not serve: its nodes are among those of the whole run, so if the network's answer oscillates
    in its label both runs make the same error.

    Args:
        tolerance: The largest estimate.
        state: The latents, xbar (B, *).
        rungs: The plans to try, of `rungs_of`. A latent that keeps the tolerance with none of them has the last.
        field: The model.

    Returns:
        The images (B, *), the steps (B,), and the estimates (B,).
    """
    plain = replace(state, aux=(), kept="", report={})  # aux belong to one list of nodes
    left = torch.arange(len(state.xbar))
    images = torch.empty_like(state.xbar, device=field.device)
    steps, error = torch.zeros(len(left), dtype=torch.int64), torch.full((len(left),), torch.inf, dtype=torch.float64)
    for count, plan in rungs.items():
        some = replace(plain, xbar=plain.xbar[left.to(plain.xbar.device)])
        now = integrate(field, some, plan).xbar
        more = max(LEAST, int(MORE * plan.evaluations_down))
        error[left] = rms(now - reference(some, plan, more, field).xbar)
        images[left.to(images.device)], steps[left] = now, count
        left = left[~(error[left] <= tolerance)]
        if not len(left):
            break
    return images, steps, error


def decode_as_encoded(state: State, rungs: Rungs, field: VectorField) -> Tensor:
    """Decode latents that `encode_to` made, each with as many steps as its `report` says.

    Args:
        state: The latents, xbar (B, *).
        rungs: The plans that `encode_to` tried.
        field: The model.

    Returns:
        The images, (B, *).
    """
    images = torch.empty_like(state.xbar, device=field.device)
    for count, rows in _groups(state.report["steps"]):
        some = State(state.xbar[rows.to(state.xbar.device)], state.sigma)
        images[rows.to(images.device)] = integrate(field, some, rungs[count]).xbar
    return images
