"""A run that hands out its nodes: x̄ and ε at each of them, and x̄ at any noise level between two of them.

The run shows x̄ at its nodes to an observer (`odeddim.plans.walk`). ε comes from the run's own evaluations: the field is
wrapped by one that notes what is asked at the node that was shown last. At a node where the run evaluates elsewhere
(the corrected ones of UniPC, some registers of reversible rows), and at the last one, ε takes one further evaluation,
which is made only if ε there is wanted.

Between two nodes x̄ is Hermite's polynomial in τ = asinh(σ/0.5): through these two and the next on either side, with
the slope dx̄/dτ = √(0.5² + σ²)·ε at all four. τ is log σ where noise covers the image, and σ itself below. On an exact
Gaussian and an exact mixture the cubic in log σ through two nodes was up to 1.3 times further off than a run of order 4
itself; and four nodes in log σ overshoot where a grid has long steps next to σ_1, as the linear one has. Next to σ = 0
the run takes an Euler step, which is a straight line in σ, and so is x̄ there.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from odeddim.ode.field import VectorField
from odeddim.plans import Callback, Plan, Steps, directed, ready, walk
from odeddim.types import Field, InputError, State

Take = Callable[["PathPoint"], None]
"""take(point): who keeps the points of a run, in its order."""

NEAREST = 0.25
"""A neighbour of an interval is left out if it is nearer than so much of the interval: the last step of an adaptive row
can be as short as rounding, and the difference of errors over it would be taken for a slope."""
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-10}
"""The relative distance within which two points are one; registers of float64 states are multiples of 5e-13, say."""
SCALE = 0.5
"""The standard deviation of images in [-1, 1], about: the noise level from which on paths bend in log σ."""


@dataclass(frozen=True, eq=False)
class PathPoint:
    """A point of a trajectory: all images at one noise level.

    Attributes:
        sigma: The noise level σ.
        xbar: x̄, (B, *).
        eps: ε there, (B, *).
    """

    sigma: float
    xbar: Tensor
    eps: Tensor

    @property
    def x(self) -> Tensor:
        """x = x̄/√(1+σ²), (B, *): DDPM's units, in which noise has unit variance."""
        return self.xbar / math.sqrt(1 + self.sigma**2)

    @property
    def x0(self) -> Tensor:
        """The predicted images x̂₀ = x̄ - σ·ε, (B, *); of a latent model its data."""
        return self.xbar - self.sigma * self.eps

    @property
    def state(self) -> State:
        """The point as a State, from which a run can start."""
        return State(self.xbar, self.sigma)

    def to(self, device: torch.device | str) -> PathPoint:
        """The point on a device."""
        return replace(self, xbar=self.xbar.to(device), eps=self.eps.to(device))


def between(known: Sequence[PathPoint], n: int, sigma: float) -> PathPoint:
    """The point at a noise level between two neighbouring nodes.

    Args:
        known: Nodes in the order of the run; those next to the two are used as well, if they are there.
        n: The place of the first of the two.
        sigma: The noise level.

    Returns:
        The node itself at a node; otherwise x̄ by the polynomial in τ, and ε as the slope of that, or in the
        interval next to σ = 0 both by the straight line in σ.
    """
    a, b = known[n : n + 2]
    for node in (a, b):
        if sigma == node.sigma:
            return node
    if 0 in (a.sigma, b.sigma):
        zero, other = (a, b) if a.sigma == 0 else (b, a)
        return PathPoint(sigma, torch.lerp(zero.xbar, other.xbar, sigma / other.sigma), zero.eps)
    places = [math.asinh(node.sigma / SCALE) - math.asinh(sigma / SCALE) for node in known]
    used = _used([node.sigma for node in known], places, n)
    xbar, slope = torch.zeros_like(a.xbar), torch.zeros_like(a.xbar)
    for k, weights in zip(used, hermite([places[k] for k in used]), strict=True):
        node, ((value, rate), (its_slope, its_rate)) = known[k], weights
        speed = math.hypot(SCALE, node.sigma)  # dσ/dτ
        xbar.add_(node.xbar, alpha=value).add_(node.eps, alpha=its_slope * speed)
        slope.add_(node.xbar, alpha=rate).add_(node.eps, alpha=its_rate * speed)
    return PathPoint(sigma, xbar, slope.div_(math.hypot(SCALE, sigma)))


def _used(sigmas: Sequence[float], places: Sequence[float], n: int) -> list[int]:
    """The nodes that the polynomial of an interval goes through: its ends n and n+1, and neighbours that are apart."""
    least = NEAREST * abs(places[n + 1] - places[n])
    beside = {n - 1: n, n + 2: n + 1}
    near = range(max(n - 1, 0), min(n + 3, len(places)))
    return [k for k in near if k not in beside or (sigmas[k] > 0 and abs(places[k] - places[beside[k]]) >= least)]


def hermite(places: Sequence[float]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The weights at 0 of the polynomial that has given values and slopes at places u_i, and those of its slope.

    With ω_i(u) = Π_j ((u - u_j)/(u_i - u_j))², j ≠ i, a value has the weight ω_i(u)·(1 - (u - u_i)·ω_i'(u_i)) and a
    slope ω_i(u)·(u - u_i).

    Args:
        places: The places, no two equal and none of them 0.

    Returns:
        For each place ((weight, its slope) of the value, (weight, its slope) of the slope).
    """
    found = []
    for i, u in enumerate(places):
        others = [*places[:i], *places[i + 1 :]]
        omega = math.prod((v / (v - u)) ** 2 for v in others)
        steep = omega * sum(-2 / v for v in others)
        inside = sum(2 / (u - v) for v in others)
        straight = 1 + u * inside
        found.append(((omega * straight, steep * straight - omega * inside), (-omega * u, omega - steep * u)))
    return found


def check_shows(plan: Plan, state: State) -> None:
    """Raise an InputError unless a run from a state shows its nodes.

    Args:
        plan: The plan of the run.
        state: Where it starts.
    """
    row, up = plan.solver, not plan.ends_at(state.sigma)
    if row.encodes_whole and up:
        raise InputError(
            f"solver {row.name!r} finds an encoding as a whole, so nothing is known of its nodes before its end: "
            "encode with another solver, such as 'exact-euler' or 'belm'"
        )
    if not row.observable:
        why = "gives each image steps of its own" if row.adaptive else "does not show its nodes"
        raise InputError(
            f"solver {row.name!r} {why}, so it has no trajectory of a batch: take one with fixed steps, or 'dopri5'"
        )


def check_levels(at: Sequence[float], plan: Plan) -> list[float]:
    """The noise levels that are wanted, rising and each once.

    Args:
        at: The noise levels.
        plan: The plan of the run.

    Raises:
        InputError: If there are none, one is outside the plan, or one is no node of a run that adds noise.
    """
    try:
        levels = sorted({float(sigma) for sigma in at})
    except (TypeError, ValueError) as error:
        raise InputError(f"at=... takes noise levels σ, not {at!r:.60}") from error
    low, high = float(plan.nodes[0]), plan.top
    if not levels:
        raise InputError("at=... names no noise level: leave it out for all nodes")
    # σ_T as people write it, with fewer digits, is σ_T
    levels = sorted({high if math.isclose(sigma, high, rel_tol=1e-5) else sigma for sigma in levels})
    if outside := [sigma for sigma in levels if not low <= sigma <= high]:
        raise InputError(f"at=...: σ = {outside[0]:.6g} is not between {low:.6g} and {high:.6g}, the ends of the run")
    nodes = set(plan.nodes.tolist())
    if plan.solver.stochastic and (off := [sigma for sigma in levels if sigma not in nodes]):
        raise InputError(
            f"at=...: σ = {off[0]:.6g} is no node, and between its nodes solver {plan.solver.name!r}, which adds "
            "noise, has no path: give nodes of the plan"
        )
    return levels


def record(
    field: VectorField | Field,
    state: State,
    plan: Plan,
    take: Take,
    at: Sequence[float] | None = None,
    callback: Callback | None = None,
) -> State:
    """Walk a state along a plan, as `odeddim.integrate` does, and hand out the points of the run.

    Besides the points that are kept, memory holds six of them.

    Args:
        field: A model, or any function ε = field(σ, x̄).
        state: The state, x̄ (B, *), at the first node of the plan or at the last.
        plan: The plan.
        take: Called with each point in the order of the run, on the run's device: all nodes, or those of `at`.
        at: Noise levels, rising (`check_levels`); None for all nodes of the run.
        callback: As of `odeddim.integrate`.

    Returns:
        The state at the other end of the plan: the same bits as without a trajectory.

    Raises:
        InputError: If the state lies elsewhere, the model does not take it, or the solver does not show its nodes.
        BudgetExceeded: If an adaptive solver reaches max_nfe.
    """
    check_shows(plan, state)
    field, state = ready(field, state)
    state = replace(state, xbar=state.xbar.detach())
    rising = float(directed(plan, state)[0]) < plan.top
    recorder = _Recorder(field, state, _Keeper(take, at, rising))
    steps = None if callback is None else Steps(callback)

    def observe(sigma: float, xbar: Tensor) -> None:
        recorder.observe(sigma, xbar)
        if steps is not None:
            steps(sigma, xbar)

    with torch.no_grad():
        end = walk(recorder, state, plan, observe)
        recorder.finish()
    return end


class _Node:
    """A node of a run, whose ε is known, or evaluated if it is wanted."""

    def __init__(self, field: Field, sigma: float, xbar: Tensor) -> None:
        self.field, self.sigma, self.xbar = field, sigma, xbar
        self.eps: Tensor | None = None
        self.like: _Node | None = None  # the node whose ε it shares: that of the straight line to σ = 0

    def holds(self, sigma: float, xbar: Tensor) -> bool:
        """Whether an evaluation was made here, up to rounding.

        Reversible rows mix their registers, which rounds them, before they evaluate; and torchdiffeq moves the last
        stage of a step by one unit of rounding.
        """
        few = ROUNDING[self.xbar.dtype]
        if not math.isclose(sigma, self.sigma, rel_tol=few) or xbar.shape != self.xbar.shape:
            return False
        if sigma == 0:  # where there is but the Euler step
            return True
        return float((xbar.to(self.xbar.dtype) - self.xbar).abs().max()) <= few * float(self.xbar.abs().max())

    def point(self) -> PathPoint:
        """The node with its ε."""
        if self.eps is None and self.like is not None:
            self.eps = self.like.point().eps
        if self.eps is None:
            self.eps = self.field(torch.tensor(self.sigma, dtype=torch.float64), self.xbar)
        return PathPoint(self.sigma, self.xbar, self.eps)


class _Recorder:
    """The field of a run and who observes it: it brings together x̄ and ε of each node."""

    def __init__(self, field: Field, state: State, keeper: _Keeper) -> None:
        self.field, self.keeper = field, keeper
        self.moments = getattr(field, "moments", None)
        self.here = _Node(field, state.sigma, state.xbar)
        self.asked: tuple[float, Tensor, Tensor] | None = None  # the last evaluation elsewhere

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        eps = self.field(sigma, xbar)
        level = float(sigma) if sigma.ndim == 0 else math.nan
        if self.here.eps is None and self.here.holds(level, xbar):
            self.here.eps, self.asked = eps.to(self.here.xbar.dtype), None
        else:  # a run may evaluate at the end of a step before it accepts the step and shows it
            self.asked = level, xbar.clone(), eps
        return eps

    def observe(self, sigma: float, xbar: Tensor) -> None:
        node = _Node(self.field, sigma, xbar.clone())
        if self.asked is not None and node.holds(*self.asked[:2]):
            node.eps = self.asked[2].to(xbar.dtype)

        self.keeper.add(self.here)  # whose evaluation, if the run makes it, has been made
        self.here = node

    def finish(self) -> None:
        """Hand out what is left, once the run has ended."""
        self.keeper.add(self.here)
        self.keeper.end()


class _Keeper:
    """Which points of a run are wanted: all nodes, or those at some noise levels.

    Attributes:
        last: The last four nodes, in the order of the run.
    """

    def __init__(self, take: Take, at: Sequence[float] | None, rising: bool) -> None:
        self.take, self.at, self.rising = take, at, rising
        self.last: list[_Node] = []

    def add(self, node: _Node) -> None:
        """The next node of the run."""
        if node.sigma == 0 and self.last:
            node.like = self.last[-1]
        self.last = [*self.last[-3:], node]
        if self.at is None:
            self.take(node.point())
        elif len(self.last) >= 3:
            self._interval(len(self.last) - 3)

    def end(self) -> None:
        """There are no more nodes."""
        if self.at is not None:
            self.last = self.last[-3:]
            self._interval(len(self.last) - 2)
            if self.last[-1].sigma in self.at:
                self.take(self.last[-1].point())

    def _interval(self, n: int) -> None:
        """Take what is wanted of the interval from node n to the next, without the next."""
        assert self.at is not None
        a, b = self.last[n : n + 2]
        low, high = sorted((a.sigma, b.sigma))
        inside = self.at[bisect.bisect_left(self.at, low) : bisect.bisect_right(self.at, high)]
        for sigma in inside if self.rising else reversed(inside):
            if sigma == a.sigma:
                self.take(a.point())
            elif sigma != b.sigma:
                used, at = ([a, b], 0) if low == 0 else (self.last, n)
                self.take(between([node.point() for node in used], at, sigma))


def nearest_interval(sigmas: Sequence[float], sigma: float) -> int:
    """n, for the interval from sigmas[n] to sigmas[n+1] that holds a noise level; sigmas rise or fall."""
    for n, (a, b) in enumerate(pairwise(sigmas)):
        if min(a, b) <= sigma <= max(a, b):
            return n
    raise InputError(
        f"σ = {sigma:.6g} is not between {min(sigmas):.6g} and {max(sigmas):.6g}, the ends of the trajectory"
    )
