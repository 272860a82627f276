"""What the jobs interpolate, shift and neighbours share: latents made of others go to a file and onto a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from odeddim.api import Model, decode
from odeddim.jobs.decoding import decoding_of
from odeddim.jobs.machine import BATCH, Machine, Place
from odeddim.jobs.subject import Subject, subject_of
from odeddim.jobs.telling import warn_of_range
from odeddim.jobs.work import Progress, shown
from odeddim.latents.arithmetic import Readable, check_alike
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import Provenance, digest
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.plans import Plan
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.outputs import open_output
from odeddim.types import InputError


@dataclass(frozen=True)
class Drawing:
    """Where new latents go, and how their images are drawn.

    Attributes:
        output: The latent file to write; None for no file.
        sheet: The sheet of their images, sheet.png; None for no sheet.
        model: The model that decodes for the sheet; None for the model that the latent file names.
        machine: Where to run; what is not given is as the latents were encoded.
        overwrite: Whether to begin anew, whatever is at these places.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Example:
        >>> import odeddim, pathlib
        >>> to = odeddim.jobs.Drawing(output=pathlib.Path("path.h5"), sheet=pathlib.Path("path.png"))
    """

    output: Path | None = None
    sheet: Path | None = None
    model: Model | Subject | None = None
    machine: Machine | None = None
    overwrite: bool = False
    progress: Progress = False

    def check(self, *inputs: Path | None) -> None:
        """Raise an InputError if a file cannot be written to its place, or would replace one that is being read."""
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise InputError(f"sheet {self.sheet}: a sheet is a PNG, name it sheet.png")
        if self.sheet is not None:
            check_place(self.sheet, *inputs)
        if self.output is not None:
            check_place(self.output, *inputs, suffixes=SUFFIXES)

    def of(self, file: LatentFile) -> Drawn:
        """The drawing of latents made of those of a file. The model is loaded first, before anything is made."""
        place = (self.machine or Machine()).at(file, self.model)
        field = None if self.sheet is None else subject_of(file, place, self.model)
        return Drawn(self, file, place, field)


@dataclass(frozen=True)
class Drawn:
    """A drawing of latents that are made of those of a file, with the model and the place that it needs."""

    drawing: Drawing
    file: LatentFile
    place: Place
    field: VectorField | None

    def make(self, latents: Readable, names: Sequence[str], made: Provenance, columns: int) -> None:
        """Write the latents and draw their images.

        Args:
            latents: The latents.
            names: Their names.
            made: How they came about.
            columns: The columns of the sheet.
        """
        made, plan = combined(self.file, made)
        if self.field is None:
            self._write(latents, names, made, plan)
        else:
            decoding = decoding_of(self.file, self.field.schedule, made_by=made.made_by)
            self._draw(latents, names, made, plan.with_solver(decoding.plan.solver), columns)

    def _write(self, latents: Readable, names: Sequence[str], made: Provenance, plan: Plan) -> None:
        output = self.drawing.output
        if output is None:
            return
        with LatentRun(output, names, made, plan.nodes, overwrite=self.drawing.overwrite) as run:
            for start, stop in run.batches((self.drawing.machine or Machine()).batch_size or BATCH):
                run.write(start, stop, latents.read(start, stop))

    def _draw(self, latents: Readable, names: Sequence[str], made: Provenance, plan: Plan, columns: int) -> None:
        sheet, field, place = self.drawing.sheet, self.field, self.place
        assert sheet is not None
        assert field is not None
        row = plan.solver
        place.fit(field, row)
        size = place.at_once(field, row)
        settings = {**asdict(made), "drawn": place.details(field, row, size)}
        largest = 0.0
        # The sheet is opened first, so that a file in its place is found before anything is written.
        with open_output(sheet, names, settings, overwrite=self.drawing.overwrite, columns=columns) as out:
            self._write(latents, names, made, plan)
            with shown(self.drawing.progress, len(names), "decoding", out.done) as advance:
                for start, stop in out.batches(size):
                    x_0 = decode(place.cast(latents.read(start, stop)), model=field, plan=plan)
                    out.write(start, stop, x_0)
                    largest = max(largest, float(x_0.abs().max()))
                    advance(stop - start)
        warn_of_range(largest)


def combined(file: LatentFile, made: Provenance) -> tuple[Provenance, Plan]:
    """How latents made of those of a file are decoded; if each has steps of its own, with the most of these."""
    taken = file.figures("report").get("steps")
    if "ladder" not in made.details or taken is None:
        return made, file.plan
    plan = Plan.of(Schedule.from_dict(made.schedule), made.solver, int(taken.max()), made.grid, made.end, made.settings)
    details = {key: value for key, value in made.details.items() if key not in ("ladder", "tol", "certified")}
    return replace(made, steps=int(taken.max()), nodes=digest(plan.nodes), details=details), plan


def check_same_model(file: LatentFile, other: LatentFile) -> None:
    """Raise an InputError unless the latents of both files belong to one model."""
    ours, theirs = ((made.model, made.sha256) for made in (file.provenance, other.provenance))
    if ours[1] != theirs[1] or (not ours[1] and ours != theirs):
        words = [f"{name!r} (weights {sha256[:12]})" if sha256 else repr(name) for name, sha256 in (theirs, ours)]
        raise InputError(
            f"{other.path} holds latents of the model {words[0]}, {file.path} of {words[1]}: give files of one model"
        )
    told = {"predicts": "prediction", "time": "time labels", "schedule": "schedule", "condition": "condition"}
    for name, called in told.items():
        if getattr(file.provenance, name) != getattr(other.provenance, name):
            raise InputError(f"{other.path} was made with another {called} of the model {ours[0]!r} than {file.path}")


def check_combinable(file: LatentFile, other: LatentFile) -> None:
    """Raise an InputError unless latents of both files can be combined, and decoded by the same run."""
    check_same_model(file, other)
    if file.provenance.nodes != other.provenance.nodes:
        raise InputError(f"{other.path} was made on other nodes than {file.path}: encode both on one grid")
    check_alike(file.read(0, 1), other.read(0, 1))
