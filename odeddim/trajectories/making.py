"""Making trajectories: a run that is walked and kept, in memory or in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import Model, at_the_top, encoded_by, planned, state_dtype, to_data, to_decode
from odeddim.latents.provenance import provenance_of
from odeddim.latents.trajectory_file import TrajectoryRun
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.plans import Callback, Grid, Plan, check_encodes
from odeddim.runs.batches import Batches, BatchSize
from odeddim.runs.dense import PathPoint, check_levels, check_shows, record
from odeddim.runs.progress import Progress
from odeddim.trajectories.path import Trajectory, held_rows
from odeddim.types import InputError, Settings, Solver, State


def trajectory(
    start: State | Tensor | np.ndarray[Any, Any],
    solver: str | Solver | None = None,
    *,
    direction: Literal["decode", "encode"] | None = None,
    model: Model = DEFAULT,
    steps: int | None = None,
    grid: Grid = None,
    end: str | None = None,
    plan: Plan | None = None,
    at: Sequence[float] | None = None,
    keep: str | Path = "device",
    overwrite: bool = False,
    batch_size: BatchSize = None,
    progress: Progress = False,
    **settings: Unpack[Settings],
) -> Trajectory:
    """Run the ODE and keep the points that it passes: x̄, ε and the predicted images x̂₀.

    The run itself is that of `solve`, `decode` or `encode`, to the bit. Its points carry no gradients. ε at a node is
    the one that the run evaluates there. A node at which the run does not evaluate takes one further evaluation: all
    nodes that `unipc-*` corrects, some of reversible solvers, and the last node of any run, unless it lies at σ = 0.

    Args:
        start: Where the run begins. Latents x_T (B, C, H, W) of unit variance, which are decoded as by `solve`;
            images, with direction="encode"; or a State, which is decoded from the top of the plan, and encoded from
            where images lie.
        solver: A name of `odeddim.solvers.names()`, or a row of your own; by default that of `solve`, `decode` or
            `encode`.
        direction: "encode" if `start` is images; a State says it by itself.
        model, steps, grid, end, plan, batch_size, progress, **settings: As of `solve`. Each batch of an adaptive solver
            has nodes of its own, so several batches of one need `at`.
        at: The noise levels that are kept; by default all nodes of the run. Only these take memory.
        keep: Where the points lie: "device", where the run is; "cpu"; or the path of an HDF5 file, t.h5, to which each
            batch is written when it is done, and which `Trajectory.load` opens again.
        overwrite: Whether to replace a file at that path that another call has made.

    Returns:
        The trajectory.

    Raises:
        InputError: An argument cannot be used, or the solver has no nodes that a batch shares (those with a step size
            for each image, SciPy's; encoding by `exact-dpmpp-2m` and `exact-ab2`).
        BudgetExceeded: An adaptive run reached max_nfe; the error holds the best state so far.

    Source:
        Song et al. 2020, arXiv 2010.02502, eq. 13 and 14.

    Example:
        >>> images = odeddim.solve(odeddim.noise(2, (1, 28, 28)), steps=2)
        >>> path = odeddim.trajectory(images, "belm", direction="encode", steps=10, at=[0.1, 1.0, 10.0])
        >>> path.sigmas.tolist(), path.eps.shape
        ([0.1, 1.0, 10.0], torch.Size([3, 2, 1, 28, 28]))
        >>> torch.equal(path.end.xbar, odeddim.encode(images, "belm", steps=10).xbar)
        True
    """
    begin = _begin(load(model), start, direction, solver, _Run(steps, grid, end, plan, settings))
    levels = None if at is None else check_levels(at, begin.plan)
    first = begin.state(slice(0, 1))
    check_shows(begin.plan, first)
    batches = Batches(begin.field, begin.plan, batch_size, progress)
    in_memory = keep in ("device", "cpu")
    if levels is None and begin.plan.solver.adaptive and not (in_memory and batch_size is None):
        raise InputError(
            f"each batch of solver {begin.plan.solver.name!r} has nodes of its own: say with at=... which noise levels "
            "to keep"
        )
    if in_memory:
        return _held(begin, batches, levels, torch.device("cpu") if keep == "cpu" else None)
    return _filed(begin, batches, levels, Path(keep), overwrite)


class _Run(NamedTuple):
    """The arguments of a run as a user gives them."""

    steps: int | None
    grid: Grid
    end: str | None
    plan: Plan | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class _Begin:
    """Where a run begins.

    Attributes:
        field: The model.
        plan: The plan.
        given: What the user gave: a State, or images, which a latent model's autoencoder makes data of.
        up: Whether the run encodes.
    """

    field: VectorField
    plan: Plan
    given: State | Tensor
    up: bool

    @property
    def tensor(self) -> Tensor:
        """What the user gave, as a tensor (B, *)."""
        return self.given if isinstance(self.given, Tensor) else self.given.xbar

    def state(self, rows: slice) -> State:
        """The start of some of the images."""
        if isinstance(self.given, Tensor):
            return State(to_data(self.field, self.given[rows]), float(self.plan.nodes[0]))
        return self.given[rows]

    def levels(self, at: Sequence[float] | None) -> list[float]:
        """The noise levels that are kept, in the order of the run."""
        return (self.plan.nodes.tolist() if at is None else list(at))[:: 1 if self.up else -1]


def _begin(
    field: VectorField,
    start: State | Tensor | np.ndarray[Any, Any],
    direction: str | None,
    solver: str | Solver | None,
    run: _Run,
) -> _Begin:
    if direction not in (None, "decode", "encode"):
        raise InputError(f"direction={direction!r}: give 'encode' for images, or leave it out")
    steps, grid, end, plan, settings = run
    if isinstance(start, State):
        low = float(plan.nodes[0]) if plan is not None else field.schedule.sigma_min
        up = start.sigma <= low
        if direction is not None and (direction == "encode") != up:
            raise InputError(
                f"the state lies at σ = {start.sigma:.6g}, so it is {'encoded' if up else 'decoded'}: leave out "
                f"direction={direction!r}"
            )
        if not up:
            return _Begin(field, *to_decode(field, start, solver, steps, grid, end, plan, settings)[::-1], False)
        given: State | Tensor = replace(start, xbar=state_dtype(start.xbar))
        if plan is None and start.sigma > 0:
            end = end or "sigma_min"
    else:
        given = state_dtype(start)
        field.check(given, field.image_sizes if direction == "encode" else None)
        if direction != "encode":
            plan = planned(field, plan, solver or defaults.SOLVE, defaults.SOLVE, steps, grid, end or "zero", settings)
            return _Begin(field, plan, at_the_top(field.schedule, plan, given), False)
    usual = defaults.ENCODE
    plan = planned(field, plan, solver or usual, usual, steps, grid, end or "zero", settings)
    check_encodes(plan.solver)
    return _Begin(field, plan, given, True)


class _Collected:
    """The points of all images, put together in the place that they will have."""

    def __init__(self, total: int, levels: Sequence[float] | None, place: torch.device | None) -> None:
        self.total, self.levels, self.place = total, levels, place
        self.whole: tuple[Tensor, Tensor] | None = None
        self.points: list[PathPoint] = []  # of one batch, whose run chooses its nodes

    def taker(self, rows: slice) -> Callable[[PathPoint], None]:
        """What takes the points of a batch."""
        self.points, made = [], iter(range(len(self.levels or ())))

        def take(point: PathPoint) -> None:
            point = point if self.place is None else point.to(self.place)
            if self.levels is None:
                self.points.append(point)
                return
            if self.whole is None:
                shape = (len(self.levels), self.total, *point.xbar.shape[1:])
                self.whole = point.xbar.new_empty(shape), point.xbar.new_empty(shape)
            n = next(made)
            for whole, part in zip(self.whole, (point.xbar, point.eps), strict=True):
                whole[n, rows] = part

        return take

    def points_of_all(self) -> tuple[list[float], Tensor, Tensor]:
        """The noise levels, x̄ and ε."""
        if self.levels is not None:
            assert self.whole is not None
            return [*self.levels], *self.whole
        xbar, eps = (torch.stack([getattr(point, name) for point in self.points]) for name in ("xbar", "eps"))
        return [point.sigma for point in self.points], xbar, eps


def _held(begin: _Begin, batches: Batches, at: Sequence[float] | None, place: torch.device | None) -> Trajectory:
    """The trajectory in memory."""
    adaptive = at is None and begin.plan.solver.adaptive
    collected = _Collected(len(begin.tensor), None if adaptive else begin.levels(at), place)

    def batch(rows: slice, plan: Plan, callback: Callback | None) -> State:
        return record(begin.field, begin.state(rows), plan, collected.taker(rows), at, callback)

    end = _walked(begin, batches, batch)
    sigmas, xbar, eps = collected.points_of_all()
    levels = torch.tensor(sigmas, dtype=torch.float64)
    return Trajectory(levels, begin.plan, at is None, collected.total, held_rows(xbar, eps), end)


def _filed(begin: _Begin, batches: Batches, at: Sequence[float] | None, path: Path, overwrite: bool) -> Trajectory:
    """The trajectory in a file, to which each batch goes when it is done."""
    digest = hashlib.sha256(begin.tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    made = provenance_of(begin.field, begin.plan, "encode" if begin.up else "decode", start=digest)
    names, levels = [f"{i:06d}" for i in range(len(begin.tensor))], begin.levels(at)
    with TrajectoryRun(path, names, made, begin.plan, levels, every=at is None, overwrite=overwrite) as run:

        def batch(rows: slice, plan: Plan, callback: Callback | None) -> State:
            collected = _Collected(rows.stop - rows.start, levels, torch.device("cpu"))
            take = collected.taker(slice(0, collected.total))
            end = record(begin.field, begin.state(rows), plan, take, at, callback)
            if run.claim(rows.start, rows.stop):
                run.write(rows.start, rows.stop, *collected.points_of_all()[1:])
            return end

        end = _walked(begin, batches, batch)
    return replace(Trajectory.load(path), end=end)


def _walked(begin: _Begin, batches: Batches, batch: Callable[[slice, Plan, Callback | None], State]) -> State:
    """The end of all images; with their plan, as `odeddim.encode` has it, if the run encodes."""
    given = begin.tensor
    unit = "encoding" if begin.up else "decoding"
    end: State = batches.run(batch, len(given), given.device, unit, tuple(given.shape[1:]))
    return replace(end, plan=encoded_by(begin.field, begin.plan, len(given), batches.size)) if begin.up else end
