"""odeddim's own model folders, which `odeddim train` writes: model.safetensors (EMA weights) and model.json.

A description with `sigma_data`, of version 2, is of EDM's denoiser around the U-Net.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from odeddim.models import json_files
from odeddim.models.guarded import Loaded
from odeddim.models.weights import size_of
from odeddim.ode.field import VectorField
from odeddim.ode.schedule import Schedule
from odeddim.types import InputError

WEIGHTS, CONFIG = "model.safetensors", "model.json"
FORMAT, VERSION = "odeddim unet", 2
BUILT_IN = Path(__file__).resolve().parent.parent.parent / "data"


def matches(path: Path) -> bool:
    """Return whether a path is a model folder of odeddim, or the weights file in one."""
    folder = path.parent if path.name == WEIGHTS else path
    return os.path.isfile(folder / CONFIG)


def parts(folder: Path) -> list[str]:
    """The parts whose weights `read` reads: the folder itself."""
    return [""]


def describe(path: Path) -> dict[str, Any]:
    """Read and check model.json.

    Args:
        path: The folder, or the weights file in it.

    Returns:
        The description, as in the file.

    Raises:
        InputError: If the file is missing, damaged, incomplete, or from a newer version of odeddim.
    """
    config = (path if path.is_dir() else path.parent) / CONFIG
    try:
        description = json_files.read(config, "copy the whole folder")
        if description["format"] != FORMAT:
            raise InputError(f"{config} describes {description['format']!r}, not {FORMAT!r}: copy the whole folder")
        if int(description["version"]) > VERSION:
            raise InputError(
                f"{config} is from a newer version of odeddim (format {description['version']}): upgrade odeddim"
            )
        missing = {"architecture", "schedule", "predicts"} - set(description)
        if missing:
            raise InputError(f"{config} lacks {', '.join(sorted(missing))}: write it again with `odeddim train`")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{config} cannot be read as the description of a model ({error!r:.300}): copy the whole folder"
        ) from error
    return description


def read(path: Path) -> VectorField:
    """Read the model of a folder.

    Args:
        path: The folder, or the weights file in it.

    Returns:
        The model: its EMA weights in evaluation mode, its schedule and its prediction type.

    Raises:
        InputError: If a file is missing or damaged, or if the weights do not match the description.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from odeddim.models.networks.preconditioned import Denoiser
    from odeddim.models.networks.unet import UNet

    folder = path if path.is_dir() else path.parent
    description = describe(folder)
    weights = folder / WEIGHTS
    size_of(weights)
    try:
        blob = weights.read_bytes()
        tensors = load(blob)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{weights} cannot be read as safetensors ({_line(error)}): copy it again") from error
    try:
        _check_size(description["architecture"], len(tensors))
        with torch.device("meta"):  # takes no memory, however large the description claims the network is
            network = UNet(**description["architecture"])
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {_line(error)}") from error
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} does not describe a U-Net of odeddim ({_line(error)}): copy the whole folder"
        ) from error
    try:
        wanted = sum(parameter.numel() for parameter in network.parameters())
        if wanted != sum(tensor.numel() for tensor in tensors.values()):
            raise RuntimeError(f"the architecture has {wanted} parameters")
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise RuntimeError("not all weights are floating-point")
        network.to_empty(device="cpu").load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not match the architecture in {CONFIG} ({_line(error)}): copy both again"
        ) from error
    network.eval().requires_grad_(False)
    size = network.config["image_size"]
    try:
        schedule, predicts = Schedule.from_dict(description["schedule"]), str(description["predicts"])
        time = str(description.get("time", schedule.time))
    except (InputError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG}: {_line(error)}") from error
    sigma_data = _sigma_data(folder, description)
    return Loaded(
        network if sigma_data is None else Denoiser(network, sigma_data),
        schedule,
        predicts=predicts,
        time=time,
        shape=(network.config["in_channels"], size, size),
        name=folder.name if folder.parent == BUILT_IN else str(folder.absolute()),
        sha256=hashlib.sha256(blob + _untold(network.config, sigma_data)).hexdigest(),
        details={key: description[key] for key in ("architecture", "weights", "training") if key in description},
    )


def _sigma_data(folder: Path, description: dict[str, Any]) -> float | None:
    """Return the σ_data of EDM's denoiser around the network; None if the network is the model."""
    value = description.get("sigma_data")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{folder / CONFIG}: sigma_data must be a positive number, not {value!r:.50}")
    return float(value)


def _untold(config: dict[str, Any], sigma_data: float | None) -> bytes:
    """Return the unusual settings of the model that the weights' shapes do not show, for the model's hash."""
    unusual: dict[str, Any] = {key: config[key] for key in ("eps", "groups") if key in config}
    if sigma_data is not None:
        unusual["sigma_data"] = sigma_data
    return json.dumps(unusual).encode().removeprefix(b"{}")


def _check_size(architecture: Any, tensors: int) -> None:
    """Raise an InputError if there are fewer tensors than blocks, before the blocks are built."""
    blocks, levels = architecture.get("blocks", 1), architecture.get("multipliers", (1,))
    if isinstance(blocks, int) and blocks * max(len(levels), 1) > tensors:
        raise InputError(
            f"it asks for {blocks} blocks on each of {len(levels)} levels, but there are only {tensors} tensors of "
            "weights: copy the whole folder"
        )


def _line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:300]
