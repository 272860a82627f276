"""Runs whose bits are those of any machine: answers on a fixed grid, coefficients of few bits, the state in integers.

Machines differ in the last digits of a network, in exp, log and pow, and in how they add: in which order, and with
multiplications fused in or not. So the answers of the network, in float64, are rounded to multiples of `GRID`; the
coefficients of the run are rounded to `BITS` bits, its noise levels to `NODE_BITS`; and x̄ is an int64. What is left are
products of two float64 numbers, which IEEE 754 rounds once and everywhere alike, and sums of integers.

An answer can lie so near to the edge between two multiples that another machine rounds it to the other one. How near
the answers of an image came to an edge is in the report of a run, `EDGE`.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from odeddim.solvers import _registers, _reversing
from odeddim.solvers._execution import beside_zero, execute
from odeddim.solvers._operations import Kick, Mix, Moves, Operation
from odeddim.types import Field, InputError, Observe, Point, Solver, State

if TYPE_CHECKING:
    from torch import Tensor

GRID = 2.0**-17
"""The unit of the network's answers: float32 networks are off by as much (docs/portable.md)."""
NODE_BITS = 20
BITS = 30
"""Those of coefficients. With ten more than the noise levels have, most differences of noise levels are exact."""
COEFFICIENT_EDGE = 2.0**-18
"""In units of the last bit: coefficients nearer to an edge may be others elsewhere. It is 16 units of float64."""
EDGE = "edge"
"""What the report of a run calls the least distance of an image's answers to an edge, (B,), in units of the grid."""
UNSTABLE = (
    "the portable run leaves the numbers that its state can hold, so it is unstable on this grid: take more steps, "
    "another grid or another solver"
)
HALF = 0.5
ROOM = 53  # bits of a register: float64 holds such integers exactly


def portable_row(row: Solver) -> Solver:
    """The row whose bits are those of any machine. It gets σ = 0 among its nodes, and gives no gradients.

    Args:
        row: A row.

    Returns:
        A row of the same method, whose runs report `EDGE`.

    Raises:
        InputError: If the row's state cannot be held in integers.
    """
    if not row.portable:
        raise InputError(
            f"solver {row.name!r} has no portable form, which needs fixed steps, fixed coefficients and no noise: "
            "leave out portable=True, or take another solver, such as 'unipc-2' or 'belm'"
        )
    run = functools.partial(row.run, portable=True)
    return replace(row, run=run, to_zero=True, differentiable=False, rebuilds=False)


class Rounded:
    """A field whose answers are multiples of `GRID`, in float64.

    Args:
        field: ε(σ, x̄), in float64.

    Attributes:
        edge: The least distance of the answers to an edge so far, (B,) in units of the grid; None before the first.
        sure: Whether the coefficients of the run are those of any machine.
    """

    def __init__(self, field: Field) -> None:
        self.field, self.sure = field, True
        self.edge: Tensor | None = None

    def __call__(self, sigma: Tensor, xbar: Tensor) -> Tensor:
        answer = self.field(sigma, xbar).double() / GRID
        whole = answer.round()
        edge = HALF - answer.sub_(whole).abs_().flatten(1).amax(1)
        self.edge = edge if self.edge is None else edge.minimum(self.edge)
        return whole.mul_(GRID)

    def told(self, state: State) -> State:
        """The end of the run with its report."""
        assert self.edge is not None
        return replace(state, report={**state.report, EDGE: (self.edge if self.sure else self.edge * 0).cpu()})


class Shortened:
    """Coefficients of `BITS` bits.

    Attributes:
        edge: The least distance of a coefficient to an edge so far, in units of its last bit.
    """

    def __init__(self) -> None:
        self.edge = HALF

    @property
    def sure(self) -> bool:
        """Whether they are the same on any machine."""
        return self.edge >= COEFFICIENT_EDGE

    def of(self, values: Sequence[float], bits: int = BITS) -> list[float]:
        """The nearest numbers of so many bits, counted from the largest of the values: small ones are often
        differences, of which no machine knows more.
        """
        largest = max(map(abs, values), default=0.0)
        if not 0 < largest < math.inf:
            return list(values)
        unit = math.ldexp(1.0, math.frexp(1.4 * largest)[1] - bits)  # 1.4: values just below 1 and just above it agree
        scaled = [value / unit for value in values]
        self.edge = min(self.edge, *(HALF - abs(value - round(value)) for value in scaled))
        return [round(value) * unit for value in scaled]

    def by_key(self, values: Mapping[int, float]) -> dict[int, float]:
        """The values of a mapping shortened."""
        return dict(zip(values, self.of([*values.values()]), strict=True))

    def point(self, point: Point) -> Point:
        """A point with shortened coefficients."""
        (sigma,) = self.of([point.sigma])
        return Point(sigma, self.by_key(point.points), self.by_key(point.slopes))

    def operation(self, operation: Operation) -> Operation:
        """An operation with shortened coefficients; the solver of its step is portable too."""
        if isinstance(operation, Kick):
            (weight,), (ratio,) = self.of([operation.weight]), self.of([operation.ratio])
            base = operation.base and portable_row(operation.base)
            return replace(operation, weight=weight, ratio=ratio, base=base)
        a, b, c, d = self.of([entry for row in operation.matrix for entry in row])
        return Mix(((a, b), (c, d)))


def short_nodes(sigmas: Sequence[float]) -> list[float]:
    """Noise levels of `NODE_BITS` bits.

    Raises:
        InputError: If two of them become one.
    """
    shortened = [Shortened().of([sigma], NODE_BITS)[0] for sigma in sigmas]
    if len(set(shortened)) < len(shortened):
        raise InputError(
            f"portable=True rounds noise levels to {NODE_BITS} bits, where two of this grid are the same: take fewer "
            "steps, or another grid"
        )
    return shortened


@functools.lru_cache(maxsize=64)
def _points(
    instructions: Callable[..., Sequence[Point]],
    nodes: tuple[float, ...],
    settings: tuple[tuple[str, Any], ...],
    through_zero: bool,
) -> tuple[list[Point], bool]:
    """The points of a run over all its nodes, shortened, and whether their coefficients are those of any machine."""
    made, short = functools.partial(instructions, **dict(settings)), Shortened()
    points = [short.point(point) for point in (made(nodes) if through_zero else beside_zero(made, nodes))]
    return points, short.sure


def follow(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    instructions: Callable[..., Sequence[Point]],
    through_zero: bool = False,
    observe: Observe | None = None,
    **settings: Any,
) -> State:
    """Execute a list of points in integers; see `odeddim.solvers._points.follow`.

    Args:
        field, sigmas, instructions, observe, **settings: As there. σ = 0 may be among the noise levels.
        state: The start, float64.
        through_zero: Whether the row has weights of its own for the step at σ = 0.

    Returns:
        The state at sigmas[-1], float64, with `EDGE` in its report.
    """
    import torch

    nodes = sigmas.tolist()
    points, sure = _points(instructions, tuple(nodes), tuple(settings.items()), through_zero)
    within = isinstance(field, Rounded)  # a step of a reversible run
    rounded = field if isinstance(field, Rounded) else Rounded(field)
    rounded.sure &= sure
    quantum = math.ldexp(_registers.HEADROOM * math.hypot(1, max(nodes)), -ROOM)
    quantum = math.ldexp(1.0, math.frexp(quantum)[1])
    peak = torch.zeros((), dtype=torch.float64, device=state.xbar.device)

    def value(register: Tensor) -> Tensor:
        return register.double() * quantum

    def whole(change: Tensor) -> Tensor:
        nonlocal peak
        peak = torch.maximum(peak, change.abs().amax())
        return change.round().to(torch.int64)

    def total(terms: Sequence[tuple[float, Tensor]], begun: Tensor | None = None) -> Tensor:
        parts = [  # registers are integers, slopes are not
            whole(term * (weight / quantum)) if term.is_floating_point() else whole(term.double() * weight)
            for weight, term in terms
        ]
        return functools.reduce(torch.add, parts if begun is None else [begun, *parts])

    def slope(sigma: float, register: Tensor) -> Tensor:
        return rounded(sigmas.new_tensor(sigma), value(register))

    shown = None if observe is None else lambda sigma, register: observe(sigma, value(register))
    last = execute(points, nodes, whole(state.xbar.double() / quantum), slope, total, shown)
    whole(last.double())
    if not float(peak) < 2.0**ROOM:
        raise InputError(UNSTABLE)
    end = State(value(last), nodes[-1])
    return end if within else rounded.told(end)


def reversible(
    field: Field, state: State, sigmas: Tensor, *, name: str, moves: Callable[..., Moves], **how: Any
) -> State:
    """A reversible run; see `odeddim.solvers._reversing.run`.

    Args:
        field, sigmas, name, moves, **how: As there.
        state: The start, float64.

    Returns:
        The state at sigmas[-1], float64, with `EDGE` in its report.

    Raises:
        InputError: If the rounding of the answers would grow beyond 1% of the result, or as there.
    """
    short, rounded = Shortened(), Rounded(field)

    def made(nodes: Sequence[float], **settings: Any) -> Moves:
        whole = moves(nodes, **settings)
        return replace(whole, operations=tuple(short.operation(it) for it in whole.operations))

    its_name = f"{name} portable"
    its_own = state.kept.startswith(f"{its_name} ")  # it has grown on the way there, and shrinks on the way back
    if not its_own:
        _check(name, sigmas.tolist(), moves, how)
    if state.kept and not its_own:
        warnings.warn(
            f"the latents are from {state.kept!r}, which was no portable run: this one starts from x̄ alone and does "
            "not come back exactly",
            stacklevel=2,
        )
    end = _reversing.run(rounded, state, sigmas, name=its_name, moves=made, **how)
    rounded.sure &= short.sure
    return rounded.told(end)


def _check(name: str, nodes: Sequence[float], moves: Callable[..., Moves], how: Mapping[str, Any]) -> None:
    """Raise an InputError if the rounding of the answers would spoil the latent or the image."""
    settings = {key: value for key, value in how.items() if key != "observe"}
    growth = _reversing.account(nodes, True, moves=moves, **settings)
    error = max(growth.latent, growth.image) * (GRID / 2) * 2.0**24  # that of float32 is what was accounted for
    if not error <= _reversing.SPOILED:
        raise InputError(
            f"{name} on this grid of {len(nodes) - 1} steps would amplify the rounding of portable=True to "
            f"{error:.1e} of the latents or the images: take fewer steps, a grid with more even steps (log, karras), "
            "settings nearer to 1, or another solver"
        )
