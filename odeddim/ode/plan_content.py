"""What the file of a plan must hold: checked before a plan is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odeddim import solvers
from odeddim.ode import grids
from odeddim.ode.starts import Start
from odeddim.types import InputError, pick

GIVEN = "nodes"
"""The name of a grid whose nodes were given as numbers, and of an end that is neither σ = 0 nor σ_1."""

FORMAT, VERSION = "odeddim plan", 1
CARRIED_VERSION = 2
"""The version of a plan whose last interval is carried: a reader that knows version 1 alone would solve it."""
PORTABLE_VERSION = 3
"""The version of a portable plan: a reader that knows the others alone would run it otherwise."""

HINT = "make one with `Plan.save` or `odeddim fit`"
TOLD = ("model", "sha256", "condition")  # notes of `Plan.noted`, all of them words


def checked(content: object, path: str | Path) -> dict[str, Any]:
    """The arguments of a `Plan`, of what `Plan.to_dict` has given; an InputError that names the path if it is none.

    Args:
        content: What the file holds.
        path: The file, for messages.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no plan: {HINT}")
    kinds = {"solver": str, "settings": dict, "grid": str, "end": str, "nodes": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    notes, start, version = content.get("notes", {}), content.get("start", ""), content.get("version")
    wrong += [name for name in ("grid", "end") if content.get(name) == ""]
    if not isinstance(notes, dict) or not all(isinstance(notes.get(name, ""), str) for name in TOLD):
        wrong.append("notes")
    carried = content.get("carried", False)
    versions = (VERSION, CARRIED_VERSION, PORTABLE_VERSION)
    if version in versions and carried is not (version == CARRIED_VERSION):
        wrong.append("carried")
    if version in versions and content.get("portable", False) is not (version == PORTABLE_VERSION):
        wrong.append("portable")
    if not isinstance(start, str):
        wrong.append("start")
    if version not in versions or isinstance(version, bool) or wrong:
        what = f"{wrong[0]} is missing or wrong" if wrong else f"version {version!r:.20}"
        raise InputError(f"{path} is damaged, or was written by a newer odeddim ({what}): make the plan again")
    try:
        row, settings = solvers.get(content["solver"]), content["settings"]
        if unknown := [name for name, value in settings.items() if name not in row.settings or value is None]:
            raise InputError(f"solver {row.name!r} has no setting {unknown[0]!r} with that value: make the plan again")
        row, nodes = row.with_settings(**settings), grids.check_nodes(content["nodes"], where="nodes")
        grids.check_nodes(nodes[: len(nodes) - carried], where="nodes below the interval that is carried")
        pick(content["end"], (*grids.ENDS, GIVEN), "end")
        if start:
            Start.of(start).check(row, len(nodes) - 1 - carried)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # not numbers, or too large for float64
        raise InputError(f"{path} is damaged (nodes or settings are not numbers): make the plan again") from error
    if (content["end"] == "zero") != (float(nodes[0]) == 0):
        raise InputError(
            f"{path} is damaged (end {content['end']!r}, but its nodes begin at {float(nodes[0]):.6g}): "
            "make the plan again"
        )
    return {
        "solver": row, "nodes": nodes, "grid": content["grid"], "end": content["end"], "notes": notes,
        "carried": carried, "start": start, "portable": version == PORTABLE_VERSION,
    }  # fmt: skip
