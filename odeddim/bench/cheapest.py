"""The cheapest run that keeps an error: the steps that each solver needs on each grid, and the run with the least work.

A run keeps an error if, for nine images in ten, neither decoding nor encoding has a larger one. The search for the
steps uses a first set of solutions (`odeddim.bench.work_precision`), so the steps fit that set: on other images the
error may be larger. A second set, from other noise, checks the result. A run that does not keep the error on the second
set gets more steps, or the next cheapest run takes its place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from odeddim import solvers
from odeddim.bench.harness import Entry, Harness, check_settings, error_words
from odeddim.bench.measures import quantile
from odeddim.bench.tables import Column, Table, counted
from odeddim.bench.work_precision import Truth, measured, table_of
from odeddim.ode import grids
from odeddim.plans import Plan, check_encodes
from odeddim.types import InputError

GRIDS = ("log", "karras", "quadratic")  # and the solver's own grid
LADDER = tuple(round(5 * 2 ** (i / 2)) for i in range(17))  # steps of the coarse search, up to 1,280
CLOSE = 0.04  # the share of the steps by which the result may exceed the fewest
KEPT = 0.9  # the share of the images that must keep the error
CHECKS = 8  # the most runs on the second set: each could pass by chance


def candidates(names: Sequence[str]) -> list[Entry]:
    """List the solvers and grids that `cheapest` tries.

    Args:
        names: Names such as SOLVER@GRID, or SOLVER for the solver's own grid and the usual grids.

    Returns:
        One entry for each solver on each grid.

    Raises:
        InputError: If a solver or grid is unknown, if a solver chooses its own steps or cannot encode, or if a grid is
            a file, whose number of steps is fixed.
    """
    found = []
    for entry in (Entry.parse(name) for name in names):
        row = solvers.get(entry.solver)
        if row.adaptive:
            raise InputError(f"solver {row.name!r} chooses its own steps: leave it out of solvers=...")
        check_encodes(row)
        if entry.grid is not None and not grids.is_named(entry.grid):
            raise InputError(
                f"the number of steps of the grid {entry.grid} is fixed: give another grid, by its name, in solvers=..."
            )
        found += [entry] if entry.grid else [Entry(row.name, grid) for grid in dict.fromkeys((row.grid, *GRIDS))]
    return found


@dataclass(frozen=True)
class Tried:
    """A run of an entry, and its errors on a set of solutions. Nine images in ten have no larger error.

    Attributes:
        entry: The solver on its grid.
        run: The plan.
        steps: The number of steps.
        evaluations: The network evaluations per image, to encode and to decode.
        decoded: The error of decoding, rms over pixels in [-1, 1]; infinite if the run fails.
        encoded: The error of encoding, rms over σ_T; infinite if the run fails.
        error: What nine images in ten keep of the larger of both errors.
        remark: Why the run fails; "" if it does not.
    """

    entry: Entry
    run: Plan
    steps: int
    evaluations: float
    decoded: float
    encoded: float
    error: float
    remark: str

    @property
    def words(self) -> str:
        """The run in words."""
        return f"{self.run.solver.name} on {self.run.grid} with {self.steps} steps"


@dataclass(frozen=True)
class _Search:
    """The search: it measures runs on the solutions of the first set, `exact`, and of the second set, `held`."""

    harness: Harness
    error: float
    exact: Truth
    held: Truth
    settings: Mapping[str, Any]

    def own(self, entry: Entry) -> dict[str, Any]:
        """The given settings that the entry's solver takes."""
        has = solvers.get(entry.solver).settings
        return {key: value for key, value in self.settings.items() if key in has and value is not None}

    def run(self, entry: Entry, steps: int) -> Plan:
        """The plan of an entry. Raises InputError if its grid is too short for so many steps."""
        return Plan.of(self.harness.model.schedule, entry.solver, steps, entry.grid, self.exact.end, self.own(entry))

    def tried(self, entry: Entry, steps: int, solutions: Truth) -> Tried:
        """Measure a run on one of the sets."""
        run = self.run(entry, steps)
        cell = measured(self.harness, run, solutions)
        each = cell["decode_error"], cell["encode_error"]
        failure = error_words(cell["failure"])
        decoded, encoded, error = (math.inf if failure else quantile(of, KEPT) for of in (*each, np.maximum(*each)))
        spent = float((cell["decode_evaluations"] + cell["encode_evaluations"]).mean())
        return Tried(entry, run, steps, spent, decoded, encoded, error, failure)

    def fewest(self, entry: Entry, most: float | None) -> Tried | None:
        """Find the run with the fewest steps that keeps the error on the first set.

        If no run keeps the error, the result is the run with the most steps. With `most`, only runs with fewer
        evaluations than `most` are tried; the result is None if there are none.
        """
        low = 0
        kept: Tried | None = None
        last: Tried | None = None
        for steps in self._worth_trying(entry, most):
            last = self.tried(entry, steps, self.exact)
            if last.error <= self.error:
                kept = last
                break
            low = steps
        while kept is not None and kept.steps - low > max(1, CLOSE * kept.steps):
            middle = self.tried(entry, (low + kept.steps) // 2, self.exact)
            if middle.error <= self.error:
                kept = middle
            else:
                low = middle.steps
        return kept or last

    def _worth_trying(self, entry: Entry, most: float | None) -> list[int]:
        """The numbers of steps to try, as far as the grid allows; with `most`, only the largest that stays below it."""
        row = solvers.get(entry.solver)
        counts: list[int] = []
        for count in LADDER if most is None or row.nfe is None else range(1, LADDER[-1] + 1):
            inner, at_zero = (count - 1, 1) if self.exact.end == "zero" else (count, 0)
            if most is not None and row.nfe is not None and 2 * ((row.evaluations(inner) or 0) + at_zero) >= most:
                break
            try:
                Plan.of(self.harness.model.schedule, row, count, entry.grid, self.exact.end)
            except InputError as problem:  # a grid of integer labels has a largest number of steps
                if not counts:
                    raise InputError(f"{entry.solver}@{entry.grid}: {problem}") from problem
                break
            counts.append(count)
        return counts if most is None else counts[-1:]

    def more(self, first: Tried, second: Tried) -> Tried | None:
        """Find a run with more steps that keeps the error on the first set; None if there is none.

        The solver's order and the error on the second set tell how many more steps to try.
        """
        steps, factor = first.steps, (second.error / self.error) ** (1 / first.run.solver.order)
        while steps < LADDER[-1]:
            steps = min(max(steps + 1, math.ceil(steps * min(factor, 2.0))), LADDER[-1])
            try:
                self.run(first.entry, steps)
            except InputError:  # the grid does not allow so many
                return None
            found = self.tried(first.entry, steps, self.exact)
            if found.error <= self.error:
                return found
            factor = 1 + CLOSE
        return None

    def checked(self, kept: Sequence[Tried]) -> list[tuple[Tried, Tried]]:
        """Measure runs on the second set, the cheapest first, until one keeps the error there too.

        Returns:
            The runs, each as measured on the first and on the second set.
        """
        queue = [*kept]
        found: list[tuple[Tried, Tried]] = []
        while queue and len(found) < CHECKS:
            queue.sort(key=lambda tried: tried.evaluations)
            first = queue.pop(0)
            second = self.tried(first.entry, first.steps, self.held)
            found.append((first, second))
            if second.error <= self.error:
                break
            more = self.more(first, second)
            queue += [more] if more else []
        return found


def cheapest(
    harness: Harness,
    error: float,
    entries: Sequence[Entry],
    exact: Truth,
    held: Truth,
    *,
    settings: Mapping[str, Any] | None = None,
    advance: Callable[[int], Any] = lambda tried: None,
) -> tuple[Table, Plan]:
    """Find the fewest steps with which each solver on each grid keeps an error both ways, and the cheapest run of all.

    The cheapest run has the fewest evaluations to encode and decode. An entry is dropped if it does not keep the error
    with almost as many evaluations as the cheapest entry before it. The steps are within 4% of the fewest, provided
    that errors fall as the steps increase.

    Args:
        harness: The harness that measures the model.
        error: The largest error that nine images in ten may have. The error of decoding is the rms over pixels in
            [-1, 1]; the error of encoding is the rms over σ_T.
        entries: The solvers on their grids.
        exact: The first set of solutions, on which the steps are found: from `truth_for`, or others with a small
            enough error.
        held: The second set of solutions, which checks the result.
        settings: The settings of the solvers.
        advance: A function that is called with 1 after each entry, and after the check.

    Returns:
        The table, and the plan with notes about the model and the error.

    Raises:
        InputError: If no run keeps the error on both sets, or if no solver takes one of the settings.
    """
    check_settings(entries, settings or {})
    search = _Search(harness, error, exact, held, settings or {})
    found: list[Tried] = []
    most: float | None = None
    for entry in entries:
        tried = search.fewest(entry, most)
        found += [tried] if tried else []
        if tried and tried.error <= error:
            most = tried.evaluations if most is None else min(most, tried.evaluations)
        advance(1)
    kept = [tried for tried in found if tried.error <= error]
    if not kept:
        best = min(found, key=lambda tried: tried.error)
        raise InputError(
            f"none of these solvers keeps an error of {error:g} with up to {LADDER[-1]} steps for nine images in ten "
            f"(the best, {best.words}, has {best.error:.1e}): ask for a larger error, or give "
            "other solvers with solvers=..."
        )
    checked = search.checked(kept)
    advance(1)
    first, second = min(checked, key=lambda pair: pair[1].error)
    if second.error > error:
        raise InputError(
            f"no run keeps an error of {error:g} for nine images in ten of both sets ({counted(len(checked), 'run')} "
            f"checked; the best, {first.words}, has {first.error:.1e} on the first set and {second.error:.1e} on the "
            "second): ask for a larger error, or take more images with count=..."
        )
    return _table(search, found, checked), _noted(search, first, second)


def _table(search: _Search, found: Sequence[Tried], checked: Sequence[tuple[Tried, Tried]]) -> Table:
    error, exact, held = search.error, search.exact, search.held
    looked_at: dict[str, tuple[Tried, Tried | None]] = {tried.words: (tried, None) for tried in found}
    looked_at |= {first.words: (first, second) for first, second in checked}
    rows = []
    for tried, second in looked_at.values():
        keeps = "more" if tried.error > error else "yes" if second and second.error <= error else "first"
        rows.append({
            "solver": tried.run.solver.name, "grid": tried.run.grid, "steps": tried.steps,
            "evaluations": tried.evaluations, "decode_error": tried.decoded, "encode_error": tried.encoded,
            "error": tried.error, "second_error": second.error if second else None, "found": keeps,
            "remark": tried.remark,
        })  # fmt: skip
    rows.sort(key=lambda row: (
        ("yes", "first", "more").index(row["found"]), row["error"] if row["found"] == "more" else row["evaluations"]
    ))  # fmt: skip
    columns = (
        Column("solver", "solver", form="s"),
        Column("grid", "grid", form="s"),
        Column("steps", "steps"),
        Column("evaluations", "evals", "evaluations of the network per image, to encode and to decode", "g"),
        Column("decode_error", "decoded", "rms distance to the ODE's image, pixels in [-1, 1], on the 1st set", ".2e"),
        Column("encode_error", "encoded", "rms distance to the ODE's latent, over σ_T, on the 1st set", ".2e"),
        Column("error", "1st set", "the larger of both errors on the 1st set, which the search uses", ".2e"),
        Column("second_error", "2nd set", "the larger of both errors on the 2nd set; empty: not checked", ".2e"),
        Column(
            "found",
            "kept",
            f"yes: the run keeps {error:g} on both sets; first: on the 1st set, but not (or not checked) on the 2nd; "
            "more: not with fewer evaluations than the cheapest run before it",
            "s",
        ),
        Column("remark", "remark", form="s"),
    )
    table = table_of(
        "cheapest",
        f"Cheapest runs with errors of {error:g} for nine images in ten: {search.harness.model.title}, "
        f"{search.harness.conventions(exact.run)}",
        search.harness, exact, columns, rows, error=error, errors="the values that nine images in ten do not exceed",
        **{"solutions of the second set": len(held.images), "seed of the second set": held.seed},
    )  # fmt: skip
    sets = (
        f"errors are the values that nine images in ten do not exceed; 1st set: {counted(len(exact.images), 'image')} "
        f"from seed {exact.seed}; 2nd set: {len(held.images)} from seed {held.seed}"
    )
    return dataclasses.replace(table, group=(), notes=(sets, *table.notes))


def _noted(search: _Search, first: Tried, second: Tried) -> Plan:
    """The plan of a run, with notes about the model and about the errors that the run keeps."""
    model, held = search.harness.model, search.held
    kept = (
        f"for nine in ten of {counted(len(held.images), 'image')} from seed {held.seed}, which the search did not use, "
        f"both errors are at most {second.error:.2e} (rms; pixels in [-1, 1], latents over σ_T); for the "
        f"{len(search.exact.images)} from seed {search.exact.seed}, which the search used, at most {first.error:.2e}; "
        f"requested: {search.error:g}"
    )
    spent = {"error": second.error, "evaluations": first.evaluations, "kept": kept}
    return first.run.noted(model, **spent)
