"""The folder of a run: one process at a time uses it, and a run replaces only its own files."""

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
from odeddim.train.log import HEAD, LOG, MEASURED, Log
from odeddim.train.trainer import Trainer
from odeddim.types import InputError

LOCK = ".odeddim.lock"
_SHEET = re.compile(r"samples-([0-9]{6,})\.png")


def sheet_of(folder: Path, step: int) -> Path:
    """Return the path of a step's sample sheet."""
    return folder / f"samples-{step:06d}.png"


def mark_of_run(trainer: Trainer) -> str:
    """Return the mark in a run's sample sheets, by which the run recognises them as its own."""
    return mark_of("train", trainer.network.config, trainer.settings.fixed(), trainer.images)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the run's folder if it does not exist, and keep other processes out of it within the block."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}): choose another folder") from error
    with contextlib.closing(Claims(folder / LOCK)) as claims:
        if not claims.take(0, 1):
            raise InputError(f"another process is training in {folder}: wait for it, or train in another folder")
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def check_new(folder: Path, trainer: Trainer) -> None:
    """Raise an InputError if a folder without a run holds a file that a new run would replace."""
    if any((folder / name).exists() for name in (native.CONFIG, native.WEIGHTS)):
        raise InputError(f"{folder} already holds a model, but no run to continue: train in another folder")
    # A run that was killed before its first checkpoint leaves a log with a head only.
    if (folder / LOG).exists() and Log(folder).rows() not in ([], [list(HEAD)], [list(MEASURED)]):
        raise InputError(f"{folder / LOG} already exists, but belongs to no run: train in another folder")
    _check_sheets(folder, trainer)


def check_continued(folder: Path, trainer: Trainer) -> None:
    """Raise an InputError if the run would replace a file in its folder that is not its own."""
    if (config := folder / native.CONFIG).exists() and not _is_described(config, trainer):
        raise InputError(f"{config} does not describe the model of the run in this folder: move it away")
    if (weights := folder / native.WEIGHTS).exists() and not _is_shaped(weights, trainer):
        raise InputError(f"{weights} does not hold the weights of the run in this folder: move it away")
    if (rows := Log(folder).rows()) and tuple(rows[0]) not in (HEAD, MEASURED):
        raise InputError(f"{folder / LOG} is not the log of the run in this folder: move it away")
    _check_sheets(folder, trainer)


def _check_sheets(folder: Path, trainer: Trainer) -> None:
    mark = mark_of_run(trainer)
    for path in sorted(folder.iterdir()):
        found = _SHEET.fullmatch(path.name)
        if found and int(found[1]) > trainer.step and not has_mark(path, mark):
            raise InputError(f"{path} already exists, but is not from this run: train in another folder")


def _is_described(config: Path, trainer: Trainer) -> bool:
    """Return whether this run wrote a model.json."""
    try:
        description = native.describe(config.parent)
        said: Any = description["training"]
        fixed = {"images": trainer.images, **trainer.settings.fixed()}
        return bool(description["architecture"] == trainer.network.config) and fixed.items() <= dict(said).items()
    except (InputError, LookupError, TypeError, ValueError):
        return False


def _is_shaped(weights: Path, trainer: Trainer) -> bool:
    """Return whether the tensors in a file have the names and shapes of this run's network."""
    wanted = {name: list(value.shape) for name, value in trainer.network.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()} == wanted  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
