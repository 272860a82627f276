"""What the jobs interpolate, shift and neighbours share: latents made of others go to a file and onto a sheet."""

from __future__ import annotations

import contextlib
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
from odeddim.storage.animations import Animation
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.outputs import Pictures, Several, open_animation, open_output
from odeddim.storage.sheets import Captions, check_images
from odeddim.types import InputError


@dataclass(frozen=True)
class Drawing:
    """Where new latents go, and how their images are drawn.

    Attributes:
        output: The latent file to write; None for no file.
        sheet: The sheet of their images, sheet.png, or Pictures that say how it is drawn, too; None for no sheet.
        animation: The animation of their images; None for no animation.
        model: The model that decodes for the sheet; None for the model that the latent file names.
        machine: Where to run; what is not given is as the latents were encoded.
        overwrite: Whether to begin anew, whatever is at these places.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Example:
        >>> import odeddim, pathlib
        >>> to = odeddim.jobs.Drawing(output=pathlib.Path("path.h5"), sheet=pathlib.Path("path.png"))
    """

    output: Path | None = None
    sheet: Path | Pictures | None = None
    model: Model | Subject | None = None
    machine: Machine | None = None
    overwrite: bool = False
    progress: Progress = False
    animation: Animation | None = None

    @property
    def drawn_at(self) -> list[Path]:
        """The files that images are drawn in."""
        sheet = [] if self.sheet is None else [Pictures.of(self.sheet).path]
        return sheet + ([] if self.animation is None else [self.animation.path])

    @property
    def places(self) -> list[Path]:
        """All files that are written."""
        return ([] if self.output is None else [self.output]) + self.drawn_at

    def check(self, *inputs: Path | None) -> None:
        """Raise an InputError if a file cannot be written to its place, or would replace one that is being read."""
        if self.sheet is not None:
            sheet_at(self.sheet, *inputs)
        if self.animation is not None:
            self.animation.check(*inputs)
        if self.output is not None:
            check_place(self.output, *inputs, suffixes=SUFFIXES)

    def of(self, file: LatentFile) -> Drawn:
        """The drawing of latents made of those of a file. The model is loaded first, before anything is made."""
        place = (self.machine or Machine()).at(file, self.model)
        field = subject_of(file, place, self.model) if self.drawn_at else None
        return Drawn(self, file, place, field)


@dataclass(frozen=True)
class Drawn:
    """A drawing of latents that are made of those of a file, with the model and the place that it needs."""

    drawing: Drawing
    file: LatentFile
    place: Place
    field: VectorField | None

    def make(
        self,
        latents: Readable,
        names: Sequence[str],
        made: Provenance,
        captions: Captions | None = None,
        *,
        back: bool = False,
    ) -> None:
        """Write the latents and draw their images.

        Args:
            latents: The latents.
            names: Their names.
            made: How they came about.
            captions: What the sheet says of them; None for their names.
            back: Whether the animation shows all images in reverse order too.
        """
        made, plan = combined(self.file, made)
        if self.field is None:
            self._write(latents, names, made, plan)
        else:
            decoding = decoding_of(self.file, self.field, made_by=made.made_by)
            plan = plan.with_solver(decoding.plan.solver)
            row = plan.solver
            self.place.fit(self.field, row)
            drawn = self.place.details(self.field, row, self.place.at_once(self.field, row))
            to, settings = self.drawing, {**asdict(made), "drawn": drawn}
            check_images(self.field.shape_of_images(self.file.shape), "a sheet or an animation")
            # The outputs are opened first, so that a file in their place is found before anything is written.
            with contextlib.ExitStack() as stack:
                outs = []
                if to.sheet is not None:
                    outs.append(open_output(to.sheet, names, settings, overwrite=to.overwrite, captions=captions))
                    stack.enter_context(outs[-1])
                if to.animation is not None:
                    outs.append(open_animation(to.animation, names, settings, overwrite=to.overwrite, back=back))
                    stack.enter_context(outs[-1])
                self._write(latents, names, made, plan)
                self._draw(latents, len(names), plan, Several(outs))

    def _write(self, latents: Readable, names: Sequence[str], made: Provenance, plan: Plan) -> None:
        output = self.drawing.output
        if output is None:
            return
        with LatentRun(output, names, made, plan.nodes, overwrite=self.drawing.overwrite) as run:
            for start, stop in run.batches((self.drawing.machine or Machine()).batch_size or BATCH):
                run.write(start, stop, latents.read(start, stop))

    def _draw(self, latents: Readable, total: int, plan: Plan, out: Several) -> None:
        field, place = self.field, self.place
        assert field is not None
        largest = 0.0
        with shown(self.drawing.progress, total, "decoding", out.done) as advance:
            for start, stop in out.batches(place.at_once(field, plan.solver)):
                x_0 = decode(place.cast(latents.read(start, stop)), model=field, plan=plan)
                out.write(start, stop, x_0)
                largest = max(largest, float(x_0.abs().max()))
                advance(stop - start)
        warn_of_range(largest)


def sheet_at(to: str | Path | Pictures, *inputs: Path | None) -> Pictures:
    """A sheet, as it is drawn; an InputError if it cannot be written to its place, or would replace an input."""
    sheet = Pictures.of(to)
    if sheet.path.suffix.lower() != ".png":
        raise InputError(f"sheet {sheet}: a sheet is a PNG, name it sheet.png")
    check_place(sheet.path, *inputs)
    return sheet


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
