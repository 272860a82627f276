"""The log of a run: log.csv, and if asked TensorBoard's files.

log.csv         step, loss, validation_loss, seconds; and distance, in runs that have measured it
tensorboard/    the same values and the learning rate, as scalars
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from odeddim.train.checkpoint import replacing_in
from odeddim.types import InputError

LOG = "log.csv"
BOARD = "tensorboard"
HEAD = ("step", "loss", "validation_loss", "seconds")
MEASURED = (*HEAD, "distance")


@dataclass(frozen=True)
class Row:
    """What is logged of a step.

    Attributes:
        step: The number of steps made.
        loss: The mean loss since the last row.
        seconds: The seconds of training.
        learning_rate: The learning rate of the step.
        validation_loss: The validation loss, if it was computed.
        distance: The Fréchet distance of samples, if it was measured.
    """

    step: int
    loss: float
    seconds: float
    learning_rate: float
    validation_loss: float | None = None
    distance: float | None = None


class Sink(Protocol):
    """Where rows of the log go."""

    def append(self, row: Row) -> None:
        """Add a row."""

    def close(self) -> None:
        """End, with everything written."""


class Log:
    """The log.csv in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / LOG

    def rows(self) -> list[list[str]]:
        """Return the rows, with the head. Raises InputError if the file is missing or cannot be read."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                return list(csv.reader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{self.path} cannot be read as the log of this run ({error}): move it away") from error

    def begin(self, *, measures: bool = False) -> None:
        """Write a log with a head only; with a column for distances if the run measures them."""
        self._write([list(MEASURED if measures else HEAD)])

    def append(self, row: Row) -> None:
        """Add a row. Raises InputError if the file cannot be written."""
        losses = ["" if value is None else f"{value:.6f}" for value in (row.loss, row.validation_loss)]
        words = [str(row.step), *losses, f"{row.seconds:.0f}"]
        if tuple(self.rows()[0]) == MEASURED:
            words.append("" if row.distance is None else f"{row.distance:.4f}")
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(words)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): repair this, and the same call continues from the "
                "last checkpoint"
            ) from error

    def close(self) -> None:
        """Do nothing: each row is written at once."""

    def forget_after(self, step: int, *, measures: bool = False) -> None:
        """Drop the rows of steps after the checkpoint, because the run will make these steps again.

        Args:
            step: The step of the checkpoint.
            measures: Whether the log needs a column for distances. One that it has stays.
        """
        rows = [row for row in self.rows() if row and (not row[0].isdigit() or int(row[0]) <= step)]
        if measures and rows and tuple(rows[0]) == HEAD:
            rows = [list(MEASURED), *([*row, ""] for row in rows[1:])]
        self._write(rows)

    def _write(self, rows: list[list[str]]) -> None:
        with replacing_in(self._folder, LOG) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


class Board:
    """TensorBoard's files in the folder of a run.

    Args:
        folder: The folder of the run.
        step: The step that the run goes on from. TensorBoard drops what it has of later ones.

    Raises:
        InputError: If TensorBoard is not installed, or the files cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard=True needs TensorBoard: pip install 'odeddim[tensorboard]'") from error
        make: Any = SummaryWriter
        try:
            self._writer = make(str(folder / BOARD), purge_step=step + 1)
        except OSError as error:
            raise InputError(f"{folder / BOARD} cannot be written ({error.strerror}): choose another folder") from error

    def append(self, row: Row) -> None:
        """Add a row: a scalar for each of its values."""
        for name in ("loss", "validation_loss", "distance", "learning_rate", "seconds"):
            if (value := getattr(row, name)) is not None:
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self) -> None:
        """End the files."""
        self._writer.close()
