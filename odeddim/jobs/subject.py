"""What a job is done with: a model as people say it, and images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from odeddim.api import Model, to_data, to_images
from odeddim.jobs.machine import Place
from odeddim.jobs.work import log, warn
from odeddim.latents.arithmetic import rms
from odeddim.latents.latent_file import LatentFile
from odeddim.models import BUILT_IN, load
from odeddim.ode.conditions import Condition
from odeddim.ode.field import VectorField
from odeddim.plans import Plan
from odeddim.storage.images import SAMPLE, ImageSource, check_shape, open_images, sample_images
from odeddim.storage.workers import rank
from odeddim.types import InputError


@dataclass(frozen=True)
class Subject:
    """A model as people say it: by name or path, under a condition.

    Attributes:
        name: A name of `odeddim.load`, or a path; None for the one that the latents name.
        condition: What `VectorField.conditioned` takes: label, prompt, negative_prompt, guidance, interval.
        allow_pickle: Whether to run the code that is in a pickle.
    """

    name: str | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    allow_pickle: bool = False


def subject_on(place: Place, model: Model | Subject, made_under: Mapping[str, Any] | None = None) -> VectorField:
    """The model on this machine, under its condition.

    Args:
        place: Where it is to run.
        model: A name, a path or a Subject; a VectorField is taken as it is.
        made_under: The condition that latents were made under, which holds where the subject says nothing else.
    """
    if isinstance(model, VectorField):
        return model
    said = model if isinstance(model, Subject) else Subject(str(model))
    assert said.name is not None
    field = load(said.name, device=place.device, allow_pickle=said.allow_pickle)
    if place.asked or place.tf32 or not field.keeps_dtype:
        field.to(place.device, place.dtype_name)
    before = Condition(**(made_under or {}))
    told = {**before.to_dict(), **said.condition}
    if told.get("guidance", 1) == 1 and "interval" not in said.condition:
        told.pop("interval", None)  # that of the latents, whose guidance is taken back
    field = field.conditioned(**told)
    if made_under is not None and field.condition != before:
        words = [it.words or "no condition" for it in (field.condition, before)]
        warn(f"under {words[0]}, where the latents were made under {words[1]}: other images than those encoded")
    if said.name not in BUILT_IN and rank()[0] == 0:
        log.info("%s: %s", said.name, field.describe())
    return field


def subject_of(file: LatentFile, place: Place, model: Model | Subject | None) -> VectorField:
    """The model of a latent file: the one it names, or the one given; checked against its weights' hash."""
    named = file.provenance.model
    if isinstance(model, VectorField):
        file.provenance.check_model(model, str(file.path))
        return model
    said = model if isinstance(model, Subject) else Subject(None if model is None else str(model))
    if said.name is None and named not in BUILT_IN and not os.path.exists(named):
        raise InputError(f"{file.path} belongs to the model {named!r}, which is not there: give it with model=...")
    chosen = Subject(said.name or named, said.condition, said.allow_pickle)
    field = subject_on(place, chosen, file.provenance.condition)
    file.provenance.check_model(field, str(file.path))
    return field


def images_for(field: VectorField, path: Path | None) -> ImageSource:
    """The images of a path, or the package's own without one, in as many channels as the model takes."""
    shape = field.image_shape
    source = sample_images() if path is None else open_images(path, channels=shape[0] if shape else None)
    if shape is not None:
        check_shape(source, shape, path or "the package")
    return source


def first_names(source: ImageSource, count: int | None, path: Path | None) -> Sequence[str]:
    """The names of the first `count` images of a path, or of all without it."""
    if count is None:
        return source.names
    warn_of_count(count, len(source), path)
    return source.names[:count]


def warn_of_count(count: int, there: int, path: Path | None) -> None:
    """Warn where more images are asked for than there are."""
    if count > there:
        warn(f"count={count}: {path or SAMPLE} holds {there} images, and all of them are taken")


def data_and_floor(field: VectorField, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the ODE begins at, and the report of what a latent model's autoencoder alone loses: "floor" (B,).

    floor: rms over pixels of the image that went through the autoencoder and back minus the image, in [-1, 1].
    """
    data = to_data(field, images)
    if field.codec is None:
        return data, {}
    again = to_images(field, data)
    return data, {"floor": rms(again - images.to(again.device))}


def warn_of_plan(plan: Plan, field: VectorField) -> None:
    """Warn where the notes of a plan, or of the file that its grid is from, name another model or solver."""
    if found := plan.unlike(field):
        warn(f"the plan was found {found}: `odeddim grid` and `odeddim bench work-precision --find` find one for it")
    if plan.notes or not os.path.isfile(plan.grid):
        return
    try:
        source = Plan.load(plan.grid)
    except InputError:  # a plain list of noise levels, which says nothing
        return
    if found := source.unlike(field):
        warn(f"{plan.grid} was computed {found}: `odeddim grid` computes one for it")
    if source.solver.name != plan.solver.name:
        warn(f"{plan.grid} was computed for the solver {source.solver.name!r}, not {plan.solver.name!r}")
