"""What a reversible run is made of: two operations on its two registers, each of which can be taken back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from odeddim.types import Solver, weighted_sum

Pair = tuple[float, float]
Matrix = tuple[Pair, Pair]

NAMES = ("u", "v")


@dataclass(frozen=True)
class Kick:
    """An operation that adds to one register what it computes from the other: sign·weight·ε(σ, ratio·other).

    Attributes:
        register: The register that changes, 0 or 1.
        sigma: The noise level σ of the evaluation.
        weight: The weight of what is added.
        base: A one-step solver; the increment of its step from σ to `end`, from ratio·other, then takes the place
            of ε.
        end: Where that step ends.
        sign: 1, or -1 of an inverse.
        ratio: The factor on the other register.
        data: Whether the increment is that of x̄/σ, in units of x̄ at `end`: the solver's result minus what x̄/σ would
            have kept, end/σ·(ratio·other).
    """

    register: int
    sigma: float
    weight: float
    base: Solver | None = None
    end: float = 0.0
    sign: float = 1.0
    ratio: float = 1.0
    data: bool = False

    @property
    def size(self) -> float:
        """The factor on an error of the field: the weight, times the length of the solver's step."""
        return abs(self.weight) if self.base is None else abs(self.weight * (self.end - self.sigma))

    @property
    def held(self) -> float:
        """How much of its source the solver's result holds without any slope: the rest is the increment."""
        return self.end / self.sigma if self.data else 1.0

    @property
    def carried(self) -> float:
        """The weight of the other register in what is added, beside that of ε."""
        return self.sign * self.weight * (1 - self.held) * self.ratio

    def inverse(self) -> Kick:
        """The operation that takes this one back."""
        return replace(self, sign=-self.sign)

    def key(self) -> tuple[object, ...]:
        """All values that the operation depends on."""
        ratio = () if self.ratio == 1 else (self.ratio,)  # states of the other methods, kept before it was, stay theirs
        data = (self.data,) if self.data else ()
        return self.register, self.sigma, self.weight, self.end, self.sign, self.base and self.base.name, *ratio, *data

    def words(self, place: int) -> str:
        """The operation as text: "u = u + c·ε(v, σ = 0.5)"."""
        to, source = NAMES[self.register], NAMES[1 - self.register]
        if self.base is None:
            what = f"ε({weighted_sum([(self.ratio, source)])}, σ = {self.sigma:.6g})"
        else:
            start = weighted_sum([(self.ratio, source)])
            what = f"{self.base.name}'s increment of {start} from σ = {self.sigma:.6g} to {self.end:.6g}"
            if self.data:
                what = f"({self.base.name}'s step of {start} from σ = {self.sigma:.6g} to {self.end:.6g} - "
                what += f"{weighted_sum([(self.held * self.ratio, source)])})"
        return f"{to} = {weighted_sum([(1.0, to), (self.sign * self.weight, what)])}"


@dataclass(frozen=True)
class Mix:
    """An operation that mixes the registers: (u, v) = matrix·(u, v)."""

    matrix: Matrix

    def inverse(self) -> Mix:
        """The operation that takes this one back."""
        (a, b), (c, d) = self.matrix
        det = a * d - b * c
        return Mix(((d / det, -b / det), (-c / det, a / det)))

    def key(self) -> tuple[object, ...]:
        """All values that the operation depends on."""
        return self.matrix

    def words(self, place: int) -> str:
        """The operation as text: "(u, v) = (a·u + b·v, c·u + d·v)"."""
        sums = (
            weighted_sum((weight, name) for weight, name in zip(row, NAMES, strict=True) if weight)
            for row in self.matrix
        )
        return f"(u, v) = ({', '.join(sums)})"


Operation = Kick | Mix


class Reached(NamedTuple):
    """A node of a run: after so many operations, this register, 0 or 1, holds x̄ at this noise level."""

    operations: int
    register: int
    sigma: float


@dataclass(frozen=True)
class Moves:
    """The operations of a run.

    Attributes:
        operations: In the order in which they are done, beginning with u = v = x̄.
        output: The register, 0 or 1, that holds x̄ at the end.
        reached: The positive nodes of the run, in their order.
        data: Whether the registers are scaled from node to node as the noise level is, so that they are x̄/σ.
    """

    operations: tuple[Operation, ...]
    output: int = 0
    reached: tuple[Reached, ...] = ()
    data: bool = False
