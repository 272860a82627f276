"""Where images go: a folder of PNGs, one PNG with all of them (a sheet), or an HDF5 file, by the name of the output.

Each of them may be interrupted, and the same command goes on. The sheet and the HDF5 file are made of parts (see
`odeddim.storage.resumable`). A folder holds the images that are done, and `odeddim.json` in it records the run.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.storage.atomic import has_mark, mark_of, sweep, temporary_beside
from odeddim.storage.hdf5 import SUFFIXES, opened, text
from odeddim.storage.names import LOCK, NOTE, Names, file_names
from odeddim.storage.png import MARK, is_whole, notes_of, save_image, save_sheet
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import check_same, comparable, run_of, text_column, width_of
from odeddim.storage.workers import GO_ON, MEMBER, Claims, OfFirst, SharedRun, begin_together
from odeddim.types import InputError

MOST_ON_A_SHEET = 4096
FORMAT = "odeddim images"


class Folder(SharedRun):
    """A run whose images become PNGs in a folder and the folders in it, each named after the image it comes from.

    Args:
        folder: The folder, which is made if it is missing.
        names: The names of all images.
        settings: What the run is, as JSON can hold it.
        overwrite: Begin anew, and replace files of these names.
        of_first: The settings that a run of only the first images has. With it, the run continues such a one.

    Raises:
        InputError: Without `overwrite`: the folder has other files of these names, it holds another run, or an image
            that the run has written is damaged.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        of_first: OfFirst | None = None,
    ) -> None:
        self.folder = folder
        self._names, self._files = names, Names.packed(file_names(names))
        self._places = sorted({folder, *(folder / above for name in self._files if (above := os.path.dirname(name)))})
        _make(folder)
        begin_together(self._begin_anew if overwrite else self._refuse_others)
        for place in self._places:
            _make(place)
        super().__init__(folder, len(names), settings, folder / NOTE, folder / LOCK, of_first)

    def _refuse_others(self) -> None:
        """Refuse files of these names that no run has written here.

        The files are listed before the note is looked for: a process that begins the run at the same time writes the
        note before its first image.
        """
        there = self.spans()
        if there and not (self.folder / NOTE).exists():
            raise InputError(
                f"{self.folder / self._files[there[0][0]]} is there already: give another folder, or overwrite=True to "
                "replace it"
            )

    def _begin_anew(self) -> None:
        with closing(Claims(self.folder / LOCK)) as claims:
            if not claims.take_all():
                raise InputError(f"another process is writing to {self.folder}: stop it before you begin anew")
            for start, stop in self.spans():
                for name in self._files[start:stop]:
                    (self.folder / name).unlink()
            (self.folder / NOTE).unlink(missing_ok=True)

    def _settle(self, where: Path) -> None:
        self._refuse_others()  # once more, while no other process begins
        if self._of_first is not None:  # what marks an image does not depend on the number of images
            self.mark = mark_of(run_of(comparable(1, self._of_first(1))))
            if self._note.exists():
                self._grow(self._noted(), self._of_first)
        super()._settle(where)

    def _grow(self, began: Mapping[str, Any], of_first: OfFirst) -> None:
        """Record the number of images, where a run of fewer has begun or finished the folder."""
        before = began.get("total")
        if not isinstance(before, int) or not 0 < before < self.total:
            return
        check_same(began, comparable(before, of_first(before)), f"{self.folder} was begun")
        if list(file_names(Names.packed(self._names[:before]))) != self._files[:before]:
            raise InputError(
                f"{self.folder} holds {before} images, some of which would have other names among {self.total}: give "
                "another folder"
            )
        if not self._claims.take(MEMBER, MEMBER + 1):
            raise InputError(f"another process is writing {before} images to {self.folder}: wait until it has ended")
        self._record()

    def _check(self) -> None:
        """Refuse images that count as done, but were damaged or written by another program."""
        for place in self._places:
            sweep(place)
        for start, stop in self.spans():
            for i in range(start, stop):
                path = self.folder / self._files[i]
                if not is_whole(path, self._mark_of(i)) and path.exists():
                    raise InputError(
                        f"{path} is damaged, or another file than this run has written there: move it away, and the "
                        "same command makes it again; or give overwrite=True to begin anew"
                    )

    def _mark_of(self, i: int) -> str:
        return f"{self.mark}-{i:09d}"

    def spans(self) -> list[tuple[int, int]]:
        """The images that are done, as rising spans (start, stop)."""
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
        """Whether all of the images start, ..., stop-1 are done."""
        return all((self.folder / name).exists() for name in self._files[start:stop])

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write a batch of images, each with what is known of it.

        Args:
            start: The first image.
            stop: The image after the last.
            images: (B, C, H, W) in [-1, 1].
            figures: Figures of each image, (B,), by name.

        Raises:
            InputError: The disk does not take an image; the images written before stay.
        """
        for i, (name, image) in enumerate(zip(self._files[start:stop], images.cpu(), strict=True)):
            path = self.folder / name
            known = {key: repr(float(values[i])) for key, values in (figures or {}).items()}
            try:
                save_image(image, path, {MARK: self._mark_of(start + i), **known}, temporary_beside(path))
            except InputError as error:
                raise InputError(f"{error}; the images written before stay, and {GO_ON}") from error
        self.leave(start, stop)

    def figures(self, name: str) -> list[tuple[str, float]]:
        """The file and the figure of each image that is done and has a figure of this name."""
        notes = ((file, notes_of(self.folder / file).get(name)) for file in self._files)
        return [(file, float(note)) for file, note in notes if note is not None and _is_number(note)]

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if self.done == self.total:
            for place in self._places:
                sweep(place)  # for another process may have been killed since this one began
            (self.folder / LOCK).unlink(missing_ok=True)
        super().__exit__(kind, *more)


class Images(Run):
    """A run whose images become one HDF5 file or one sheet, by way of parts.

    Args:
        output: The file.
        names: The names of all images.
        settings: What the run is, as JSON can hold it.
        **more: As for `Run`.
    """

    def __init__(self, output: Path, names: Sequence[str], settings: Mapping[str, Any], **more: Any) -> None:
        self._names, self._width = names, width_of(names)
        super().__init__(output, len(names), settings, _head, **more)

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write a batch of images with what is known of each; arguments as for `Folder.write`."""
        known = {key: values.cpu().numpy() for key, values in (figures or {}).items()}
        names = text_column(self._names[start:stop], self._width)
        self.commit(start, stop, {"images": images.cpu().numpy(), "names": names, **known})

    def figures(self, name: str) -> list[tuple[str, float]]:
        """The name and the figure of each image, once the run has ended; none from a sheet, which holds only pixels."""
        if self.output.suffix.lower() not in SUFFIXES or not self.output.exists():
            return []
        with opened(self.output, "a file of images") as file:
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
    of_first: OfFirst | None = None,
) -> Folder | Images:
    """The output of a name: NAME.png is a sheet, NAME.h5 a file, and a name without a suffix a folder of PNGs.

    Args:
        path: The name.
        names: The names of all images.
        settings: How the images are made, as JSON can hold it; every output but a sheet records it.
        overwrite: Begin anew, and replace what is there.
        columns: How many images a row of a sheet has.
        of_first: The settings that a run of only the first images has: a file or a folder of these is continued.

    Raises:
        InputError: The name has another suffix, or another file or run is there.
    """
    suffix = "" if os.path.isdir(path) else path.suffix.lower()
    if suffix == ".png":
        if len(names) > MOST_ON_A_SHEET:
            raise InputError(
                f"{len(names)} images are too many for one sheet, which holds {MOST_ON_A_SHEET}: give a folder"
            )
        own = lambda run: has_mark(run.output, run.mark)  # noqa: E731
        return Images(path, names, settings, overwrite=overwrite, index=False, own=own, finish=_sheet(columns))
    if suffix in SUFFIXES:
        return Images(path, names, settings, overwrite=overwrite, of_first=of_first)
    if suffix:
        raise InputError(f"{path}: give a folder, a sheet.png or a file.h5 to write to, not {suffix!r}")
    return Folder(path, names, settings, overwrite=overwrite, of_first=of_first)


def _head(file: h5py.File, notes: Mapping[str, Any]) -> None:
    file.attrs["format"], file.attrs["range"] = text(FORMAT), text("[-1, 1]")


def _sheet(columns: int | None) -> Callable[[Run], None]:
    def draw(run: Run) -> None:
        images = []
        for part in run.parts():
            with opened(part.path, "a part") as file:
                images.append(torch.from_numpy(np.asarray(file["images"][:])))
        save_sheet(torch.cat(images), run.output, columns, {MARK: run.mark}, run.temporary("sheet"))

    return draw


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}): give another folder") from error
