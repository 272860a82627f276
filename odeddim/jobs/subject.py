"""What a job takes: the model that a user names, and images."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from odeddim.api import Model, to_data, to_images
from odeddim.jobs.each import OWN, kept_in
from odeddim.jobs.machine import Place
from odeddim.jobs.naming import Subject as Subject
from odeddim.jobs.work import log, warn
from odeddim.latents.arithmetic import rms
from odeddim.latents.latent_file import LatentFile
from odeddim.models import BUILT_IN, hub, load
from odeddim.ode.conditions import HOW_GUIDED, Condition, Guide
from odeddim.ode.field import VectorField
from odeddim.ode.sizes import Sizes
from odeddim.plans import Plan
from odeddim.storage.images import SAMPLE, ImageSource, open_images, other_shape
from odeddim.storage.preparation import AS_IT_IS, Preparation
from odeddim.storage.sources import Images, place_of, source_of
from odeddim.storage.workers import rank
from odeddim.types import InputError, pick


def subject_on(place: Place, model: Model | Subject, made_under: Mapping[str, Any] | None = None) -> VectorField:
    """Load a model on a machine, under its condition.

    Args:
        place: Where it runs.
        model: The model, or a Subject; a VectorField is returned as it is.
        made_under: The condition under which latents were made. It holds where the subject says nothing else.

    Returns:
        The model.

    Raises:
        InputError: If the model cannot be loaded, or does not take the condition.
    """
    if isinstance(model, VectorField):
        return model
    said = model if isinstance(model, Subject) else Subject(model)
    assert said.name is not None
    field = _loaded(place, said.name, said.allow_pickle)
    for argument in said.condition:
        pick(argument, (part.name for part in fields(Condition)), "condition")
    before = Condition(**(made_under or {}))
    told = {**before.to_dict(), **field.condition.to_dict(), **said.condition}
    if told.get("guidance", 1) == 1:  # what says how the latents were guided has no meaning without their guidance
        told = {name: its for name, its in told.items() if name not in HOW_GUIDED or name in said.condition}
    if field.guide is not None and "guide" in told and "guide" not in said.condition:
        told["guide"] = field.guide
    field = field.conditioned(**{**told, "guide": guide_on(place, told.get("guide"), said)})
    if made_under is not None and field.condition != before:
        words = [it.words or "no condition" for it in (field.condition, before)]
        warn(
            f"the model runs under {words[0]}, but the latents were made under {words[1]}: the images will differ from "
            "those that were encoded"
        )
    named = said.name if isinstance(said.name, (str, Path)) else field.name
    log.log(logging.DEBUG if field.name in BUILT_IN else logging.INFO, "%s: %s", named, field.describe())
    return field


def _loaded(place: Place, name: Model, allow_pickle: bool) -> VectorField:
    """A model on a machine, in the form that the machine asks for."""
    field = load(name, device=place.device, allow_pickle=allow_pickle)
    if place.asked or place.tf32 or not field.keeps_dtype:
        field.to(place.device, place.dtype_name)
    if any(said is not None for said in place.form.values()):
        field.to(place.device, **place.form)
    return field


def guide_on(place: Place, named: Any, said: Subject) -> VectorField | None:
    """The guide of a model, on a machine.

    Args:
        place: Where it runs.
        named: The guide as a user names it, or as a latent file keeps it; None for none.
        said: The model.

    Raises:
        InputError: If it cannot be loaded, or is not the one that the file names.
    """
    if named is None or isinstance(named, VectorField):
        return named
    if not isinstance(named, dict):
        return _loaded(place, named, said.allow_pickle)
    kept = Guide.of(named)
    _check_there(kept.model, "the latents were guided by", "guide")
    found = _loaded(place, kept.model, said.allow_pickle)
    if Guide(found.name, found.sha256) != kept:
        raise InputError(
            f"the latents were guided by the model {kept.words}, whose weights or settings have changed since "
            f"({found.sha256[:12]}): give the former one, guide=..."
        )
    return found


def _check_there(named: str, what: str, argument: str) -> None:
    """Raise an InputError unless a model that a file names is on this machine.

    Args:
        named: The model.
        what: The words before the model in what a message says.
        argument: The argument that gives it otherwise.
    """
    if hub.is_named(named):
        if not hub.is_cached(named):  # a file of a stranger must not make this machine download anything
            raise InputError(
                f"{what} the model {named}, which is not in the cache of Hugging Face: give its name with "
                f"{argument}=... to download it"
            )
    elif named not in BUILT_IN and not os.path.exists(named):
        raise InputError(
            f"{what} the model {named!r}, which was not found: give it with {argument}=..., its path or, in Python, "
            "the object that encoded"
        )


def subject_of(file: LatentFile, place: Place, model: Model | Subject | None) -> VectorField:
    """The model of a latent file.

    Args:
        file: The latent file.
        place: Where the model runs.
        model: The model that encoded; None for the one that the file names.

    Returns:
        The model. Where each latent has a condition of its own, `jobs.each.for_batch` makes the field of a batch.

    Raises:
        InputError: If the model cannot be loaded, or the latents belong to another one.
    """
    named = file.provenance.model
    if isinstance(model, VectorField):
        file.provenance.check_model(model, str(file.path))
        return model
    said = model if isinstance(model, Subject) else Subject(model)
    if said.name is None:
        _check_there(named, f"{file.path} belongs to", "model")
    each = None if any(name in said.condition for name in OWN) else kept_in(file)
    first = {} if each is None else each.distinct[0]  # some models need one to be loaded
    chosen = Subject(named if said.name is None else said.name, {**said.condition, **first}, said.allow_pickle)
    field = subject_on(place, chosen, {**file.provenance.condition, **first})
    file.provenance.check_model(field, str(file.path))
    return field if each is None else field.conditioned_each([])


def images_for(
    field: VectorField, images: Images, prepare: Preparation | None = None, sizes: Sizes | None = None
) -> ImageSource:
    """Images of any kind, in as many channels as the model takes.

    Args:
        field: The model.
        images: What holds them, as of `odeddim.storage.sources`; None for the 256 sample images of the package.
        prepare: What is done to each image; by default it stays as it is.
        sizes: The sizes that images may have; by default those that the model takes.

    Returns:
        The images.

    Raises:
        InputError: If the images cannot be read, or have a size that the model does not take.
    """
    sizes = sizes or field.image_sizes
    shape = sizes.own if sizes else None
    if shape is not None and len(shape) == 4:
        prepare = (prepare or AS_IT_IS).for_videos()
    channels, prepare = shape[0] if shape else None, prepare.for_model(shape) if prepare else None
    if images is not None:
        source = source_of(images, channels=channels, prepare=prepare)
        if source.grayed and not isinstance(images, ImageSource):  # which says its channels itself
            warn(
                f"{source.grayed} are stored in colour and made gray, as the model {field.name!r} takes them: "
                "model=... names one of colour"
            )
    else:
        source = open_images(channels=channels, prepare=prepare) if prepare else open_images()
    if sizes is not None and source.shape not in sizes:
        raise other_shape(source, sizes.words(source.shape), place_of(images) or "the package")
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
    log.debug("plan: %s, σ from %.6g to %.6g", plan, float(plan.nodes[0]), plan.top)
    if found := plan.unlike(field):
        warn(f"the plan was found {found}: `odeddim fit` and `odeddim bench work-precision --find` find one for it")
    if plan.notes or not os.path.isfile(plan.grid):
        return
    try:
        source = Plan.load(plan.grid)
    except InputError:  # a plain list of noise levels, without notes
        return
    if found := source.unlike(field):
        warn(f"{plan.grid} was computed {found}: `odeddim fit` computes one for it")
    if source.solver.name != plan.solver.name:
        warn(f"{plan.grid} was computed for the solver {source.solver.name!r}, not {plan.solver.name!r}")
