"""The job that takes images of one model to images of another."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.bridges import Bridge, between
from odeddim.jobs.keeping import Keeping, Made
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, first_names, images_for, recorded, subject_on, tell_skipped
from odeddim.jobs.telling import Spent, evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.work import How, Outcome, Progress, shown
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.storage.atomic import check_place
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.sheets import Captions, title_of
from odeddim.storage.sources import Images, place_of
from odeddim.storage.write_behind import behind

ERROR = "cycle_error"  # the name of the figure in the files


@dataclass(frozen=True)
class Crossed(Outcome):
    """The outcome of a bridge.

    Attributes:
        cycle_errors: The names and cycle errors of the images whose error is known; empty without the cycle.
    """

    cycle_errors: tuple[tuple[str, float], ...] = ()

    @property
    def cycle_words(self) -> str:
        """The cycle errors in one line; "" without any."""
        if not self.cycle_errors:
            return ""
        worst, name = max((error, name) for name, error in self.cycle_errors)
        those = "" if len(self.cycle_errors) == self.total else f" of {len(self.cycle_errors)} images"
        middle = median(error for _, error in self.cycle_errors)
        return f"cycle error{those} (rms, images in [-1, 1]): median {middle:.3g}, worst {worst:.3g} ({name})"


@torch.no_grad()
def bridge(
    images: Images,
    output: str | Path | Pictures,
    target: Model | Subject,
    *,
    model: Model | Subject = DEFAULT,
    count: int | None = None,
    cycle: bool = True,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Crossed:
    """Encode images with one model and decode them with another: a dual diffusion implicit bridge.

    A run that was stopped goes on with the same call. A larger count extends a file or a folder of images.

    Args:
        images: As of `odeddim.jobs.encode`; None for the 256 sample images of the package.
        output: A folder for image files, a sheet.png, a file.h5 or a file.npz; Pictures say how it is drawn, too.
        target: The model that decodes: a name, a path, a VectorField, or a Subject with its condition.
        model: The model that encodes, likewise.
        count: The number of images to take, the first ones; by default all.
        cycle: Whether to take the images back too, for the cycle error; twice the evaluations.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to begin anew, whatever is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.bridge`.

    Returns:
        The outcome, with the cycle errors; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Source:
        Su et al. 2022, arXiv 2203.08382.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp(), "out")
        >>> crossed = odeddim.jobs.bridge(None, folder, "exact-mixture", model="exact-gaussian", count=2, steps=4)
        >>> crossed.done, len(crossed.cycle_errors)
        (2, 2)
    """
    where, to, said = place_of(images), Pictures.of(output), How.of(how)
    output, is_sheet = to.path, to.is_sheet
    if not output.is_dir():
        check_place(output, where)
    place = (machine or Machine()).at(model=model, shared=True)
    source, other = subject_on(place, model), subject_on(place, target)
    over = between(
        source, other, said.solver or defaults.BRIDGE, steps=said.steps, grid=said.grid, end=said.end or "zero",
        **said.settings,
    )  # fmt: skip
    for field in (source, other):
        place.fit(field, over.solver)
    given = images_for(source, images, prepare, over.sizes)
    names = first_names(given, count, where)
    size = place.at_once(other, over.solver)
    details = place.details(other, over.solver, size) | ({"cycle": True} if cycle else {}) | recorded(given)
    details["source"] = asdict(provenance_of(source, over.source_plan, "bridge"))

    def of_first(total: int) -> dict[str, Any]:
        of = {"images": given.identity(where, total)}
        return asdict(provenance_of(other, over.target_plan, "bridge", **details, **of))

    work = _Crossing(over, place.state, cycle, is_sheet)
    opening = partial(open_output, to, names, shape=given.shape, captions=_captions(names, other.name, cycle))
    began, spent = time.perf_counter(), Spent(work.model)
    with (
        opening(settings=of_first(len(names)), overwrite=overwrite, of_first=of_first) as out,
        shown(progress, len(names), "bridging", out.done) as advance,
        closing(ahead(lambda start, stop: given[start:stop], out.batches(size))) as batches,
        closing(place.over(work, batches)) as found,
    ):
        keep = Keeping(out, names, (ERROR,) if cycle else ())
        for (start, stop), _ in behind(keep, found, out.together):
            advance(stop - start)
    warn_of_range(keep.largest)
    done, total = out.done, len(names)
    words = (
        f"{so_far(done, total)} images in {output}{of_all(done, total, keep.here)}: {source.name} to {other.name} at "
        f"σ = {over.sigma:.6g}, {over.solver.name}, {evaluated(keep.here, spent)}, "
        f"{time.perf_counter() - began:.1f} s{tell_skipped(given)}"
    )
    return Crossed(output, done, total, words, keep.known(ERROR) if cycle else ())


def _captions(names: Sequence[str], other: str, cycle: bool) -> Captions:
    """What a sheet says of the images."""

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        return [title_of(names[i]), *(f"cycle error {error:#.2g}" for error in known.values())]

    heads = ["image", other, *(["and back"] if cycle else [])]
    return Captions(under, lines=1 + cycle, heads=heads, panes=len(heads))


class _Crossing:
    """The work on each batch of images.

    Attributes:
        model: The source, which counts the evaluations of both models.
    """

    def __init__(self, over: Bridge, dtype: torch.dtype, cycle: bool, side_by_side: bool) -> None:
        self.dtype, self.cycle, self.side_by_side, self.model = dtype, cycle, side_by_side, over.source
        if over.target is not over.source:  # a target of its own, whose counters may be passed on
            over = replace(over, target=copy.copy(over.target))
            over.target.reset()
        self.over = over

    def __call__(self, start: int, stop: int, images: torch.Tensor) -> Made:
        """What the images start, ..., stop-1 become."""
        x_0 = images.to(self.dtype)
        found = self.over.cross(x_0, cycle=self.cycle)
        if self.over.target is not self.model:
            self.model.count(self.over.target)
            self.over.target.reset()
        errors = {} if found.error is None else {ERROR: found.error}
        row = [found.images]
        if self.side_by_side:
            row = [x_0.to(found.images), found.images, *([] if found.again is None else [found.again])]
        return Made(torch.cat(row, dim=3).cpu(), errors, float(found.images.abs().max()))
