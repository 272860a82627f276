"""odeddim's own model folders, as `odeddim train` writes them: model.safetensors (EMA weights) and model.json."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from odeddim.field import VectorField
from odeddim.schedule import Schedule
from odeddim.types import InputError

WEIGHTS, CONFIG = "model.safetensors", "model.json"
FORMAT, VERSION = "odeddim unet", 1
BUILT_IN = Path(__file__).resolve().parent.parent / "data"
EXPECTS = f"a folder (or its {WEIGHTS}) as written by `odeddim train`"


def matches(path: Path) -> bool:
    """Whether this looks like one of our folders, or the weights inside one."""
    folder = path.parent if path.name == WEIGHTS else path
    return os.path.isfile(folder / CONFIG)


def describe(path: Path) -> dict[str, Any]:
    """What model.json says, checked; path is the folder or the weights file inside it."""
    config = (path if path.is_dir() else path.parent) / CONFIG
    try:
        description = json.loads(config.read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise InputError(f"{config} describes {description['format']!r}, not {FORMAT!r}")
        if int(description["version"]) > VERSION:
            raise InputError(f"{config} was written by a newer odeddim (version {description['version']}): upgrade")
        missing = {"architecture", "schedule", "predicts"} - set(description)
        if missing:
            raise InputError(f"{config} lacks {', '.join(sorted(missing))}: write it again with `odeddim train`")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is not a readable model description: {error!r}") from None
    assert isinstance(description, dict)
    return description


def read(path: Path) -> VectorField:
    """The model of a folder: its EMA weights in evaluation mode, its schedule and its prediction type."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from odeddim.models.unet import UNet

    folder = path if path.is_dir() else path.parent
    description = describe(folder)
    weights = folder / WEIGHTS
    try:
        blob = weights.read_bytes()
        tensors = load(blob)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read as safetensors ({error}): copy it again") from None
    try:
        network = UNet(**description["architecture"])
    except TypeError as error:
        raise InputError(f"{folder / CONFIG} describes no U-Net of ours: {error}") from None
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{weights} does not fit the architecture in {CONFIG}: {detail[:300]}") from None
    network.eval().requires_grad_(False)
    size = network.config["image_size"]
    return VectorField(
        network,
        Schedule.from_dict(description["schedule"]),
        predicts=description["predicts"],
        shape=(network.config["in_channels"], size, size),
        name=folder.name if folder.parent == BUILT_IN else str(folder.resolve()),
        sha256=hashlib.sha256(blob).hexdigest(),
        details={key: description[key] for key in ("architecture", "weights", "training") if key in description},
    )
