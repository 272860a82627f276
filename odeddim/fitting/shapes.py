"""Grids of three numbers: where the descent of a fit may begin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """A grid of three numbers.

    Attributes:
        top: The last node.
        low: The lowest node above the one where images lie.
        rho: The nodes between are even in σ^(1/ρ); 0 for even in log σ.
    """

    top: float
    low: float
    rho: float

    def nodes(self, steps: int) -> tuple[float, ...]:
        """The nodes above the one where images lie, (steps,)."""
        if steps == 1:
            return (self.top,)
        shares = [n / (steps - 1) for n in range(1, steps - 1)]
        if self.rho:
            low, top = self.low ** (1 / self.rho), self.top ** (1 / self.rho)
            inner = [(low + share * (top - low)) ** self.rho for share in shares]
        else:
            inner = [self.low * (self.top / self.low) ** share for share in shares]
        return (self.low, *inner, self.top)

    def neighbours(self, *, movable: bool) -> list[Callable[[Shape], Iterator[Shape]]]:
        """Walks to other grids, each in one direction. movable: whether the last node may move."""
        walks = [("low", 0.7), ("low", 1.4), *([("top", 0.7), ("top", 1.4)] if movable else [])]
        return [functools.partial(Shape.walk, name=name, factor=factor) for name, factor in walks]

    def walk(self, name: str, factor: float) -> Iterator[Shape]:
        """Grids with a number multiplied again and again."""
        shape = self
        while True:
            shape = replace(shape, **{name: getattr(shape, name) * factor})
            yield shape
