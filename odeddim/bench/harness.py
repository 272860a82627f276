"""The stand that a model is measured on: what is measured is kept, and a bench goes on where it was stopped.

    bench/                                     the folder of all benches of a model
    bench/reconstruction.h5, .json, .csv, ...  a table and its figures (`odeddim.bench.tables`)
    bench/cells/reconstruction-0f1e2d3c.h5     a cell: a row for each image, noise or repetition

A cell is a file with parts until it is whole (`odeddim.storage.resumable`). Its name is a hash of all that its figures
depend on: other settings are other cells, a table with one more solver measures that one only, and several processes
share work.
"""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import odeddim
from odeddim import solvers
from odeddim.latents.latent_file import provenance_of
from odeddim.models import BUILT_IN
from odeddim.ode import grids
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.hdf5 import reading
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import Columns, comparable, is_index, look_at, read_rows, run_of, settings_of
from odeddim.types import InputError, Solver

if TYPE_CHECKING:
    from odeddim.bench.features import Features

CELLS = "cells"
WAIT = 0.5  # seconds between two looks at a cell that another process is measuring


@dataclass
class Stand:
    """A model, and the folder where what is measured of it is kept.

    fit: called with the solver that is next, sets what of the machine its digits depend on, and returns it, JSON-able.
    advance: told of evaluations done, or that had been, for a progress bar. overwrite: measure everything anew.
    """

    model: VectorField
    folder: Path
    dtype: torch.dtype = torch.float32  # of the state
    batch_size: int = 32
    fit: Callable[[Solver], dict[str, Any]] = lambda row: {}
    advance: Callable[[int], Any] = lambda evaluations: None
    overwrite: bool = False
    _identities: dict[int, tuple[Any, str]] = field(default_factory=dict)
    _anew: set[Path] = field(default_factory=set)  # what has been measured anew already, where all is to be

    def subject(self) -> dict[str, Any]:
        """What a table says of the model, JSON-able."""
        return {"model": self.model.name, "sha256": self.model.sha256, "condition": self.model.condition.words}

    def header(self, run: Plan) -> dict[str, Any]:
        """What a table says of the model and the machine, JSON-able. run: any of its runs."""
        return {
            **self.subject(), "state": str(self.dtype).removeprefix("torch."),
            **self.fit(run.solver), "odeddim": odeddim.__version__, "torch": torch.__version__,
        }  # fmt: skip

    def conventions(self, run: Plan) -> str:
        """What a title says of how it was measured: where images end, and in what precision and where it ran."""
        details = self.fit(run.solver)
        end = "end zero" if float(run.nodes[0]) == 0 else "end sigma_min"
        dtype = details.get("dtype", str(self.dtype).removeprefix("torch."))
        return f"{end}, {dtype} on {details.get('device', self.model.device or 'cpu')}"

    def settings(self, bench: str, run: Plan, **details: Any) -> dict[str, Any]:
        """All that the figures of a run depend on; the machine is set up for it."""
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
        """The columns of a cell, each with `rows` rows: measured by function(start, stop), or read if they are there.

        settings: all that they depend on, with `made_by`. evaluations: per row, as expected. at_once: rows that
        `function` is asked for at a time. Errors: InputError for a cell that is damaged.
        """
        place = self.folder / CELLS
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the folder {place} cannot be made ({error.strerror}): choose another with -o") from error
        bench = settings["made_by"].split()[-1]
        its_run = run_of(comparable(rows, settings))
        path = place / f"{bench}-{its_run[:16]}.h5"
        told = 0

        def tell(upto: float) -> None:
            nonlocal told
            if int(upto) != told:
                self.advance(int(upto) - told)
                told = int(upto)

        looked = False
        while True:
            anew = self.overwrite and path not in self._anew
            if not anew:
                cell = _whole(path, rows, its_run)
                if cell is not None:
                    tell(rows * evaluations)
                    return cell
                if looked:
                    time.sleep(WAIT)  # another process is at the rest; if it dies, the rest is ours
            looked = True
            try:
                with Run(path, rows, settings, overwrite=anew, together=False) as run:
                    self._anew.add(path)
                    tell(run.done * evaluations)
                    for start, stop in run.batches(at_once or self.batch_size):
                        before, most = told, told + (stop - start) * evaluations
                        seen = 0

                        def watch(count: int, before: int = before, most: float = most) -> None:
                            nonlocal seen
                            seen += count
                            tell(min(before + seen, most))

                        self.model.watch = watch if evaluations else None
                        try:
                            columns = function(start, stop)
                        finally:
                            self.model.watch = None
                        run.commit(start, stop, columns)
                        tell(most)
            except InputError:
                if _whole(path, rows, its_run) is None:
                    raise
                # Otherwise another process has made it whole meanwhile, under our feet.

    def identity(self, thing: VectorField | Features) -> str:
        """What tells a model or a feature network from others: the hash of its weights, or its name if it is built in.

        Of a function, which has neither, it is one that no other has: what is measured of it is for this stand only.
        """
        if thing.sha256 or thing.name in BUILT_IN:
            return thing.sha256 or thing.name
        return self._identities.setdefault(id(thing), (thing, uuid.uuid4().hex))[1]


def hash_of(images: Callable[[int, int], Tensor], count: int, at_once: int = 256) -> str:
    """The SHA-256 of the first images of a source: names and sizes do not tell when one has been edited."""
    digest = hashlib.sha256()
    for start in range(0, count, at_once):
        batch = images(start, min(start + at_once, count))
        digest.update(f"{batch.dtype} {tuple(batch.shape[1:])}".encode())
        digest.update(batch.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _whole(path: Path, rows: int, run: str) -> Columns | None:
    """The columns of a cell that is whole, None of one that is not there or unfinished. run: whose it must be."""
    if not path.exists():
        return None
    try:
        with reading(path, "a cell of a bench") as file:
            if run_of(settings_of(file, path)) != run:
                raise InputError(f"{path} is not the cell that its name says")
            columns = look_at(file, path)
            if is_index(file):
                return None
            if "crc32" not in columns or len(columns) < 2 or {column.shape[0] for column in columns.values()} != {rows}:
                raise InputError(f"{path} does not hold {rows} rows")
            return read_rows(file, columns, 0, rows, path)
    except InputError as error:
        raise InputError(f"{error}; delete it, and the same command measures it again") from error


def error_words(failures: np.ndarray[Any, Any]) -> str:
    """The first failure in a column of them, "" if there is none."""
    return next((words.decode("utf-8", "replace") for words in failures.tolist() if words), "")


def failure_column(words: str, count: int) -> np.ndarray[Any, Any]:
    """Why a batch gave no result, for each of its images; "" if it did."""
    return np.array([words.encode()[:300]] * count, "S300")


@dataclass(frozen=True)
class Entry:
    """What to run: a solver on a grid, a name or a file (None: its own)."""

    solver: str
    grid: str | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """From "SOLVER" or "SOLVER@GRID"."""
        solver, _, grid = text.partition("@")
        return cls(solver, grid or None)


def in_words(plan: Plan) -> str:
    """The solver and its grid, in words."""
    return plan.solver.name if plan.solver.adaptive else f"{plan.solver.name}, {plan.grid}"


def first_cells(plan: Plan) -> dict[str, Any]:
    """The first columns of its line in a table; an adaptive solver has no grid and no steps."""
    grid = "-" if plan.solver.adaptive else plan.grid
    return {"solver": plan.solver.name, "grid": grid, "steps": plan.steps}


def expected(plan: Plan) -> int:
    """Evaluations in one direction, for a progress bar: a guess where they depend on the image."""
    count = plan.evaluations_down if plan.solver.stochastic else plan.evaluations
    return 100 if math.isnan(count) else int(count)


def check_settings(entries: Sequence[Entry], settings: Mapping[str, Any]) -> None:
    """Raise an InputError for a setting that none of these solvers has."""
    had = {"rtol", "atol", "max_nfe"}.union(*(solvers.get(entry.solver).settings for entry in entries))
    if unknown := sorted(set(settings) - had):
        raise InputError(f"none of these solvers has a setting {unknown[0]!r} (they have: {', '.join(sorted(had))})")


def planned(
    model: VectorField, entries: Sequence[Entry], steps: Sequence[int], end: str, settings: Mapping[str, Any]
) -> list[Plan]:
    """Every solver on its grid with each number of steps, checked before anything runs.

    Adaptive solvers run once, and so do grid files, each with as many steps as it has, whatever `steps` says. Settings
    such as rtol go to the solvers that have them. Errors: InputError, also for a setting that none of them has.
    """
    runs = []
    check_settings(entries, settings)
    for entry in entries:
        row = solvers.get(entry.solver)
        own = {key: value for key, value in settings.items() if key in row.settings and value is not None}
        fixed = row.adaptive or (entry.grid is not None and not grids.is_named(entry.grid))
        for count in (None,) if fixed else steps:
            runs.append(Plan.of(model.schedule, row, count, entry.grid, end, own))
    return runs
