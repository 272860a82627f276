"""diffusers' scheduler_config.json as what a VectorField takes; `odeddim.ode.scheduler_settings` says what is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odeddim.models import json_files
from odeddim.ode.schedule import Schedule
from odeddim.ode.scheduler_settings import said_by
from odeddim.types import InputError

NAME = "scheduler_config.json"


@dataclass(frozen=True)
class Posed:
    """What a network was trained to do, as `VectorField` takes it.

    found: which scheduler and schedule, in words. assumed: what the file does not say, in short phrases.
    variances: whether the network predicts variances too; None where the file does not say.
    """

    schedule: Schedule
    predicts: str
    time: str
    found: str
    assumed: list[str] = field(default_factory=list)
    variances: bool | None = None


def read(path: Path) -> Posed:
    """What a scheduler_config.json says. Raises InputError for one that is unreadable, unknown or contradictory."""
    return posed(json_files.read(path, "copy the whole folder of the pipeline"), path)


def posed(config: Mapping[str, Any], where: Path) -> Posed:
    """What these settings of a scheduler say. where: the file that they are from, for messages."""
    try:
        said = said_by(config)
        schedule = Schedule.of_settings(said)
        return Posed(schedule, said.predicts, said.time, said.found, said.assumed, said.variances)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
