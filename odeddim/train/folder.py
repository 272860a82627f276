"""The folder of a run: one process at a time, and no file in it replaced that is not the run's own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from odeddim.models.formats import native
from odeddim.storage.atomic import has_mark, mark_of
from odeddim.storage.workers import Claims
from odeddim.train.log import HEAD, LOG, Log
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

LOCK = ".odeddim.lock"
_SHEET = re.compile(r"samples-([0-9]{6,})\.png")


def sheet_of(folder: Path, step: int) -> Path:
    """Where the sample sheet of a step lies."""
    return folder / f"samples-{step:06d}.png"


def mark_of_run(trainer: Trainer) -> str:
    """The mark that the sheets of a run carry, by which the run knows them as its own."""
    return mark_of("train", trainer.network.config, trainer.settings.fixed(), trainer.images)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The run's folder, made if need be, for one process at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror})") from error
    with contextlib.closing(Claims(folder / LOCK)) as claims:
        if not claims.take(0, 1):
            raise InputError(f"another process is training in {folder}: wait for it, or train in another folder")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def check_new(folder: Path, trainer: Trainer) -> None:
    """Raise an InputError where a folder without a run holds a file that a new run would replace."""
    if any((folder / name).exists() for name in (native.CONFIG, native.WEIGHTS)):
        raise InputError(f"{folder} holds a model already, and no run to continue: train in another folder")
    # A run that was killed before its first checkpoint has left the head of its log.
    if (folder / LOG).exists() and Log(folder).rows() not in ([], [list(HEAD)]):
        raise InputError(f"{folder / LOG} is there already, and belongs to no run: train in another folder")
    _check_sheets(folder, trainer)


def check_continued(folder: Path, trainer: Trainer) -> None:
    """Raise an InputError where a file in the folder of a run is not the run's own, and would be replaced."""
    if (config := folder / native.CONFIG).exists() and not _is_described(config, trainer):
        raise InputError(f"{config} does not describe the model of the run in this folder: move it away")
    if (weights := folder / native.WEIGHTS).exists() and not _is_shaped(weights, trainer):
        raise InputError(f"{weights} does not hold the weights of the run in this folder: move it away")
    if (rows := Log(folder).rows()) and rows[0] != list(HEAD):
        raise InputError(f"{folder / LOG} is not the log of the run in this folder: move it away")
    _check_sheets(folder, trainer)


def _check_sheets(folder: Path, trainer: Trainer) -> None:
    mark = mark_of_run(trainer)
    for path in sorted(folder.iterdir()):
        found = _SHEET.fullmatch(path.name)
        if found and int(found[1]) > trainer.step and not has_mark(path, mark):
            raise InputError(f"{path} is there already, and this run has not drawn it: train in another folder")


def _is_described(config: Path, trainer: Trainer) -> bool:
    """Whether a model.json is one that this run has written."""
    try:
        description = native.describe(config.parent)
        said: Any = description["training"]
        fixed = {"images": trainer.images, **trainer.settings.fixed()}
        return bool(description["architecture"] == trainer.network.config) and fixed.items() <= dict(said).items()
    except (InputError, LookupError, TypeError, ValueError):
        return False


def _is_shaped(weights: Path, trainer: Trainer) -> bool:
    """Whether a file of weights has the names and shapes of this run's network."""
    wanted = {name: list(value.shape) for name, value in trainer.network.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()} == wanted  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
