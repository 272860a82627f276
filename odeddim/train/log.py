"""The log of a run, log.csv, with the columns step, loss, validation_loss and seconds."""

from __future__ import annotations

import csv
from pathlib import Path

from odeddim.train.checkpoint import replacing_in
from odeddim.types import InputError

LOG = "log.csv"
HEAD = ("step", "loss", "validation_loss", "seconds")


class Log:
    """The log in the folder of a run."""

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

    def begin(self) -> None:
        """Write a log with a head only."""
        self._write([list(HEAD)])

    def append(self, step: int, loss: float, validation_loss: float | None, seconds: float) -> None:
        """Add a row."""
        losses = ["" if value is None else f"{value:.6f}" for value in (loss, validation_loss)]
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([str(step), *losses, f"{seconds:.0f}"])
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): repair this, and the same call continues from the "
                "last checkpoint"
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps after the checkpoint, because the run will make these steps again."""
        self._write([row for row in self.rows() if row and (not row[0].isdigit() or int(row[0]) <= step)])

    def _write(self, rows: list[list[str]]) -> None:
        with replacing_in(self._folder, LOG) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
