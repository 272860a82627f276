"""What a job takes: a model as a user names it, and images."""

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
from odeddim.storage.preparation import Preparation
from odeddim.storage.workers import rank
from odeddim.types import InputError


@dataclass(frozen=True)
class Subject:
    """A model as a user names it: by name or path, under a condition.

    Attributes:
        name: A built-in name or a path, as `odeddim.load` takes them; None for the model that the latent file names.
        condition: The arguments of `VectorField.conditioned`: label, prompt, negative_prompt, guidance, interval.
        allow_pickle: Whether to read files that run the code in them.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Subject("model.pkl", {"label": 3, "guidance": 2.0}, allow_pickle=True).condition["label"]
        3
    """

    name: str | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    allow_pickle: bool = False


def subject_on(place: Place, model: Model | Subject, made_under: Mapping[str, Any] | None = None) -> VectorField:
    """Load a model on a machine, under its condition.

    Args:
        place: Where it runs.
        model: A name, a path or a Subject; a VectorField is returned as it is.
        made_under: The condition under which latents were made. It holds where the subject says nothing else.

    Returns:
        The model.

    Raises:
        InputError: If the model cannot be loaded, or does not take the condition.
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
        told.pop("interval", None)  # the interval of the latents has no meaning without their guidance
    field = field.conditioned(**told)
    if made_under is not None and field.condition != before:
        words = [it.words or "no condition" for it in (field.condition, before)]
        warn(
            f"the model runs under {words[0]}, but the latents were made under {words[1]}: the images will differ from "
            "those that were encoded"
        )
    if said.name not in BUILT_IN and rank()[0] == 0:
        log.info("%s: %s", said.name, field.describe())
    return field


def subject_of(file: LatentFile, place: Place, model: Model | Subject | None) -> VectorField:
    """The model of a latent file.

    Args:
        file: The latent file.
        place: Where the model runs.
        model: The model that encoded; None for the one that the file names.

    Returns:
        The model.

    Raises:
        InputError: If the model cannot be loaded, or the latents belong to another one.
    """
    named = file.provenance.model
    if isinstance(model, VectorField):
        file.provenance.check_model(model, str(file.path))
        return model
    said = model if isinstance(model, Subject) else Subject(None if model is None else str(model))
    if said.name is None and named not in BUILT_IN and not os.path.exists(named):
        raise InputError(f"{file.path} belongs to the model {named!r}, which was not found: give it with model=...")
    chosen = Subject(said.name or named, said.condition, said.allow_pickle)
    field = subject_on(place, chosen, file.provenance.condition)
    file.provenance.check_model(field, str(file.path))
    return field


def images_for(field: VectorField, path: Path | None, prepare: Preparation | None = None) -> ImageSource:
    """The images of a path, in as many channels as the model takes.

    Args:
        field: The model.
        path: The path, or None for the 256 sample images of the package.
        prepare: What is done to each image; by default it stays as it is.

    Returns:
        The images.

    Raises:
        InputError: If the images cannot be read, or have another shape than the model takes.
    """
    shape = field.image_shape
    channels = shape[0] if shape else None
    if prepare is not None:
        prepare = prepare.for_model(shape)
    if path is not None:
        source = open_images(path, channels=channels, prepare=prepare)
    else:
        source = sample_images() if prepare is None else sample_images(channels=channels, prepare=prepare)
    if shape is not None:
        check_shape(source, shape, path or "the package")
    return source


def recorded(source: ImageSource) -> dict[str, Any]:
    """What a provenance records of the preparation of images: nothing if there was none."""
    return {"prepared": source.prepared} if source.prepared else {}


def tell_skipped(source: ImageSource) -> str:
    """Warn of each file that was left out, with the reason.

    Returns:
        What the last line of a job says of them: ", 2 files skipped", or "" for none.
    """
    for name, reason in source.skipped if rank()[0] == 0 else ():
        warn(f"skipped: {name} {reason}")
    count = len(source.skipped)
    return f", {count} file{'s' if count > 1 else ''} skipped" if count else ""


def first_names(source: ImageSource, count: int | None, path: Path | None) -> Sequence[str]:
    """The names of the first `count` images of a path, or of all if it is None."""
    if count is None:
        return source.names
    warn_of_count(count, len(source), path)
    return source.names[:count]


def warn_of_count(count: int, there: int, path: Path | None) -> None:
    """Warn if more images are asked for than there are."""
    if count > there:
        warn(f"count={count}: {path or SAMPLE} holds {there} images, and all of them are taken")


def data_and_floor(field: VectorField, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The data where the ODE starts, and the error of a latent model's autoencoder.

    Args:
        field: The model.
        images: The images, (B, C, H, W) in [-1, 1].

    Returns:
        The data, (B, *), and a report: for latent models "floor", (B,), the rms over pixels of the image that the
        autoencoder makes of the data minus the image, in [-1, 1].
    """
    data = to_data(field, images)
    if field.codec is None:
        return data, {}
    again = to_images(field, data)
    return data, {"floor": rms(again - images.to(again.device))}


def warn_of_plan(plan: Plan, field: VectorField) -> None:
    """Warn if the notes of a plan, or of the plan file that its grid comes from, name another model or solver."""
    if found := plan.unlike(field):
        warn(f"the plan was found {found}: `odeddim grid` and `odeddim bench work-precision --find` find one for it")
    if plan.notes or not os.path.isfile(plan.grid):
        return
    try:
        source = Plan.load(plan.grid)
    except InputError:  # a plain list of noise levels, without notes
        return
    if found := source.unlike(field):
        warn(f"{plan.grid} was computed {found}: `odeddim grid` computes one for it")
    if source.solver.name != plan.solver.name:
        warn(f"{plan.grid} was computed for the solver {source.solver.name!r}, not {plan.solver.name!r}")
