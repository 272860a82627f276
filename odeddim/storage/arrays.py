"""An array in a file, of any size, of which rows are read when they are asked for.

`odeddim.storage.array_formats.open_array` finds one; this module says what it is, and how rows are taken from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odeddim.storage.names import Names
from odeddim.types import InputError

Rows = Callable[[Sequence[int]], "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Array:
    """An array in a file.

    Attributes:
        shape: (N, *).
        dtype: The type of its values.
        rows: rows(wanted) is (n, *) in memory of their own, for 0 <= wanted < N in any order, repeated or not; an
            InputError names the file if it is damaged, cut off or has changed since it was opened.
        axes: "NHW" where the format determines it.
        names: One for each row, where the file has them.
        declared: Whether the file itself says that its values are in [-1, 1].
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Rows
    axes: str | None = None
    names: Names | None = None
    declared: bool = False


def pick(path: Path, axes: Mapping[str, int]) -> str:
    """The name of the array with the images: `images`, or the only one with three to five axes.

    Args:
        path: The file.
        axes: How many axes each array in the file has.

    Raises:
        InputError: No array is `images`, and not exactly one has three to five axes.
    """
    if "images" in axes:
        return "images"
    candidates = [name for name, ndim in axes.items() if ndim in (3, 4, 5)]
    if len(candidates) != 1:
        has = ", ".join(sorted(axes)) or "nothing"
        raise InputError(
            f"{path} has no array `images` and not exactly one with 3 to 5 axes (it has: {has}): name it so"
        )
    return candidates[0]


def in_order(rows: Sequence[int]) -> bool:
    """Whether each row follows the one before it."""
    return rows.step == 1 if isinstance(rows, range) else all(b - a == 1 for a, b in itertools.pairwise(rows))


def take_rows(array: Any, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
    """array[wanted], copied.

    HDF5 takes rising rows without repeats only. So each row is read once, and put wherever it is wanted.
    """
    if in_order(wanted):
        return np.array(array[wanted[0] : wanted[0] + len(wanted)])
    unique, inverse = np.unique(np.asarray(wanted), return_inverse=True)
    return np.asarray(array[unique])[inverse]
