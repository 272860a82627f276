"""Grids computed from a model's own error: for one solver and number of steps, measured on a few images.

Three parts, each going on from what the one before found:

1. Local error. A fine run encodes the images and keeps ε along the true trajectories. A solver that is fed with this
   ε, whatever x̄ it has reached, makes its local errors and nothing else: they cost no evaluations, and every row of
   the table can be asked, with the history it really has. A step's error counts twice, once on the way up and once up
   and down (where the two may cancel), in image units: over √(1+σ²), as data of unit variance are stretched. Nodes
   are moved until all steps err alike, h ∝ error^(-1/(order+1)).
2. How errors grow from step to step needs the network. Round trip and latent are measured on this density of nodes
   and on those of the grids "log" and "karras"; the best goes on.
3. Gauss-Newton on that density, of the mean over images of log(round trip) + log(latent²): so neither a hard image
   nor one of the two figures rules the result. The logarithm of the density is linear in log σ between a few knots.

What is kept is the best grid that was measured and is not worse than the solver's own, in neither figure; where the
best of all is, grids on the way back from it to the own one are measured as well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from odeddim.api import Model, decode, encode, to_data
from odeddim.models import DEFAULT, load
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, check_encodes, integrate
from odeddim.types import InputError, Settings, Solver, State

REFERENCE = ("ab4", "log", 200)
KNOTS = 8  # the number of knots of the density
SWEEPS = 6  # the number of sweeps of part 1
MOST_REPLAYED = 50  # the most steps in part 1: a longer grid gets the density of one with this many
MOST_PIXELS = 1024  # the most pixels of an image for which ε is kept
ROUNDS = 4  # the most rounds of part 3
PROBE = 0.1  # how far the log density is moved at a knot to measure its effect
FARTHEST = 1.0  # how far a round may move the log density at a knot
HALVINGS = 3  # the most steps back to the solver's own grid from one that is better only in sum
GAIN = 0.05  # a round that lowers the objective by less is the last
FLOOR = 1e-10  # squared errors below are rounding, which is all that a reversible solver's round trip has
WORSE = 3.0  # the weight of a figure that is worse than that of the solver's own grid


@dataclass(frozen=True)
class Measured:
    """A grid, and the errors of a round trip on it, over all images.

    Attributes:
        nodes: The grid, (N+1,) float64.
        round_trip: The rms over pixels of the images decoded again minus the images, in [-1, 1].
        latent: The rms distance to the true latents, over σ_T.
    """

    nodes: Tensor
    round_trip: float
    latent: float


@dataclass(frozen=True)
class ComputedGrid:
    """A computed grid, and what was measured.

    Attributes:
        best: The best grid.
        own: The solver's own grid, measured on the same images.
        plan: The plan with the best grid.
        evaluations: The evaluations per image that the search took.
    """

    best: Measured
    own: Measured
    plan: Plan
    evaluations: int


def computed_grid(
    images: Tensor,
    solver: str | Solver,
    steps: int,
    *,
    model: Model = DEFAULT,
    end: str = "zero",
    **settings: Unpack[Settings],
) -> Tensor:
    """Compute the grid on which a solver has the smallest error, measured on a few images.

    The grid has the ends of the solver's own grid, and on these images it is not worse than that one, neither in the
    round trip nor in the latent. The same call gives the same grid. It takes about 200 evaluations and 40 round trips.

    Args:
        images: The images, (B, C, H, W) in [-1, 1]; eight are enough.
        solver, model, end, **settings: As of `odeddim.encode`.
        steps: The number of steps.

    Returns:
        The nodes, (steps+1,) float64, rising, for `grid=`.

    Raises:
        InputError: If the solver is adaptive or stochastic, or there are too few steps for a grid to have inner nodes.

    Example:
        >>> images = odeddim.sample(2, model="exact-mixture", steps=5, shape=(1, 4, 4))
        >>> nodes = odeddim.computed_grid(images, "ab2", 6, model="exact-mixture")
        >>> nodes.shape, odeddim.encode(images, "ab2", model="exact-mixture", grid=nodes)
        (torch.Size([7]), State(2 × (1, 4, 4) float32, σ = 157.407))
    """
    return compute(load(model), images, solver, steps, end=end, settings=settings).best.nodes


@torch.no_grad()
def compute(
    field: VectorField,
    images: Tensor,
    solver: str | Solver,
    steps: int,
    *,
    end: str = "zero",
    settings: Mapping[str, object] | None = None,
    batch_size: int = 32,
    advance: Callable[[int], Any] = lambda evaluations: None,
) -> ComputedGrid:
    """Compute a grid as `computed_grid` does, and return what was measured too.

    Args:
        field: The model.
        images, solver, steps, end: As of `computed_grid`.
        settings: The solver's settings.
        batch_size: The number of images in work at once.
        advance: A function that is called with the number of evaluations done, for a progress bar up to
            `most_evaluations`.

    Returns:
        The grid, with the figures of it and of the solver's own grid.

    Raises:
        InputError: As of `computed_grid`.
    """
    own = own_plan(field, solver, steps, end, settings)
    images, field = to_data(field, images), field.on_data()
    field.check(images)
    rows_before = field.rows
    trace = _Trace.of(field, images, own, batch_size)
    advance(REFERENCE[2])
    bench = _Bench(field, images, own, trace.latents, batch_size, advance)
    density = bench.density
    slope = density.at / 7  # the logarithm of the density of "karras", ρ = 7; that of "log" is constant
    starts = (_equidistributed(trace, own.solver, density, slope), slope, np.zeros_like(slope))
    measured = [(trial, knots) for knots in starts if (trial := bench.measure(density.nodes(knots)))]
    if measured:
        bench.refine(*min(measured, key=lambda pair: pair[0].objective))
    best = bench.best().figures
    found = replace(own, nodes=best.nodes, grid=own.grid if best is bench.own.figures else "computed")
    return ComputedGrid(best, bench.own.figures, found, (field.rows - rows_before) // len(images))


def own_plan(
    field: VectorField,
    solver: str | Solver,
    steps: int,
    end: str = "zero",
    settings: Mapping[str, object] | None = None,
) -> Plan:
    """The plan of a solver on its own grid, which is where the search starts.

    Args:
        field: The model.
        solver, steps, end: As of `computed_grid`.
        settings: The solver's settings.

    Returns:
        The plan.

    Raises:
        InputError: If no grid can be computed for the solver and the number of steps.
    """
    row = Plan.of(field.schedule, solver, None, None, end, settings).solver
    check_encodes(row)
    if row.adaptive:
        raise InputError(f"solver {row.name!r} chooses its own steps, so it has no grid: give one with fixed steps")
    own = Plan.of(field.schedule, solver, steps, None, end, settings)
    if len(_positive(own.nodes)) < 3:
        least = 3 if end == "zero" else 2
        raise InputError(f"a grid of {steps} steps with end={end!r} has no inner nodes: give at least {least} steps")
    return own


def most_evaluations(own: Plan) -> int:
    """About the most evaluations per image that `compute` takes, for a progress bar, given the plan of `own_plan`."""
    knots = len(_Density.of(own.nodes).at)
    return REFERENCE[2] + (4 + ROUNDS * knots + HALVINGS) * _round_trip_evaluations(own)


# Part 1: local errors, without the network.


@dataclass(frozen=True)
class _Trace:
    """True trajectories x̄(σ) of the images in some pixels: slope = dx̄/dλ = σ·ε and path = x̄ as splines in λ = log σ.

    Each maps λ to (B·P,); the path is known up to a constant. latents: x̄ at the top, in all pixels, (B, *).
    """

    slope: Any
    path: Any
    latents: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, field: VectorField, images: Tensor, own: Plan, batch_size: int) -> _Trace:
        from scipy.interpolate import CubicSpline

        name, grid, steps = REFERENCE
        fine = Plan.of(field.schedule, name, steps, grid, own.end)
        top = own.nodes[-1:]
        fine = replace(fine, nodes=torch.cat([fine.nodes[fine.nodes < top * (1 - 1e-9)], top]))
        stride = -(-images[0].numel() // MOST_PIXELS)
        latents, found = [], []
        for batch in _batches(images, batch_size):
            seen: dict[float, Tensor] = {}

            def watched(sigma: Tensor, xbar: Tensor, seen: dict[float, Tensor] = seen) -> Tensor:
                eps = field(sigma, xbar)
                seen[float(sigma)] = eps.flatten(1)[:, ::stride].double().cpu()
                return eps

            x = batch.to(field.device or batch.device, torch.promote_types(batch.dtype, torch.float32))
            state = integrate(watched, State(x, float(fine.nodes[0])), fine)
            watched(top[0], state.xbar)
            latents.append(state.xbar)
            found.append(seen)
        sigmas = sorted(sigma for sigma in found[0] if sigma > 0)
        eps = torch.stack([torch.cat([seen[sigma] for seen in found]) for sigma in sigmas])  # (levels, B, P)
        slope = eps.flatten(1).numpy() * np.array(sigmas)[:, None]
        spline = CubicSpline(np.log(sigmas), slope, axis=0)
        return cls(spline, spline.antiderivative(), torch.cat(latents), (eps.shape[1], eps.shape[2]))

    def local_errors(self, row: Solver, nodes: Tensor) -> Tensor:
        """What each step adds to a solver's error if ε is the true one: (N, B, P), for nodes (N+1,), rising or falling.

        It takes a run to every node, because a row is a whole run, and there is no other way that holds for all rows.
        """
        eps: dict[float, Tensor] = {}

        def replayed(sigma: Tensor, xbar: Tensor) -> Tensor:
            level = float(sigma)
            if level not in eps:
                eps[level] = torch.from_numpy(self.slope(math.log(level)) / level).reshape(self.shape)
            return eps[level]

        truth = torch.from_numpy(self.path(np.log(nodes.numpy()))).reshape(-1, *self.shape)
        start = State(truth[0], float(nodes[0]))
        reached = [row.run(replayed, start, nodes[: n + 1]).xbar for n in range(1, len(nodes))]
        return torch.diff(torch.stack([truth[0], *reached]) - truth, dim=0)


def _equidistributed(trace: _Trace, row: Solver, density: _Density, knots: Any) -> Any:
    """The log density, at the knots, on which all steps have the same local error in image units."""
    density = replace(density, count=min(density.count, MOST_REPLAYED))
    for _ in range(SWEEPS):
        nodes = _positive(density.nodes(knots))
        up = trace.local_errors(row, nodes)
        down = trace.local_errors(row, nodes.flip(0)).flip(0)
        middle = (nodes[1:] * nodes[:-1]).sqrt()
        error = (up.square() + (up + down).square()).mean(dim=(1, 2)) / (1 + middle**2)
        error = error.clamp(min=float(error.max()) * 1e-16 + 1e-300).sqrt()
        # 0.6 of the way that the asymptotic order says: errors of neighbouring steps hang together.
        wanted = 0.6 / (row.order + 1) * error.log() - nodes.log().diff().log()
        knots = density.fit(middle.log().numpy(), wanted.numpy())
    return knots


# The density of nodes.


@dataclass(frozen=True)
class _Density:
    """Grids of `count` positive nodes from low to top, after a σ = 0 or not.

    How dense they lie in log σ is exp of a function that is linear between its values at the knots `at` (K,).
    """

    low: float
    top: float
    count: int
    zero: bool

    @functools.cached_property
    def at(self) -> Any:
        """Where the knots are, even in log σ, (K,)."""
        return np.linspace(math.log(self.low), math.log(self.top), max(2, min(KNOTS, self.count - 1)))

    @classmethod
    def of(cls, nodes: Tensor) -> _Density:
        positive = _positive(nodes)
        return cls(float(positive[0]), float(positive[-1]), len(positive), float(nodes[0]) == 0)

    def nodes(self, knots: Any) -> Tensor:
        """The grid (N+1,) float64 of a log density with these values at the knots, (K,)."""
        fine = np.linspace(self.at[0], self.at[-1], 4001)
        density = np.exp(np.interp(fine, self.at, knots - np.max(knots)).clip(-12))
        share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        nodes = np.exp(np.interp(np.linspace(0, share[-1], self.count), share, fine))
        nodes[[0, -1]] = self.low, self.top
        return torch.from_numpy(np.concatenate([[0.0], nodes]) if self.zero else nodes)

    def fit(self, log_sigmas: Any, values: Any) -> Any:
        """The values at the knots, (K,), of the function nearest to these at log σ; rather straight than bent."""
        hats = np.stack([np.interp(log_sigmas, self.at, hat) for hat in np.eye(self.at.size)], axis=1)
        bends = 0.3 * np.diff(np.eye(self.at.size), n=2, axis=0)
        target = np.concatenate([values, np.zeros(len(bends))])
        return np.linalg.lstsq(np.concatenate([hats, bends]), target, rcond=None)[0]


# Parts 2 and 3: round trips.


@dataclass(frozen=True)
class _Trial:
    """A measured grid: errors (2, B, D) of images and latents, their mean squares (2, B), and one number for all."""

    figures: Measured
    errors: Tensor
    squares: Tensor
    objective: float


class _Bench:
    """Where grids are tried: round trips of the images by one solver, against the true latents (B, *)."""

    def __init__(
        self,
        field: VectorField,
        images: Tensor,
        own: Plan,
        truth: Tensor,
        batch_size: int,
        advance: Callable[[int], Any],
    ) -> None:
        self.field, self.images, self.plan, self.truth = field, images, own, truth
        self.batch_size, self.advance = batch_size, advance
        self.density = _Density.of(own.nodes)
        self.cost = _round_trip_evaluations(own)
        self.level: Tensor | None = None  # of the own grid's figures, (2,)
        self.trials: list[_Trial] = []
        self.own = self._trial(own.nodes)

    def measure(self, nodes: Tensor) -> _Trial | None:
        """A trial of these nodes; None where the run got out of hand."""
        try:
            return self._trial(nodes)
        except InputError:
            return None
        finally:
            self.advance(self.cost)

    def _trial(self, nodes: Tensor) -> _Trial:
        latents, back, plan = [], [], replace(self.plan, nodes=nodes)
        for batch in _batches(self.images, self.batch_size):
            state = encode(batch, model=self.field, plan=plan)
            latents.append(state.xbar)
            back.append(decode(state, model=self.field, plan=plan).cpu())
        image = (torch.cat(back) - self.images.cpu()).double().flatten(1) / 2  # on [0, 1]
        latent = (torch.cat(latents) - self.truth).double().flatten(1).cpu() / float(nodes[-1])
        errors = torch.stack([image, latent])
        squares = errors.square().mean(dim=2)
        round_trip, distance = squares.mean(dim=1).tolist()
        level = self._level(squares)
        if self.level is None:
            self.level = level
        objective = float((level + (WORSE - 1) * (level - self.level).clamp(min=0)).sum())
        trial = _Trial(Measured(nodes, 2 * math.sqrt(round_trip), math.sqrt(distance)), errors, squares, objective)
        self.trials.append(trial)
        return trial

    @staticmethod
    def _level(squares: Tensor) -> Tensor:
        return (squares + FLOOR).log().mean(dim=1)

    def refine(self, trial: _Trial, knots: Any) -> None:
        """Gauss-Newton from a trial and its log density at the knots. The last knot stays: a density has no scale."""
        assert self.level is not None
        damping = 0.1
        for _ in range(ROUNDS):
            # A logarithm lies below its tangent: the sum of squares over the present ones bounds the objective.
            worse = 1 + (WORSE - 1) * (self._level(trial.squares) > self.level).double()
            weight = (worse[:, None] / (trial.squares + FLOOR)).sqrt()[:, :, None]
            residual = (weight * trial.errors).flatten()
            columns = []
            for k in range(len(knots) - 1):
                probe = self.measure(self.density.nodes(_moved(knots, k, PROBE)))
                errors = trial.errors if probe is None else probe.errors
                columns.append((weight * (errors - trial.errors)).flatten() / PROBE)
            slopes = torch.stack(columns)
            curvature = slopes @ slopes.T
            before = trial.objective
            for _ in range(3):
                scaled = curvature + torch.diag(damping * curvature.diagonal() + 1e-12)
                move = -torch.linalg.solve(scaled, slopes @ residual).clamp(-FARTHEST, FARTHEST).numpy()
                tried = np.append(knots[:-1] + move, knots[-1])
                next_trial = self.measure(self.density.nodes(tried))
                if next_trial is not None and next_trial.objective < trial.objective:
                    trial, knots, damping = next_trial, tried, damping / 4
                    break
                damping *= 5
            if trial.objective > before - GAIN:
                return

    def best(self) -> _Trial:
        """The best grid that is not worse than the own one in either figure; towards the own one where none is."""
        own, found = self.own, min(self.trials, key=lambda trial: trial.objective)
        nodes = found.figures.nodes
        for _ in range(HALVINGS):
            if self._good(found):
                break
            nodes = (own.figures.nodes * nodes).sqrt()  # halfway in log σ: a grid again, with the same ends
            found = self.measure(nodes) or own
        return min(filter(self._good, self.trials), key=lambda trial: trial.objective)

    def _good(self, trial: _Trial) -> bool:
        own, figures = self.own.figures, trial.figures
        return figures.round_trip <= own.round_trip and figures.latent <= own.latent


def _moved(knots: Any, k: int, by: float) -> Any:
    moved = knots.copy()
    moved[k] += by
    return moved


def _positive(nodes: Tensor) -> Tensor:
    return nodes[1:] if float(nodes[0]) == 0 else nodes


def _round_trip_evaluations(plan: Plan) -> int:
    return 0 if math.isnan(plan.evaluations) else 2 * int(plan.evaluations)


def _batches(images: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
