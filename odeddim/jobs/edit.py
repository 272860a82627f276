"""The job that edits images: encoded under one condition, decoded under another."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.bridges import Edit, editing
from odeddim.jobs.each import COLUMN, Each, Labels, Prompts, check_together
from odeddim.jobs.keeping import Keeping, Made
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, first_names, guide_on, images_for, recorded, subject_on, tell_skipped
from odeddim.jobs.telling import Spent, evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.work import How, Outcome, Progress, shown
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.conditions import Classes
from odeddim.ode.field import VectorField
from odeddim.storage.atomic import check_place
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.sheets import Captions, title_of
from odeddim.storage.sources import Images, place_of
from odeddim.storage.write_behind import behind
from odeddim.types import InputError

ERROR, CHANGE = "reconstruction_error", "change"  # the names of the figures in the files
_HEADS = ["before", "after", "reconstruction"]


@dataclass(frozen=True)
class Description:
    """What an image shows, for a model of texts or of classes, and how the model is guided to it.

    Attributes:
        shows: The text, or the class as a number or its digits; None for the empty text or no class.
        negative_prompt, guidance, interval, distilled_guidance, guidance_rescale, low_guidance: As of
            `VectorField.conditioned`.
        guide: As there; or its name or path.

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
    low_guidance: float | None = None
    guide: Model | None = None

    def of(self, field: VectorField, each: Each | None = None) -> VectorField:
        """A model under this condition.

        Args:
            field: The model. A guide has been loaded.
            each: What each image shows, if they differ.

        Raises:
            InputError: If the model does not take it.
        """
        more = {it.name: getattr(self, it.name) for it in fields(self) if it.name != "shows"}
        if each is not None:
            return each.under(field.conditioned(**each.distinct[0], **more))
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
    before: str | int | Description | None,
    after: str | int | Description | None = None,
    *,
    model: Model | Subject = DEFAULT,
    from_each: Labels | Prompts = None,
    to_each: Labels | Prompts = None,
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
        from_each: What each image shows, in place of one text or class for all: a list, "file.csv:column", "file.txt"
            or "folder", as `labels_from` and `prompts_from` of `odeddim.jobs.encode`.
        to_each: What each is to show, likewise; without `after` and `to_each`, the same.
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
    place = (machine or Machine()).at(model=model, shared=True)
    field = subject_on(place, model)
    subject = model if isinstance(model, Subject) else Subject(model)

    def described(shows: str | int | Description | None) -> Description:
        it = shows if isinstance(shows, Description) else Description(shows)
        return replace(it, guide=guide_on(place, it.guide, subject))

    told, then = described(before), described(after)
    given = images_for(field, images, prepare)
    names = first_names(given, count, where)
    eaches = [
        None if it is None else it.first(len(names))
        for it in _for_each(field, given.names, (told, from_each), (then, to_each))
    ]
    if then.shows is None and to_each is None:
        then, eaches = replace(then, shows=told.shows), eaches[:1] * 2
    both = [it.of(field, each) for it, each in zip((told, then), eaches, strict=True)]
    over = editing(
        both[0], both[1], said.solver or defaults.ENCODE,
        sigma=sigma, steps=said.steps, grid=said.grid, end=said.end or "zero", **said.settings,
    )  # fmt: skip
    for one, way, each in zip(both, (over.plan, over.down), eaches, strict=True):
        place.fit(one, over.plan.solver)
        if each is not None:
            check_together(way.solver)
    size = place.at_once(over.after, over.plan.solver)
    details = place.details(over.after, over.plan.solver, size) | recorded(given)

    def of_first(total: int) -> dict[str, Any]:
        its = [{} if each is None else each.first(total).details for each in eaches]
        source = asdict(provenance_of(over.before, over.plan, "edit", **its[0]))
        of = {"images": given.identity(where, total), "source": source}
        return asdict(provenance_of(over.after, over.down, "edit", **details, **of, **its[1]))

    began, work = time.perf_counter(), _Editing(over, eaches, place.state, is_sheet)
    spent = Spent(work.model)
    opening = partial(open_output, to, names, shape=given.shape, captions=_captions(names))
    with (
        opening(settings=of_first(len(names)), overwrite=overwrite, of_first=of_first) as out,
        shown(progress, len(names), "editing", out.done) as advance,
        closing(ahead(lambda start, stop: given[start:stop], out.batches(size))) as batches,
        closing(place.over(work, batches)) as found,
    ):
        keep = Keeping(out, names, (ERROR, CHANGE))
        for (start, stop), _ in behind(keep, found, out.together):
            advance(stop - start)
    warn_of_range(keep.largest)
    words = (
        f"{so_far(out.done, len(names))} images in {output}{of_all(out.done, len(names), keep.here)}: "
        f"{_words(over.before, eaches[0])} to {_words(over.after, eaches[1])} at σ = "
        f"{over.plan.top:.6g}, up by {over.plan.solver.name}, down by {over.down.solver.name}, "
        f"{evaluated(keep.here, spent)}, {time.perf_counter() - began:.1f} s{tell_skipped(given)}"
    )
    return Redone(output, out.done, len(names), words, keep.known(ERROR), keep.known(CHANGE))


def _for_each(field: VectorField, names: Sequence[str], *said: tuple[Description, Any]) -> list[Each | None]:
    """What each image shows and is to show; None where it is the same for all."""
    found: list[Each | None] = []
    for (description, source), what in zip(said, ("from_each", "to_each"), strict=True):
        if source is not None and description.shows is not None:
            raise InputError(f"{what}=... is for images that differ in what they show: leave out what all of them show")
        labels, prompts = (source, None) if isinstance(field.conditions, Classes) else (None, source)
        found.append(Each.of(labels, prompts, names, what))
    return found


def _words(field: VectorField, each: Each | None) -> str:
    """A condition, or how many there are."""
    words = ["" if each is None else each.words.removeprefix(", "), field.condition.words]
    return ", ".join(filter(None, words)) or "no condition"


def _captions(names: Sequence[str]) -> Captions:
    """What a sheet says of the images."""

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        figures = (f"{name.replace('_', ' ')} {known[name]:#.2g}" for name in (ERROR, CHANGE) if name in known)
        return [title_of(names[i]), *figures]

    return Captions(under, lines=3, heads=_HEADS, panes=len(_HEADS))


class _Editing:
    """The work on each batch of images.

    Attributes:
        model: The model under the condition that encodes, which counts the evaluations under both.
    """

    def __init__(self, over: Edit, eaches: Sequence[Each | None], dtype: torch.dtype, side_by_side: bool) -> None:
        self.over, self.eaches, self.dtype, self.side_by_side = over, eaches, dtype, side_by_side
        self.model = over.before

    def __call__(self, start: int, stop: int, images: torch.Tensor) -> Made:
        """What the images start, ..., stop-1 become."""
        x_0 = images.to(self.dtype)
        pairs = list(zip((self.over.before, self.over.after), self.eaches, strict=True))
        here = [field if each is None else each.on(field, each.which[start:stop]) for field, each in pairs]
        over = replace(self.over, before=here[0], after=here[1])
        found = over.apply(x_0.to(self.model.device or x_0.device))
        for field in here:
            if field is not self.model:
                self.model.count(field)
                field.reset()
        figures = {ERROR: found.error, CHANGE: found.change}
        for column, each in zip((f"from_{COLUMN}", COLUMN), self.eaches, strict=True):
            if each is not None:
                figures[column] = each.which[start:stop]
        row = [x_0.to(found.images), found.images, found.again] if self.side_by_side else [found.images]
        return Made(torch.cat(row, dim=3).cpu(), figures, float(found.images.abs().max()))
