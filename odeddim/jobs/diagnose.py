"""The job that finds out why images do not come back, or latents do not look like noise."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from odeddim import defaults
from odeddim.api import Model
from odeddim.bench import figures
from odeddim.bench.tables import Column, Table
from odeddim.checks.diagnosis import Diagnosis, Level
from odeddim.checks.diagnosis import diagnose as diagnosis_of
from odeddim.jobs.machine import Machine
from odeddim.jobs.subject import Subject, images_for, subject_on, tell_skipped
from odeddim.jobs.work import How
from odeddim.models import DEFAULT
from odeddim.plans import Plan
from odeddim.storage.atomic import check_own, check_place, replacing
from odeddim.storage.preparation import Preparation
from odeddim.storage.sources import Images, place_of

_BENCH = "diagnosis"


@torch.no_grad()
def diagnose(
    images: Images,
    *,
    model: Model | Subject = DEFAULT,
    plan: Plan | None = None,
    count: int = defaults.DIAGNOSE_IMAGES,
    figure: str | Path | None = None,
    prepare: Preparation | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    **how: Any,
) -> Diagnosis:
    """Find out why images do not come back, or latents do not look like noise.

    Args:
        images: Images like those that the model was trained with, as of `odeddim.jobs.encode`; None for the sample
            images of the package.
        model: A name, a path, a VectorField, a pipeline of diffusers, or a Subject with its condition.
        plan: The plan of the round trip, in place of `how`.
        count: How many images are taken, the first ones.
        figure: The file of a figure, .png or .svg; None for none.
        prepare: What is done to the images, as of `odeddim.Preparation`; nothing if the model takes their size.
        machine: Where to run.
        overwrite: Whether to replace whatever is at `figure`.
        **how: solver, steps, grid, end and the solver's settings, as of `odeddim.diagnose`.

    Returns:
        The diagnosis; its words are the most likely cause.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.diagnose(None, model="exact-samples", count=4).cause
        ''
    """
    place = None if figure is None else Path(figure)
    if place is not None:
        check_place(place, place_of(images), suffixes=(".png", ".svg"))
        check_own(place, lambda path: False, overwrite=overwrite)
    machine_here = (machine or Machine()).at(model=model)
    field = subject_on(machine_here, model)
    said = How.of(how)
    source = images_for(field, images, prepare)
    field.network_batch = (machine.network_batch if machine else None) or None
    found = diagnosis_of(
        source[: min(count, len(source))].to(machine_here.state), said.solver or defaults.SOLVE, model=field, plan=plan,
        steps=said.steps, grid=said.grid, end=said.end or "zero", **said.settings,
    )  # fmt: skip
    tell_skipped(source)
    if place is not None:
        with replacing(place) as temporary:
            drawn = figures.files(_table(found), kinds=[place.suffix.removeprefix(".").lower()])
            temporary.write_bytes(*drawn.values())
    return found


def _table(found: Diagnosis) -> Table:
    """The levels as a table, which figures are drawn from."""
    columns = tuple(Column(it.name, it.name, form="s" if it.name == "convention" else ".3g") for it in fields(Level))
    title = f"{found.model}: {found.words.partition(':')[0]}"
    return Table(_BENCH, title, {"words": found.words}, columns, tuple(asdict(level) for level in found.levels))
