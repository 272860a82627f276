"""How far the run is that makes a file: how many rows there are, and whether a process is at work on the others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odeddim.storage.hdf5 import opened, parts_beside
from odeddim.storage.parts import LOCK, NOTE, REPLACES, parts_in
from odeddim.storage.row_files import is_index, look_at, settings_of
from odeddim.storage.workers import in_use


@dataclass(frozen=True)
class Standing:
    """How far the run is that makes a file.

    Attributes:
        begun: Whether there is anything of it, the file or parts.
        done: How many of its rows there are.
        total: How many there will be; 0 while that is unknown.
        replaced: Whether the run will replace the file that is there.
        at_work: Whether a process is at work on it.
        settings: The settings of the run, {} where it is finished or has not recorded them.
    """

    begun: bool
    done: int
    total: int
    replaced: bool
    at_work: bool
    settings: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether the file has all rows."""
        return 0 < self.total <= self.done and not self.replaced


def standing(path: Path) -> Standing:
    """How far the run is that makes an HDF5 file.

    A file that is finished, and is being extended or replaced, is not whole. Certificates that are being added to it do
    not matter.

    Args:
        path: The file, which may be missing while there are only parts.

    Raises:
        InputError: The file cannot be read, or odeddim did not write it.
    """
    folder = parts_beside(path)
    at_work = in_use(folder / LOCK)  # before the rest: a run that ends meanwhile is found whole
    settings, replaced = note_of(folder), (folder / REPLACES).exists()
    total = settings.get("total", 0)
    if not path.exists() or (replaced and settings):
        done = sum(part.stop - part.start for part in parts_in(folder, total)) if total else 0
        return Standing(path.exists() or folder.is_dir(), done, total, replaced, at_work, settings)
    with opened(path, "a file that odeddim wrote") as file:
        there, shown = settings_of(file, path), is_index(file)
        done = look_at(file, path)["crc32"].shape[0]
    if not shown and total <= there["total"]:  # what is in the folder, if anything, adds certificates
        settings = {}
    elif not shown:  # the run extends the file
        done += sum(part.stop - part.start for part in parts_in(folder, total) if part.start >= done)
    return Standing(True, done, max(there["total"], total), replaced, at_work, settings)


def note_of(folder: Path, name: str = NOTE) -> dict[str, Any]:
    """The settings of the run whose parts, or images, lie in a folder; {} if it has recorded none, or not yet.

    Args:
        folder: The folder.
        name: The name of the file that records them.
    """
    try:
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) and isinstance(settings.get("total"), int) else {}
