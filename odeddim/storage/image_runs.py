"""Runs whose images go through parts into one file: HDF5, NPZ, a sheet, an animation.

A killed run goes on from its parts. Once all images are there, the parts are read one after the other, so memory does
not grow with their number, except for the picture that a sheet is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from odeddim.storage.animations import MOST_FRAMES, Animation
from odeddim.storage.atomic import has_mark
from odeddim.storage.hdf5 import SUFFIXES, opened, text
from odeddim.storage.npz_files import Blocks, save_npz
from odeddim.storage.png import MARK
from odeddim.storage.resumable import Run
from odeddim.storage.row_files import Columns, columns_of, read_rows, text_column, width_of
from odeddim.storage.sheets import Captions, Layout, check_images, save_sheet
from odeddim.storage.workers import OfFirst
from odeddim.types import InputError

MOST_ON_A_SHEET = 4096
FORMAT = "odeddim images"
RANGE = "[-1, 1]"


class Maker(Protocol):
    """What makes one file of all images."""

    def check(self, path: Path, count: int, shape: Sequence[int] | None) -> None:
        """Raise an InputError if the file cannot hold so many images. shape: (C, H, W), None if it is not known yet."""

    def make(self, run: Images) -> None:
        """Make the file."""


class Images(Run):
    """A run whose images become one file, by way of parts.

    Args:
        output: The file.
        names: The names of all images.
        settings: What the run is, as JSON can hold it.
        maker: What makes the file; None for an HDF5 file.
        overwrite: Begin anew, and replace what is there.
        of_first: As for `Run`.
    """

    def __init__(
        self,
        output: Path,
        names: Sequence[str],
        settings: Mapping[str, Any],
        maker: Maker | None = None,
        *,
        overwrite: bool = False,
        of_first: OfFirst | None = None,
    ) -> None:
        self.names, self._width, self._maker = names, width_of(names), maker
        more: dict[str, Any] = {}
        if maker is not None:
            maker.check(output, len(names), None)
            more = {"index": False, "own": lambda run: has_mark(run.output, run.mark), "finish": maker.make}
        super().__init__(output, len(names), settings, _head, overwrite=overwrite, of_first=of_first, **more)

    def write(self, start: int, stop: int, images: Tensor, figures: Mapping[str, Tensor] | None = None) -> None:
        """Write a batch of images with what is known of each; arguments as for `Folder.write`."""
        if self._maker is not None:
            self._maker.check(self.output, self.total, images.shape[1:])
        known = {key: values.cpu().numpy() for key, values in (figures or {}).items()}
        names = text_column(self.names[start:stop], self._width)
        self.commit(start, stop, {"images": images.cpu().numpy(), "names": names, **known})

    def figures(self, name: str) -> list[tuple[str, float]]:
        """The name and the figure of each image, once the run has ended; none from a file that holds only pixels."""
        suffix = self.output.suffix.lower()
        if not self.output.exists():
            return []
        if suffix == ".npz":
            with np.load(self.output) as file:
                return list(zip(file["names"].tolist(), file[name].tolist(), strict=True)) if name in file else []
        if suffix not in SUFFIXES:
            return []
        with opened(self.output, "a file of images") as file:
            if name not in file:
                return []
            values = file[name][:].tolist()
            return list(zip((word.decode() for word in file["names"][:].tolist()), values, strict=True))

    def first(self) -> dict[str, np.ndarray[Any, Any]]:
        """The first row, from which the shape and the type of each column can be seen."""
        with opened(self.parts()[0].path, "a part") as file:
            return read_rows(file, columns_of(file), 0, 1, self.parts()[0].path)


@dataclass(frozen=True)
class Sheet:
    """Makes a sheet.

    Attributes:
        captions: What it says of the images.
        scale: As of `Layout.of`.
        labels: As of `Layout.of`.
    """

    captions: Captions
    scale: int | None = None
    labels: bool | None = None

    def check(self, path: Path, count: int, shape: Sequence[int] | None) -> None:
        if count > MOST_ON_A_SHEET:
            raise InputError(f"{count} images are too many for one sheet, which holds {MOST_ON_A_SHEET}: give a folder")
        if shape is not None:
            Layout.of(count, shape, self.captions, self.scale, self.labels)

    def make(self, run: Images) -> None:
        def cells() -> Iterator[tuple[Tensor, Mapping[str, float]]]:
            for piece in run.pieces():
                figures = {name: piece[name].tolist() for name in _figures_in(piece)}
                for i, image in enumerate(torch.from_numpy(piece["images"])):
                    yield image, {name: values[i] for name, values in figures.items()}

        layout = Layout.of(run.total, run.first()["images"].shape[1:], self.captions, self.scale, self.labels)
        save_sheet(cells(), run.output, layout, self.captions, {MARK: run.mark}, run.temporary("sheet"))


@dataclass(frozen=True)
class Frames:
    """Makes an animation.

    Attributes:
        animation: The animation.
        back: Whether it shows all images in reverse order too, but for the first and the last.
    """

    animation: Animation
    back: bool = False

    def check(self, path: Path, count: int, shape: Sequence[int] | None) -> None:
        if count > MOST_FRAMES:
            raise InputError(f"{count} images are too many for one animation, which holds {MOST_FRAMES}: give fewer")
        check_images(shape or (), path)

    def make(self, run: Images) -> None:
        def frames() -> Iterator[Tensor]:
            for piece in run.pieces():
                yield from torch.from_numpy(piece["images"])
            at = run.total
            for piece in run.pieces(backwards=True) if self.back else ():
                for image in torch.from_numpy(piece["images"]).flip(0):
                    at -= 1
                    if 0 < at < run.total - 1:
                        yield image

        self.animation.save(frames(), run.mark, run.temporary("animation"))


class Npz:
    """Makes an NPZ file: `images` (N, C, H, W) and `names` (N,), figures, the range of values and the run as JSON."""

    def check(self, path: Path, count: int, shape: Sequence[int] | None) -> None:
        pass

    def make(self, run: Images) -> None:
        def column(name: str, like: np.ndarray[Any, Any]) -> Blocks:
            return Blocks((run.total, *like.shape[1:]), like.dtype, (piece[name] for piece in run.pieces()))

        first = run.first()
        width = max(1, *(len(name) for i in range(0, run.total, 4096) for name in run.names[i : i + 4096]))
        names = (np.char.decode(piece["names"], "utf-8") for piece in run.pieces())
        arrays = {
            "odeddim": Blocks.whole(np.array(run.mark.encode())),
            "range": Blocks.whole(np.array(RANGE)),
            "provenance": Blocks.whole(np.array(json.dumps(run.settings, ensure_ascii=False))),
            "images": column("images", first["images"]),
            "names": Blocks((run.total,), np.dtype(f"U{width}"), names),
            **{name: column(name, first[name]) for name in _figures_in(first)},
        }
        save_npz(run.output, arrays, run.temporary("npz"))


def _figures_in(columns: Columns) -> list[str]:
    return [name for name in columns if name not in ("images", "names", "crc32")]


def _head(file: h5py.File, notes: Mapping[str, Any]) -> None:
    file.attrs["format"], file.attrs["range"] = text(FORMAT), text(RANGE)
