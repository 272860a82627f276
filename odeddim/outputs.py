"""Where decoded images go: a folder of PNGs, one sheet PNG, or an HDF5 file, by the name that the user gave."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

import h5py
import torch
from torch import Tensor

from odeddim.files import check_place, plain_text
from odeddim.hdf5 import SUFFIXES, HDF5Writer, writing
from odeddim.images import save_image, save_sheet
from odeddim.types import InputError

MOST_ON_A_SHEET = 4096


class Output(Protocol):
    """Takes decoded images, batch by batch."""

    def append(self, images: Tensor, names: Sequence[str]) -> None:
        """images (B, C, H, W) in [-1, 1], one name each."""


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def append(self, images: Tensor, names: Sequence[str]) -> None:
        for image, name in zip(images.cpu(), names, strict=True):
            stem = base = plain_text(PurePath(name.replace("\\", "/")).stem).replace("\0", "")[:80] or "image"
            number = 1
            while stem in self._taken:  # a/cat.png and b/cat.png both become cat
                stem, number = f"{base}-{number}", number + 1
            self._taken.add(stem)
            save_image(image, self._folder / f"{stem}.png")


class _Sheet:
    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def append(self, images: Tensor, names: Sequence[str]) -> None:
        self.images.append(images.cpu())


class _HDF5:
    def __init__(self, file: HDF5Writer, total: int) -> None:
        self._file, self._total, self._next = file, total, 0

    def append(self, images: Tensor, names: Sequence[str]) -> None:
        shape = tuple(images.shape[1:])
        if self._next == 0:
            chunks = (min(64, self._total), *shape)
            dtype = str(images.dtype).removeprefix("torch.")
            self._file.create_dataset("images", (self._total, *shape), dtype, chunks=chunks, fletcher32=True)
            self._file.create_dataset("names", (self._total,), dtype=h5py.string_dtype())
        stop = self._next + len(names)
        self._file["images"][self._next : stop] = images.cpu().numpy()
        self._file["names"][self._next : stop] = [plain_text(name) for name in names]
        self._file.commit()
        self._next = stop


@contextlib.contextmanager
def open_output(path: Path, total: int, provenance: Mapping[str, Any]) -> Iterator[Output]:
    """The output of this name, for `total` images: NAME.png a sheet, NAME.h5 a file, anything else a folder of PNGs.

    A sheet and a file appear when they are whole; PNGs in a folder one by one, each whole. provenance: how the images
    came about, JSON-able; HDF5 keeps it.
    """
    suffix = "" if os.path.isdir(path) else path.suffix.lower()
    if suffix == ".png":
        if total > MOST_ON_A_SHEET:
            raise InputError(f"{total} images are too many for one sheet (at most {MOST_ON_A_SHEET}): give a folder")
        check_place(path)
        sheet = _Sheet()
        yield sheet
        save_sheet(torch.cat(sheet.images), path)
    elif suffix in SUFFIXES:
        with writing(path) as file:
            file.attrs["format"], file.attrs["range"] = "odeddim images", "[-1, 1]"
            file.create_dataset("provenance", data=json.dumps(provenance, indent=1, ensure_ascii=False))
            yield _HDF5(file, total)
    elif suffix:
        raise InputError(f"{path}: give a folder, a sheet.png or a file.h5 to write to, not {suffix!r}")
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the folder {path} cannot be made ({error.strerror})") from None
        yield _Folder(path)
