"""JSON files of settings beside weights: ordinary files of a sensible size, which hold settings by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from odeddim.models import weights
from odeddim.types import InputError

LARGEST = 1 << 26  # bytes: a schedule of a million α fits, and what would fill the memory does not


def read(path: Path, remedy: str = "check path and rights") -> dict[str, Any]:
    """The settings in a file.

    Args:
        path: of the file.
        remedy: what to do if it cannot be read, for the message.

    Raises:
        InputError: for a file that is missing, no ordinary file, far too large, or no JSON of settings by name.
    """
    try:
        found = json.loads(_text(path, remedy), parse_constant=_constant)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({weights.line(error)}): copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold settings by name, {{...}}, not {found!r:.50}: copy it again")
    return found


def glance(path: Path) -> str:
    """The text of such a file, to see which software wrote it; "" where `read` would find none."""
    try:
        return _text(path, "")
    except (OSError, ValueError):  # InputError is one
        return ""


def _text(path: Path, remedy: str) -> str:
    if (size := weights.size_of(path, remedy)) > LARGEST:
        raise InputError(f"{path} has {size / 1e6:,.0f} MB, which no file of settings has: copy it again")
    return path.read_text(encoding="utf-8")


def _constant(name: str) -> float:
    """What Python's JSON has beyond JSON: diffusers writes infinities, and nothing means NaN."""
    if name == "NaN":
        raise ValueError("NaN is no setting")
    return float(name)
