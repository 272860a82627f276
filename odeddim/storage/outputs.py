"""Where images go: a folder of PNGs, one sheet PNG, or an HDF5 file, by the name that the user gave.

All of them can be interrupted, and the same command goes on (see `odeddim.storage.resumable`): HDF5 and the sheet are
made of parts, a folder holds the images done, and `odeddim.json` in it says whose they are.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.storage.arrays import Names
from odeddim.storage.atomic import has_mark, plain_text, sweep, temporary_beside
from odeddim.storage.hdf5 import SUFFIXES, reading, text
from odeddim.storage.images import MARK, is_whole, notes_of, save_image, save_sheet
from odeddim.storage.resumable import GO_ON, Claims, Run, Work, begin_together
from odeddim.storage.row_files import text_column, width_of
from odeddim.types import InputError

MOST_ON_A_SHEET = 4096
FORMAT = "odeddim images"
NOTE, LOCK = "odeddim.json", ".odeddim.lock"
_WINDOWS = os.name == "nt"
_ODD = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*]' if _WINDOWS else r"[\x00-\x1f\x7f-\x9f]")
_LONGEST_STEP = 200  # bytes of a file's or a folder's name; disks allow 255


class Folder(Work):
    """Images that become PNGs in a folder and folders in it, each whole or not there, named after what they come from.

    Errors: InputError where other files have these names, or one that the run has written is damaged, unless
    `overwrite`.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self._files = Names.packed(file_names(names))
        self._places = sorted({folder, *(folder / above for name in self._files if (above := os.path.dirname(name)))})
        _make(folder)
        begin_together(lambda: self._make_room(overwrite))
        for place in self._places:
            _make(place)
        super().__init__(folder, len(names), settings, folder / NOTE, folder / LOCK)

    def _check(self) -> None:
        """Refuse what a killed or another program has left of images that count as done."""
        for place in self._places:
            sweep(place)
        for start, stop in self.spans():
            for i in range(start, stop):
                path = self.folder / self._files[i]
                if not is_whole(path, self._mark_of(i)) and path.exists():
                    raise InputError(
                        f"{path} is damaged, or another file than this run has written there: move it away, and the "
                        "same command makes it again; or --overwrite to begin anew"
                    )

    def _mark_of(self, i: int) -> str:
        return f"{self.mark}-{i:09d}"

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
        there: set[str] = set()
        for place in self._places:
            above = "" if place == self.folder else f"{place.relative_to(self.folder).as_posix()}/"
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                there.update(above + name for name in os.listdir(place))
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
            path = self.folder / name
            known = {key: repr(float(values[i])) for key, values in (figures or {}).items()}
            try:
                save_image(image, path, {MARK: self._mark_of(start + i), **known}, temporary_beside(path))
            except InputError as error:
                raise InputError(f"{error}; the images written before stay, and {GO_ON}") from error
        self.leave(start, stop)

    def figures(self, name: str) -> list[tuple[str, float]]:
        """File and figure of each image that is there and has one."""
        notes = ((file, notes_of(self.folder / file).get(name)) for file in self._files)
        return [(file, float(note)) for file, note in notes if note is not None and _is_number(note)]

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if self.done == self.total:
            for place in self._places:
                sweep(place)  # of another process, killed while this one went on
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
        own = lambda run: has_mark(run.output, run.mark)  # noqa: E731
        return Images(path, names, settings, overwrite=overwrite, index=False, own=own, finish=_sheet(columns))
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
        save_sheet(torch.cat(images), run.output, columns, {MARK: run.mark}, run.temporary("sheet"))

    return draw


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def file_names(names: Sequence[str]) -> Iterator[str]:
    """The path below a folder of each image's PNG: cat/1.jpg becomes cat/1.png, and /data/1.png data/1.png.

    No path leaves the folder, whatever the name. What would be another's path, also on disks that take Cat.png for
    cat.png, gets a number: cat/1-1.png.
    """
    folders = {_key("/".join(above[:depth])) for above, _ in map(_steps, names) for depth in range(1, len(above) + 1)}
    taken: dict[str, int] = {}  # how many have wanted a path
    for above, stem in map(_steps, names):
        wanted = path = "/".join([*above, stem])
        number = taken.get(_key(wanted), 0)
        while _key(path) in taken or _key(f"{path}.png") in folders:
            number += 1
            path = f"{wanted}-{number}"
        taken[_key(wanted)] = number
        taken.setdefault(_key(path), 0)
        yield f"{path}.png"


def _steps(name: str) -> tuple[list[str], str]:
    """The folders on the way to an image below the output's folder, and the stem of its file; nothing leads upwards."""
    steps = [_ODD.sub("_", plain_text(step)) for step in name.replace("\\", "/").split("/")]
    *above, last = [step.rstrip(" .") if _WINDOWS else step for step in steps if step.strip(" .")] or ["image"]
    return [_cut(step) + "_" * (step.casefold() in (NOTE, LOCK)) for step in above], _cut(PurePath(last).stem)


def _cut(step: str) -> str:
    return step.encode()[:_LONGEST_STEP].decode(errors="ignore")


def _key(path: str) -> str:
    """The same for paths that some disks take for the same."""
    return unicodedata.normalize("NFC", path.casefold())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}): give another folder") from error
