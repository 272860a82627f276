"""The job that decodes a latent file to images."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from odeddim.api import Model, to_images
from odeddim.checks.certificate import decode_to
from odeddim.jobs.decoding import Certain, Decoding, decoding_of
from odeddim.jobs.each import Each, for_batch, kept_for
from odeddim.jobs.machine import Machine
from odeddim.jobs.recording import OWN_STEPS, Recording, Walk, opened, together
from odeddim.jobs.subject import Subject, subject_of, warn_of_plan
from odeddim.jobs.telling import Margins, Spent, Tally, evaluated, of_all, so_far, warn_of_range
from odeddim.jobs.waiting import wait_for
from odeddim.jobs.work import How, Outcome, Progress, in_order, shown, warn
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import Provenance
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.runs.parallel import Parallel
from odeddim.storage.atomic import check_place
from odeddim.storage.errors import called
from odeddim.storage.outputs import Pictures, open_output
from odeddim.storage.prefetch import ahead
from odeddim.storage.write_behind import behind
from odeddim.types import State


@torch.no_grad()
def decode(
    latents: str | Path,
    output: str | Path | Pictures,
    *,
    model: Model | Subject | None = None,
    plan: Plan | None = None,
    tol: float | None = None,
    trajectory: str | Path | Recording | None = None,
    parallel: Parallel | int | None = None,
    portable: bool | None = None,
    machine: Machine | None = None,
    wait: bool = False,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Outcome:
    """Decode a latent file to images, with the plan of the file unless another one is given.

    A run that was stopped goes on with the same call. Where the latent file has been extended since, the images of the
    new latents are added.

    Args:
        latents: The latent file, z.h5.
        output: A folder for image files, a sheet.png, a file.h5 or a file.npz; Pictures say how it is drawn, too.
        model: The model that encoded; None for the one that the file names, under the condition that it names.
        plan: The plan that decodes, in place of `how`.
        tol: A tolerance in place of steps: each image takes the fewest steps with which it is this close to the image
            of a more accurate run, rms over pixels in [-1, 1].
        trajectory: The file t.h5 to which the points of each image's run are written too, or a Recording that says
            which; `odeddim.Trajectory.load` opens it.
        parallel: As of `odeddim.solve`: the nodes of each image are found together, without tol and trajectory. Without
            a batch size of the machine, fewer images are in work at once.
        portable: As of `odeddim.decode`, without tol, trajectory and parallel: the images are the same bits on any
            machine; None for as the latents were encoded.
        machine: Where to run; what is not given is as the latents were encoded.
        wait: Whether to wait for a latent file that another process is still writing.
        overwrite: Whether to begin anew, whatever is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid and the solver's settings; what is not given is as in the file.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> made = odeddim.jobs.encode(None, folder / "z.h5", model="exact-samples", count=2, steps=4)
        >>> odeddim.jobs.decode(folder / "z.h5", folder / "out").done
        2
    """
    latents, to = Path(latents), Pictures.of(output)
    output = to.path
    said = How.of(how, tops=True)
    together_by = in_order(parallel, tol=tol is not None, trajectory=trajectory is not None)
    if wait:
        wait_for(latents)
    with LatentFile(latents) as file:
        place = (machine or Machine()).portable(portable, plan).at(file, model, shared=True)
        field = subject_of(file, place, model)
        decoding = replace(decoding_of(file, field, said, plan, tol, portable=portable), parallel=together_by)
        plan, row = decoding.plan, decoding.plan.solver
        warn_of_plan(plan, field)
        recording = Recording.of(trajectory, OWN_STEPS if decoding.rungs else "", plan, (latents, output), up=False)
        ode = place.fit(field, row).on_data()
        if len(file) < file.total:
            warn(f"{latents} is unfinished: {len(file)} of {file.total} latents are there")
        total, size = len(file), place.at_once(field, row, queued=bool(decoding.rungs), parallel=together_by)
        details = {**({} if tol is None else {"tol": tol}), **place.details(field, row, size, together_by)}

        def of_first(count: int) -> Provenance:
            return decoding.provenance(file, field, count, **details)

        if not output.is_dir():
            check_place(output, latents)
        began, largest, here, tally = time.perf_counter(), 0.0, 0, Tally(tol or 0.0)
        each, certain, spent = kept_for(file, ode), Margins(plan.portable), Spent(ode)
        work = _Decoding(field, ode, decoding, place.state, tol, Walk.of(recording), each)
        image_shape = field.shape_of_images(file.shape)
        opening = partial(open_output, to, file.names, asdict(of_first(total)), shape=image_shape, overwrite=overwrite)
        with (
            opened(recording, file.names, of_first, plan, up=False, overwrite=overwrite) as points,
            opening(of_first=lambda n: asdict(of_first(n))) as out,
            shown(progress, total, "decoding", (both := together(out, points)).done) as advance,
            closing(ahead(file.read, both.batches(size))) as batches,
            closing(place.over(work, batches)) as found,
        ):

            def keep(result: tuple[tuple[int, int], _Decoded]) -> None:
                nonlocal largest
                (start, stop), made = result
                if made.taken is not None and made.change is not None:
                    tally.add(made.taken, made.change, file.names[start:stop])
                if points is not None:
                    points.write(start, stop, made.passed)
                if out.holds(start, stop):
                    out.write(start, stop, made.images, made.figures)
                certain.add(made.figures or {}, file.names[start:stop])
                largest = max(largest, float(made.images.abs().max()))

            for (start, stop), _ in behind(keep, found, both.together):
                here += stop - start
                advance(stop - start)
    warn_of_range(largest)
    taken_steps = tally.tell() if tol is not None and here else decoding.steps
    words = (
        f"{so_far(out.done, total)} {called(image_shape)} in {output}{of_all(out.done, total, here)}: {row.name}, "
        f"{taken_steps}, {evaluated(here, spent)}, {time.perf_counter() - began:.1f} s"
    )
    words += (points.words if points else "") + certain.words()
    return Outcome(output, out.done, total, words)


class _Decoded(NamedTuple):
    """What a batch of latents has become.

    Attributes:
        images: The images, (B, C, H, W), or videos (B, C, F, H, W).
        passed: The points of their run, as of `Walk.passed`.
        taken: The steps that a tolerance chose, (B,).
        change: The error by which it chose them, (B,).
        figures: What a portable run keeps of its images.
    """

    images: torch.Tensor
    passed: tuple[torch.Tensor, torch.Tensor] | None = None
    taken: torch.Tensor | None = None
    change: torch.Tensor | None = None
    figures: dict[str, torch.Tensor] | None = None


@dataclass
class _Decoding:
    """The work on each batch of latents.

    Attributes:
        field: The model.
        model: The model of the data, without its autoencoder.
        decoding: What decodes.
        dtype: The dtype of states.
        tol: The tolerance, if one chooses the steps.
        walk: What runs and keeps points, if they are kept.
        each: The condition of each image, if they have their own.
    """

    field: VectorField
    model: VectorField
    decoding: Decoding
    dtype: torch.dtype
    tol: float | None
    walk: Walk | None
    each: Each | None

    def __call__(self, start: int, stop: int, state: State) -> _Decoded:
        """What the latents start, ..., stop-1 become."""
        state = state.to(dtype=self.dtype)
        model = for_batch(self.each, self.model, state)
        passed = taken = change = None
        certain = Certain() if self.decoding.plan.portable else None
        if self.tol is not None:
            data, taken, change = decode_to(self.tol, state, self.decoding.rungs, model)
        else:
            data = self.decoding.images(state, model, start, certain or self.walk)
            passed = None if self.walk is None else self.walk.passed
        if model is not self.model:
            self.model.count(model)
        return _Decoded(to_images(self.field, data).cpu(), passed, taken, change, certain.figures if certain else None)
