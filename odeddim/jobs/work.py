"""What all jobs share: what is said of a run, progress, warnings, outcomes, names of new images."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

from odeddim.ode.schedule import Schedule
from odeddim.plans import Grid, Plan
from odeddim.types import InputError, Solver

log = logging.getLogger("odeddim")
Progress: TypeAlias = Callable[[int, str, int], AbstractContextManager[Callable[[int], Any]]]
"""progress(total, unit, done) is entered while a job works, and gives a function that is told of images done."""


@contextlib.contextmanager
def silent(total: int, unit: str, done: int) -> Iterator[Callable[[int], Any]]:
    """No progress is shown."""
    yield lambda count: None


def warn(message: str) -> None:
    """A warning of the library; the command line shows it as one line."""
    warnings.warn(message, stacklevel=3)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        path: What was written.
        done: How many of its images or latents are there now.
        total: How many there are to be.
        words: The job in words, as a last line tells it; `print` gives them.
    """

    path: Path
    done: int
    total: int
    words: str

    def __str__(self) -> str:
        return self.words


class How(NamedTuple):
    """What people say of a run, apart from the plan that becomes of it."""

    solver: str | Solver | None
    steps: int | None
    grid: Grid
    end: str | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> How:
        """From keyword arguments; whatever is none of these names is a setting."""
        settings = dict(given)
        solver, steps, grid, end = (settings.pop(name, None) for name in ("solver", "steps", "grid", "end"))
        return cls(solver, steps, grid, end, settings)

    def plan(self, schedule: Schedule, usual: str) -> Plan:
        """The plan of it. usual: the solver where none is named."""
        return Plan.of(schedule, self.solver or usual, self.steps, self.grid, self.end or "zero", self.settings)


def the_plan(given: Plan | None, how: How, schedule: Schedule, usual: str) -> Plan:
    """The plan given, checked for a model with this schedule, or that of what people say; an InputError for both."""
    if given is None:
        return how.plan(schedule, usual)
    named = {"solver": how.solver, "steps": how.steps, "grid": how.grid, "end": how.end, **how.settings}
    if said := [name for name, value in named.items() if value is not None]:
        raise InputError(f"plan= says how to run: leave out {said[0]}=, or make another plan with it")
    return given.on(schedule)


class Numbered(Sequence[str]):
    """The names PREFIX000000, PREFIX000001, ..., made when they are asked for."""

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
