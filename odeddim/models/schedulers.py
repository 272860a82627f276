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
    """The conventions that a network was trained with.

    Attributes:
        schedule: The noise levels.
        predicts: The prediction type, a name in `odeddim.ode.predictions`.
        time: The kind of label, as in `VectorField`.
        found: The scheduler, in words.
        assumed: The values that the file does not state, in words.
        variances: Whether the network also predicts variances; None if the file does not say.
    """

    schedule: Schedule
    predicts: str
    time: str
    found: str
    assumed: list[str] = field(default_factory=list)
    variances: bool | None = None


def read(path: Path) -> Posed:
    """Read a scheduler_config.json.

    Args:
        path: The file.

    Returns:
        The conventions of the network.

    Raises:
        InputError: If the file cannot be read, if the scheduler is unknown, or if its settings contradict each other.
    """
    return posed(json_files.read(path, "copy the whole folder of the pipeline"), path)


def posed(config: Mapping[str, Any], where: Path) -> Posed:
    """Interpret the settings of a scheduler.

    Args:
        config: The settings by name, as in scheduler_config.json.
        where: The file of the settings, for error messages.

    Returns:
        The conventions of the network.

    Raises:
        InputError: If the scheduler is unknown, or if its settings contradict each other.
    """
    try:
        said = said_by(config)
        schedule = Schedule.of_settings(said)
        return Posed(schedule, said.predicts, said.time, said.found, said.assumed, said.variances)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
