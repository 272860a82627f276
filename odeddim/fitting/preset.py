"""Presets: a solver, a grid and a number of steps as a file, found for a model by `odeddim bench work-precision`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from odeddim.types import InputError

FORMAT, VERSION = "odeddim preset", 1
_LARGEST = 1 << 20  # letters
_KINDS = {"model": str, "sha256": str, "solver": str, "grid": str, "steps": int, "end": str, "settings": dict}


@dataclass(frozen=True)
class Preset:
    """What to run a model with.

    error: what nine images in ten keep both ways, of a set of images that had no part in the choice (rms; pixels in
    [-1, 1], latents over σ_T). kept: that in words. evaluations: to encode and decode.
    """

    model: str
    sha256: str
    solver: str
    grid: str
    steps: int
    end: str
    settings: Mapping[str, Any]
    error: float
    evaluations: float
    condition: str = ""  # in words, as of `Condition.words`
    kept: str = ""

    def to_json(self) -> str:
        """The content of its file, which `load` reads."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Preset:
    """The preset of a file; an InputError for anything else."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(_LARGEST))  # a device would never end
    except OSError as error:
        raise InputError(f"the preset {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no preset: `odeddim bench work-precision --find ERROR` writes one")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)]
    wrong += [name for name in ("error", "evaluations") if not isinstance(content.get(name), (int, float))]
    wrong += [name for name in ("solver", "grid", "end") if content.get(name) == ""]
    wrong += [name for name in ("condition", "kept") if not isinstance(content.get(name, ""), str)]
    if content.get("version") != VERSION or isinstance(content["version"], bool) or wrong or content["steps"] < 1:
        what = f"{wrong[0]} is missing or wrong" if wrong else "it is of another version or has no steps"
        raise InputError(f"{path} is damaged, or a newer odeddim's ({what}): find it anew")
    # A preset from before these were known has neither condition nor kept.
    return Preset(**{item.name: content[item.name] for item in fields(Preset) if item.name in content})
