"""The harness that measures a model. It keeps every measurement, so that a bench continues after a stop.

    bench/                                     the folder of all benches of a model
    bench/reconstruction.h5, .json, .csv, ...  a table and its figures (`odeddim.bench.tables`)
    bench/cells/reconstruction-0f1e2d3c.h5     a cell: a row for each image, noise or repetition

A cell is a file with parts until all its rows are complete (`odeddim.storage.resumable`). Its name is a hash of
everything that its values depend on. Other settings therefore give another cell, a table with one more solver measures
only that solver, and several processes can share the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.latents.provenance import provenance_of
from odeddim.models import BUILT_IN
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.ode.tops import GAUSSIAN
from odeddim.plans import Plan
from odeddim.storage.hdf5 import opened
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import Columns, comparable, is_index, look_at, read_rows, run_of, settings_of
from odeddim.types import InputError, Solver

if TYPE_CHECKING:
    from odeddim.bench.features import Features

Result = TypeVar("Result")
CELLS = "cells"
WAIT = 0.1  # seconds between two checks of a cell that another process is measuring


class _Later(Exception):  # noqa: N818 - it is no error
    """Raised by `Harness.measure` in place of a cell that is read later."""


@dataclass
class Harness:
    """A model, and the folder of its measurements.

    Attributes:
        model: The model that is measured.
        folder: The folder of the tables; the cells are in a folder inside it.
        dtype: The dtype of the state.
        batch_size: The number of images that are processed at once.
        fit: A function that is called with the next solver. It sets up the machine, and returns everything about the
            machine that the digits depend on, JSON-able.
        advance: A function that is called with numbers of evaluations, for a progress bar. The numbers include the
            evaluations of cells that are read.
        overwrite: Whether to measure everything again.
    """

    model: VectorField
    folder: Path
    dtype: torch.dtype = torch.float32
    batch_size: int = 32
    fit: Callable[[Solver], dict[str, Any]] = lambda row: {}
    advance: Callable[[int], Any] = lambda evaluations: None
    overwrite: bool = False
    _identities: dict[int, tuple[Any, str]] = field(default_factory=dict)
    _anew: set[Path] = field(default_factory=set)  # the cells that `overwrite` already replaced
    _told: dict[Path, _Told] = field(default_factory=dict)  # of the cells that `each` will come back to
    _waits: bool = True

    def subject(self) -> dict[str, Any]:
        """Return what a table states about the model, JSON-able."""
        return {"model": self.model.name, "sha256": self.model.sha256, "condition": self.model.condition.words}

    def header(self, run: Plan) -> dict[str, Any]:
        """Return what a table states about the model and the machine, JSON-able. `run` is any run of the table."""
        return {
            **self.subject(), "state": str(self.dtype).removeprefix("torch."),
            **self.fit(run.solver), "odeddim": odeddim.__version__, "torch": torch.__version__,
        }  # fmt: skip

    def conventions(self, run: Plan) -> str:
        """Return what a title states about the measurement: the end of the nodes, the dtype and the device."""
        details = self.fit(run.solver)
        end = "end zero" if float(run.nodes[0]) == 0 else "end sigma_min"
        dtype = details.get("dtype", str(self.dtype).removeprefix("torch."))
        return f"{end}, {dtype} on {details.get('device', self.model.device or 'cpu')}"

    def settings(self, bench: str, run: Plan, **details: Any) -> dict[str, Any]:
        """Set up the machine for a run, and return everything that its values depend on, JSON-able."""
        return asdict(
            provenance_of(
                self.model, run, f"bench {bench}", chosen=dict(run.solver.chosen), **self.fit(run.solver),
                state=str(self.dtype), identity=self.identity(self.model), **details,
            )
        )  # fmt: skip

    def measure(
        self,
        settings: Mapping[str, Any],
        rows: int,
        function: Callable[[int, int], Columns],
        *,
        evaluations: float = 0,
        at_once: int | None = None,
    ) -> Columns:
        """Return the columns of a cell. They are read if the cell is complete, and otherwise measured.

        Args:
            settings: Everything that the columns depend on, with `made_by`.
            rows: The number of rows.
            function: The function (start, stop) that measures the rows start, ..., stop-1.
            evaluations: The expected number of evaluations for a row, for the progress bar.
            at_once: The number of rows in a call of `function`; by default the batch size.

        Returns:
            The columns, each with `rows` rows.

        Raises:
            InputError: If the cell is damaged, or if its folder cannot be made.
        """
        its_run = run_of(comparable(rows, settings))
        path, looked = self._cell(settings["made_by"].split()[-1], its_run), False
        told = self._told.pop(path, None) or _Told(self.advance)
        while True:
            anew = self.overwrite and path not in self._anew
            cell = None if anew else _whole(path, rows, its_run)
            if cell is not None:
                told.upto(rows * evaluations)
                if self._waits:
                    return cell
                self._come_back(path, told)
            if looked:
                time.sleep(WAIT)  # another process measures the other rows; if it dies, this one measures them
            looked = True
            try:
                with Run(path, rows, settings, overwrite=anew, together=False) as run:
                    self._anew.add(path)
                    told.upto(run.done * evaluations)
                    for start, stop in run.batches(at_once or self.batch_size):
                        most = told.count + (stop - start) * evaluations
                        self.model.watch = told.watch(most) if evaluations else None
                        try:
                            columns = function(start, stop)
                        finally:
                            self.model.watch = None
                        run.commit(start, stop, columns)
                        told.upto(most)
            except InputError:
                if _whole(path, rows, its_run) is None:
                    raise
                # Otherwise another process completed the cell in the meantime, and removed its parts.
            if not self._waits:
                self._come_back(path, told)

    def _come_back(self, path: Path, told: _Told) -> NoReturn:
        """Leave a cell for the second time that `each` makes the call."""
        self._told[path] = told
        raise _Later

    def each(self, calls: Sequence[Callable[[], Result]]) -> Iterator[Result]:
        """Make calls that return cells, and yield what they return, in their order.

        Each is made twice. The first time, rows that another process measures are left to it, so that several processes
        measure different cells; the second time they are waited for.

        Args:
            calls: The functions, each of which calls `measure` once.
        """
        self._waits = False
        try:
            for call in calls:
                with contextlib.suppress(_Later):
                    call()
        finally:
            self._waits = True
        for call in calls:
            yield call()

    def _cell(self, bench: str, run: str) -> Path:
        """Return the path of a cell, and make its folder if it does not exist."""
        place = self.folder / CELLS
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the folder {place} cannot be made ({error.strerror}): choose another with folder=..."
            ) from error
        return place / f"{bench}-{run[:16]}.h5"

    def identity(self, thing: VectorField | Features) -> str:
        """Return the identity of a model or feature network: the hash of its weights, or the name of a built-in one.

        A function has neither. Its identity is random, so that its measurements are valid in this harness only.
        """
        if thing.sha256 or thing.name in BUILT_IN:
            return thing.sha256 or thing.name
        return self._identities.setdefault(id(thing), (thing, uuid.uuid4().hex))[1]


class _Told:
    """The number of evaluations that were reported to the progress bar."""

    def __init__(self, advance: Callable[[int], Any]) -> None:
        self._advance, self.count = advance, 0

    def upto(self, count: float) -> None:
        """Report to the progress bar the total number of evaluations so far."""
        if int(count) != self.count:
            self._advance(int(count) - self.count)
            self.count = int(count)

    def watch(self, most: float) -> Callable[[int], None]:
        """Return a function that reports new evaluations, up to a total of `most`."""
        before, seen = self.count, 0

        def watch(count: int) -> None:
            nonlocal seen
            seen += count
            self.upto(min(before + seen, most))

        return watch


Images = Callable[[int, int], Tensor]
"""A function (start, stop) -> the images start, ..., stop-1, (B, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Pictures:
    """Images that are read in batches.

    Attributes:
        read: The function that reads images.
        count: The number of images.
        name: The name of the images in a table.
    """

    read: Images
    count: int
    name: str = ""

    @property
    def described(self) -> dict[str, Any]:
        """What the settings of a table state about reference images."""
        return {"reference images": self.count, **({"reference": self.name} if self.name else {})}


def hash_of(images: Images, count: int, at_once: int = 256) -> str:
    """Return the SHA-256 of the first `count` images. Names and sizes would not show that an image was edited."""
    digest = hashlib.sha256()
    for start in range(0, count, at_once):
        batch = images(start, min(start + at_once, count))
        digest.update(f"{batch.dtype} {tuple(batch.shape[1:])}".encode())
        digest.update(batch.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _whole(path: Path, rows: int, run: str) -> Columns | None:
    """Return the columns of a cell; None if the cell does not exist or is not complete.

    Args:
        path: The file of the cell.
        rows: The number of rows.
        run: The hash of the settings that the cell must have.

    Raises:
        InputError: If the cell is damaged or has other settings.
    """
    if not path.exists():
        return None
    try:
        with opened(path, "a cell of a bench") as file:
            if run_of(settings_of(file, path)) != run:
                raise InputError(f"{path} holds another cell than its name says")
            if is_index(file):
                return None  # before it is looked at: who finishes the cell may be deleting the parts that it shows
            columns = look_at(file, path)
            if "crc32" not in columns or len(columns) < 2 or {column.shape[0] for column in columns.values()} != {rows}:
                raise InputError(f"{path} does not hold {rows} rows")
            return read_rows(file, columns, 0, rows, path)
    except InputError as error:
        raise InputError(f"{error}; delete it, and the same command measures it again") from error


def error_words(failures: np.ndarray[Any, Any]) -> str:
    """Return the first message in a column of failures; "" if there is none."""
    return next((words.decode("utf-8", "replace") for words in failures.tolist() if words), "")


def failure_column(words: str, count: int) -> np.ndarray[Any, Any]:
    """Return a column with the reason why a batch failed, the same for each image; "" if the batch did not fail."""
    return np.array([words.encode()[:300]] * count, "S300")


@dataclass(frozen=True)
class Entry:
    """A solver on a grid, or the plan of a file.

    Attributes:
        solver: The name of the solver.
        grid: The name or file of the grid, or the file of the plan; None for the solver's own grid.
        plan: The plan of a file; None to make one of the solver and the grid.
    """

    solver: str
    grid: str | None = None
    plan: Plan | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Make an entry from "SOLVER", "SOLVER@GRID", or the file of a plan, "plan.json".

        Raises:
            InputError: If the file cannot be read.
        """
        if text.lower().endswith(".json") and "@" not in text:  # SOLVER@plan.json takes its nodes only
            plan = Plan.load(text)
            return cls(plan.solver.name, text, plan)
        solver, _, grid = text.partition("@")
        return cls(solver, grid or None)


def in_words(plan: Plan) -> str:
    """Return the solver and the grid of a plan in words."""
    return plan.solver.name if plan.solver.adaptive else f"{plan.solver.name}, {_nodes_of(plan)}"


def first_cells(plan: Plan) -> dict[str, Any]:
    """Return the first cells of a plan's row in a table. An adaptive solver has no grid and no steps."""
    grid = "-" if plan.solver.adaptive else _nodes_of(plan)
    return {"solver": plan.solver.name, "grid": grid, "steps": plan.steps}


def _nodes_of(plan: Plan) -> str:
    return f"{plan.grid} +{GAUSSIAN}" if plan.carried else plan.grid


def expected(plan: Plan) -> int:
    """Return the evaluations in one direction, for a progress bar; a guess if they depend on the image."""
    try:
        count = plan.evaluations
    except InputError:  # it only decodes
        count = plan.evaluations_down
    return 100 if math.isnan(count) else int(count)


def check_settings(entries: Sequence[Entry], settings: Mapping[str, Any]) -> None:
    """Raise an InputError if none of the solvers has one of the settings."""
    had = {"rtol", "atol", "max_nfe"}.union(
        *(solvers.get(entry.solver).settings for entry in entries if entry.plan is None)
    )
    if unknown := sorted(set(settings) - had):
        raise InputError(
            f"none of these solvers has the setting {unknown[0]!r}: leave it out (they have {', '.join(sorted(had))})"
        )


def planned(
    model: VectorField, entries: Sequence[Entry], steps: Sequence[int], end: str, settings: Mapping[str, Any]
) -> list[Plan]:
    """Make the plans of every solver on its grid with each number of steps.

    Args:
        model: The model.
        entries: The solvers on their grids. An adaptive solver has one plan, and so has a grid file, whose number of
            steps is fixed. The plan of a file stays as it is.
        steps: The numbers of steps of all other plans.
        end: "zero" or "sigma_min".
        settings: The settings of the solvers, such as rtol. Each solver gets the settings that it has.

    Returns:
        The plans, in the order of the entries.

    Raises:
        InputError: If a plan cannot be made or has other ends, or if none of the solvers has one of the settings.
    """
    runs = []
    check_settings(entries, settings)
    for entry in entries:
        if entry.plan is not None:
            _check_ends(entry.plan, model, end)
            runs.append(entry.plan)
            continue
        row = solvers.get(entry.solver)
        own = {key: value for key, value in settings.items() if key in row.settings and value is not None}
        fixed = row.adaptive or (entry.grid is not None and not grids.is_named(entry.grid))
        for count in (None,) if fixed else steps:
            runs.append(Plan.of(model.schedule, row, count, entry.grid, end, own))
    return runs


def joins(plan: Plan, model: VectorField, end: str) -> bool:
    """Whether a plan leads from an end, "zero" or "sigma_min", to the model's σ_T."""
    return plan.end == end and math.isclose(plan.top, model.schedule.sigma_max, rel_tol=1e-6)


def _check_ends(plan: Plan, model: VectorField, end: str) -> None:
    if not joins(plan, model, end):
        top = model.schedule.sigma_max
        raise InputError(
            f"the plan of {plan.solver.name} goes from the end {plan.end!r} to σ = {plan.top:.6g}, and this table from "
            f"{end!r} to the model's σ_T = {top:.6g}: leave it out, or give end={plan.end!r} if only that differs"
        )
