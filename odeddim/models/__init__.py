"""Models by name, path or object: `load` recognises the format of a checkpoint and makes a VectorField of it.

Each format is one file in `odeddim.models.formats` with `matches(path) -> bool` and `read(path) -> VectorField`. It is
imported when a path is tried or a model of this format is loaded, and not before.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from odeddim.models import hub, weights
from odeddim.models.objects import DiffusersObject, load_object
from odeddim.ode import gaussian
from odeddim.ode.field import VectorField
from odeddim.types import InputError, pick

DEFAULT, FLOW = "fashion-mnist", "fashion-mnist-flow"
SUFFIXES = (*weights.SUFFIXES, ".pt2", ".onnx", ".pkl")  # suffixes of single files that may be models
FORMATS = (
    "native",
    "edm",
    "latent_diffusion",
    "diffusers_unet",
    "flow_matching",
    "guided",
    "edm2",
    "score_sde",
    "k_diffusion",
    "exported",
    "onnx",
    "ddim",
)
"""The modules of `odeddim.models.formats`, in the order in which they are tried on a path.

Those that look at names and folders come before those that look into files."""


def _format(name: str) -> ModuleType:
    return importlib.import_module(f"odeddim.models.formats.{name}")


def _trained(name: str) -> VectorField:
    from odeddim.models.formats import native

    return _with_moments(native.read(native.BUILT_IN / name), native.BUILT_IN / name)


def _with_moments(field: VectorField, path: Path) -> VectorField:
    """The model of a path, with the Gaussian of its data, if that lies beside it."""
    if os.path.isfile(kept := place_of_moments(path)):
        field.moments = moments_of(field, kept)
    return field


def _exact_gaussian() -> VectorField:
    from odeddim.ode.analytic import Gaussian
    from odeddim.ode.schedule import Schedule

    schedule = Schedule.linear()
    return VectorField(Gaussian(0.0, 0.5).network(schedule), schedule, name="exact-gaussian")


def _exact_mixture() -> VectorField:
    from odeddim.ode.analytic import GaussianMixture
    from odeddim.ode.schedule import Schedule

    schedule = Schedule.linear()
    field = GaussianMixture(torch.tensor([-0.6, 0.6]), std=0.15)
    return VectorField(field.network(schedule), schedule, name="exact-mixture")


def _exact_samples() -> VectorField:
    from odeddim.ode.analytic import GaussianMixture
    from odeddim.ode.schedule import Schedule
    from odeddim.storage.images import open_images

    schedule = Schedule.linear()
    images = open_images().read()
    field = GaussianMixture.finite(images)
    return VectorField(field.network(schedule), schedule, shape=tuple(images.shape[1:]), name="exact-samples")


BUILT_IN: dict[str, tuple[Callable[[], VectorField], str]] = {
    DEFAULT: (lambda: _trained(DEFAULT), "the U-Net of DDPM, trained on Fashion-MNIST"),
    FLOW: (lambda: _trained(FLOW), "the same U-Net as a rectified flow, trained on the same images"),
    "exact-gaussian": (_exact_gaussian, "exact field: every pixel N(0, 0.5²); closed-form solution"),
    "exact-mixture": (_exact_mixture, "exact field: every pixel from two modes at ±0.6, s = 0.15"),
    "exact-samples": (_exact_samples, "exact denoiser of the 256 sample images: latents of a finite data set"),
}
"""The models inside the package: name -> (maker, description)."""


def format_of(path: Path) -> ModuleType | None:
    """The format of a file or folder.

    Args:
        path: The file or folder.

    Returns:
        The module of the format, or None if the format is unknown.

    Raises:
        InputError: If the file cannot be read, or is a pipe or a device, where a reader might wait forever.
    """
    if not os.path.isdir(path):
        weights.size_of(path)
    return next((module for module in map(_format, FORMATS) if module.matches(path)), None)


def load(
    model: str | Path | VectorField | DiffusersObject = DEFAULT,
    *,
    scheduler: DiffusersObject | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    channels_last: bool | None = None,
    compile: bool | None = None,
    allow_pickle: bool = False,
) -> VectorField:
    """Load a model as a VectorField, with its weights frozen and the network in evaluation mode.

    Args:
        model: A built-in name (`odeddim.models.BUILT_IN`), the path of a model's folder or file, or hf:ORG/NAME of
            Hugging Face's hub, with @REVISION or without, which is downloaded. A VectorField is moved and returned. Of
            diffusers, a pipeline, or a UNet or transformer with its scheduler: the model shares the weights and leaves
            the object as it is; see `odeddim.models.objects`.
        scheduler: The scheduler of a network of diffusers. It says what the network was trained on; it is not run.
        device: The device of the network; by default torch's default device, or where the object lies.
        dtype: The dtype of the network, see `VectorField.to`; by default as stored. The state has its own dtype. On a
            GPU "float32" is float32, and "tf32" is what torch would do by default.
        channels_last, compile: Forms of the network that are faster and change last digits, see `VectorField.to`.
        allow_pickle: Whether to read files that run the code in them with your rights (EDM's .pkl). Do so only with
            files that you trust.

    Returns:
        The model.

    Raises:
        InputError: If the name is unknown (with the nearest names), the path holds no readable model, this machine has
            no such device, or the dtype is not one of a network. If an object is not one of diffusers, or of a class
            that odeddim does not read.

    Example:
        >>> odeddim.load("exact-mixture").schedule
        Schedule.linear(T=1000, σ 0.01 to 157.4)
    """
    if scheduler is not None and isinstance(model, (str, Path, VectorField)):
        raise InputError("scheduler=... belongs to a network of diffusers: leave it out, for this model has a schedule")
    if not isinstance(model, (str, Path)):
        field = model if isinstance(model, VectorField) else load_object(model, scheduler)
        if all(said is None for said in (device, dtype, channels_last, compile)):
            return field
        return field.to(device or field.device or "cpu", dtype, channels_last=channels_last, compile=compile)
    if hub.is_named(model):
        there = partial(load, device=device, dtype=dtype, channels_last=channels_last, compile=compile)
        return hub.loaded(str(model), there)
    if str(model) in BUILT_IN:
        field = BUILT_IN[str(model)][0]()
    else:
        path = Path(model)
        if not os.path.exists(path):
            pick(str(model), BUILT_IN, "model (neither a built-in name nor an existing path)")
        reader = format_of(path)
        if reader is None:
            raise InputError(
                f"{path} has no format that odeddim knows: see the table of formats in the manual (docs/models.md), or "
                "make a VectorField of the network with VectorField.from_network"
            )
        if getattr(reader, "RUNS_CODE", False) and not allow_pickle:
            raise InputError(
                f"{path} is a pickle, and reading it runs the code in it: if you trust the file, give allow_pickle=True"
            )
        field = _with_moments(reader.read(path), path)
    return field.to(device or torch.get_default_device(), dtype, channels_last=channels_last, compile=compile)


def place_of_moments(path: Path) -> Path:
    """Where the Gaussian of a model's data lies: in its folder, or of a model in a file beside it, by its name.

    Args:
        path: The model's folder or file.
    """
    if os.path.isdir(path) or path.name == "model.safetensors":
        return (path if os.path.isdir(path) else path.parent) / gaussian.FILE
    return path.with_name(f"{path.stem}.{gaussian.FILE}")


def moments_of(field: VectorField, path: Path) -> gaussian.Gaussian | None:
    """The Gaussian in a file, if it is that of a model; None, with a warning, if it is another's.

    Args:
        field: The model.
        path: The file.

    Raises:
        InputError: If the file cannot be read or is damaged.
    """
    found = gaussian.Gaussian.load(path)
    if found.notes.get("sha256", field.sha256) == field.sha256:
        return found
    warnings.warn(
        f"{path} holds the moments of the model {found.notes.get('model', '')!r} with other weights: they are left "
        "out; compute those of this model with `odeddim moments`",
        stacklevel=3,
    )
    return None


def summary(field: VectorField) -> dict[str, Any]:
    """A description of a model to read: values that JSON can hold, by name."""
    sizes = field.image_sizes
    facts: dict[str, Any] = {
        "model": field.name,
        "hash": field.sha256 or "none: an exact field",
        "predicts": field.predicts,
        "time": field.time if isinstance(field.time, str) else "a function of its own",
        "shape": list(field.shape) if field.shape else "any",
        "schedule": repr(field.schedule),
        **({} if field.codec is None else {"shape of images": list(field.codec.image_shape)}),
        **({} if sizes is None or sizes.multiple is None else {"sizes": str(sizes)}),
        **({} if field.conditions is None else {"takes": field.conditions.words}),
        **({} if field.moments is None else {"moments": repr(field.moments)}),
    }
    parameters = getattr(field.eps, "parameters", None)
    if parameters is not None:
        facts["parameters"] = sum(parameter.numel() for parameter in parameters())
        facts["dtype"] = str(field.dtype).removeprefix("torch.")
    facts.update({key: value for key, value in field.details.items() if value})
    return facts
