"""Trajectories: the points that a run passes, x̄, ε and the predicted images, at its nodes and between them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim import defaults
from odeddim.api import Model, at_the_top, encoded_by, planned, state_dtype, to_data, to_decode, to_images
from odeddim.latents.provenance import provenance_of
from odeddim.latents.trajectory_file import TrajectoryFile, TrajectoryRun
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.plans import Callback, Grid, Plan, check_encodes
from odeddim.runs.batches import Batches, BatchSize
from odeddim.runs.dense import PathPoint, between, check_levels, check_shows, nearest_interval, record
from odeddim.runs.progress import Progress
from odeddim.storage.animations import Animation
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of
from odeddim.storage.png import MARK
from odeddim.storage.sheets import Captions, Layout, save_sheet
from odeddim.types import InputError, Settings, Solver, State

SHOWN, LEVELS = 4, 8
"""How many images, and how many noise levels, a strip shows by default."""
NEVER = "solver {!r} adds no noise, so its steps have no log-probability: take 'ddim-eta' or 'ddpm'"


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """The points of a run, in its order: a sequence of `PathPoint`.

    `odeddim.trajectory` makes it, and `Trajectory.load` opens one that lies in a file: its points are read when they
    are asked for, so take some of the images first (`of`).

    Attributes:
        sigmas: The noise levels σ, (N+1,) float64 on the CPU: falling for a run that decodes, rising for one that
            encodes.
        plan: The plan of the run.
        every: Whether all nodes of the run were kept, and not the levels of `at=`.
        count: The number of images, B.
        read: read(start, stop) -> x̄ and ε of images start, ..., stop-1, each (N+1, stop-start, *).
        end: The state at the end of the run, bit for bit that of a run without a trajectory; None from a file.

    Example:
        >>> path = odeddim.trajectory(odeddim.noise(2, (1, 28, 28)), steps=5)
        >>> path
        <6 points of 2 images from σ = 157.407 to 0: unipc-2, log grid, 5 steps, end zero>
        >>> path.xbar.shape, path.x0.shape, path.at(0.5).x.shape
        (torch.Size([6, 2, 1, 28, 28]), torch.Size([6, 2, 1, 28, 28]), torch.Size([2, 1, 28, 28]))
        >>> torch.equal(path.end.xbar, path.xbar[-1])
        True
    """

    sigmas: Tensor
    plan: Plan
    every: bool
    count: int
    read: Callable[[int, int], tuple[Tensor, Tensor]] = field(repr=False)
    end: State | None = None

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Open a trajectory file.

        Args:
            path: The file, t.h5, of `odeddim.trajectory(keep=...)` or of `odeddim encode --trajectory`.

        Returns:
            The trajectory of the images that the file holds by now.

        Raises:
            InputError: If the file is no trajectory file, or is damaged.
        """
        file = TrajectoryFile(Path(path))
        return cls(file.levels, file.plan, file.every, file.count, file.read)

    @property
    def xbar(self) -> Tensor:
        """x̄, (N+1, B, *)."""
        return self.read(0, self.count)[0]

    @property
    def eps(self) -> Tensor:
        """ε, (N+1, B, *). At σ = 0 it is that of the Euler step there."""
        return self.read(0, self.count)[1]

    @property
    def x(self) -> Tensor:
        """x = x̄/√(1+σ²), (N+1, B, *): DDPM's units, in which noise has unit variance."""
        xbar = self.xbar
        return xbar / _along((1 + self.sigmas**2).sqrt(), xbar)

    @property
    def x0(self) -> Tensor:
        """The predicted images x̂0 = x̄ - σ·ε, (N+1, B, *); of a latent model its data, which `to_images` decodes."""
        xbar, eps = self.read(0, self.count)
        return xbar - _along(self.sigmas, xbar) * eps

    def of(self, images: int | slice | Sequence[int]) -> Trajectory:
        """The trajectory of some of the images, in memory.

        Args:
            images: An index, a slice, or several indices.

        Returns:
            The trajectory.

        Raises:
            IndexError: If there is no such image.
        """
        rows = range(self.count)[images] if isinstance(images, (int, slice)) else [range(self.count)[i] for i in images]
        rows = [rows] if isinstance(rows, int) else rows
        parts = [self.read(i, i + 1) for i in rows]
        if not parts:
            raise IndexError(f"no images are chosen of {self.count}")
        held = torch.cat([xbar for xbar, _ in parts], dim=1), torch.cat([eps for _, eps in parts], dim=1)
        end = None if self.end is None else self.end[list(rows)]
        return replace(self, count=len(parts), read=_slices(*held), end=end)

    def __len__(self) -> int:
        """The number of points, N+1."""
        return len(self.sigmas)

    @overload
    def __getitem__(self, n: int) -> PathPoint: ...
    @overload
    def __getitem__(self, n: slice) -> list[PathPoint]: ...
    def __getitem__(self, n: int | slice) -> PathPoint | list[PathPoint]:
        xbar, eps = self.read(0, self.count)
        if isinstance(n, slice):
            return [PathPoint(float(self.sigmas[k]), xbar[k], eps[k]) for k in range(len(self))[n]]
        return PathPoint(float(self.sigmas[n]), xbar[n], eps[n])

    def __iter__(self) -> Iterator[PathPoint]:
        return iter(self[:])

    def __repr__(self) -> str:
        ends = f"from σ = {float(self.sigmas[0]):.6g} to {float(self.sigmas[-1]):.6g}"
        images = f"{self.count} image{'s' if self.count > 1 else ''}"
        return f"<{len(self)} points of {images} {ends}: {self.plan}>"

    def at(self, sigma: float) -> PathPoint:
        """The point at any noise level of the run, without an evaluation.

        Between two nodes x̄ is Hermite's polynomial through these and their neighbours, whose error is that of the run;
        in the interval next to σ = 0 it is the straight line of the Euler step there. ε is the slope dx̄/dσ of that.

        Args:
            sigma: The noise level.

        Returns:
            The point.

        Raises:
            InputError: If the level is outside the run; or it was not kept, and the run was kept at some levels only
                or adds noise.
        """
        levels = self.sigmas.tolist()
        if sigma in levels:
            return self[levels.index(sigma)]
        if not self.every:
            raise InputError(f"σ = {sigma:.6g} was not kept: give it with at=..., or leave out at= for all nodes")
        if self.plan.solver.stochastic:
            raise InputError(
                f"σ = {sigma:.6g} is no node, and between its nodes solver {self.plan.solver.name!r} has no path, "
                "because it adds noise"
            )
        n = nearest_interval(levels, sigma)
        first = max(n - 1, 0)
        return between(self[first : n + 3], n - first, sigma)

    @property
    def deviations(self) -> Tensor:
        """The standard deviation of the noise that each step adds to x, DDIM's σ_t(η), (N,) float64.

        Raises:
            InputError: If the solver adds no noise.
        """
        steps = self._transitions()
        ends = self.sigmas[1:]
        return torch.tensor([deviation for _, deviation in steps], dtype=torch.float64) / (1 + ends**2).sqrt()

    def _transitions(self) -> list[tuple[float, float]]:
        """(weight of ε, deviation of x̄) of each step."""
        transition = self.plan.solver.transition
        if transition is None:
            raise InputError(NEVER.format(self.plan.solver.name))
        if not self.every:
            raise InputError("log-probabilities are those of the run's steps: leave out at=..., so that all are kept")
        return [transition(here, there) for here, there in itertools.pairwise(self.sigmas.tolist())]

    def log_prob(self, model: Model | None = None, *, steps: slice = slice(None)) -> Tensor:
        """The log-probability of each step that was taken, of a solver that adds noise: log p(x_{n+1} | x_n).

        It is the density of x = x̄/√(1+σ²), DDIM's units, at the end of the step: the normal distribution of eq. 12,
        with standard deviation `deviations`. A step without noise (the last one to σ = 0, all at η = 0) has no density;
        its entry is 0, so that sums and ratios of two models leave it out.

        Args:
            model: The model whose steps they are, evaluated again at the stored nodes, with gradients of its
                parameters where grad mode is on and they require them. By default the ε that the run has found,
                without evaluations and without gradients.
            steps: Which of the N steps, to keep fewer activations in memory at once.

        Returns:
            Nats, (N, B) float64, on the device of the points.

        Raises:
            InputError: If the solver adds no noise, or not all nodes were kept.

        Source:
            Song et al. 2020, arXiv 2010.02502, eq. 12 and 16; used as in Black et al. 2023, arXiv 2305.13301 (DDPO).

        Example:
            >>> x_T = odeddim.noise(2, (1, 28, 28))
            >>> path = odeddim.trajectory(x_T, "ddim-eta", steps=4, eta=1.0)
            >>> new = path.log_prob("fashion-mnist")  # the same model: the ratio of probabilities is 1
            >>> torch.allclose((new - path.log_prob()).exp(), torch.ones(4, 2, dtype=torch.float64), atol=1e-3)
            True
        """
        transitions = self._transitions()
        if not any(deviation > 0 for _, deviation in transitions):
            raise InputError(f"no step of {self.plan} adds noise, so none has a log-probability: give eta= above 0")
        evaluate = None if model is None else load(model)
        points, found = self[:], []
        for n in range(len(transitions))[steps]:
            (here, there), (weight, deviation) = points[n : n + 2], transitions[n]
            if deviation == 0:
                found.append(here.xbar.new_zeros(self.count, dtype=torch.float64))
                continue
            sigma = self.sigmas[n]
            eps = here.eps if evaluate is None else evaluate(sigma, here.xbar)
            moved = there.xbar.double() - here.xbar.double() - weight * eps.double()
            size = math.log(deviation / math.hypot(1, there.sigma)) + 0.5 * math.log(2 * math.pi)
            found.append(-0.5 * (moved / deviation).square().flatten(1).sum(dim=1) - size * moved[0].numel())
        return torch.stack(found) if found else self.xbar.new_zeros(0, self.count, dtype=torch.float64)

    def save_strip(
        self,
        path: str | Path,
        *,
        images: Sequence[int] | None = None,
        at: Sequence[float] | None = None,
        model: Model | None = None,
        scale: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Draw a strip, a PNG: for each image a row of x and below it a row of the predicted images x̂0.

        Args:
            path: The file, strip.png.
            images: The images, by index; by default the first 4.
            at: The noise levels, from the left; by default 8 of the points.
            model: A latent model, whose autoencoder makes images of the data.
            scale: How many times images are enlarged, as of `odeddim.jobs.Pictures`.
            overwrite: Whether to replace a file at `path` that this call has not written.

        Raises:
            InputError: If an argument cannot be used, or the disk does not take the file.
        """
        path = Path(path)
        check_place(path, suffixes=(".png",))
        chosen = self._chosen(images)
        points = chosen._shown(at, LEVELS)
        mark = _mark("strip", points, scale)
        check_own(path, lambda place: has_mark(place, mark), overwrite=overwrite)
        rows = [_pictured(point, model) for point in points]
        captions = Captions(
            lambda i, _: ("x" if i // len(points) % 2 == 0 else "predicted",),
            heads=[f"sigma {point.sigma:.3g}" for point in points],
            columns=len(points),
        )
        cells: list[tuple[Tensor, dict[str, float]]] = [
            (part[kind][i], {}) for i in range(chosen.count) for kind in (0, 1) for part in rows
        ]
        layout = Layout.of(len(cells), cells[0][0].shape, captions, scale)
        save_sheet(cells, path, layout, captions, {MARK: mark})

    def save_animation(
        self,
        path: str | Path,
        *,
        images: Sequence[int] | None = None,
        at: Sequence[float] | None = None,
        model: Model | None = None,
        fps: int = 10,
        scale: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Draw the run as an animation: in each frame x of the images in a row, and below it the predicted images x̂0.

        Args:
            path: The file: film.gif, film.webp or film.mp4.
            images, at, model, scale, overwrite: As of `save_strip`; by default all points are shown.
            fps: Frames a second.

        Raises:
            InputError: If an argument cannot be used, or the disk does not take the file.
        """
        film = Animation(Path(path), fps, scale)
        film.check()
        points = self._chosen(images)._shown(at, None)
        mark = _mark("animation", points, scale, fps)
        check_own(film.path, lambda place: has_mark(place, mark), overwrite=overwrite)

        def frames() -> Iterator[Tensor]:
            for point in points:
                yield torch.cat([torch.cat(list(rows), dim=2) for rows in _pictured(point, model)], dim=1)

        film.save(frames(), mark)

    def _chosen(self, images: Sequence[int] | None) -> Trajectory:
        try:
            return self.of(range(min(SHOWN, self.count)) if images is None else images)
        except IndexError as error:
            raise InputError(f"images={list(images or ())}: the trajectory has {self.count} images") from error

    def _shown(self, at: Sequence[float] | None, most: int | None) -> list[PathPoint]:
        if at is not None:
            return [self.at(sigma) for sigma in at]
        points = self[:]
        if most is None or len(points) <= most:
            return points
        return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def _slices(xbar: Tensor, eps: Tensor) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """What reads points that are held in memory."""
    return lambda start, stop: (xbar[:, start:stop], eps[:, start:stop])


def _along(levels: Tensor, xbar: Tensor) -> Tensor:
    """(N+1,) as (N+1, 1, ...) on the points' device and in their dtype."""
    return levels.to(xbar.device, xbar.dtype).reshape(-1, *[1] * (xbar.ndim - 1))


def _pictured(point: PathPoint, model: Model | None) -> tuple[Tensor, Tensor]:
    """x and x̂0 as images, (B, C, H, W) each."""
    if model is None:
        return point.x.clamp(-1, 1), point.x0.clamp(-1, 1)
    latent = load(model)
    return to_images(latent, point.x).clamp(-1, 1), to_images(latent, point.x0).clamp(-1, 1)


def _mark(kind: str, points: Sequence[PathPoint], *how: object) -> str:
    """What says in a picture which points it shows."""
    digest = hashlib.sha256()
    for point in points:
        digest.update(repr(point.sigma).encode() + point.xbar.cpu().numpy().tobytes())
    return mark_of("trajectory", kind, digest.hexdigest(), *how)


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
    """Run the ODE and keep the points that it passes: x̄, ε and the predicted images x̂0.

    The run itself is that of `solve`, `decode` or `encode`, to the bit. ε at a node is the one that the run evaluates
    there. Where it evaluates elsewhere, ε takes one further evaluation of a node: all nodes of `unipc-*`, some of
    reversible solvers, the last node of any run; none at σ = 0.

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
    return Trajectory(levels, begin.plan, at is None, collected.total, _slices(xbar, eps), end)


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
