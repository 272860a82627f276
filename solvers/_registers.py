"""Two registers in exact arithmetic: what is done to them can be undone, bit for bit.

A reversible method keeps two registers, x̄ and a second state, and changes one by what it computes from the other, so
that every change can be taken back. It is a list of two operations: kicks, u += c·ε(v), and mixtures of the two
registers. Its inverse is the same list backwards. The registers are whole numbers, so adding and subtracting are exact:
nothing is lost whatever the network is, as long as it gives the same answer to the same batch. Those of 51 bits are
held in float64, where their sums are exact too, and which every operation computes in: int64 took 2.6 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odeddim.solvers._operations import Kick, Matrix, Moves
from odeddim.types import Field, InputError, Observe, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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

    @property
    def asks(self) -> bool:
        """Whether it takes ε of what the other register holds, which serves the next such kick too."""
        return self.kick.base is None and self.kick.ratio == 1


@dataclass(frozen=True)
class Flip:
    """One register = -register."""

    register: int


Asked = dict[int, tuple[float, "Tensor"]]


class Registers:
    """The operations of a run in exact arithmetic, forwards and backwards.

    The registers are whole numbers, in float64 or int64: x̄ over a common scale, in units of `quantum`. The scale takes
    up the determinants of the mixtures. What is left of each mixture is three shears, which are exact in both
    directions. Runs with gradients have registers of their own (`odeddim.solvers._gradients`).

    Args:
        moves: The operations.
        nodes: The noise levels of the run, σ = 0 among them where the run reaches it.
        single: Whether the state is float32. The registers then have 51 bits, in float64, instead of 62 in int64.
        notes: Where a run on a GPU keeps what must hold, () bool each, to be read at its end; None to read it at once.
    """

    exact = True
    """Whether the numbers of a run are checked to be exact in the dtype of its state."""

    def __init__(
        self, moves: Moves, nodes: Sequence[float], *, single: bool, notes: list[Tensor] | None = None
    ) -> None:
        self.output = moves.output
        self.single, self.notes = single, notes
        self.scratch: Tensor | None = None
        self.largest = [math.inf, math.inf]  # bounds of the two registers during a run
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
            registers: Two tensors of whole numbers (B, *), changed in place.
            back: Undo the operations, the last one first.
            asked: {register: (σ, ε)}, the last evaluation at a register that has not changed since; kept up to date.
            observe: What is shown x̄ (B, *), float64, at each node between the first and the last of the run.

        Raises:
            InputError: If a register leaves the numbers that it can hold: the run is unstable.
        """
        self.largest = [math.inf, math.inf]
        order = self.steps[::-1] if back else self.steps
        for n, step in enumerate(order, 1):
            place, other = step.register, 1 - step.register
            if isinstance(step, Flip):
                registers[place] = self._negated(registers[place])
            elif isinstance(step, Shear):
                most = abs(step.factor) * self.largest[other] + 2  # with what rounding adds
                self._change(registers, place, self._times(registers[other], step.factor), back, most)
            else:
                eps = self._answer(field, step, registers, asked)
                self._change(registers, place, self._times(eps, step.factor / self.quantum), back, math.inf)
                del eps
                if other in asked and not _asks_again(order, n, other, step.kick.sigma):
                    del asked[other]
            asked.pop(place, None)
            if observe is not None and (node := self.nodes.get(len(order) - n if back else n)):
                sigma, place, scale = node
                observe(sigma, registers[place].double() * (scale * self.quantum))

    def _change(self, registers: list[Tensor], place: int, change: Tensor, back: bool, most: float) -> None:
        """Add the nearest whole numbers to a register, or take them off.

        A register is looked through only where the bounds do not say that there is room for it. In float64 a sum that
        is too large stays so; in int64 it would begin again from below, so there the change is looked through before.

        Args:
            registers: The registers.
            place: That which changes.
            change: What is added, float64, and may be overwritten.
            back: Take off what was added.
            most: A bound of its values; infinity for none.
        """
        if not self.single and not most < 2.0**self.bits:
            most = self._check(change) + 1
        registers[place] = self._added(registers[place], self._rounded(change), -1 if back else 1)
        self.largest[place] += most
        if not self.largest[place] < 2.0**self.bits:
            self.largest[place] = self._check(registers[place])

    def _answer(self, field: Field, push: Push, registers: list[Tensor], asked: Asked) -> Tensor:
        """ε, or the increment of the kick's solver, of the other register."""
        kick, place = push.kick, 1 - push.register
        self.scratch = None  # the network needs the memory
        source = self.source(push, registers)
        if push.asks:
            return self.ask(field, asked, place, kick.sigma, source)
        return answer(field, kick, source)

    def source(self, push: Push, registers: list[Tensor]) -> Tensor:
        """What a kick computes from, (B, *) float64: the register that it leaves alone, in its scale."""
        return registers[1 - push.register].double() * (push.scale * self.quantum * push.kick.ratio)

    def ask(self, field: Field, asked: Asked, place: int, sigma: float, source: Tensor) -> Tensor:
        """ε of the source, which is what the register at this place holds; asked once as long as it stays."""
        if place not in asked or asked[place][0] != sigma:
            asked.pop(place, None)
            asked[place] = sigma, field(source.new_tensor(sigma, device="cpu"), source)
        return asked[place][1]

    def _times(self, values: Tensor, factor: float) -> Tensor:
        """Values times a factor, float64, until the next call: fresh memory would cost more than the product."""
        import torch

        if self.scratch is None or self.scratch.shape != values.shape:
            self.scratch = torch.empty_like(values, dtype=torch.float64)
        return torch.mul(values.double(), factor, out=self.scratch)

    def _negated(self, register: Tensor) -> Tensor:
        return 0 - register  # not -register, which would make -0 of 0

    def _added(self, register: Tensor, change: Tensor, sign: int) -> Tensor:
        return register.add_(change, alpha=sign)

    def _check(self, values: Tensor) -> float:
        """The largest absolute value; an InputError unless a register has room for the sum of two such values.

        Where what must hold is noted, it is infinity, as nobody knows the values yet.
        """
        low, high = _extremes(values)
        if self.notes is not None:
            self.notes.append((low > -(2.0**self.bits)) & (high < 2.0**self.bits))
            return math.inf
        largest = max(-float(low), float(high))
        if not largest < 2.0**self.bits:
            raise InputError(UNSTABLE)
        return largest

    def require(self, holds: Tensor, message: str) -> None:
        """An InputError unless this holds, () bool; or a note of it."""
        if self.notes is not None:
            self.notes.append(holds)
        elif not bool(holds):
            raise InputError(message)

    def _rounded(self, values: Tensor) -> Tensor:
        """The nearest whole numbers to float64 ones, as registers hold them; the values may be overwritten."""
        import torch

        values = values.round_()
        return values if self.single else values.to(torch.int64)

    def _whole(self, values: Tensor) -> Tensor:
        """The same, of numbers that there must be room for."""
        self._check(values)
        return self._rounded(values)

    def rounded(self, values: Tensor, grain: float) -> Tensor:
        """The nearest multiples of the grain, a power of 2, in float64."""
        import torch

        return values.to(torch.float64, copy=True).mul_(1 / grain).round_().mul_(grain)

    def read(self, xbar: Tensor, scale: float = 1.0) -> Tensor:
        """The register for x̄ (B, *), int64 in units of scale·quantum."""
        return self._integer(xbar, scale)

    def begun(self, xbar: Tensor) -> list[Tensor]:
        """Both registers at the beginning of a run, for x̄ (B, *)."""
        register = self.read(xbar)
        return [register, register.clone()]

    def _integer(self, xbar: Tensor, scale: float) -> Tensor:
        import torch

        whole = self._whole(xbar.to(torch.float64, copy=True).div_(scale * self.quantum))
        return whole.add_(0.0) if self.single else whole  # without -0, which integers do not have

    def joined(self, high: Tensor, low: Tensor) -> Tensor:
        """The register of the two tensors that `show` has made of it."""
        return self.read(high, self.scale) + self.read(low, self.scale)

    def value(self, register: Tensor) -> Tensor:
        """A register at the beginning of the run, where its scale is 1, as x̄ (B, *) float64."""
        return register.double() * self.quantum

    def show(self, register: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A register at the end of the run as two tensors of this dtype, whose sum is its exact value."""
        unit = self.scale * self.quantum
        high = self._times(register, unit).to(dtype, copy=True)
        low = self._integer(high, self.scale).neg_().add_(register)
        least, most = _extremes(low)
        self.require((least >= -(2.0**LOW_BITS)) & (most <= 2.0**LOW_BITS), UNSTABLE)
        return high, low.double().mul_(unit).to(dtype)

    def grain(self, nodes: Sequence[float], single: bool) -> float:
        """The unit to which images are rounded: a float32 number must hold what the step at σ = 0 loses of it."""
        at_zero = single and min(nodes) == 0
        return max(self.quantum, 2.0 ** (math.ceil(math.log2(64 * sorted(nodes)[1])) - 24)) if at_zero else self.quantum


def _asks_again(order: Sequence[Shear | Push | Flip], after: int, place: int, sigma: float) -> bool:
    """Whether the next steps ask the field at a register once more, for the same noise level, before it changes.

    After the last step a way back to σ = 0 may, at register 0.
    """
    for n in range(after, len(order)):
        step = order[n]
        if step.register == place:
            return False
        if isinstance(step, Push) and step.asks:
            return step.kick.sigma == sigma
    return place == 0


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value, () each: two passes, which take less time than torch's one for both."""
    values = values.detach()
    return values.amin(), values.amax()


def finite(values: Tensor) -> Tensor:
    """Whether all values are finite, () bool: two passes, which in float32 took a tenth of the time of `isfinite`."""
    low, high = _extremes(values)
    return (low > -math.inf) & (high < math.inf)


def answer(field: Field, kick: Kick, source: Tensor) -> Tensor:
    """What a kick computes from its source: ε, or the increment of its solver."""
    if kick.base is None:
        return field(source.new_tensor(kick.sigma, device="cpu"), source)
    nodes = source.new_tensor([kick.sigma, kick.end], device="cpu")
    return kick.base.run(field, State(source, kick.sigma), nodes).xbar - (source * kick.held if kick.data else source)
