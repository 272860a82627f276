"""The job that edits images: encoded under one condition, decoded under another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.bridges import Edit, editing
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, first_names, images_for, recorded, subject_on, tell_skipped
from odeddim.jobs.telling import evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.work import How, Outcome, Progress, shown
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.conditions import Classes
from odeddim.ode.field import VectorField
from odeddim.storage.atomic import check_place
from odeddim.storage.images import ImageSource
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.preparation import Preparation
from odeddim.storage.sheets import Captions, title_of
from odeddim.storage.sources import Images, place_of
from odeddim.types import InputError

ERROR, CHANGE = "reconstruction_error", "change"  # the names of the figures in the files
_HEADS = ["before", "after", "reconstruction"]


@dataclass(frozen=True)
class Description:
    """What an image shows, for a model of texts or of classes, and how the model is guided to it.

    Attributes:
        shows: The text, or the class as a number or its digits; None for the empty text or no class.
        negative_prompt, guidance, interval, distilled_guidance, guidance_rescale: As of `VectorField.conditioned`.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Description("a dog", guidance=5.0).shows
        'a dog'
    """

    shows: str | int | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    distilled_guidance: float = 1.0
    guidance_rescale: float = 0.0

    def of(self, field: VectorField) -> VectorField:
        """A model under this condition.

        Args:
            field: The model.

        Raises:
            InputError: If the model does not take it.
        """
        how = ("guidance", "interval", "distilled_guidance", "guidance_rescale")
        more: dict[str, Any] = {name: getattr(self, name) for name in how}
        if self.negative_prompt is not None:
            more["negative_prompt"] = self.negative_prompt
        if isinstance(field.conditions, Classes) and isinstance(self.shows, str):
            if not self.shows.strip().isdecimal():
                raise InputError(
                    f"the model {field.name!r} takes {field.conditions.words}, not the text {self.shows!r}: give the "
                    "number of a class"
                )
            return field.conditioned(int(self.shows), **more)
        if isinstance(self.shows, int):
            return field.conditioned(self.shows, **more)
        return field.conditioned(prompt=self.shows, **more)


@dataclass(frozen=True)
class Redone(Outcome):
    """The outcome of an edit.

    Attributes:
        errors: The names and reconstruction errors of the images, rms over pixels in [-1, 1], as far as they are known.
        changes: The names and changes, rms of the edit minus the image, likewise.
    """

    errors: tuple[tuple[str, float], ...] = ()
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def error_words(self) -> str:
        """The errors and the changes in a line each; "" if none is known."""
        told = (("reconstruction error", self.errors), ("change", self.changes))
        return "\n".join(_spread(name, values) for name, values in told if values)


def _spread(what: str, values: Sequence[tuple[str, float]]) -> str:
    """A line about figures of images."""
    worst, name = max((value, name) for name, value in values)
    middle = median(value for _, value in values)
    return f"{what} (rms, images in [-1, 1]): median {middle:.3g}, worst {worst:.3g} ({name})"


@torch.no_grad()
def edit(
    images: Images,
    output: str | Path | Pictures,
    before: str | int | Description,
    after: str | int | Description | None = None,
    *,
    model: Model | Subject = DEFAULT,
    sigma: float | None = None,
    count: int | None = None,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Redone:
    """Edit images: encode them under one condition, and decode them under another.

    A run that was stopped goes on with the same call. A larger count extends a file or a folder of images.

    Args:
        images: As of `odeddim.jobs.encode`; None for the 256 sample images of the package.
        output: A folder for image files, a sheet.png of before, after and reconstruction, a file.h5 or a file.npz.
        before: What the images show: a text, a class, or a Description.
        after: What they are to show; None for the same. With a guidance of its own it shows what guidance changes.
        model: A name, a path, a VectorField, or a pipeline of diffusers.
        sigma: The noise level up to which images are encoded, as of `odeddim.edit`; None for σ_T.
        count: The number of images to take, the first ones; by default all.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to begin anew, whatever is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.edit`.

    Returns:
        The outcome, with the errors of the reconstructions; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> model = odeddim.VectorField.from_network(
        ...     lambda x, t, label: x - label[:, None, None, None], odeddim.Schedule.linear(), classes=3, name="mine"
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp(), "out")
        >>> odeddim.jobs.edit(None, folder, 0, 1, model=model, sigma=0.5, count=2, steps=4).done
        2
    """
    where, to, said = place_of(images), Pictures.of(output), How.of(how)
    output, is_sheet = to.path, to.is_sheet
    if not output.is_dir():
        check_place(output, where)
    place = (machine or Machine()).at(model=model)
    field = subject_on(place, model)
    told = before if isinstance(before, Description) else Description(before)
    then = after if isinstance(after, Description) else Description(after)
    both = [it.of(field) for it in (told, then if then.shows is not None else replace(then, shows=told.shows))]
    over = editing(
        both[0], both[1], said.solver or defaults.ENCODE,
        sigma=sigma, steps=said.steps, grid=said.grid, end=said.end or "zero", **said.settings,
    )  # fmt: skip
    for one in both:
        place.fit(one, over.plan.solver)
    given = images_for(field, images, prepare)
    names = first_names(given, count, where)
    size = place.at_once(over.after, over.plan.solver)
    details = place.details(over.after, over.plan.solver, size) | recorded(given)
    details["source"] = asdict(provenance_of(over.before, over.plan, "edit"))

    def of_first(total: int) -> dict[str, Any]:
        of = {"images": given.identity(where, total)}
        return asdict(provenance_of(over.after, over.down, "edit", **details, **of))

    began, work = time.perf_counter(), _Editing(over, given, place.state, is_sheet)
    captions = _captions(names)
    with (
        open_output(to, names, of_first(len(names)), overwrite=overwrite, captions=captions, of_first=of_first) as out,
        shown(progress, len(names), "editing", out.done) as advance,
    ):
        for start, stop in out.batches(size):
            pixels, figures = work.batch(start, stop)
            if is_sheet:  # which keeps none
                for name, known in work.known.items():
                    known += zip(names[start:stop], figures[name].tolist(), strict=True)
            out.write(start, stop, pixels, figures)
            advance(stop - start)
    warn_of_range(work.largest)
    words = (
        f"{so_far(out.done, len(names))} images in {output}{of_all(out.done, len(names), work.here)}: "
        f"{over.before.condition.words or 'no condition'} to {over.after.condition.words or 'no condition'} at σ = "
        f"{over.plan.top:.6g}, up by {over.plan.solver.name}, down by {over.down.solver.name}, "
        f"{evaluated(work.here, *both)}, {time.perf_counter() - began:.1f} s{tell_skipped(given)}"
    )
    found = [tuple(work.known[name] or out.figures(name)) for name in (ERROR, CHANGE)]
    return Redone(output, out.done, len(names), words, *found)


def _captions(names: Sequence[str]) -> Captions:
    """What a sheet says of the images."""

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        return [title_of(names[i]), *(f"{name.replace('_', ' ')} {value:#.2g}" for name, value in known.items())]

    return Captions(under, lines=3, heads=_HEADS, panes=len(_HEADS))


class _Editing:
    """The work on each batch of images, and its totals."""

    def __init__(self, over: Edit, images: ImageSource, dtype: torch.dtype, side_by_side: bool) -> None:
        self.over, self.images, self.dtype, self.side_by_side = over, images, dtype, side_by_side
        self.largest, self.here = 0.0, 0
        self.known: dict[str, list[tuple[str, float]]] = {ERROR: [], CHANGE: []}

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What to write for images start, ..., stop-1, and their figures."""
        x_0 = self.images[start:stop].to(self.dtype)
        found = self.over.apply(x_0.to(self.over.before.device or x_0.device))
        self.largest, self.here = max(self.largest, float(found.images.abs().max())), self.here + stop - start
        figures = {ERROR: found.error, CHANGE: found.change}
        if not self.side_by_side:
            return found.images, figures
        return torch.cat([x_0.to(found.images), found.images, found.again], dim=3), figures
