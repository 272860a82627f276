"""Runs on two registers in exact arithmetic: what encoding does, decoding undoes, bit for bit.

A reversible method keeps two registers, x̄ and a second state, and changes one by what it computes from the other, so
that every change can be taken back. It is a list of two operations: kicks, u += c·ε(v), and mixtures of the two
registers. Its inverse is the same list backwards. The registers are integers, so adding and subtracting are exact:
nothing is lost whatever the network is, as long as it gives the same answer to the same batch.

A run that comes back exactly can still be far from the solution. It also amplifies errors that are there already (of a
network in float32, on another machine, of interpolated latents): `Solver.growth` computes by how much, and a run in
which they would spoil the result is refused.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from odeddim.solvers._operations import Kick, Matrix, Mix, Moves, Operation
from odeddim.types import Field, Growth, InputError, Observe, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPOILED = 1e-2  # of the scale of a latent or an image: rounding errors that would grow beyond it are refused
HEADROOM = 2.0**13  # registers hold values up to so many times √(1+σ_T²): few coarse steps overshoot by hundreds
BITS = {True: 51, False: 62}  # of a register, for float32 states and float64 ones
LOW_BITS = 22  # that a float32 number can hold of what another has rounded away, with some to spare
UNSTABLE = (
    "the reversible run leaves the numbers that it can take back: it is unstable on this grid; "
    "take more steps, another grid or another solver"
)


@dataclass(frozen=True)
class Shear:
    """One register += factor·(the other), both in units of their scale: a third of a mixture."""

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
        """The register that changes."""
        return self.kick.register


@dataclass(frozen=True)
class Flip:
    """One register = -register."""

    register: int


Asked = dict[int, tuple[float, "Tensor"]]


class Registers:
    """The operations of a run in exact arithmetic, forwards and backwards.

    The registers are int64 tensors: x̄ over a common scale, in units of `quantum`. The scale takes up the determinants
    of the mixtures. What is left of each mixture is three shears, which are exact in both directions. Runs with
    gradients have registers of their own (`odeddim.solvers._gradients`).

    Args:
        moves: The operations.
        nodes: The noise levels of the run, σ = 0 among them where the run reaches it.
        single: Whether the state is float32. The registers then have 51 bits instead of 62.
    """

    exact = True
    """Whether the numbers of a run are checked to be exact in the dtype of its state."""

    def __init__(self, moves: Moves, nodes: Sequence[float], *, single: bool) -> None:
        self.output = moves.output
        self.steps: list[Shear | Push | Flip] = []
        after = [(0, 1.0)]  # the steps and the scale after so many operations
        scale = 1.0
        smallest = scale
        for operation in moves.operations:
            if isinstance(operation, Kick):
                self.steps.append(Push(operation, operation.sign * operation.weight / scale, scale))
            else:
                scale *= self._mix(operation.matrix)
                smallest = min(smallest, scale)
            after.append((len(self.steps), scale))
        self.scale = scale
        self.bits = BITS[single]
        largest = math.sqrt(1 + max(nodes) ** 2) / smallest
        if moves.data:  # the scale goes with that of x̄
            largest = max(math.hypot(1, it.sigma) / after[it.operations][1] for it in moves.reached)
        self.quantum = 2.0 ** (math.ceil(math.log2(HEADROOM * largest)) - self.bits)
        inner = set(nodes[1:-1])
        self.nodes = {  # of a run, between its first and its last
            after[it.operations][0]: (it.sigma, it.register, after[it.operations][1])
            for it in moves.reached
            if it.sigma in inner
        }

    def _mix(self, matrix: Matrix) -> float:
        """Adds a mixture's shears; returns what it multiplies the scale by."""
        (a, b), (c, d) = matrix
        root = math.sqrt(abs(a * d - b * c))
        if b == c == 0 and a == d > 0:  # a scale alone
            return root
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

    def run(
        self, field: Field, registers: list[Tensor], back: bool, asked: Asked, observe: Observe | None = None
    ) -> None:
        """Do all operations, or undo them.

        Args:
            field: ε(σ, x̄).
            registers: Two int64 tensors (B, *), changed in place.
            back: Undo the operations, the last one first.
            asked: {register: (σ, ε)}, the last evaluation at a register that has not changed since; kept up to date.
            observe: What is shown x̄ (B, *), float64, at each node between the first and the last of the run.

        Raises:
            InputError: If a register leaves the numbers that it can hold: the run is unstable.
        """
        steps = list(enumerate(self.steps, 1))
        for n, step in reversed(steps) if back else steps:
            register = registers[step.register]
            if isinstance(step, Flip):
                register = self._negated(register)
            else:
                if isinstance(step, Shear):
                    change = registers[1 - step.register].double() * step.factor
                else:
                    change = self._answer(field, step, registers, asked) * (step.factor / self.quantum)
                register = self._added(register, self._whole(change), -1 if back else 1)
                self._check(register)
            registers[step.register] = register
            asked.pop(step.register, None)
            if observe is not None and (node := self.nodes.get(n - 1 if back else n)):
                sigma, place, scale = node
                observe(sigma, registers[place].double() * (scale * self.quantum))

    def _answer(self, field: Field, push: Push, registers: list[Tensor], asked: Asked) -> Tensor:
        """ε, or the increment of the kick's solver, of the other register."""
        kick, place = push.kick, 1 - push.register
        source = self.source(push, registers)
        if kick.base is not None or kick.ratio != 1:  # not what the register holds: nothing to keep
            return answer(field, kick, source)
        return self.ask(field, asked, place, kick.sigma, source)

    def source(self, push: Push, registers: list[Tensor]) -> Tensor:
        """What a kick computes from, (B, *) float64: the register that it leaves alone, in its scale."""
        return registers[1 - push.register].double() * (push.scale * self.quantum * push.kick.ratio)

    def ask(self, field: Field, asked: Asked, place: int, sigma: float, source: Tensor) -> Tensor:
        """ε of the source, which is what the register at this place holds; asked once as long as it stays."""
        if place not in asked or asked[place][0] != sigma:
            asked[place] = sigma, field(source.new_tensor(sigma, device="cpu"), source)
        return asked[place][1]

    def _negated(self, register: Tensor) -> Tensor:
        return register.neg_()

    def _added(self, register: Tensor, change: Tensor, sign: int) -> Tensor:
        return register.add_(change, alpha=sign)

    def _check(self, values: Tensor) -> None:
        """Raises InputError unless an int64 has room for the sum of two such values."""
        if not float(values.abs().max()) < 2.0**self.bits:
            raise InputError(UNSTABLE)

    def _whole(self, values: Tensor) -> Tensor:
        """The nearest int64."""
        import torch

        self._check(values)
        return values.round().to(torch.int64)

    def rounded(self, values: Tensor, grain: float) -> Tensor:
        """The nearest multiples of the grain, in float64."""
        return values.double().div(grain).round_().mul_(grain)

    def read(self, xbar: Tensor, scale: float = 1.0) -> Tensor:
        """The register for x̄ (B, *), int64 in units of scale·quantum."""
        return self._integer(xbar, scale)

    def _integer(self, xbar: Tensor, scale: float) -> Tensor:
        return self._whole(xbar.double() / (scale * self.quantum))

    def joined(self, high: Tensor, low: Tensor) -> Tensor:
        """The register of the two tensors that `show` has made of it."""
        return self.read(high, self.scale) + self.read(low, self.scale)

    def value(self, register: Tensor) -> Tensor:
        """A register at the beginning of the run, where its scale is 1, as x̄ (B, *) float64."""
        return register.double() * self.quantum

    def show(self, register: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A register at the end of the run as two tensors of this dtype, whose sum is its exact value."""
        unit = self.scale * self.quantum
        high = (register.double() * unit).to(dtype)
        low = register - self._integer(high, self.scale)
        if float(low.detach().abs().max()) > 2.0**LOW_BITS:
            raise InputError(UNSTABLE)
        return high, (low.double() * unit).to(dtype)

    def grain(self, nodes: Sequence[float], single: bool) -> float:
        """The unit to which images are rounded: a float32 number must hold what the step at σ = 0 loses of it."""
        at_zero = single and min(nodes) == 0
        return max(self.quantum, 2.0 ** (math.ceil(math.log2(64 * sorted(nodes)[1])) - 24)) if at_zero else self.quantum


def answer(field: Field, kick: Kick, source: Tensor) -> Tensor:
    """What a kick computes from its source: ε, or the increment of its solver."""
    if kick.base is None:
        return field(source.new_tensor(kick.sigma, device="cpu"), source)
    nodes = source.new_tensor([kick.sigma, kick.end], device="cpu")
    return kick.base.run(field, State(source, kick.sigma), nodes).xbar - (source * kick.held if kick.data else source)


def account(nodes: Sequence[float], single: bool, *, moves: Callable[..., Moves], **settings: Any) -> Growth:
    """The growth of rounding errors of a reversible run, from its coefficients alone.

    The dependence of ε on x̄ is left out, as in the definition of zero-stability. Each evaluation is taken to be wrong
    by one unit of rounding.

    Args:
        nodes: The noise levels in the direction of the run.
        single: Whether the unit of rounding is that of float32.
        moves: moves(nodes, **settings) makes the operations.
        **settings: The settings of the row.

    Returns:
        The growth in both directions.

    Raises:
        InputError: If the coefficients overflow.
    """
    return _account(moves(_positive(nodes), **settings), nodes, single)


def _account(made: Moves, nodes: Sequence[float], single: bool) -> Growth:
    """`account` of operations that are made already."""
    try:
        bank = Registers(made, nodes, single=single)
        there = _gain(made.operations, made.output, bank, single)
        back = _gain([operation.inverse() for operation in reversed(made.operations)], 0, bank, single)
    except (OverflowError, ZeroDivisionError) as error:
        raise InputError("the coefficients of this reversible run overflow: choose settings nearer to 1") from error
    (up, at_top), (down, at_clean) = (there, back) if nodes[-1] > nodes[0] else (back, there)
    return Growth(up, down, at_top / math.sqrt(1 + max(nodes) ** 2), at_clean / math.sqrt(1 + min(nodes) ** 2))


def _gain(operations: Sequence[Operation], output: int, bank: Registers, single: bool) -> tuple[float, float]:
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
            error = rounding * operation.size + bank.quantum
            arrived = math.hypot(arrived, row[operation.register] * error)
            if operation.data:  # what the step does to its source while ε stays as it is
                row[1 - operation.register] += row[operation.register] * operation.carried
                largest = max(largest, *map(abs, row))
    return largest, arrived


def run(
    field: Field,
    state: State,
    sigmas: Tensor,
    *,
    name: str,
    moves: Callable[..., Moves],
    bank: type[Registers] = Registers,
    observe: Observe | None = None,
    **settings: Any,
) -> State:
    """A reversible run, or the way back of an earlier one if the state was kept by the same method on these nodes.

    A fresh run begins with x̄ alone. The way back ends at the x̄ with which that run began, bit for bit, except that -0
    becomes 0. The interval that ends at σ = 0 takes the Euler step, as in all runs; upwards `aux` holds what its way
    back lacks, and a fresh run down to 0 keeps nothing. A warning is given if the same method has kept the state, but
    in another run.

    Args:
        field: ε(σ, x̄).
        state: The start, at sigmas[0].
        sigmas: Noise levels (N+1,) float64, rising or falling; the lowest may be 0.
        name: The name of the row, by which states are kept.
        moves: moves(nodes, **settings) makes the operations over the positive nodes.
        bank: What does the operations.
        observe: What is shown x̄ at each node between the first and the last.
        **settings: The settings of the row.

    Returns:
        The state at sigmas[-1], with what its way back needs in `aux`.

    Raises:
        InputError: If rounding errors would grow beyond 1% of the result, if the run is unstable, or if the state's
            `aux` is not what its `kept` says.
    """
    import torch

    single, nodes = state.xbar.dtype == torch.float32, sigmas.tolist()
    if state.kept.startswith(f"{name} "):
        made = moves(_positive(nodes[::-1]), **settings)
        # A float32 state as float64 has lost nothing: its way back is the same.
        for halves in (single,) if single else (False, True):
            if state.kept == _kept(name, made, nodes[::-1], halves):
                return _back(field, state, sigmas, bank(made, nodes, single=halves), halves, observe)
        warnings.warn(
            f"the latents are from {state.kept!r}, and this run of {name} has other nodes, settings or dtype: it "
            "starts from x̄ alone and does not come back exactly",
            stacklevel=2,
        )
    made = moves(_positive(nodes), **settings)
    _check(name, made, nodes, single)
    return _fresh(field, state, sigmas, bank(made, nodes, single=single), observe, _kept(name, made, nodes, single))


def _fresh(field: Field, state: State, sigmas: Tensor, bank: Registers, observe: Observe | None, kept: str) -> State:
    """A run that begins with x̄ alone; `kept` is for the state at its end."""
    import torch

    dtype, nodes = state.xbar.dtype, sigmas.tolist()
    grain = bank.grain(nodes, dtype == torch.float32)
    begin = bank.rounded(state.xbar, grain)
    remainder = state.xbar.double() - begin
    xbar, asked = begin, Asked()
    lacking: tuple[Tensor, ...] = ()
    if nodes[0] == 0:
        xbar = begin + bank.rounded(field(sigmas[0], begin) * nodes[1], bank.quantum)
        if observe is not None and len(nodes) > 2:
            observe(nodes[1], xbar.to(dtype))
        slope = field(sigmas[1], xbar)
        lacking = (begin - bank.rounded(xbar - slope * nodes[1], grain),)
        asked = dict.fromkeys((0, 1), (nodes[1], slope))
    registers = [bank.read(xbar), bank.read(xbar)]
    bank.run(field, registers, False, asked, _in_dtype(observe, dtype))
    output, other = (bank.show(registers[place], dtype) for place in (bank.output, 1 - bank.output))
    if nodes[-1] == 0:
        xbar = output[0].double() + output[1]
        return State((xbar - field(sigmas[-2], xbar) * nodes[-2]).to(dtype), 0.0)
    if bank.exact and any(not torch.equal(part.to(dtype).double(), part) for part in (*lacking, remainder)):
        raise InputError(UNSTABLE)
    aux = (output[1], *other, *(part.to(dtype) for part in (*lacking, remainder)))
    return State(output[0], nodes[-1], aux, kept)


def _back(field: Field, state: State, sigmas: Tensor, bank: Registers, single: bool, observe: Observe | None) -> State:
    """The way back to the state from which `state` came."""
    parts = (state.xbar, *state.aux)
    count = 5 + (float(sigmas[-1]) == 0)
    if len(parts) != count or any(part.shape != state.xbar.shape or not bool(part.isfinite().all()) for part in parts):
        raise InputError(
            f"the state's aux does not belong to {state.kept!r}, which has {count - 1} finite tensors of the shape of "
            "xbar: leave out aux and kept, and the run starts from x̄ alone"
        )
    output, other = bank.joined(*parts[:2]), bank.joined(*parts[2:4])
    registers = [output, other] if bank.output == 0 else [other, output]
    asked = Asked()
    bank.run(field, registers, True, asked, _in_dtype(observe, state.xbar.dtype))
    xbar = bank.value(registers[0])
    if float(sigmas[-1]) == 0:
        sigma, grain = float(sigmas[-2]), bank.grain(sigmas.tolist(), single)
        xbar = bank.rounded(xbar - bank.ask(field, asked, 0, sigma, xbar) * sigma, grain) + parts[-2].double()
    return State((xbar + parts[-1]).to(state.xbar.dtype), float(sigmas[-1]))


def _in_dtype(observe: Observe | None, dtype: torch.dtype) -> Observe | None:
    """The observer of a run, who sees its points in the dtype of its state."""
    return None if observe is None else lambda sigma, xbar: observe(sigma, xbar.to(dtype))


def _positive(nodes: Sequence[float]) -> list[float]:
    """The nodes without σ = 0."""
    return [sigma for sigma in nodes if sigma > 0]


def _kept(name: str, made: Moves, nodes: Sequence[float], single: bool) -> str:
    """The text of `State.kept`: the method, the direction, a digest of nodes and operations, and the dtype."""
    text = repr([(list(nodes), *(operation.key() for operation in made.operations))])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    direction = "up" if nodes[-1] > nodes[0] else "down"
    return f"{name} {direction} {len(nodes) - 1} steps {digest} {'float32' if single else 'float64'}"


def _check(name: str, made: Moves, nodes: Sequence[float], single: bool) -> None:
    """Raise an InputError if rounding errors would spoil the latent, or the image that is decoded from it."""
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
            "with more even steps (log, karras), settings nearer to 1, or another solver (`odeddim explain` shows the "
            "growth)"
        )
