"""The job that finds a solver for a model: nodes and weights, or the nodes of a solver of the table."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.fitting.checkpoint import MARK
from odeddim.fitting.fit import HELD_OUT, Aim, Errors, Fit
from odeddim.jobs.fitted_nodes import Found, fit_nodes
from odeddim.jobs.machine import BATCH, Machine, Place
from odeddim.jobs.subject import Subject, images_for, recorded, subject_on, tell_skipped, warn_of_count
from odeddim.jobs.work import Progress
from odeddim.models import DEFAULT
from odeddim.ode.field import VectorField
from odeddim.ode.grids import STEPS
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of, plain_text
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of
from odeddim.types import InputError

SUFFIXES = (".json",)
CAPTION = "errors of {} solutions that were used for nothing else: rms, of images in [-1, 1], of latents over σ_T"
NAMES = {"encode": "latent", "decode": "image"}
_ERRORS = ("held out", "plain held out")


def fit(
    images: Images,
    output: str | Path,
    solver: str | None = None,
    steps: int | None = None,
    direction: str | None = None,
    *,
    end: str = "zero",
    count: int | None = None,
    seed: int | None = None,
    top: str | None = None,
    shape: tuple[int, ...] | None = None,
    model: Model | Subject = DEFAULT,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    progress: Progress = False,
) -> Found:
    """Find nodes and weights with which a multistep solver errs least on a model, and write the plan to a file.

    A call that was stopped goes on with the same call: what it has found lies in a folder beside the file,
    plan.json.fit, until the plan is whole.

    Args:
        images: Images whose fine encodings the solver is fitted to, as of `odeddim.jobs.encode`; None for fine
            decodings of noises. With a `solver`, those that errors are measured on; None for the 256 sample images.
        output: The file, plan.json, which `Plan.load` reads; it is also a grid file.
        solver: A name of `odeddim.solvers.names()`, to find nodes for it and no weights, for both directions.
        steps: The number of steps; by default 8, and 50 with a `solver`.
        direction: "decode", "encode", or "both" for one plan with common nodes; by default "decode".
        end: Where images lie: "zero" or "sigma_min".
        count: The number of images or noises to fit to, the last ones; by default 128, and 16 with a `solver`. Up to 64
            more, and not more than that many, are held out.
        seed: The seed of the noises, by default 0.
        top: "gaussian" for the Gaussian of the data between the last node and σ_T, "model" for none; by default it is
            used where the model has one.
        shape: The (C, H, W) of the images of noises, for models that take several sizes or any.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to replace what is at `output`, and to begin anew.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Returns:
        The outcome, with the plan and its errors; `print` it for one line.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "plan.json")
        >>> found = odeddim.jobs.fit(None, path, steps=3, count=8, model="exact-gaussian", shape=(1, 4, 4))
        >>> odeddim.Plan.load(path) == found.plan
        True
    """
    given, output = place_of(images), Path(output)
    check_place(output, given, suffixes=SUFFIXES)
    place = (machine or Machine()).at(model=model)
    field = subject_on(place, model)
    if solver is not None:
        own = {"direction": direction, "seed": seed, "top": top, "shape": shape}
        if said := [name for name, value in own.items() if value is not None]:
            raise InputError(
                f"solver=... finds nodes for a solver of the table, in both directions: leave out {said[0]}=..., or "
                "leave out the solver to find weights too"
            )
        return fit_nodes(
            images, output, solver, steps or STEPS, end=end, count=count, on=(place, field),
            prepare=prepare, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if machine is not None and machine.threads is not None and place.device.type == "cpu":
        torch.set_num_threads(machine.threads)
    aim = Aim(
        steps or defaults.FIT_STEPS, direction or "decode", end, count or defaults.FIT_COUNT, seed or 0, top, shape
    )
    return _Fitting(field, place, aim).run(images, prepare, output, overwrite=overwrite, progress=progress)


class _Fitting:
    """A fit of nodes and weights, from and to files."""

    def __init__(self, field: VectorField, place: Place, aim: Aim) -> None:
        self.field, self.place, self.aim = field, place, aim

    def run(
        self, images: Images, prepare: Preparation | None, output: Path, *, overwrite: bool, progress: Progress
    ) -> Found:
        """Do what is left of it."""
        notes: dict[str, Any] = {"fitted to": f"{self.aim.count} noises, seed {self.aim.seed}"}
        pixels, skipped = None, ""
        if images is not None:
            given, source = place_of(images), images_for(self.field, images, prepare)
            warn_of_count(self.aim.count, len(source), given)
            first = max(0, len(source) - self.aim.count - HELD_OUT)
            pixels = source[first : len(source)].to(self.place.state)
            notes = {"fitted to": f"the last of {plain_text(str(given))}", **recorded(source)}
            notes["images"] = source.fingerprint(None)
            skipped = tell_skipped(source)
        elif prepare is not None:
            raise InputError("a fit to noises takes no preparation of images: give images, or leave it out")
        batch = self.place.machine.batch_size or BATCH
        mark = mark_of(
            "fit", asdict(self.aim), self.field.name, self.field.sha256, self.field.condition.words, notes, batch
        )
        check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
        folder = output.with_name(f"{output.name}.fit")
        if overwrite and (folder / MARK).is_file():
            shutil.rmtree(folder)
        if not overwrite and output.exists() and not folder.exists():
            plan = Plan.load(output)
            return self._found(output, plan, f"{_words(plan)} in {output}: it was there already")
        began = time.perf_counter()
        work = Fit(self.field, self.aim, pixels, batch, folder, mark)
        made = work.run(progress)
        kept = {
            name: [asdict(it) for it in them] for name, them in zip(_ERRORS, (made.errors, made.plain), strict=True)
        }
        plan = made.plan.noted(self.field, **notes, run=mark, **{"made by": "odeddim fit"}, **kept)
        plan.save(output)
        work.checkpoint.remove()
        words = (
            f"{_words(plan)} in {output}: {made.evaluations} evaluations, {time.perf_counter() - began:.1f} s{skipped}"
        )
        return self._found(output, plan, words)

    def _found(self, output: Path, plan: Plan, words: str) -> Found:
        fitted, plain = ([Errors(**it) for it in plan.notes[name]] for name in _ERRORS)
        rows = [("error", "solver", "median", "10% to 90%")]
        for own, other in zip(fitted, plain, strict=True):
            for it in (other, own):
                rows.append((NAMES[it.direction], it.solver, f"{it.median:.2e}", f"{it.low:.2e} to {it.high:.2e}"))
        title = f"{self.field.title}: {_words(plan)}, end at {self.aim.end}"
        return Found(output, 1, 1, words, plan, title, CAPTION.format(HELD_OUT), tuple(rows))


def _words(plan: Plan) -> str:
    """The plan in a few words."""
    ways = " and ".join(it["direction"] for it in plan.notes[_ERRORS[0]])
    return f"solver of {plan.steps} steps fitted to {ways}"
