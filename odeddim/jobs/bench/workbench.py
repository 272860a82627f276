"""The parts that all benches share: the model, the machine, and the folder of the measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from odeddim.api import Model
from odeddim.bench import figures
from odeddim.bench.defaults import FOLDER, TOLERANCE
from odeddim.bench.drawing import USUAL, Layout
from odeddim.bench.features import DEFAULT as FEATURES
from odeddim.bench.features import Features, load_features
from odeddim.bench.harness import Entry, Harness, planned
from odeddim.bench.tables import Table, check_files, load
from odeddim.jobs.machine import QUEUE, Machine, Place, in_work
from odeddim.jobs.sample import shape_for
from odeddim.jobs.subject import Subject, subject_on, tell_skipped, warn_of_plan
from odeddim.jobs.work import Progress, shown
from odeddim.models import BUILT_IN, DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.images import ImageSource
from odeddim.storage.workers import rank
from odeddim.types import InputError, Solver


@dataclass(frozen=True)
class Workbench:
    """A model, the machine, and the folder of the tables, figures and measurements.

    The folder keeps every measurement. The same call continues a bench that was stopped, and several processes can
    share the work.

    Attributes:
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        machine: The machine; None for the default machine.
        folder: The folder; the measurements are in its folder "cells".
        overwrite: Whether to measure everything again and to replace the files of the tables.
        progress: What shows progress, see `odeddim.runs.progress.Progress`.
        layout: The size of the figures, and whether they have a title.
        delivers: Whether a bench writes its table, and does not only measure.

    Example:
        >>> import odeddim, tempfile
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=tempfile.mkdtemp())
        >>> table = odeddim.jobs.bench.reconstruction(bench, count=2, solvers=["euler@linear"], steps=[3])
        >>> table.rows[0]["evaluations"]
        3.0
    """

    model: Model | Subject = DEFAULT
    machine: Machine | None = None
    folder: str | Path = FOLDER
    overwrite: bool = False
    progress: Progress = False
    layout: Layout = USUAL
    delivers: bool = True


@dataclass(frozen=True)
class Session:
    """A workbench with its model loaded, ready to measure.

    Attributes:
        workbench: The workbench.
        folder: Its folder.
        place: The machine that the model runs on.
        whole: The model, with its autoencoder if it is a latent model.
        field: The model that is measured: `whole`, or the model of its data without the autoencoder.
    """

    workbench: Workbench
    folder: Path
    place: Place
    whole: VectorField
    field: VectorField

    @classmethod
    def of(cls, workbench: Workbench, name: str, also: Sequence[str] = (), *, on_data: bool = False) -> Session:
        """Check the folder, and load the model.

        Args:
            workbench: The workbench.
            name: The name of the table that will be written.
            also: The names of other files that will be written.
            on_data: Whether a latent model is measured on its data, without its autoencoder.

        Raises:
            InputError: If the model cannot be loaded, if the folder is a file, if it has a table of another model under
                this name, or if a foreign file would be replaced.
        """
        folder = Path(workbench.folder)
        if workbench.overwrite and rank()[1] > 1:
            raise InputError(
                "overwrite=True cannot be used with several processes, because each would start again: run one first"
            )
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a folder with folder=...")
        if not workbench.overwrite:
            check_files(folder, name, also)
        place = (workbench.machine or Machine()).at()
        whole = subject_on(place, workbench.model)
        if not workbench.overwrite:
            _check_table(folder / f"{name}.h5", whole)
        return cls(workbench, folder, place, whole, whole.on_data() if on_data else whole)

    @property
    def built_in(self) -> bool:
        """Whether the model is one of the package's own."""
        return self.whole.name in BUILT_IN

    @property
    def _own_dtype(self) -> dict[str, str]:
        """The dtype of a given VectorField, which is used as it is, if it differs from the machine's dtype."""
        own = self.field.dtype
        if not isinstance(self.workbench.model, VectorField) or own == self.place.dtype:
            return {}
        return {"dtype": "the state's dtype" if own is None else str(own).removeprefix("torch.")}

    def shape(self, size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape (C, H, W) of the noise, for images of a size; None for the model's own size."""
        return shape_for(self.whole, None if size is None else tuple(size))

    def plans(self, names: Sequence[str], steps: Sequence[int], end: str, settings: Mapping[str, Any]) -> list[Plan]:
        """Make the plans of solvers SOLVER[@GRID]. Adaptive solvers get tolerances that make a comparison fair."""
        given = {"rtol": TOLERANCE, "atol": TOLERANCE, **chosen(settings)}
        plans = planned(self.field, [Entry.parse(name) for name in names], steps, end, given)
        for plan in {(plan.grid, plan.solver.name): plan for plan in plans}.values():
            warn_of_plan(plan, self.field)
        return plans

    def features(self, which: str | Path | Features | None, shape: tuple[int, ...]) -> Features | None:
        """Return the named feature network; for a built-in model by default the built-in one, if it takes the shape."""
        if which is None and not self.built_in:
            return None
        network = load_features(which or FEATURES, device=self.place.device)
        return None if which is None and network.shape not in (None, shape) else network

    @contextlib.contextmanager
    def harness(self, total: float, images: int | None = None, *, unit: str = "evaluations") -> Iterator[Harness]:
        """Yield the harness that measures the model, with a progress bar.

        Args:
            total: The total of the bar.
            images: The number of images. The network's batch is not larger, because padding would cost as much.
            unit: The unit of the bar.
        """
        place, given = self.place, self.place.machine
        size = given.batch_size or in_work(given.network_batch or place.usual_network_batch)

        def fit(row: Solver) -> dict[str, Any]:
            place.fit(self.field, row)
            if given.network_batch is None and images is not None:
                self.field.network_batch = min(self.field.network_batch or images, images)
            return {**place.details(self.field, row, size * (QUEUE if row.queued else 1)), **self._own_dtype}

        with shown(self.workbench.progress, int(total), unit, 0) as advance:
            yield Harness(self.field, self.folder, place.state, size, fit, advance, self.workbench.overwrite)

    def deliver(self, table: Table, floor: float | None = None, beside: Mapping[str, bytes] | None = None) -> Table:
        """Write a table and its figures to the folder. Of several processes, only the first writes.

        Args:
            table: The table.
            floor: The loss of a latent model's autoencoder alone: the median over the images of the rms over pixels in
                [-1, 1].
            beside: Other files that belong to the table, name -> content.

        Returns:
            The table as it was written, with the paths of its files.
        """
        if self.whole.codec is not None and self.field.codec is None:
            lost = "" if floor is None else f"; the autoencoder alone loses {floor:.3g} of the images (rms, median)"
            table = replace(
                table, notes=(*table.notes, f"measured on the latent model's data, without its autoencoder{lost}")
            )
        if rank()[0] > 0 or not self.workbench.delivers:
            return table
        drawn = figures.files(table, self.workbench.layout)
        return replace(table, files=tuple(table.save(self.folder, {**drawn, **(beside or {})})))


def with_skipped(table: Table, source: ImageSource) -> Table:
    """A table with a note of the files that were left out, each of which a warning names."""
    words = tell_skipped(source).removeprefix(", ")
    return replace(table, notes=(*table.notes, words)) if words else table


def chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a value."""
    return {name: value for name, value in settings.items() if value is not None}


def _check_table(path: Path, model: VectorField) -> None:
    """Raise an InputError if a table is of another model, or damaged."""
    if not path.exists():
        return
    try:
        name, sha256, condition = (load(path).settings.get(key, "") for key in ("model", "sha256", "condition"))
    except InputError as error:
        raise InputError(f"{error}; overwrite=True replaces it") from error
    if (sha256 or name, condition) != (model.sha256 or model.name, model.condition.words):
        under = f" under {condition}" if condition else ""
        raise InputError(
            f"{path} is a table of the model {name!r}{under}: give another folder with folder=..., or overwrite=True "
            "to replace it"
        )
