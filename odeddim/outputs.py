"""Where images go: a folder of PNGs, one sheet PNG, or an HDF5 file, by the name that the user gave.

All of them can be interrupted, and the same command goes on (see `odeddim.parts`): HDF5 and the sheet are made of
parts, a folder holds the images done, and `odeddim.json` in it says whose they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.files import plain_text
from odeddim.hdf5 import SUFFIXES, reading, text
from odeddim.images import notes_of, save_image, save_sheet
from odeddim.parts import GO_ON, Claims, Run, Work, begin_together
from odeddim.rows import text_column, width_of
from odeddim.types import InputError

MOST_ON_A_SHEET = 4096
FORMAT = "odeddim images"
NOTE, LOCK = "odeddim.json", ".odeddim.lock"


class Folder(Work):
    """Images that become PNGs in a folder, each whole or not there, named after what they come from.

    Errors: InputError where other files have these names, unless `overwrite`.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self._files = list(_file_names(names))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the folder {folder} cannot be made ({error.strerror})") from error
        begin_together(lambda: self._make_room(overwrite))
        super().__init__(folder, len(names), settings, folder / NOTE, folder / LOCK)

    def _make_room(self, overwrite: bool) -> None:
        begun = (self.folder / NOTE).exists()
        if begun and not overwrite:
            return
        if begun:
            with closing(Claims(self.folder / LOCK)) as claims:
                if not claims.take(0, 2**61):
                    raise InputError(f"another process is writing to {self.folder}: stop it before you begin anew")
        for start, stop in self.spans():
            for name in self._files[start:stop]:
                if not overwrite:
                    raise InputError(
                        f"{self.folder / name} is there already: give another folder, or --overwrite to replace it"
                    )
                (self.folder / name).unlink()
        (self.folder / NOTE).unlink(missing_ok=True)

    def spans(self) -> list[tuple[int, int]]:
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        found: list[tuple[int, int]] = []
        for i, name in enumerate(self._files):
            if name in there:
                start = found.pop()[0] if found and found[-1][1] == i else i
                found.append((start, i + 1))
        return found

    def is_done(self, start: int, stop: int) -> bool:
        return all((self.folder / name).exists() for name in self._files[start:stop])

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write the images start, ..., stop-1, (B, C, H, W) in [-1, 1], and what is known of each, (B,), into it."""
        for i, (name, image) in enumerate(zip(self._files[start:stop], images.cpu(), strict=True)):
            notes = {key: repr(float(values[i])) for key, values in (figures or {}).items()}
            try:
                save_image(image, self.folder / name, notes)
            except InputError as error:
                raise InputError(f"{error}; the images written before stay, and {GO_ON}") from error
        self.leave(start, stop)

    def figures(self, name: str) -> list[tuple[str, float]]:
        """File and figure of each image that is there and has one."""
        notes = ((file, notes_of(self.folder / file).get(name)) for file in self._files)
        return [(file, float(note)) for file, note in notes if note is not None and _is_number(note)]

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if self.done == self.total:
            (self.folder / LOCK).unlink(missing_ok=True)
        super().__exit__(kind, *more)


class Images(Run):
    """Images that become one HDF5 file or one sheet, by way of parts. Arguments as of `Run`; names: of all images."""

    def __init__(self, output: Path, names: Sequence[str], settings: Mapping[str, Any], **more: Any) -> None:
        self._names, self._width = names, width_of(names)
        super().__init__(output, len(names), settings, _head, **more)

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write the images start, ..., stop-1, (B, C, H, W) in [-1, 1], and what is known of each, (B,)."""
        known = {key: values.cpu().numpy() for key, values in (figures or {}).items()}
        names = text_column(self._names[start:stop], self._width)
        self.commit(start, stop, {"images": images.cpu().numpy(), "names": names, **known})

    def figures(self, name: str) -> list[tuple[str, float]]:
        """Name and figure of each image in the file, when the run has left it; none of a sheet, which keeps pixels."""
        if self.output.suffix.lower() not in SUFFIXES or not self.output.exists():
            return []
        with reading(self.output, "a file of images") as file:
            if name not in file:
                return []
            values = file[name][:].tolist()
            return list(zip((word.decode() for word in file["names"][:].tolist()), values, strict=True))


def open_output(
    path: Path,
    names: Sequence[str],
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    columns: int | None = None,
) -> Folder | Images:
    """The output of this name: NAME.png a sheet, NAME.h5 a file, anything else a folder of PNGs.

    names: of all images. settings: how they come about, JSON-able; all but a sheet keep it. columns: of a sheet.
    """
    suffix = "" if os.path.isdir(path) else path.suffix.lower()
    if suffix == ".png":
        if len(names) > MOST_ON_A_SHEET:
            raise InputError(
                f"{len(names)} images are too many for one sheet (at most {MOST_ON_A_SHEET}): give a folder"
            )
        return Images(path, names, settings, overwrite=overwrite, index=False, finish=_sheet(columns))
    if suffix in SUFFIXES:
        return Images(path, names, settings, overwrite=overwrite)
    if suffix:
        raise InputError(f"{path}: give a folder, a sheet.png or a file.h5 to write to, not {suffix!r}")
    return Folder(path, names, settings, overwrite=overwrite)


def _head(file: h5py.File, notes: Mapping[str, Any]) -> None:
    file.attrs["format"], file.attrs["range"] = text(FORMAT), text("[-1, 1]")


def _sheet(columns: int | None) -> Callable[[Run], None]:
    def draw(run: Run) -> None:
        images = []
        for part in run.parts():
            with reading(part.path, "a part") as file:
                images.append(torch.from_numpy(np.asarray(file["images"][:])))
        save_sheet(torch.cat(images), run.output, columns=columns)

    return draw


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _file_names(names: Sequence[str]) -> Iterator[str]:
    """A file name for each image: a/cat.png and b/cat.png become cat.png and cat-1.png."""
    taken: set[str] = set()
    for name in names:
        stem = base = plain_text(PurePath(name.replace("\\", "/")).stem).replace("\0", "")[:80] or "image"
        number = 1
        while stem.casefold() in taken:  # some disks take Cat.png for cat.png
            stem, number = f"{base}-{number}", number + 1
        taken.add(stem.casefold())
        yield f"{stem}.png"
