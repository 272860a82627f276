"""What all jobs share: the arguments of a run, progress, warnings, outcomes, names of new images."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

from odeddim.api import planned
from odeddim.ode.field import VectorField
from odeddim.ode.portable import check_portable
from odeddim.plans import Grid, Plan
from odeddim.runs.parallel import Parallel
from odeddim.runs.progress import Progress as Progress
from odeddim.runs.progress import shown as shown
from odeddim.types import InputError, Solver

log = logging.getLogger("odeddim")

OWN_DIGITS = (
    "tol=... compares the runs of each image, whose digits differ between machines: leave out tol=... or portable=True"
)
OWN_TOP = "tol=... chooses the steps of each image, and so no Gaussian's top: leave out one of tol=... and top=..."


def warn(message: str) -> None:
    """Issue a warning, which the command line shows as one line."""
    warnings.warn(message, stacklevel=3)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job; `print` shows its words.

    Attributes:
        path: The file or folder that was written.
        done: The number of its images or latents that exist now.
        total: The number of images or latents when the job is complete.
        words: A line about the job.

    Example:
        >>> import odeddim, pathlib
        >>> print(odeddim.jobs.Outcome(pathlib.Path("z.h5"), 2, 2, "2 latents in z.h5"))
        2 latents in z.h5
    """

    path: Path
    done: int
    total: int
    words: str

    def __str__(self) -> str:
        return self.words


class How(NamedTuple):
    """The arguments of a run as a user gives them, from which a plan is made; None for what is not given."""

    solver: str | Solver | None
    steps: int | None
    grid: Grid
    end: str | None
    settings: dict[str, Any]
    top: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], *, tops: bool = False) -> How:
        """The arguments among keyword arguments; all other names are settings of the solver.

        Args:
            given: The arguments.
            tops: Whether the job takes top=... too.
        """
        settings = dict(given)
        solver, steps, grid, end = (settings.pop(name, None) for name in ("solver", "steps", "grid", "end"))
        return cls(solver, steps, grid, end, settings, settings.pop("top", None) if tops else None)

    def plan(self, field: VectorField, usual: str, start: str | None = None) -> Plan:
        """The plan of these arguments for a model, with a default solver `usual`; start: how an encoding begins."""
        solver, end = self.solver or usual, self.end or "zero"
        return planned(field, None, solver, usual, self.steps, self.grid, end, self.settings, self.top, start)


def the_plan(
    given: Plan | None, how: How, field: VectorField, usual: str, start: str | None = None, *, portable: bool = False
) -> Plan:
    """The plan of a run.

    Args:
        given: A plan, or None.
        how: The other arguments of the run.
        field: The model.
        usual: The default solver.
        start: How an encoding begins.
        portable: Whether the bits are to be the same on any machine; a plan may say so too.

    Returns:
        The plan that was given, for this model, or that of the other arguments.

    Raises:
        InputError: If both are given, or an argument cannot be used.
    """
    made = _the_plan(given, how, field, usual, start)
    made = made.portably() if portable else made
    if made.portable:
        check_portable(field)
    return made


def _the_plan(given: Plan | None, how: How, field: VectorField, usual: str, start: str | None) -> Plan:
    """The plan, before it is made portable."""
    if given is None:
        return how.plan(field, usual, start)
    named = {"solver": how.solver, "steps": how.steps, "grid": how.grid, "end": how.end, "top": how.top, "start": start}
    named |= how.settings
    return given.alone(field.schedule, {name: value is not None for name, value in named.items()})


def in_order(parallel: Parallel | int | None, **others: bool) -> Parallel | None:
    """How nodes are found together; an InputError if something else is asked for that needs them in their order.

    Args:
        parallel: As of `odeddim.solve`.
        **others: Arguments of the job, each with whether it was given.
    """
    made = Parallel.of(parallel)
    if made is not None and (named := [name for name, given in others.items() if given]):
        raise InputError(
            f"parallel=... finds the nodes of a run together, and {named[0]}=... takes them in their order: leave out "
            "one of the two"
        )
    return made


class Numbered(Sequence[str]):
    """The names PREFIX000000, PREFIX000001, ..., made when they are needed."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._rows = prefix, range(count)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        rows = self._rows[i]
        return [f"{self._prefix}{row:06d}" for row in rows] if isinstance(rows, range) else f"{self._prefix}{rows:06d}"
