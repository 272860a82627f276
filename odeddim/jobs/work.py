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
from odeddim.plans import Grid, Plan
from odeddim.runs.progress import Progress as Progress
from odeddim.runs.progress import shown as shown
from odeddim.types import Solver

log = logging.getLogger("odeddim")

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

    def plan(self, field: VectorField, usual: str) -> Plan:
        """The plan of these arguments for a model, with a default solver `usual`."""
        solver, end = self.solver or usual, self.end or "zero"
        return planned(field, None, solver, usual, self.steps, self.grid, end, self.settings, self.top)


def the_plan(given: Plan | None, how: How, field: VectorField, usual: str) -> Plan:
    """The plan of a run.

    Args:
        given: A plan, or None.
        how: The other arguments of the run.
        field: The model.
        usual: The default solver.

    Returns:
        The plan that was given, for this model, or that of the other arguments.

    Raises:
        InputError: If both are given, or an argument cannot be used.
    """
    if given is None:
        return how.plan(field, usual)
    named = {"solver": how.solver, "steps": how.steps, "grid": how.grid, "end": how.end, "top": how.top}
    named |= how.settings
    return given.alone(field.schedule, {name: value is not None for name, value in named.items()})


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
