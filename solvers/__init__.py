"""The table of solvers: how dx̄/dσ = ε(x̄, σ) is integrated from one noise level to another.

    odeddim.solvers.get("ab3")(field, state, sigmas)        # rising sigmas encode, falling ones decode
    odeddim.solvers.get("dopri5", rtol=1e-6)                # a row with a setting
    odeddim.solvers.add(row)                                # a row of your own, then usable by its name everywhere

A row is an `odeddim.types.Solver`. Each file beside this one is a family: its functions and, in `ROWS`, its rows;
a new solver is one row, or one file, in one place. Families see a field, a state and nodes, never a network or a
schedule, and import torch and the like only inside functions, so that listing the table loads nothing heavy.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from importlib import import_module

if __name__ != "odeddim.solvers":
    raise ImportError(f"import this as odeddim.solvers: as {__name__!r} it would be a second table beside the first")

from odeddim.types import InputError, Solver, pick

__all__ = ["DERIVED", "SOLVERS", "add", "get", "names"]

SOLVERS: dict[str, Solver] = {}
"""Every row by its name, in the order in which the table is shown."""

DERIVED: dict[str, Callable[[Solver], Solver]] = {}
"""What can be made of other rows, by the beginning of its name: "mf-" makes a one-step row reversible, and so on."""


def add(row: Solver) -> None:
    """Puts a row into the table. Raises InputError for a name that is taken or a row that cannot be true."""
    if row.name in SOLVERS:
        raise InputError(f"there is already a solver {row.name!r}; give the new row another name")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.name):
        raise InputError(f"solver name {row.name!r} must be lower-case words joined by hyphens")
    if row.order < 1 or (row.nfe is not None and row.nfe < 1) or min(row.warmup, default=0) < 0:
        raise InputError(f"solver {row.name!r}: order and nfe must be at least 1, warmup not negative")
    if not row.family or not row.reference:
        raise InputError(f"solver {row.name!r} must name its family and its reference")
    SOLVERS[row.name] = row


def get(name: str, **settings: object) -> Solver:
    """The row of that name, with settings such as rtol, atol, max_nfe (None: the row's default).

    A name may also be one of `DERIVED` before that of another row: "mf-NAME", "exact-NAME".
    Raises InputError for an unknown name, with its nearest neighbours, and for a setting that the row does not have.
    """
    for prefix, derive in DERIVED.items():
        base = name.removeprefix(prefix)
        if name not in SOLVERS and name.startswith(prefix) and base in SOLVERS:
            return derive(SOLVERS[base]).with_settings(**settings)
    return SOLVERS[pick(name, SOLVERS, "solver")].with_settings(**settings)


def names() -> tuple[str, ...]:
    """The names of all rows, in the table's order."""
    return tuple(SOLVERS)


# The order in which the families are shown; others, each a file with ROWS, come after them.
_SHOWN = ("onestep", "multistep", "torchdiffeq_", "reversible", "iterated", "per_image", "scipy_", "stochastic")


def _place(family: str) -> tuple[int, str]:
    return _SHOWN.index(family) if family in _SHOWN else len(_SHOWN), family


for _family in sorted((module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"), key=_place):
    _module = import_module(f"odeddim.solvers.{_family}")
    if not hasattr(_module, "ROWS"):
        raise ImportError(
            f"{_module.__file__} has no ROWS: name its solvers there, or begin its name with an underscore"
        )
    for _row in _module.ROWS:
        add(_row)
    DERIVED.update(getattr(_module, "DERIVED", {}))
