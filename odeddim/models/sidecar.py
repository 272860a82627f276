"""Sidecars: a JSON file NAME.json beside a checkpoint NAME.pt, with the settings that the checkpoint does not hold.

    {"schedule": {"name": "cosine", "T": 4000}, "predicts": "eps", "time": "index", ...}

The keys are those of odeddim's own model.json. Each format adds the settings of its own software.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from odeddim.models import json_files
from odeddim.ode.predictions import PREDICTIONS
from odeddim.ode.schedule import TIMES, Schedule
from odeddim.types import InputError, pick

COMMON = ("schedule", "predicts", "time", "shape", "classes", "null")
"""The keys that every format takes, with the meaning that they have in `VectorField.from_network`."""

MOST_CLASSES = 10_000_000
_NAMES: dict[str, tuple[Collection[str], str]] = {
    "predicts": (PREDICTIONS, "prediction"),
    "time": (TIMES, "time label"),
}


def place(path: Path) -> Path:
    """Return the path of a checkpoint's sidecar, whether or not the file exists."""
    return path.with_suffix(".json")


def read(path: Path, known: Collection[str] = ()) -> dict[str, Any]:
    """Read the sidecar of a checkpoint.

    Args:
        path: The checkpoint.
        known: The keys that the format takes besides the common ones.

    Returns:
        The settings by name, with `schedule` as a Schedule and `shape` as a tuple; {} if there is no sidecar.

    Raises:
        InputError: If the file cannot be read, if a key is unknown, or if a common key has an impossible value.
    """
    file = place(path)
    if not os.path.lexists(file):
        return {}
    found = json_files.read(file)
    for key in found:
        pick(key, (*COMMON, *known), f"setting in {file}")
    try:
        said = {key: _checked(key, value) for key, value in found.items()}
        if (null := said.get("null", 0)) > (count := said.get("classes", MOST_CLASSES)):
            raise InputError(
                f"null, the label that stands for no class, must be at most the number of classes, {count}, not {null}"
            )
        return said
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _checked(key: str, value: Any) -> Any:
    if key == "schedule":
        return Schedule.from_dict(value)
    if key == "shape":
        if not isinstance(value, list) or not value or not all(isinstance(n, int) and n > 0 for n in value):
            raise InputError(f"shape must be [channels, height, width], not {value!r:.50}")
        return tuple(value)
    if key in ("classes", "null"):
        least = 1 if key == "classes" else 0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_CLASSES:
            raise InputError(f"{key} must be a whole number from {least} to {MOST_CLASSES:,}, not {value!r:.50}")
        return value
    if key in _NAMES:
        if not isinstance(value, str):
            raise InputError(f"{key} must be a name, not {value!r:.50}")
        return pick(value, *_NAMES[key])
    return value
