"""Exactly reversible solvers: what encoding does, decoding undoes, bit for bit.

Each keeps two registers, x̄ and another state, and changes one by what it computes from the other, so that every change
can be taken back: kicks (u += c·ε(v)) and mixtures of the two. A method is its list of such operations, and
its inverse is the same list backwards. The registers are integers, so that adding and subtracting are exact: nothing is
lost, whatever the network is, as long as it answers the same to the same batch.

Coming back exactly says nothing about the latent, and errors that are already there (of a network in float32, of
another machine, of interpolated latents) are amplified: `Solver.growth` computes by how much, and a run in which they
would spoil the result is refused.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from odeddim.solvers import onestep, torchdiffeq_
from odeddim.types import Field, Growth, InputError, Solver, State, weighted_sum

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pair = tuple[float, float]
Matrix = tuple[Pair, Pair]

NAMES = ("u", "v")
SPOILED = 1e-2  # of the scale of a latent or an image: rounding errors that would grow beyond it are refused
HEADROOM = 2.0**13  # registers hold values up to so many times √(1+σ_T²): few coarse steps overshoot by hundreds
BITS = {True: 51, False: 62}  # of a register, for float32 states and float64 ones
LOW_BITS = 22  # that a float32 number can hold of what another has rounded away, with some to spare
UNSTABLE = (
    "the reversible run leaves the numbers that it can take back: it is unstable on this grid; "
    "take more steps, another grid or another solver"
)


@dataclass(frozen=True)
class Kick:
    """One register += sign·weight·ε(σ, ratio·other), or the increment of a one-step solver's step from σ to `end`."""

    register: int
    sigma: float
    weight: float
    base: Solver | None = None
    end: float = 0.0
    sign: float = 1.0
    ratio: float = 1.0

    @property
    def size(self) -> float:
        """How far it carries an error of the field: its weight, or the length of the solver's step."""
        return abs(self.weight) if self.base is None else abs(self.end - self.sigma)

    def inverse(self) -> Kick:
        """What takes it back."""
        return replace(self, sign=-self.sign)

    def key(self) -> tuple[object, ...]:
        """All that makes it what it is."""
        ratio = () if self.ratio == 1 else (self.ratio,)  # states of the other methods, kept before it was, stay theirs
        return self.register, self.sigma, self.weight, self.end, self.sign, self.base and self.base.name, *ratio

    def words(self, place: int) -> str:
        """u = u + c·ε(v)."""
        to, source = NAMES[self.register], NAMES[1 - self.register]
        if self.base is None:
            what = f"ε({weighted_sum([(self.ratio, source)])}, σ = {self.sigma:.6g})"
        else:
            what = f"{self.base.name}'s increment of {source} from σ = {self.sigma:.6g} to {self.end:.6g}"
        return f"{to} = {weighted_sum([(1.0, to), (self.sign * self.weight, what)])}"


@dataclass(frozen=True)
class Mix:
    """(u, v) = matrix·(u, v)."""

    matrix: Matrix

    def inverse(self) -> Mix:
        """What takes it back."""
        (a, b), (c, d) = self.matrix
        det = a * d - b * c
        return Mix(((d / det, -b / det), (-c / det, a / det)))

    def key(self) -> tuple[object, ...]:
        """All that makes it what it is."""
        return self.matrix

    def words(self, place: int) -> str:
        """(u, v) = (a·u + b·v, c·u + d·v)."""
        sums = (
            weighted_sum((weight, name) for weight, name in zip(row, NAMES, strict=True) if weight)
            for row in self.matrix
        )
        return f"(u, v) = ({', '.join(sums)})"


Operation = Kick | Mix


@dataclass(frozen=True)
class Course:
    """The operations of a run that begins with u = v = x̄; `output` is the register that holds x̄ at its end."""

    operations: tuple[Operation, ...]
    output: int = 0


def two_step(nodes: Sequence[float], *, neighbour: Callable[[float, float, float], float]) -> Course:
    """x̄_{i-1} = a·x̄_{i+1} + (1-a)·x̄_i - (h_i + a·h_{i+1})·ε_i downwards, h_i = σ_i - σ_{i-1}; upwards solved.

    The two-step BELM that are consistent (Wang et al. 2024, arXiv 2410.07273); neighbour(σ_{i-1}, σ_i, σ_{i+1}) is a.
    The first step is Euler's; one evaluation a step.
    """
    operations: list[Operation] = [Kick(1, here, there - here) for here, there in pairwise(nodes[:2])]
    new = 0
    for before, here, there in zip(nodes, nodes[1:], nodes[2:], strict=False):
        a = neighbour(there, here, before) if there < here else 1 / neighbour(before, here, there)
        # The register with the point before becomes the point after, from the other one, which is here.
        row = (a, 1 - a) if new == 0 else (1 - a, a)
        if a != 1:
            operations.append(Mix((row, (0.0, 1.0)) if new == 0 else ((1.0, 0.0), row)))
        operations.append(Kick(new, here, (there - here) + a * (here - before)))
        new = 1 - new
    return Course(tuple(operations), 1 - new if operations else 0)


def leapfrog(lower: float, middle: float, upper: float) -> float:
    """a = 1: the explicit midpoint rule, x̄_{i-1} = x̄_{i+1} - (σ_{i+1} - σ_{i-1})·ε_i."""
    return 1.0


def belm(lower: float, middle: float, upper: float) -> float:
    """a = h_i/h_{i+1}: the mean of the slopes of both steps is ε_i."""
    return (middle - lower) / (upper - middle)


def obelm(lower: float, middle: float, upper: float) -> float:
    """a = (h_i/h_{i+1})²: the only one of local error O(h³) on every grid: O-BELM."""
    return belm(lower, middle, upper) ** 2


def bdia(lower: float, middle: float, upper: float, *, gamma: float) -> float:
    """a = γ·√(α_{i+1}/α_{i-1}): BDIA's γ(z_{i+1} - DDIM's z_{i+1}) + DDIM's z_{i-1}, in its own z = √α·x̄."""
    return gamma * math.sqrt((1 + lower**2) / (1 + upper**2))


def bdia_course(nodes: Sequence[float], *, gamma: float = 1.0) -> Course:
    """BDIA (Zhang et al. 2023, arXiv 2307.10829) with its γ in (0, 1]."""
    if not 0 < gamma <= 1:
        raise InputError(f"bdia: gamma must be above 0 and at most 1, not {gamma}")
    return two_step(nodes, neighbour=functools.partial(bdia, gamma=gamma))


def edict(nodes: Sequence[float], *, p: float | None = None) -> Course:
    """EDICT (Wallace et al. 2022, arXiv 2211.12446): two states that take DDIM's steps by each other's ε.

    Two evaluations a step, both with the label of its upper level. The second one is made at a state that is at the
    lower level already, and the network takes it in the units of that level, x = x̄/√(1+σ_{n+1}²), so the field at σ_n
    gets x̄·√(1+σ_n²)/√(1+σ_{n+1}²). After each step downwards the two are mixed with the weight p, first x and then y;
    p is 0.93 in the paper at its 50 steps. Unless given it is 0.93^(50/N) at N steps, so that what the mixtures
    amplify upwards, p^(-2N), is the same for every N. The states take turns in being moved first, as in the authors'
    code. Upwards it is the inverse. x is DDIM's, of unit variance at σ_T, whatever the model's own units are.
    """
    falling = list(nodes) if nodes[-1] < nodes[0] else list(nodes)[::-1]
    steps = len(falling) - 1
    p = 0.93 ** (50 / max(steps, 1)) if p is None else p
    if not 0 < p <= 1:
        raise InputError(f"edict: p must be above 0 and at most 1, not {p}")
    operations: list[Operation] = []
    for n in range(steps):
        here, there = falling[n], falling[n + 1]
        first = n % 2
        units = math.hypot(1, here) / math.hypot(1, there)
        operations += [Kick(first, here, there - here), Kick(1 - first, here, there - here, ratio=units)]
        if p != 1:
            operations += [Mix(((p, 1 - p), (0.0, 1.0))), Mix(((1.0, 0.0), (1 - p, p)))]
    if nodes[-1] > nodes[0]:
        operations = [operation.inverse() for operation in reversed(operations)]
    return Course(tuple(operations))


def reversible_heun(nodes: Sequence[float]) -> Course:
    """Reversible Heun: v = 2u - v + h·ε(v), u = u + h·(ε(old v) + ε(new v))/2; one evaluation a step and one more.

    Kidger et al. 2021, arXiv 2105.13493, Algorithm 1.
    """
    operations: list[Operation] = []
    for here, there in pairwise(nodes):
        half = (there - here) / 2
        operations += [Kick(0, here, half), Mix(((1.0, 0.0), (2.0, -1.0))), Kick(0, there, half)]
    return Course(tuple(operations))


def coupled(nodes: Sequence[float], *, base: Solver, coupling: float | None = None) -> Course:
    """The construction of McCallum & Foster 2024, arXiv 2410.11648: any one-step solver Ψ, made reversible.

    u = λ·u + (1-λ)·v + Ψ_h(v), v = v - Ψ_{-h}(u), Ψ the solver's increment; twice its evaluations. coupling: λ;
    unless given e^(-1/N) at N steps, so that what the way back amplifies, λ^(-N), is the same for every N.
    """
    coupling = math.exp(-1 / max(len(nodes) - 1, 1)) if coupling is None else coupling
    if not 0 < coupling <= 1:
        raise InputError(f"coupling must be above 0 and at most 1, not {coupling}")
    operations: list[Operation] = []
    for here, there in pairwise(nodes):
        if coupling != 1:
            operations.append(Mix(((coupling, 1 - coupling), (0.0, 1.0))))
        operations += [Kick(0, here, 1.0, base, there), Kick(1, there, -1.0, base, here)]
    return Course(tuple(operations))


@dataclass(frozen=True)
class Shear:
    """One register += factor·(the other), both in units of their scale."""

    register: int
    factor: float


@dataclass(frozen=True)
class Push:
    """A kick in units of the registers' scale: register += factor·(what the kick computes from scale·(the other))."""

    kick: Kick
    factor: float
    scale: float

    @property
    def register(self) -> int:
        """The register that it changes."""
        return self.kick.register


@dataclass(frozen=True)
class Flip:
    """One register = -register."""

    register: int


Asked = dict[int, tuple[float, "Tensor"]]


class Machine:
    """The operations of a course in exact arithmetic, forwards and backwards.

    The registers are int64: x̄ over a common scale, in units of `quantum`. The scale takes up the determinants of the
    mixtures, so that what is left of each are three shears, which are exact both ways.
    """

    def __init__(self, course: Course, nodes: Sequence[float], *, single: bool) -> None:
        self.output = course.output
        self.steps: list[Shear | Push | Flip] = []
        scale = 1.0
        bound = HEADROOM * math.sqrt(1 + max(nodes) ** 2)
        smallest = scale
        for operation in course.operations:
            if isinstance(operation, Kick):
                self.steps.append(Push(operation, operation.sign * operation.weight / scale, scale))
            else:
                scale *= self._mix(operation.matrix)
                smallest = min(smallest, scale)
        self.scale = scale
        self.bits = BITS[single]
        self.quantum = 2.0 ** (math.ceil(math.log2(bound / smallest)) - self.bits)

    def _mix(self, matrix: Matrix) -> float:
        """Adds a mixture's shears; returns what it multiplies the scale by."""
        (a, b), (c, d) = matrix
        root = math.sqrt(abs(a * d - b * c))
        a, b, c, d = a / root, b / root, c / root, d / root
        if a * d < b * c:
            self.steps.append(Flip(1))
            b, d = -b, -d
        if abs(b) >= abs(c):
            shears = [Shear(1, (a - 1) / b), Shear(0, b), Shear(1, (d - 1) / b)]
        else:
            shears = [Shear(0, (d - 1) / c), Shear(1, c), Shear(0, (a - 1) / c)]
        self.steps += [shear for shear in shears if shear.factor != 0]
        return root

    def run(self, field: Field, registers: list[Tensor], back: bool, asked: Asked) -> None:
        """Forwards, or back, in place. registers: two (B, *) int64 tensors.

        asked: {register: (σ, ε of it)} as long as the register stays as it was asked; kept up to date.
        """
        for step in reversed(self.steps) if back else self.steps:
            register = registers[step.register]
            if isinstance(step, Flip):
                register.neg_()
            else:
                if isinstance(step, Shear):
                    change = registers[1 - step.register].double() * step.factor
                else:
                    change = self._answer(field, step, registers, asked) * (step.factor / self.quantum)
                register.add_(self._whole(change), alpha=-1 if back else 1)
                self._check(register)
            asked.pop(step.register, None)

    def _answer(self, field: Field, push: Push, registers: list[Tensor], asked: Asked) -> Tensor:
        """ε, or the increment of the kick's solver, of the other register."""
        kick, place = push.kick, 1 - push.register
        source = registers[place].double() * (push.scale * self.quantum * kick.ratio)
        if kick.base is not None:
            nodes = source.new_tensor([kick.sigma, kick.end], device="cpu")
            return kick.base.run(field, State(source, kick.sigma), nodes).xbar - source
        if kick.ratio != 1:  # not what the register holds: nothing to keep
            return field(source.new_tensor(kick.sigma, device="cpu"), source)
        return _ask(field, asked, place, kick.sigma, source)

    def _check(self, values: Tensor) -> None:
        """Raises InputError unless an int64 has room for the sum of two such values."""
        if not float(values.abs().max()) < 2.0**self.bits:
            raise InputError(UNSTABLE)

    def _whole(self, values: Tensor) -> Tensor:
        """The nearest int64."""
        import torch

        self._check(values)
        return values.round().to(torch.int64)

    def read(self, xbar: Tensor, scale: float = 1.0) -> Tensor:
        """A register that holds x̄ (B, *) at a scale."""
        return self._whole(xbar.double() / (scale * self.quantum))

    def show(self, register: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A register at the end of the run as two tensors of this dtype, whose sum it is."""
        unit = self.scale * self.quantum
        high = (register.double() * unit).to(dtype)
        low = register - self.read(high, self.scale)
        if float(low.abs().max()) > 2.0**LOW_BITS:
            raise InputError(UNSTABLE)
        return high, (low.double() * unit).to(dtype)

    def grain(self, nodes: Sequence[float], single: bool) -> float:
        """What images are rounded to: coarse enough for a float32 number to hold what the step at σ = 0 gets wrong."""
        at_zero = single and min(nodes) == 0
        return max(self.quantum, 2.0 ** (math.ceil(math.log2(64 * sorted(nodes)[1])) - 24)) if at_zero else self.quantum


def _ask(field: Field, asked: Asked, place: int, sigma: float, source: Tensor) -> Tensor:
    """ε of the source, which is what the register at this place holds; asked once as long as it stays."""
    if place not in asked or asked[place][0] != sigma:
        asked[place] = sigma, field(source.new_tensor(sigma, device="cpu"), source)
    return asked[place][1]


def _rounded(values: Tensor, grain: float) -> Tensor:
    """The nearest multiples of the grain, in float64."""
    return values.double().div(grain).round_().mul_(grain)


def account(nodes: Sequence[float], single: bool, *, course: Callable[..., Course], **settings: Any) -> Growth:
    """The growth of rounding errors over these nodes, which begin where the run begins.

    ε's own dependence on x̄ is left out: what remains are the coefficients, as for zero-stability. Each evaluation is
    taken to be wrong by one unit of rounding, float32's if `single`.
    """
    return _account(course(_positive(nodes), **settings), nodes, single)


def _account(made: Course, nodes: Sequence[float], single: bool) -> Growth:
    """The same of a course that is made."""
    try:
        machine = Machine(made, nodes, single=single)
        there = _gain(made.operations, made.output, machine, single)
        back = _gain([operation.inverse() for operation in reversed(made.operations)], 0, machine, single)
    except (OverflowError, ZeroDivisionError) as error:
        raise InputError("the coefficients of this reversible run leave all numbers: settings nearer to 1") from error
    (up, at_top), (down, at_clean) = (there, back) if nodes[-1] > nodes[0] else (back, there)
    return Growth(up, down, at_top / math.sqrt(1 + max(nodes) ** 2), at_clean / math.sqrt(1 + min(nodes) ** 2))


def _gain(operations: Sequence[Operation], output: int, machine: Machine, single: bool) -> tuple[float, float]:
    """The largest factor of an error on its way to the output, and the rounding errors of all that arrive there."""
    rounding = 2.0**-24 if single else 2.0**-53
    row = [0.0, 0.0]
    row[output] = 1.0
    largest, arrived = 1.0, 0.0
    for operation in reversed(operations):
        if isinstance(operation, Mix):
            (a, b), (c, d) = operation.matrix
            row = [row[0] * a + row[1] * c, row[0] * b + row[1] * d]
            largest = max(largest, *map(abs, row))
        else:
            error = rounding * operation.size + machine.quantum
            arrived = math.hypot(arrived, row[operation.register] * error)
    return largest, arrived


def run(
    field: Field, state: State, sigmas: Tensor, *, name: str, course: Callable[..., Course], **settings: Any
) -> State:
    """A reversible run, or the way back of one: of the state's own, if it was kept by the same method on these nodes.

    state.xbar (B, *) at sigmas[0]; sigmas (N+1,) float64. A fresh run begins with x̄ alone; the result's `aux` is what
    its way back needs, which ends at the x̄ that the run began with, bit for bit (but -0 as 0). The interval that ends
    at σ = 0 is Euler's, as everywhere: what its way back lacks is kept too, and on a fresh run down to 0 nothing is.
    Warns where the state was kept by the same method, but for another run. Errors: InputError where rounding errors
    would grow beyond 1% of what comes out, where a run leaves the numbers that it can take back, for aux that does not
    fit.
    """
    import torch

    dtype, single = state.xbar.dtype, state.xbar.dtype == torch.float32
    nodes = sigmas.tolist()
    if state.kept.startswith(f"{name} "):
        made = course(_positive(nodes[::-1]), **settings)
        # A float32 state as float64 has lost nothing: its way back is the same.
        for halves in (single,) if single else (False, True):
            if state.kept == _kept(name, made, nodes[::-1], halves):
                machine = Machine(made, nodes, single=halves)
                return _back(field, state, sigmas, machine, machine.grain(nodes, halves))
        warnings.warn(
            f"the latents were kept by {state.kept!r}, not by this run of {name}: it starts from x̄ alone and does not "
            "come back exactly (other nodes, settings or dtype)",
            stacklevel=2,
        )
    made = course(_positive(nodes), **settings)
    _check(name, made, nodes, single)
    machine = Machine(made, nodes, single=single)
    grain = machine.grain(nodes, single)
    begin = _rounded(state.xbar, grain)
    remainder = state.xbar.double() - begin
    xbar, asked = begin, Asked()
    lacking: tuple[Tensor, ...] = ()
    if nodes[0] == 0:
        xbar = begin + _rounded(field(sigmas[0], begin) * nodes[1], machine.quantum)
        slope = field(sigmas[1], xbar)
        lacking = (begin - _rounded(xbar - slope * nodes[1], grain),)
        asked = dict.fromkeys((0, 1), (nodes[1], slope))
    registers = [machine.read(xbar), machine.read(xbar)]
    machine.run(field, registers, False, asked)
    output, other = (machine.show(registers[place], dtype) for place in (machine.output, 1 - machine.output))
    if nodes[-1] == 0:
        xbar = output[0].double() + output[1]
        return State((xbar - field(sigmas[-2], xbar) * nodes[-2]).to(dtype), 0.0)
    if any(not torch.equal(part.to(dtype).double(), part) for part in (*lacking, remainder)):
        raise InputError(UNSTABLE)
    aux = (output[1], *other, *(part.to(dtype) for part in (*lacking, remainder)))
    return State(output[0], nodes[-1], aux, _kept(name, made, nodes, single))


def _back(field: Field, state: State, sigmas: Tensor, machine: Machine, grain: float) -> State:
    """The way back to where `state` comes from."""
    parts = (state.xbar, *state.aux)
    count = 5 + (float(sigmas[-1]) == 0)
    if len(parts) != count or any(part.shape != state.xbar.shape or not bool(part.isfinite().all()) for part in parts):
        raise InputError(
            f"the state's aux is not what {state.kept!r} keeps: {count - 1} finite tensors like xbar; without aux and "
            "kept, the run starts from x̄ alone"
        )
    output, other = (machine.read(parts[k], machine.scale) + machine.read(parts[k + 1], machine.scale) for k in (0, 2))
    registers = [output, other] if machine.output == 0 else [other, output]
    asked = Asked()
    machine.run(field, registers, True, asked)
    xbar = registers[0].double() * machine.quantum
    if float(sigmas[-1]) == 0:
        sigma = float(sigmas[-2])
        xbar = _rounded(xbar - _ask(field, asked, 0, sigma, xbar) * sigma, grain) + parts[-2].double()
    return State((xbar + parts[-1]).to(state.xbar.dtype), float(sigmas[-1]))


def _positive(nodes: Sequence[float]) -> list[float]:
    """The nodes without σ = 0."""
    return [sigma for sigma in nodes if sigma > 0]


def _kept(name: str, made: Course, nodes: Sequence[float], single: bool) -> str:
    """What a state is kept by: the method, what it does on which nodes in which direction, the dtype."""
    text = repr([(list(nodes), *(operation.key() for operation in made.operations))])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    direction = "up" if nodes[-1] > nodes[0] else "down"
    return f"{name} {direction} {len(nodes) - 1} steps {digest} {'float32' if single else 'float64'}"


def _check(name: str, made: Course, nodes: Sequence[float], single: bool) -> None:
    """Raises InputError where rounding errors would spoil the latent, or the image that is decoded from it."""
    up = nodes[-1] > nodes[0]

    def spoils(single: bool) -> tuple[float, str, Growth]:
        growth = _account(made, nodes, single)
        error, what = max((growth.latent, "latents"), (growth.image, "images")) if up else (growth.image, "images")
        return error, what, growth

    error, what, growth = spoils(single)
    if not error <= SPOILED:
        double = "a float64 state (--dtype float64), " if single and spoils(False)[0] <= SPOILED else ""
        raise InputError(
            f"{name} on this grid of {len(nodes) - 1} steps would amplify rounding errors by up to "
            f"{max(growth.encode, growth.decode):.1e}, to {error:.1e} of the {what}: take {double}fewer steps, a grid "
            "whose steps differ less (log, karras), settings nearer to 1, or another solver (`odeddim explain` shows "
            "the growth)"
        )


def reversible_row(
    name: str,
    course: Callable[..., Course],
    order: int,
    nfe: int,
    reference: str,
    grid: str = "log",
    **declared: Any,
) -> Solver:
    """A row that does a course's operations: course(nodes, **settings), nodes positive, rising or falling."""

    def plan(nodes: Sequence[float], **settings: Any) -> Sequence[Operation]:
        return course(nodes, **settings).operations

    return Solver(
        name=name,
        run=functools.partial(run, name=name, course=course),
        plan=plan,
        growth=functools.partial(account, course=course),
        family="reversible",
        order=order,
        nfe=nfe,
        reversible=True,
        to_zero=True,
        reference=reference,
        grid=grid,
        **declared,
    )


def mccallum_foster(base: Solver) -> Solver:
    """A row `mf-NAME` that makes a one-step row reversible: of its order, at twice its evaluations. See `coupled`."""
    if not base.onestep or base.nfe is None:
        raise InputError(f"only a one-step solver with fixed evaluations can be coupled, which {base.name!r} is not")
    return reversible_row(
        f"mf-{base.name}",
        functools.partial(coupled, base=base),
        base.order,
        2 * base.nfe,
        f"McCallum & Foster 2024, arXiv 2410.11648, over `{base.name}`",
        settings={"coupling": float},
    )


BELM = "Wang et al. 2024, arXiv 2410.07273"
SAME = ("dpm-solver-1", "heun2")  # as euler and heun
BASES = [row for family in (onestep, torchdiffeq_) for row in family.ROWS if row.onestep and row.name not in SAME]
DERIVED = {"mf-": mccallum_foster}
ROWS = (
    reversible_row("edict", edict, 1, 2, "Wallace et al. 2022, arXiv 2211.12446", "karras", settings={"p": float}),
    reversible_row("bdia", bdia_course, 2, 1, "Zhang et al. 2023, arXiv 2307.10829", settings={"gamma": float}),
    reversible_row(
        "belm", functools.partial(two_step, neighbour=belm), 2, 1, f"{BELM}, weighted by the ratio of steps"
    ),
    reversible_row("obelm", functools.partial(two_step, neighbour=obelm), 2, 1, f"{BELM} (O-BELM)"),
    reversible_row(
        "leapfrog", functools.partial(two_step, neighbour=leapfrog), 2, 1, "Gragg 1965, explicit midpoint rule"
    ),
    reversible_row(
        "reversible-heun", reversible_heun, 2, 1, "Kidger et al. 2021, arXiv 2105.13493, Algorithm 1", warmup=(1,)
    ),
    *map(mccallum_foster, BASES),
)
