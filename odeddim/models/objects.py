"""Objects of diffusers as models: a pipeline, or a network and its scheduler.

An object is read as the folder that its `save_pretrained` would write: its settings are written to a temporary folder,
and the objects themselves stand in for their weights. So an object and its folder are one model: the same checks, the
same hash, the same digits.

The model is a network of its own whose weights are the object's tensors: no copy is made. The object is not changed.
The model is in evaluation mode and frozen whatever the object is, and moving one of the two copies what is moved. But
weights that are changed in place, as by training, change in both.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from odeddim.models import components
from odeddim.ode.field import VectorField
from odeddim.types import InputError


class DiffusersObject(Protocol):
    """An object of diffusers with settings of its own: a pipeline, a network or a scheduler."""

    @property
    def config(self) -> Any:
        """The settings by name."""
        ...

    def save_config(self, save_directory: str, /) -> Any:
        """Write the settings to a folder."""
        ...


_PARTS = ("unet", "transformer", "vae", "vqvae", "text_encoder", "tokenizer")
_NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", "Transformer2DModel")
"""The classes of networks that are told nothing that only a pipeline has."""
_INDEX = "model_index.json"


def load_object(model: Any, scheduler: Any = None) -> VectorField:
    """The model of an object of diffusers, on its device and in its dtype.

    Args:
        model: A pipeline, or a network with its scheduler.
        scheduler: The scheduler of a network.

    Returns:
        The model.

    Raises:
        InputError: If the object is none of these, or of a class that odeddim does not know.
    """
    kind = type(_unwrapped(model)).__name__
    if not hasattr(model, "save_config"):
        raise InputError(_no_object(model))
    parts = getattr(model, "components", None)
    if parts is None and not isinstance(model, nn.Module):
        raise InputError(
            f"a {kind} is no network, but says what one was trained on: odeddim.Schedule.from_diffusers(scheduler) is "
            "its schedule, and odeddim.load(network, scheduler=scheduler) a model"
        )
    if parts is not None and scheduler is not None:
        raise InputError(f"a {kind} has a scheduler of its own: leave out scheduler=..., or set the pipeline's")
    if parts is None and scheduler is None:
        raise InputError(
            f"a {kind} does not say which noise levels it was trained on: give its scheduler too, "
            "odeddim.load(network, scheduler=pipeline.scheduler), or the whole pipeline"
        )
    if parts is None and kind not in _NETWORKS:
        raise InputError(
            f"a {kind} alone is not read, because the texts that it takes are made by other parts of its pipeline: "
            f"give the whole pipeline (alone are read {', '.join(_NETWORKS)})"
        )
    name = name_of(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            field = _read(folder, model, parts, scheduler)
        except InputError as error:
            words = str(error).replace(f"{folder}{os.sep}", f"{kind}: ").replace(str(folder), f"this {kind}")
            raise InputError(words) from error
    field.name = name
    return field.to(field.device or "cpu")  # the autoencoder may lie elsewhere


def name_of(model: Any) -> str:
    """The name of an object of diffusers in latent files: where it was loaded from, or else its class."""
    origin = model.config.get("_name_or_path")
    if not isinstance(origin, (str, Path)) or not str(origin):
        return type(_unwrapped(model)).__name__
    return str(Path(origin).absolute()) if os.path.isdir(origin) else str(origin)


def _read(folder: Path, model: Any, parts: Mapping[str, Any] | None, scheduler: Any) -> VectorField:
    """The model of an object, read as the folder that it would be saved to. folder: an empty one."""
    from odeddim.models.formats import diffusers_unet, latent_diffusion

    if parts is None:
        network = _unwrapped(model)
        part = "transformer" if "Transformer" in type(network).__name__ else "unet"
        parts = {part: network, "scheduler": scheduler}
        (folder / _INDEX).write_text(json.dumps({part: ["diffusers", type(network).__name__]}))
    else:
        model.save_config(str(folder))
    standing_in: dict[Path, Any] = {}
    for part, given in parts.items():
        its = _unwrapped(given)
        where = folder / part
        if part == "scheduler":
            _check_scheduler(its)
            its.save_config(str(where))
        elif part.startswith(_PARTS) and its is not None:
            where.mkdir()
            standing_in[where] = its
            if hasattr(its, "save_config"):
                its.save_config(str(where))
            elif hasattr(its, "config"):  # transformers' networks
                its.config.to_json_file(str(where / components.CONFIG))
    with components.standing_in(standing_in):
        return diffusers_unet.read(folder) if diffusers_unet.matches(folder) else latent_diffusion.read(folder)


def _check_scheduler(scheduler: Any) -> None:
    if not hasattr(scheduler, "save_config"):
        raise InputError(
            f"scheduler=... must be a scheduler of diffusers, not a {type(scheduler).__name__}: with a schedule of "
            "your own, use VectorField.from_network"
        )


def _unwrapped(model: Any) -> Any:
    """The module that `torch.compile` wrapped."""
    return getattr(model, "_orig_mod", model)


def _no_object(model: Any) -> str:
    """What to do with something that is no object of diffusers."""
    kind = type(model).__name__
    if isinstance(model, nn.Module) or callable(model):
        return (
            f"a network ({kind}) does not say what it was trained on: make a model of it with "
            'odeddim.VectorField.from_network(network, odeddim.Schedule.linear(), predicts="eps"), the schedule and '
            "the prediction being those of its training"
        )
    return (
        f"model must be a name, a path, a VectorField, or a pipeline or network of diffusers, not a {kind}: make a "
        "VectorField of a network with VectorField.from_network"
    )
