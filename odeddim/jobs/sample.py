"""New images from noise."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from odeddim import defaults
from odeddim.api import Model, with_noise
from odeddim.api import sample as sample_batch
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, subject_on, warn_of_plan
from odeddim.jobs.telling import evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.work import How, Numbered, Outcome, Progress, silent, the_plan
from odeddim.latents.latent_file import MOST_ROW
from odeddim.latents.provenance import provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.outputs import open_output
from odeddim.types import InputError

MOST = 10_000_000  # images or latents: beyond, no run ends


def sample(
    count: int,
    output: str | Path,
    *,
    seed: int = 0,
    eta: float | None = None,
    shape: tuple[int, ...] | None = None,
    model: Model | Subject = DEFAULT,
    plan: Plan | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    **how: Any,
) -> Outcome:
    """Sample images from noise. Image i depends on the seed and i only, whatever the count or the batch.

    A run that was stopped goes on with the same call.

    Args:
        count: How many images.
        output: A sheet.png, a file.h5 or a folder for PNGs.
        seed: Of the noise.
        eta: DDIM's η, of "euler" (0: the ODE) and "ddim-eta" (0.5).
        shape: (C, H, W) of the images, for models that take any.
        model: A name, a path, a VectorField, or a Subject with its condition.
        plan: What decodes; in place of `how`.
        machine: Where to run.
        overwrite: Whether to begin anew, whatever is there.
        progress: Shown while the job works.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.sample`.

    Returns:
        What became of it; `print` it for a line of words.

    Raises:
        InputError: For what cannot be used, before anything is written.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> odeddim.jobs.sample(2, folder / "out", model="exact-samples", steps=4).done
        2
    """
    output, place = Path(output), (machine or Machine()).at()
    field = subject_on(place, model)
    shape = shape_for(field, shape)
    check_amount(output, count, 4 * math.prod(shape if field.codec is None else field.codec.image_shape), "images")
    plan = the_plan(plan, How.of(how), field.schedule, defaults.for_sampling(eta))
    warn_of_plan(plan, field)
    noisy = plan.with_solver(with_noise(plan.solver, eta=eta, seed=seed))
    row = noisy.solver
    place.fit(field, row)
    size = place.at_once(field, row)
    details = {"seed": seed, "eta": eta, "size": list(shape), **place.details(field, row, size)}
    made = replace(provenance_of(field, noisy, "sample", **details), settings=plan.settings)
    began, largest, here = time.perf_counter(), 0.0, 0
    with (
        open_output(output, Numbered(f"sample-{seed}-", count), asdict(made), overwrite=overwrite) as out,
        progress(count, "sampling", out.done) as advance,
    ):
        for start, stop in out.batches(size):
            images = sample_batch(stop - start, seed=seed, eta=eta, start=start, model=field, plan=plan, shape=shape)
            out.write(start, stop, images)
            largest, here = max(largest, float(images.abs().max())), here + stop - start
            advance(stop - start)
    warn_of_range(largest)
    words = (
        f"{so_far(out.done, count)} images in {output}{of_all(out.done, count, here)}: {row.name}, seed {seed}, "
        f"{evaluated(here, field)}, {time.perf_counter() - began:.1f} s"
    )
    return Outcome(output, out.done, count, words)


def check_amount(output: Path, count: int, size: int, what: str) -> None:
    """Refuse so many images or latents of so many bytes as no run ends with, before the first is made."""
    if count > MOST:
        raise InputError(f"{count:,} {what} are too many for one run: ask for {MOST:,} at most")
    room = shutil.disk_usage(output.parent).total if output.suffix.lower() in SUFFIXES and output.parent.is_dir() else 0
    if room and count * size > room:
        raise InputError(
            f"{count:,} {what} take {count * size / 1e9:,.3g} GB, and all of the disk of {output} is "
            f"{room / 1e9:,.3g} GB: ask for fewer"
        )


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of an image that can be made; an InputError for any other."""
    if len(shape) != 3 or min(shape) < 1 or 4 * math.prod(shape) > MOST_ROW:
        raise InputError(f"an image of shape {shape} has more than {MOST_ROW // 4:,} values, or none: give (C, H, W)")
    return shape


def shape_for(field: VectorField, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of noise to begin at: the model's, or the one given for models that take any."""
    if shape is not None:
        check_shape(shape)
    if shape and field.codec is not None and shape != field.codec.image_shape:
        made = "×".join(map(str, field.codec.image_shape))
        raise InputError(
            f"the model {field.name!r} makes images of {made} (channels×height×width): leave out shape=..."
        )
    found = shape if shape and field.codec is None else field.shape
    if found is None:
        raise InputError(f"the model {field.name!r} takes any shape: say which one with shape=...")
    return found
