"""The job that samples images from noise."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model, from_noise, in_parallel, noise, to_images, with_noise
from odeddim.api import sample as sample_batch
from odeddim.checks.density import Density, check_plan
from odeddim.jobs.density import figures_of_report
from odeddim.jobs.each import COLUMN, Each, Labels, Prompts, check_together, told_first
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, subject_on, warn_of_plan
from odeddim.jobs.telling import Margins, Spent, evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.work import How, Numbered, Outcome, Progress, in_order, shown, the_plan
from odeddim.latents.latent_file import MOST_ROW
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.conditions import Condition
from odeddim.ode.field import VectorField
from odeddim.ode.portable import MARGIN
from odeddim.plans import Plan
from odeddim.runs.parallel import Parallel
from odeddim.storage.atomic import nearest_above
from odeddim.storage.errors import called
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.names import Names
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.sheets import Captions
from odeddim.storage.write_behind import behind
from odeddim.types import InputError, State

_SHORT = 60  # letters of a condition in the name of its image


@torch.no_grad()
def sample(
    count: int | None,
    output: str | Path | Pictures,
    *,
    seed: int = 0,
    eta: float | None = None,
    shape: tuple[int, ...] | None = None,
    model: Model | Subject = DEFAULT,
    plan: Plan | None = None,
    density: bool = False,
    labels_from: Labels = None,
    prompts_from: Prompts = None,
    parallel: Parallel | int | None = None,
    portable: bool = False,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Outcome:
    """Sample images from noise. Image i depends on the seed and i only, and not on the count or the batch.

    A run that was stopped goes on with the same call. A larger count extends a file or a folder of images.

    Args:
        count: The number of images; None for 64, or one for each row of `labels_from` or `prompts_from`.
        output: A sheet.png, a file.h5, a file.npz or a folder for image files; Pictures say how it is drawn, too.
        seed: The seed of the noise.
        eta: How much noise a stochastic solver adds, 0 for none; None for the solver's own. Of "euler" and "ddim-eta"
            it is DDIM's η, between 0 (the ODE) and 1 (DDPM).
        shape: The shape (C, H, W) of the images, for models that take several sizes or any; by default the model's own.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        plan: The plan that decodes, in place of `how`.
        density: Whether to measure the log density of each image by the way, as `odeddim.jobs.encode` does. Images then
            lie at σ_1, and the solver adds no noise.
        labels_from, prompts_from: A class, or a text, for each image in place of one for all: a list, or
            "file.csv:column", or "file.txt" with a line for each. Names of images tell them; a file.h5 or a file.npz
            has "condition", the place of each image's own in the list "conditions" of the provenance. With a count, the
            first rows are taken.
        parallel: As of `odeddim.solve`: the nodes of each image are found together, without density. Without a batch
            size of the machine, fewer images are in work at once.
        portable: As of `odeddim.sample`, without density and parallel: the images are the same bits on any machine.
        machine: Where to run.
        overwrite: Whether to begin anew, whatever is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.sample`.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> odeddim.jobs.sample(2, folder / "out", model="exact-samples", steps=4).done
        2
    """
    to, place = Pictures.of(output), (machine or Machine()).portable(portable, plan).at(model=model, shared=True)
    output = to.path
    each = Each.of(labels_from, prompts_from, None)
    count = _number_of(count, each)
    field = subject_on(place, told_first(model, labels_from, prompts_from))
    if each is not None:
        field, each = each.under(field), each.first(count)
    of_noise = shape_for(field, shape)
    shape = field.shape_of_images(of_noise)
    check_amount(output, count, 4 * math.prod(shape), "images")
    said, together = How.of(how, tops=True), in_order(parallel, density=density)
    if density and plan is None:
        said = said._replace(end=said.end or "sigma_min")
    plan = the_plan(plan, said, field, defaults.for_sampling(eta), portable=portable)
    warn_of_plan(plan, field)
    noisy = plan.with_solver(with_noise(plan.solver, eta=eta, seed=seed))
    in_parallel(noisy, together)  # or a sentence
    row = noisy.solver
    if each is not None:
        check_together(row, density=density, parallel=parallel, portable=plan.portable)
    measured = Density.of(field.on_data(), check_plan(noisy, field), dequantise="none", seed=seed) if density else None
    place.fit(field, row)
    size = place.at_once(field, row, parallel=together)
    details = {"seed": seed, "eta": eta, "size": list(of_noise), **place.details(field, row, size, together)}
    details |= {"density": True} if density else {}

    def of_first(total: int) -> dict[str, Any]:
        its = {} if each is None else each.first(total).details
        return asdict(replace(provenance_of(field, noisy, "sample", **details, **its), settings=plan.settings))

    names, captions = _named(f"sample-{seed}-", count, each)
    began, largest, here, certain = time.perf_counter(), 0.0, 0, Margins(plan.portable)
    work = _Sampling(field, plan, seed, eta, shape, of_noise, together, measured, each)
    spent = Spent(work.model)
    with (
        open_output(
            to, names, of_first(count), shape=shape, overwrite=overwrite, captions=captions, of_first=of_first
        ) as out,
        shown(progress, count, "sampling", out.done) as advance,
        closing(place.over(work, ((span, None) for span in out.batches(size)))) as found,
    ):

        def keep(result: tuple[tuple[int, int], tuple[torch.Tensor, dict[str, torch.Tensor] | None]]) -> None:
            nonlocal largest
            (start, stop), (images, figures) = result
            out.write(start, stop, images, figures)
            certain.add(figures or {}, names[start:stop])
            largest = max(largest, float(images.abs().max()))

        for (start, stop), _ in behind(keep, found, out.together):
            here += stop - start
            advance(stop - start)
    warn_of_range(largest)
    words = (
        f"{so_far(out.done, count)} {called(shape)} in {output}{of_all(out.done, count, here)}: {row.name}, "
        f"seed {seed}{'' if each is None else each.words}, {evaluated(here, spent)}, "
        f"{time.perf_counter() - began:.1f} s"
    )
    words += certain.words()
    return Outcome(output, out.done, count, words)


@dataclass
class _Sampling:
    """The work on each batch of images.

    Attributes:
        field, plan, seed, eta, parallel: As of `odeddim.sample`.
        shape: The shape of the images.
        of_noise: The shape of their noise.
        density: What measures their density; None if that is not wanted.
        each: The condition of each image, if they have their own.
    """

    field: VectorField
    plan: Plan
    seed: int
    eta: float | None
    shape: tuple[int, ...]
    of_noise: tuple[int, ...]
    parallel: Parallel | None
    density: Density | None
    each: Each | None

    @property
    def model(self) -> VectorField:
        """The model whose evaluations are counted."""
        return self.density.model if self.density else self.field

    def __call__(self, start: int, stop: int, _: None) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """The images start, ..., stop-1, and what is known of them."""
        if self.plan.portable:
            end = from_noise(self.field, self.plan, stop - start, self.of_noise, self.seed, start)
            return to_images(self.field, end.xbar).cpu(), {MARGIN: end.report[MARGIN]}
        field, figures = self.field, None
        if self.each is not None:
            which = self.each.which[start:stop]
            field, figures = self.each.on(self.field, which), {COLUMN: which}
        if self.density is None:
            images = sample_batch(
                stop - start, seed=self.seed, eta=self.eta, start=start, model=field, plan=self.plan,
                shape=self.shape, parallel=self.parallel,
            )  # fmt: skip
            if field is not self.field:
                self.field.count(field)
            return images.cpu(), figures
        x_T, top = noise(stop - start, self.of_noise, seed=self.seed, start=start), self.density.plan.top
        state, table = self.density.along(State(x_T * math.sqrt(1 + top**2), top), start)
        return to_images(self.field, state.xbar).cpu(), figures_of_report(self.density.density(table))


def _number_of(count: int | None, each: Each | None) -> int:
    """How many images to make."""
    if each is None:
        return defaults.NEW if count is None else count
    rows = len(each.which)
    if not 0 < (rows if count is None else count) <= rows:
        raise InputError(
            f"{rows} rows of labels_from=... or prompts_from=... are conditions of as many images"
            f"{'' if count is None else f', not of {count}'}: give a row for each image"
        )
    return rows if count is None else count


def _named(prefix: str, count: int, each: Each | None) -> tuple[Sequence[str], Captions]:
    """The names of samples, and what a sheet says of them: their numbers, and the condition that each has."""
    numbered = Numbered(prefix, count)
    if each is None:
        return numbered, Captions(lambda i, known: [str(i)])
    which, told = each.which.tolist(), [Condition(**it) for it in each.distinct]
    words = [it.words if it.prompt is None else it.prompt for it in told]
    short = ["-".join(re.findall(r"\w+", text))[:_SHORT].strip("-") for text in words]
    names = Names(count, lambda i: f"{numbered[i]}-{short[which[i]]}".rstrip("-"))
    return names, Captions(lambda i, known: [str(i), words[which[i]]], lines=2)


def check_amount(output: Path, count: int, size: int, what: str) -> None:
    """Raise an InputError if there are too many images or latents for a run or for the disk.

    Args:
        output: Where they go.
        count: Their number.
        size: The bytes of each.
        what: What they are called: "images" or "latents".
    """
    if count > defaults.MOST_NEW:
        raise InputError(f"{count:,} {what} are too many for one run: ask for {defaults.MOST_NEW:,} at most")
    above, is_file = nearest_above(output), output.suffix.lower() in (*SUFFIXES, ".npz")
    room = shutil.disk_usage(above).total if is_file and above.is_dir() else 0
    if room and count * size > room:
        raise InputError(
            f"{count:,} {what} take {count * size / 1e9:,.3g} GB, but the disk of {output} has only "
            f"{room / 1e9:,.3g} GB: ask for fewer"
        )


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, if it is that of an image or a video that can be made; otherwise an InputError."""
    if len(shape) not in (3, 4) or min(shape) < 1 or 4 * math.prod(shape) > MOST_ROW:
        raise InputError(
            f"an image of shape {shape} has more than {MOST_ROW // 4:,} values, or none: give (C, H, W), or "
            "(C, F, H, W) of a video"
        )
    return shape


def shape_for(field: VectorField, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the noise of images of a shape: the one that is given, or the model's own.

    Args:
        field: The model.
        shape: The shape (C, H, W) of images that the user gave, or None.

    Returns:
        The shape of the noise, which for a latent model is that of its data.

    Raises:
        InputError: If the model makes no such images, or takes any shape and none is given.
    """
    return field.shape_of_data(shape if shape is None else check_shape(shape))
