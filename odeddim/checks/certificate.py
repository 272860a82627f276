"""How good each latent is, by figures of its own, and as many steps for each image as a tolerance asks for.

A certificate is made of runs, not of promises: the image is decoded again, and encoded again by a more accurate run,
whose latent tells how far this one is from the ODE's. Two different things: a method may come back exactly from a
latent that is wrong.

But for `certify`, images are here what the ODE moves: of latent models the data that `odeddim.api.to_data` gives.
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
"""What is certified of each latent.

round_trip: rms over pixels of the image decoded again minus the image, images in [-1, 1]; of latent models over their
data, which have a variance of about 1. latent_error: an estimate of the rms distance of x_T to the ODE's
(`latent_error`). evaluations: of the network, to encode, NaN where a solver does not tell them of each image. The
others are statistics of x_T (`odeddim.checks.whiteness.statistics`).
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

REFERENCE = "unipc-3"
"""The row that others are compared with, over even steps in log σ: its error has little in common with theirs."""

MORE = 2
"""The evaluations of that run over those of the one it judges."""

LEAST = 40
"""The fewest evaluations of that run: with less it is no better than what it judges."""


Rungs = Mapping[int, Plan]
"""Plans of one solver by their numbers of steps, rising: what a tolerance tries, one after the other."""


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
    """Encode images and say how good each latent is: x_0 (B, C, H, W) in [-1, 1] -> State, figures (B,) by name.

    Arguments and errors as of `odeddim.encode`; the figures are those of `CERTIFICATE`, of a latent model in the units
    of its data: what its autoencoder loses is not in them. It takes 4 times the evaluations of encoding, more where
    those are few or each image has its own (`latent_error`).
    """
    field = load(model)
    plan = planned(field, plan, solver, defaults.ENCODE, steps, grid, end, settings)
    check_encodes(plan.solver)
    start = State(to_data(field, x_0), float(plan.nodes[0]))
    state = integrate(field, start, plan)
    spent = torch.full((len(x_0),), plan.evaluations, dtype=torch.float64)
    return state, certificate(start.xbar, state, plan, field, state.report.get("evaluations", spent))


def certificate(x_0: Tensor, state: State, plan: Plan, field: VectorField, evaluations: Tensor) -> dict[str, Tensor]:
    """The figures of `CERTIFICATE` for latents that are there already: (B,) float64 each, on the CPU.

    x_0: the images (B, C, H, W) in the state's dtype; state: what the plan made of them, `evaluations` (B,).
    """
    again = integrate(field, state, plan).xbar
    return {
        "round_trip": rms(again - x_0.to(again.device)),
        "latent_error": latent_error(x_0, state, plan, field, evaluations),
        "evaluations": evaluations.to("cpu", torch.float64),
        **statistics(state.x),
    }


def latent_error(x_0: Tensor, state: State, plan: Plan, field: VectorField, evaluations: Tensor) -> Tensor:
    """An estimate of how far each latent is from the ODE's: rms over x_T of their difference, (B,) float64 on the CPU.

    It is the distance to the latent of another run from the same image, `reference`, with `MORE` times the evaluations
    of a run of the plan, and not fewer than `LEAST`. Of rows that choose their evaluations image by image it
    has the next larger number of `LADDER`, at most its last. The arguments are those of `certificate`.
    """
    error = torch.empty(len(x_0), dtype=torch.float64)
    for count, rows in _groups(_more(plan, evaluations)):
        x_T = reference(State(x_0[rows], float(plan.nodes[0])), plan, count, field).x
        error[rows] = rms(state.x[rows.to(state.xbar.device)].to(x_T.device) - x_T)
    return error


def reference(start: State, plan: Plan, count: int, field: VectorField) -> State:
    """Where a run that others are judged by leads: `REFERENCE` over even steps in log σ, `count` evaluations.

    start: at the first node of the plan or at its last; the run goes to the other one. Next to 0 it has the node σ_1,
    whatever the plan has: a longer Euler step there, as on the grid "linear", has an error to be seen.
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
    """The same for latents that `encode_to` made, each over as many steps as its `report` says."""
    steps = state.report["steps"]
    whole = {name: torch.full((len(steps),), torch.nan, dtype=torch.float64) for name in CERTIFICATE}
    for count, rows in _groups(steps):
        some = State(state.xbar[rows.to(state.xbar.device)], state.sigma)
        spent = state.report["evaluations"][rows]
        for name, values in certificate(x_0[rows], some, rungs[count], field, spent).items():
            whole[name][rows] = values
    return whole


def worst(figures: Mapping[str, Tensor], by: str) -> Tensor:
    """The images in the order of one of their figures, the worst first, those without it before all: (N,) int64."""
    badness = BADNESS[pick(by, BADNESS, "figure")](figures[by].double())
    return torch.argsort(badness.nan_to_num(torch.inf), descending=True, stable=True)


def _more(plan: Plan, spent: Tensor) -> Tensor:
    """How many evaluations the reference has for each image, (B,) int64. spent: of the image, (B,)."""
    own = plan.evaluations
    if not math.isnan(own):
        return torch.full((len(spent),), max(LEAST, int(MORE * own)))
    rungs = torch.tensor([count for count in LADDER if count >= LEAST])  # few different ones: batches stay together
    return rungs[torch.searchsorted(rungs, MORE * spent.to("cpu", torch.float64)).clamp(max=len(rungs) - 1)]


def _groups(counts: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The images that have the same count, (B,): each count with their places, (b,) int64."""
    for count in sorted(set(counts.tolist())):
        yield count, (counts == count).nonzero()[:, 0]


def rungs_of(
    schedule: Schedule, solver: str | Solver, steps: int | None, grid: Grid, end: str, settings: Mapping[str, object]
) -> Rungs:
    """What a tolerance tries: the same run with more and more steps (`LADDER`), as many as the grid has room for.

    Raises:
        InputError: For adaptive solvers, for steps, and for a grid that has steps of its own or ends at another noise
            level with each number of steps.
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
            f"tol=... compares numbers of steps, and the grid {grid!r} ends at another noise level for each of them: "
            "take trailing or linear"
        )
    return rungs


def encode_to(tolerance: float, x_0: Tensor, rungs: Rungs, field: VectorField) -> tuple[State, dict[str, Tensor]]:
    """Encode each image with the fewest steps whose round trip keeps the tolerance: -> State, figures (B,) by name.

    tolerance: most rms over pixels of the image decoded again minus the image x_0 (B, C, H, W). Of images that keep it
    with none of the rungs the last is taken. `State.report` has "steps" and "evaluations", all that were spent on the
    image, the figures "round_trip".
    Errors: InputError for rows that come back exactly whatever the latent, which a tolerance says nothing about.
    """
    row = next(iter(rungs.values())).solver
    if row.reversible:
        raise InputError(
            f"solver {row.name!r} comes back exactly with any number of steps, from a latent that may be wrong: "
            f"a tolerance of the round trip needs another one, as {defaults.TOLERANCE}"
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
    """Decode each latent with the fewest steps whose image is as near to the ODE's as the tolerance, by an estimate.

    The estimate is that of `latent_error`, downwards: the distance to the image of the `reference`, rms over pixels.
    Not to that of half the steps: their nodes are among those of the whole, and of a network whose answer oscillates
    in its label both then make the same error.
    Returns the images (B, C, H, W), the steps (B,), and the estimates (B,): above the tolerance for those that do not
    keep it with any of the rungs.
    """
    plain = replace(state, aux=(), kept="", report={})  # what an exact way back needs belongs to one list of nodes
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
    """Decode latents that `encode_to` made, each over as many steps as its `report` says; (B, C, H, W)."""
    images = torch.empty_like(state.xbar, device=field.device)
    for count, rows in _groups(state.report["steps"]):
        some = State(state.xbar[rows.to(state.xbar.device)], state.sigma)
        images[rows.to(images.device)] = integrate(field, some, rungs[count]).xbar
    return images
