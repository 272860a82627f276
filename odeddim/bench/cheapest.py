"""The cheapest run that keeps an error: how many steps each solver on each grid needs, and which needs least.

A run keeps an error if nine images in ten have no more, decoding and encoding. The steps are found on a first set of
solutions (`odeddim.bench.work_precision`) and therefore fit that set: on other images the error may be larger. A second
set, from other noise, checks what was found. A run that does not keep the error there gets more steps, or the next
cheapest run takes its place.
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

GRIDS = ("log", "karras", "quadratic")  # and each solver's own
LADDER = tuple(round(5 * 2 ** (i / 2)) for i in range(17))  # steps that are tried before they are halved: up to 1,280
CLOSE = 0.04  # of the steps: as near as the search comes to the fewest
KEPT = 0.9  # the share of the images that an error is to be kept by
CHECKS = 8  # looks at the second set: each is a chance to pass by luck


def candidates(names: Sequence[str]) -> list[Entry]:
    """What `cheapest` tries: SOLVER@GRID as given, a SOLVER on its own grid and the usual ones."""
    found = []
    for entry in (Entry.parse(name) for name in names):
        row = solvers.get(entry.solver)
        if row.adaptive:
            raise InputError(f"solver {row.name!r} chooses its own steps: there are none to find")
        check_encodes(row)
        if entry.grid is not None and not grids.is_named(entry.grid):
            raise InputError(f"{entry.grid} has as many steps as it has: name a grid, whose steps can be found")
        found += [entry] if entry.grid else [Entry(row.name, grid) for grid in dict.fromkeys((row.grid, *GRIDS))]
    return found


@dataclass(frozen=True)
class Tried:
    """A run of an entry, and the errors that nine in ten of a set of solutions keep: of each way, and of the larger."""

    entry: Entry
    run: Plan
    steps: int
    evaluations: float  # to encode and to decode
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
    """Runs on the solutions of the first set, `exact`, and of the second, `held`."""

    harness: Harness
    error: float
    exact: Truth
    held: Truth
    settings: Mapping[str, Any]

    def own(self, entry: Entry) -> dict[str, Any]:
        """The settings that a solver has."""
        has = solvers.get(entry.solver).settings
        return {key: value for key, value in self.settings.items() if key in has and value is not None}

    def run(self, entry: Entry, steps: int) -> Plan:
        """A run of an entry. Errors: InputError where its grid has no room for so many steps."""
        return Plan.of(self.harness.model.schedule, entry.solver, steps, entry.grid, self.exact.end, self.own(entry))

    def tried(self, entry: Entry, steps: int, solutions: Truth) -> Tried:
        """A run, measured on one of the sets."""
        run = self.run(entry, steps)
        cell = measured(self.harness, run, solutions)
        each = cell["decode_error"], cell["encode_error"]
        failure = error_words(cell["failure"])
        decoded, encoded, error = (math.inf if failure else quantile(of, KEPT) for of in (*each, np.maximum(*each)))
        spent = float((cell["decode_evaluations"] + cell["encode_evaluations"]).mean())
        return Tried(entry, run, steps, spent, decoded, encoded, error, failure)

    def fewest(self, entry: Entry, most: float | None) -> Tried | None:
        """The fewest steps that keep the error on the first set, or else the most that were tried.

        most: only runs with fewer evaluations than that; None if there are none.
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
        """The steps to try in turn, as far as the grid has room; of `most` evaluations only the most below."""
        row = solvers.get(entry.solver)
        counts: list[int] = []
        for count in LADDER if most is None or row.nfe is None else range(1, LADDER[-1] + 1):
            inner, at_zero = (count - 1, 1) if self.exact.end == "zero" else (count, 0)
            if most is not None and row.nfe is not None and 2 * ((row.evaluations(inner) or 0) + at_zero) >= most:
                break
            try:
                Plan.of(self.harness.model.schedule, row, count, entry.grid, self.exact.end)
            except InputError as problem:  # a grid of whole labels has room for no more
                if not counts:
                    raise InputError(f"{entry.solver}@{entry.grid}: {problem}") from problem
                break
            counts.append(count)
        return counts if most is None else counts[-1:]

    def more(self, first: Tried, second: Tried) -> Tried | None:
        """A run with more steps, by as much as its order says that the second set asks for; None if there is none."""
        steps, factor = first.steps, (second.error / self.error) ** (1 / first.run.solver.order)
        while steps < LADDER[-1]:
            steps = min(max(steps + 1, math.ceil(steps * min(factor, 2.0))), LADDER[-1])
            try:
                self.run(first.entry, steps)
            except InputError:  # the grid has no room for them
                return None
            found = self.tried(first.entry, steps, self.exact)
            if found.error <= self.error:
                return found
            factor = 1 + CLOSE
        return None

    def checked(self, kept: Sequence[Tried]) -> list[tuple[Tried, Tried]]:
        """Runs with their errors on both sets, the cheapest first, until one keeps the error on the second too."""
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
    """The fewest steps of each solver on each grid that keep an error both ways, and the plan of the cheapest of all.

    Cheap means few evaluations to encode and decode. A solver that does not keep the error with nearly as many
    evaluations as the cheapest before it is given up. The steps are the fewest to within 4%, as far as errors fall with
    the steps.

    Args:
        harness: What measures the model.
        error: The error that nine images in ten may have at most: of decoding the rms over pixels in [-1, 1], of
            encoding the rms over σ_T.
        entries: The solvers on their grids.
        exact: The solutions that the steps are found on; from `truth_for`, or others whose error is small enough.
        held: The solutions that check what was found.
        settings: The settings of the solvers.
        advance: Called with 1 for each entry that is done.

    Returns:
        The table, and the plan with notes about the model and the error.

    Raises:
        InputError: Where nothing keeps the error on both sets.
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
            f"(the best, {best.words}, has {best.error:.1e}): ask for more, or give other solvers"
        )
    checked = search.checked(kept)
    advance(1)
    first, second = min(checked, key=lambda pair: pair[1].error)
    if second.error > error:
        raise InputError(
            f"nothing keeps an error of {error:g} for nine images in ten of both sets ({counted(len(checked), 'run')} "
            f"looked at): the nearest, {first.words}, has {first.error:.1e} on the first set and {second.error:.1e} on "
            "the second; ask for a larger error, or take more images"
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
        Column("error", "1st set", "the larger of both, of the set that the steps are found on", ".2e"),
        Column("second_error", "2nd set", "the same of the set that checks it; empty: not looked at", ".2e"),
        Column(
            "found",
            "kept",
            f"yes: {error:g} on both sets; first: on the first, and not or not looked at on the second; more: not with "
            "fewer evaluations than the cheapest before it",
            "s",
        ),
        Column("remark", "remark", form="s"),
    )
    table = table_of(
        "cheapest",
        f"Cheapest runs with errors of {error:g} for nine images in ten: {search.harness.model.title}, "
        f"{search.harness.conventions(exact.run)}",
        search.harness, exact, columns, rows, error=error, errors="what nine images in ten keep",
        **{"solutions of the second set": len(held.images), "seed of the second set": held.seed},
    )  # fmt: skip
    sets = (
        f"errors are what nine images in ten keep; 1st set: {counted(len(exact.images), 'image')} from seed "
        f"{exact.seed}, 2nd set: {len(held.images)} from seed {held.seed}"
    )
    return dataclasses.replace(table, group=(), notes=(sets, *table.notes))


def _noted(search: _Search, first: Tried, second: Tried) -> Plan:
    """The plan of a run, with notes of the model that it was found for and of what it keeps."""
    model, held = search.harness.model, search.held
    kept = (
        f"of {counted(len(held.images), 'image')} from seed {held.seed}, which had no part in the choice, nine in ten "
        f"err no more than {second.error:.2e} both ways (rms; pixels in [-1, 1], latents over σ_T); of the "
        f"{len(search.exact.images)} from seed {search.exact.seed} that it was chosen by, no more than "
        f"{first.error:.2e}; asked: {search.error:g}"
    )
    spent = {"error": second.error, "evaluations": first.evaluations, "kept": kept}
    return first.run.noted(model, **spent)
