"""The log of a run, log.csv: step, loss, validation_loss, seconds."""

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
        """The rows, the head among them. Raises InputError where the file is missing or not readable."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                return list(csv.reader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{self.path} cannot be read ({error}): it is not the log of this run") from error

    def begin(self) -> None:
        """Write the head alone."""
        self._write([list(HEAD)])

    def append(self, step: int, loss: float, validation_loss: float | None, seconds: float) -> None:
        """Add a row."""
        losses = ["" if value is None else f"{value:.6f}" for value in (loss, validation_loss)]
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([str(step), *losses, f"{seconds:.0f}"])
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); the last checkpoint is safe"
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps after the checkpoint: they are about to be made again."""
        self._write([row for row in self.rows() if row and (not row[0].isdigit() or int(row[0]) <= step)])

    def _write(self, rows: list[list[str]]) -> None:
        with replacing_in(self._folder, LOG) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
