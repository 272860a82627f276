"""The job that encodes images to a latent file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from odeddim import defaults
from odeddim.api import Model, in_parallel, state_dtype, to_data
from odeddim.checks.certificate import Rungs, certificate, certificate_of_rungs, encode_to, rungs_of
from odeddim.checks.certificate import certify as certify_batch
from odeddim.checks.density import Density, check_plan
from odeddim.jobs.density import figures_of_report
from odeddim.jobs.each import Each, Labels, Prompts, check_together, told_first
from odeddim.jobs.machine import Machine, Place
from odeddim.jobs.recording import OWN_STEPS, Recording, Walk, opened, together
from odeddim.jobs.subject import (
    Subject,
    data_and_floor,
    first_names,
    images_for,
    recorded,
    subject_on,
    tell_skipped,
    warn_of_plan,
)
from odeddim.jobs.telling import Margins, Reports, Spent, Tally, of_all, so_far, warn_of_range
from odeddim.jobs.work import OWN_DIGITS, OWN_TOP, How, Outcome, Progress, in_order, shown, the_plan
from odeddim.latents.latent_file import LatentRun
from odeddim.latents.provenance import Provenance, provenance_of
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.plans import Plan, check_encodes, integrate
from odeddim.runs.parallel import Parallel
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES
from odeddim.storage.prefetch import ahead
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of
from odeddim.storage.workers import rank
from odeddim.storage.write_behind import behind
from odeddim.types import InputError, State


@torch.no_grad()
def encode(
    images: Images,
    output: str | Path,
    *,
    model: Model | Subject = DEFAULT,
    plan: Plan | None = None,
    start: str | None = None,
    count: int | None = None,
    tol: float | None = None,
    certify: bool = False,
    density: bool = False,
    trajectory: str | Path | Recording | None = None,
    parallel: Parallel | int | None = None,
    labels_from: Labels = None,
    prompts_from: Prompts = None,
    portable: bool = False,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
    **how: Any,
) -> Outcome:
    """Encode images to a latent file. A run that was stopped, even by a kill, goes on with the same call.

    A finished file is extended by a call with more images, say a larger `count`. Several processes share the work if
    each of them makes the same call, as under torchrun.

    Args:
        images: A folder, an image file, .npz, .npy, IDX or HDF5, a list of paths, an array, a tensor, a dataset of
            torch or of Hugging Face, ... (`odeddim.storage.sources`); None for the 256 sample images of the package.
        output: The latent file, z.h5.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        plan: The plan that encodes, in place of `how`.
        start: "forward:K" makes the first K steps by adding noise, as of `odeddim.encode`; image i of the file gets the
            noise of (seed, i).
        count: The number of images to take, the first ones; by default all.
        tol: A tolerance in place of steps: each image takes the fewest steps whose round trip is this good, rms over
            pixels in [-1, 1].
        certify: Whether to store a certificate with each latent; 4 times the evaluations.
        density: Whether to measure by the way the log density of each image, as continuous data, and to store it in the
            report of its latent: bits_per_dim and bits_per_dim_error, see `odeddim.log_density`. Another evaluation and
            two products with the Jacobian at each node. Images then lie at σ_1.
        trajectory: The file t.h5 to which the points of each image's run are written too, or a Recording that says
            which; `odeddim.Trajectory.load` opens it.
        parallel: As of `odeddim.encode`: the nodes of each image are found together, without tol, certify, density and
            trajectory. The file says so. Without a batch size of the machine, fewer images are in work at once.
        labels_from, prompts_from: A class, or a text, for each image in place of one for all: a list, or
            "file.csv:column", or "file.txt" with a line for each, or "folder" for the names of the images' folders. The
            file keeps them, and `decode` takes them. A column "file" of the CSV names the images; without one, its rows
            have their order.
        portable: As of `odeddim.encode`, without tol, density, trajectory and parallel: the latents are the same bits
            on any machine, and the report of each has its "margin". The network is in float64.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to begin anew, whatever is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.encode`.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> odeddim.jobs.encode(None, path, model="exact-samples", count=2, solver="euler", steps=4).done
        2
    """
    given, output = place_of(images), Path(output)
    check_place(output, given, suffixes=SUFFIXES)
    if given == Path("-") and rank()[1] > 1:
        raise InputError("several processes cannot share a list on standard input: give a folder or a file of images")
    place = (machine or Machine()).portable(portable, plan).at(model=model, shared=True)
    field = subject_on(place, told_first(model, labels_from, prompts_from))
    source = images_for(field, images, prepare)
    names = first_names(source, count, given)
    each = Each.of(labels_from, prompts_from, source.names)
    if each is not None:  # before a plan takes the Gaussian of the field's condition
        field, each = each.under(field), each.first(len(names))
    together_by = in_order(
        parallel, tol=tol is not None, certify=certify, density=density, trajectory=trajectory is not None
    )
    said = How.of(how, tops=True)
    if density and plan is None:
        said = said._replace(end=said.end or "sigma_min")
    rungs = _rungs(field, tol, plan, said, portable)
    plan = rungs[max(rungs)] if rungs else the_plan(plan, said, field, defaults.ENCODE, start, portable=portable)
    warn_of_plan(plan, field)
    check_encodes(plan.solver)
    if each is not None:
        others = {"tol": tol, "density": density, "trajectory": trajectory, "parallel": parallel}
        check_together(plan.solver, **others, portable=plan.portable)
    in_parallel(plan, together_by)  # or a sentence
    _check_start(plan.start or start, tol=tol, certify=certify, density=density, trajectory=trajectory)
    measured = _density(field, plan, rungs, density)
    place.fit(field, plan.solver)
    recording = Recording.of(trajectory, _unfit(tol, certify, density), plan, (given, output), up=True)
    size = place.at_once(field, plan.solver, queued=tol is not None, parallel=together_by)
    run = _Encoding(field, plan, rungs, place, tol, certify, measured, together_by, recording, each)

    def of_first(total: int) -> Provenance:
        its = {} if each is None else each.first(total).details
        return run.provenance({"images": source.identity(given, total), **recorded(source), **its}, size)

    began = time.perf_counter()
    with (
        LatentRun(output, names, of_first(len(names)), plan.nodes, overwrite=overwrite, of_first=of_first) as file,
        opened(recording, names, of_first, plan, up=True, overwrite=overwrite) as points,
        shown(progress, len(names), "encoding", (both := together(file, points)).done) as advance,
        closing(ahead(lambda start, stop: source[start:stop], both.batches(size))) as batches,
        closing(place.over(run, batches)) as found,
    ):

        def keep(result: tuple[tuple[int, int], _Encoded]) -> None:
            (begin, stop), made = result
            run.count(made, names[begin:stop])
            if points is not None:
                points.write(begin, stop, made.passed)
            if file.holds(begin, stop):
                file.write(begin, stop, made.state, made.figures)

        for (begin, stop), _ in behind(keep, found, both.together):
            advance(stop - begin)
    words = run.words(output, file.done, len(names), time.perf_counter() - began) + tell_skipped(source)
    words += points.words if points else ""
    return Outcome(output, file.done, len(names), words)


def _check_start(start: str | None, **others: Any) -> None:
    """Raise an InputError if an encoding begins with noise, and what else is wanted takes it for the ODE's."""
    if start and (wanted := [name for name, value in others.items() if value]):
        raise InputError(
            f"a latent that begins with noise (start={start!r}) is not the image's by the ODE, which {wanted[0]}=... "
            "is about: give one of the two"
        )


def _density(field: VectorField, plan: Plan, rungs: Rungs, wanted: bool) -> Density | None:
    """What measures densities by the way; None if none are wanted."""
    if not wanted:
        return None
    if rungs:
        raise InputError("density=True measures along one run, but tol=... tries several: give one of the two")
    return Density.of(field.on_data(), check_plan(plan, field), dequantise="none")


def _rungs(field: VectorField, tol: float | None, plan: Plan | None, how: How, portable: bool) -> Rungs:
    """The plans that a tolerance tries; none without one.

    By default images then lie at σ_1, because the error of the Euler step at 0 does not fall with more steps.
    """
    if tol is None:
        return {}
    if plan is not None:
        raise InputError("tol=... chooses the steps, but plan=... has steps of its own: give one of the two")
    if how.top is not None:
        raise InputError(OWN_TOP)
    if portable:
        raise InputError(OWN_DIGITS)
    usual = how.solver or defaults.TOLERANCE
    return rungs_of(field.schedule, usual, how.steps, how.grid, how.end or "sigma_min", how.settings)


def _unfit(tol: float | None, certify: bool, density: bool) -> str:
    """Why a run has no trajectory of many images; "" if it has one."""
    if tol is not None:
        return OWN_STEPS
    if certify:
        return "trajectory=... excludes certify=True, which encodes several times: leave that to `odeddim verify`"
    if density:
        return "trajectory=... excludes density=True: measure the densities by `odeddim density`"
    return ""


class _Encoded(NamedTuple):
    """What a batch of images has become.

    Attributes:
        state: The latents.
        figures: Their certificate.
        passed: The points of their run, as of `Walk.passed`.
        round_trip: The error by which a tolerance chose their steps, (B,).
    """

    state: State
    figures: dict[str, torch.Tensor]
    passed: tuple[torch.Tensor, torch.Tensor] | None = None
    round_trip: torch.Tensor | None = None


class _Encoding:
    """The work on each batch of images, and its totals."""

    def __init__(
        self, field: VectorField, plan: Plan, rungs: Rungs, place: Place, tol: float | None, certified: bool,
        density: Density | None, parallel: Parallel | None, recording: Recording | None, each: Each | None,
    ) -> None:  # fmt: skip
        self.field, self.plan, self.rungs, self.place = field, plan, rungs, place
        self.model = field.on_data() if density is None else density.model
        self.spent = Spent(self.model)
        self.tol, self.certified, self.density, self.parallel = tol, certified, density, parallel
        self.walk, self.each = Walk.of(recording), each
        self.reports, self.tally, self.rms = Reports(), Tally(tol or 0.0), 0.0
        self.margins = Margins(plan.portable)

    def provenance(self, images: Mapping[str, Any], size: int) -> Provenance:
        """The provenance of the latents, given what is recorded of the images, and how many are in work at once."""
        return provenance_of(
            self.field,
            self.plan,
            "encode",
            **images,
            **({} if self.tol is None else {"tol": self.tol, "ladder": list(self.rungs)}),
            **({"certified": True} if self.certified else {}),
            **({"density": True} if self.density is not None else {}),
            **self.place.details(self.field, self.plan.solver, size, self.parallel),
        )

    def __call__(self, start: int, stop: int, pixels: torch.Tensor) -> _Encoded:
        """What the images start, ..., stop-1, (B, C, H, W), become."""
        x_0, floor = data_and_floor(self.field, pixels.to(self.place.state))
        ode, which = self.model, None
        if self.each is not None:
            which = self.each.which[start:stop]
            ode = self.each.on(self.model, which)
        figures: dict[str, torch.Tensor] = {}
        round_trip = None
        if self.tol is not None:
            state, figures = encode_to(self.tol, x_0, self.rungs, self.model)
            round_trip = figures["round_trip"]
            if self.certified:
                figures = certificate_of_rungs(x_0, state, self.rungs, self.model)
        elif self.density is not None:
            state, table = self.density.along(State(x_0, float(self.plan.nodes[0])), start)
            state = replace(state, report={**state.report, **figures_of_report(self.density.density(table))})
            if self.certified:
                spent = torch.full((len(x_0),), self.plan.evaluations, dtype=torch.float64)
                spent = state.report.get("evaluations", spent)
                figures = certificate(x_0, state, self.plan, self.model, spent)
        elif self.certified:
            state, figures = certify_batch(x_0, model=ode, plan=self.plan)
        elif self.walk is not None:
            state = self.walk(self.plan.begun(state_dtype(x_0)), self.model, self.plan)
        else:
            begin = self.plan.begun(to_data(ode, x_0), start)
            state = integrate(ode, begin, in_parallel(self.plan, self.parallel))
        if self.each is not None and which is not None:
            self.model.count(ode)
            state = self.each.report(state, which)
        state = replace(state, report={**state.report, **floor}).to("cpu")
        passed = None if self.walk is None else self.walk.passed
        return _Encoded(state, figures, passed, round_trip)

    def count(self, made: _Encoded, names: Sequence[str]) -> None:
        """Add the images of a batch, with these names, to the totals."""
        if made.round_trip is not None:
            self.tally.add(made.state.report["steps"], made.round_trip, names)
        self.reports.add(made.state, names)
        self.margins.add(made.state.report, names)
        self.rms = max(self.rms, float(made.state.x.square().mean().sqrt()))

    def words(self, output: Path, done: int, total: int, seconds: float) -> str:
        """The line of the outcome. It warns of images that did not converge, or whose latents are out of range."""
        self.reports.warn(self.plan.end)
        steps = f", {self.tally.tell()}" if self.tol is not None and self.reports.images else ""
        warn_of_range(self.rms, "the latents x_T have rms {:.3g} where 1 is expected")
        spent = f"{self.reports.evaluations(self.spent, certified=self.certified)}, {seconds:.1f} s"
        return (
            f"{so_far(done, total)} latents at σ = {self.plan.top:.6g} in {output}"
            f"{of_all(done, total, self.reports.images)}: {self.plan.solver.name}, {self.plan.grid} grid{steps}"
            f"{'' if self.each is None else self.each.words}{self.reports.floor()}{self.reports.rounds()}, {spent}"
            f"{self.margins.words()}"
        )
