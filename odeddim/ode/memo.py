"""Memo: a function that remembers its last results, and can be pickled where the function can."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")


class Memo(Generic[Key, Result]):
    """A function of one argument that remembers its last results. A copy and a pickle of it start empty.

    Args:
        function: The function.
        size: How many results are remembered.
    """

    def __init__(self, function: Callable[[Key], Result], size: int) -> None:
        self.function, self.size = function, size
        self._cached = functools.lru_cache(maxsize=size)(function)

    def __call__(self, key: Key) -> Result:
        return self._cached(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, (self.function, self.size)
