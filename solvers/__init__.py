"""The table of solvers: how dx̄/dσ = ε(x̄, σ) is integrated from one noise level to another.

    odeddim.solvers.get("ab3").run(field, state, sigmas)    # rising sigmas encode, falling ones decode
    odeddim.solvers.get("dopri5", rtol=1e-6)                # a row with a setting
    odeddim.solvers.add(row)                                # a row of your own, then usable by its name everywhere

A row is an `odeddim.types.Solver`. Each module of this package whose name does not begin with an underscore is a
family: its functions and, in `ROWS`, its rows. A new solver is one row, or one module. README.md beside this file says
how. Families see a field, a state and nodes, never a network or a schedule. They import torch and the like inside
functions only, so that listing the table loads nothing heavy.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from importlib import import_module

if __name__ != "odeddim.solvers":
    raise ImportError(f"import this package as odeddim.solvers: under the name {__name__!r} it would be a second table")

from odeddim.types import InputError, Solver, pick

__all__ = ["DERIVED", "SOLVERS", "add", "get", "names"]

SOLVERS: dict[str, Solver] = {}
"""All rows by name, in the order in which the table is printed."""

DERIVED: dict[str, Callable[[Solver], Solver]] = {}
"""Functions that make a row of another row, by the prefix of its name: "mf-" makes a one-step row reversible."""


def add(row: Solver) -> None:
    """Add a row to the table; it is then usable by its name everywhere in this process.

    Args:
        row: The row.

    Raises:
        InputError: If the name is taken or malformed, or a field of the row cannot be true.

    Example:
        >>> from dataclasses import replace
        >>> from odeddim import solvers
        >>> solvers.add(replace(solvers.get("ab3"), name="mine", reference="this program"))
        >>> solvers.get("mine").order
        3
        >>> del solvers.SOLVERS["mine"]
    """
    if row.name in SOLVERS:
        raise InputError(f"there is already a solver {row.name!r}; give the new row another name")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.name):
        raise InputError(f"solver name {row.name!r} must be lower-case words joined by hyphens")
    if row.order < 1 or (row.nfe is not None and row.nfe < 1) or min(row.warmup, default=0) < 0:
        raise InputError(f"solver {row.name!r}: order and nfe must be at least 1, and warmup must not be negative")
    if not row.family or not row.reference:
        raise InputError(f"solver {row.name!r} must name its family and its reference")
    SOLVERS[row.name] = row


def get(name: str, **settings: object) -> Solver:
    """Return the row with a name, with some of its settings fixed.

    Args:
        name: A name in the table, or the name of another row after a prefix in `DERIVED`: "mf-NAME", "exact-NAME".
        **settings: Values by name, such as rtol=1e-6. A value of None leaves that setting at its default.

    Returns:
        The row.

    Raises:
        InputError: For an unknown name (the message suggests the nearest ones), an unknown setting, or a value of
            the wrong type.

    Example:
        >>> from odeddim import solvers
        >>> solvers.get("ab3").order
        3
    """
    for prefix, derive in DERIVED.items():
        base = name.removeprefix(prefix)
        if name not in SOLVERS and name.startswith(prefix) and base in SOLVERS:
            return derive(SOLVERS[base]).with_settings(**settings)
    return SOLVERS[pick(name, SOLVERS, "solver")].with_settings(**settings)


def names() -> tuple[str, ...]:
    """The names of all rows, in the order of the table.

    Returns:
        The names. Those of other derived rows, such as "exact-rk4", work too, see `get`.

    Example:
        >>> from odeddim import solvers
        >>> solvers.names()[:2]
        ('euler', 'heun')
    """
    return tuple(SOLVERS)


# The order in which the families are printed. Other modules with ROWS come after them.
_SHOWN = (
    "onestep",
    "multistep",
    "reusing",
    "torchdiffeq_",
    "reversible",
    "iterated",
    "per_image",
    "scipy_",
    "stochastic",
)


def _place(family: str) -> tuple[int, str]:
    return _SHOWN.index(family) if family in _SHOWN else len(_SHOWN), family


for _family in sorted((module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"), key=_place):
    _module = import_module(f"odeddim.solvers.{_family}")
    if not hasattr(_module, "ROWS"):
        raise ImportError(
            f"{_module.__file__} has no ROWS: list its solvers in ROWS, or start the module's name with an underscore"
        )
    for _row in _module.ROWS:
        add(_row)
    DERIVED.update(getattr(_module, "DERIVED", {}))
