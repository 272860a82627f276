"""JSON files with settings by name, which lie beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from odeddim.models import weights
from odeddim.types import InputError

LARGEST = 1 << 26  # bytes: enough for a schedule of a million α, and too little to fill the memory


def read(path: Path, remedy: str = "check the path and its permissions") -> dict[str, Any]:
    """Read the settings in a file.

    Args:
        path: The file.
        remedy: What the user should do if the file cannot be read, for the error message.

    Returns:
        The settings by name.

    Raises:
        InputError: If the file is missing, is not a regular file, is larger than 64 MiB, or does not hold a JSON
            object.
    """
    try:
        found = json.loads(_text(path, remedy), parse_constant=_constant)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({weights.line(error)}): copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold settings by name, {{...}}, not {found!r:.50}: copy it again")
    return found


def glance(path: Path) -> str:
    """Return the text of a file of settings, to tell which software wrote it; "" if the file cannot be read."""
    try:
        return _text(path, "")
    except (OSError, ValueError):  # InputError is one
        return ""


def _text(path: Path, remedy: str) -> str:
    if (size := weights.size_of(path, remedy)) > LARGEST:
        raise InputError(f"{path} has {size / 1e6:,.0f} MB, too much for a file of settings: copy it again")
    return path.read_text(encoding="utf-8")


def _constant(name: str) -> float:
    """Read the constants that Python adds to JSON: diffusers writes infinities, but NaN has no meaning in settings."""
    if name == "NaN":
        raise ValueError("NaN is not a valid setting")
    return float(name)
