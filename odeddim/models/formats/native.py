"""odeddim's own model folders, as `odeddim train` writes them: model.safetensors (EMA weights) and model.json."""

from __future__ import annotations

import hashlib
import json
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
FORMAT, VERSION = "odeddim unet", 1
BUILT_IN = Path(__file__).resolve().parent.parent.parent / "data"


def matches(path: Path) -> bool:
    """Whether this looks like one of our folders, or the weights inside one."""
    folder = path.parent if path.name == WEIGHTS else path
    return os.path.isfile(folder / CONFIG)


def parts(folder: Path) -> list[str]:
    """The parts whose weights `read` reads: the folder itself."""
    return [""]


def describe(path: Path) -> dict[str, Any]:
    """What model.json says, checked; path is the folder or the weights file inside it."""
    config = (path if path.is_dir() else path.parent) / CONFIG
    try:
        description = json_files.read(config, "copy the whole folder")
        if description["format"] != FORMAT:
            raise InputError(f"{config} describes {description['format']!r}, not {FORMAT!r}: copy the whole folder")
        if int(description["version"]) > VERSION:
            raise InputError(f"{config} was written by a newer odeddim (version {description['version']}): upgrade")
        missing = {"architecture", "schedule", "predicts"} - set(description)
        if missing:
            raise InputError(f"{config} has no {', '.join(sorted(missing))}: write it again with `odeddim train`")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{config} is not a readable model description ({error!r:.300}): copy the whole folder"
        ) from error
    return description


def read(path: Path) -> VectorField:
    """The model of a folder: its EMA weights in evaluation mode, its schedule and its prediction type."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

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
        with torch.device("meta"):  # nothing is reserved for what a description only claims
            network = UNet(**description["architecture"])
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {_line(error)}") from error
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} describes no U-Net of odeddim ({_line(error)}): copy the whole folder"
        ) from error
    try:
        wanted = sum(parameter.numel() for parameter in network.parameters())
        if wanted != sum(tensor.numel() for tensor in tensors.values()):
            raise RuntimeError(f"which has {wanted} parameters")
        if not all(tensor.is_floating_point() for tensor in tensors.values()):
            raise RuntimeError("its numbers are not all floating point")
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
    return Loaded(
        network,
        schedule,
        predicts=predicts,
        time=time,
        shape=(network.config["in_channels"], size, size),
        name=folder.name if folder.parent == BUILT_IN else str(folder.absolute()),
        sha256=hashlib.sha256(blob + _untold(network.config)).hexdigest(),
        details={key: description[key] for key in ("architecture", "weights", "training") if key in description},
    )


def _untold(config: dict[str, Any]) -> bytes:
    """Unusual settings of the architecture that the shapes of weights do not tell: they make another model."""
    return json.dumps({key: config[key] for key in ("eps", "groups") if key in config}).encode().removeprefix(b"{}")


def _check_size(architecture: Any, tensors: int) -> None:
    """Raise an InputError if there are fewer tensors than blocks, before the blocks are made for nothing."""
    blocks, levels = architecture.get("blocks", 1), architecture.get("multipliers", (1,))
    if isinstance(blocks, int) and blocks * max(len(levels), 1) > tensors:
        raise InputError(
            f"{blocks} blocks on {len(levels)} levels are more than its weights can fill: copy the whole folder"
        )


def _line(error: Exception) -> str:
    """The message of a library, in one line."""
    return " ".join(str(error).split())[:300]
