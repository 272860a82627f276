"""Many image files as one source: what their headers say, which pictures in them are images, and how these are read."""

from __future__ import annotations

import array
import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from odeddim.storage.errors import ADVICE, read_errors
from odeddim.storage.image_files import opened_image
from odeddim.storage.names import Names
from odeddim.storage.pictures import (
    PHOTOS,
    check_depth,
    has_more,
    is_cut,
    lowest_of,
    may_be_transparent,
    shape_of,
    upright,
)
from odeddim.storage.preparation import Preparation
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_PIECE = 1 << 20  # bytes of a file that its fingerprint reads at a time


class Header(NamedTuple):
    """What is known of a file once it has been looked at.

    Attributes:
        shape: (C, H, W) of its images.
        pictures: How many of its pictures are images.
        lowest: The lowest of its floats; 0 without any.
        transparent: Whether it may be transparent in parts.
        more: Whether it has pictures that are no images.
        cut: Whether Pillow reads 8 of its 16 bits.
        grayed: Whether it is stored in colour and made gray.
    """

    shape: tuple[int, int, int]
    pictures: int
    lowest: float
    transparent: bool
    more: bool
    cut: bool
    grayed: bool


class OpenedFiles:
    """Image files of which rows are read when they are asked for.

    All headers are read at once, so that an image of another size does not stop a long run later.

    Args:
        folder: The folder of the files.
        files: Their paths below it, one or more.
        channels: 1 for gray, 3 for colour; None for the images' own. Where the size is the preparation's, that is 3 if
            one of them has colour.
        prepare: What is done to each image.

    Attributes:
        shape: (C, H, W) of every image.
        names: The name of each image.
        skipped: The files that were left out, each with the reason.
        grayed: How many of them are stored in colour and made gray, as of `ImageSource`.

    Raises:
        InputError: A file cannot be read, or has another shape than those before it.
    """

    def __init__(self, folder: Path, files: Sequence[str], channels: int | None, prepare: Preparation) -> None:
        self._folder, self._files, self._channels, self._prepare = folder, files, channels, prepare
        self._signed = False
        self.skipped: list[tuple[str, str]] = []
        self._rows = array.array("q")  # of each image: its file
        self._pictures = array.array("q")  # and its place there
        colours, first = channels or 1, None
        counts = {"transparent": 0, "more": 0, "cut": 0, "grayed": 0}
        for number in range(len(files)):
            found = self._look(number)
            if found is None:
                continue
            colours, self._signed = max(colours, found.shape[0]), self._signed or found.lowest < 0
            if first is None:
                first = number, found.shape
            elif prepare.size is None and found.shape != first[1]:
                raise InputError(self._other(number, found.shape, *first))
            self._rows.extend([number] * found.pictures)
            self._pictures.extend(range(found.pictures))
            for name in counts:
                counts[name] += getattr(found, name)
        if first is None:
            raise InputError(f"none of the {len(files)} files in {folder} can be read: {' '.join(self.skipped[0])}")
        self.shape = first[1] if prepare.size is None else (colours, *prepare.size)
        self._first = first
        every = len(self._rows) == len(files) and not self.skipped and not any(self._pictures)
        self.names = files if every else Names.packed(self._name(row) for row in range(len(self._rows)))
        of = f"of {len(files) - len(self.skipped)} images"
        self.grayed = f"{counts['grayed']} {of}" if counts["grayed"] else ""
        self._warn(counts, of)

    def _look(self, number: int) -> Header | None:
        """What is in a file; None if it is left out."""
        path = self._folder / self._files[number]
        try:
            with self._opened(number) as image:
                return self._header(image)
        except InputError as error:
            if not self._prepare.skip_bad:
                raise
            self.skipped.append((self._files[number], str(error).removeprefix(f"{path} ").removesuffix(ADVICE)))
            return None

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[Image]:
        """A file, opened; an error says how to go on without it."""
        try:
            with opened_image(self._folder / self._files[number]) as image:
                yield image
        except InputError as error:
            if self._prepare.skip_bad or not str(error).endswith(ADVICE):
                raise
            raise InputError(f"{error}, or leave out all such files with skip_bad=True") from error

    def _header(self, image: Image) -> Header:
        more = has_more(image)
        every = more and self._prepare.frames == "all" and image.format not in PHOTOS
        count = int(getattr(image, "n_frames", 1)) if every else 1
        shapes, lowest, transparent, cut, grayed = set(), 0.0, False, False, False
        for k in range(count):
            _turn_to(image, k)
            shapes.add(shape_of(image, self._channels))
            transparent, cut = transparent or may_be_transparent(image), cut or is_cut(image)
            grayed = grayed or self._channels == 1 != shape_of(image, None)[0]
            check_depth(image)
            lowest = min(lowest, lowest_of(image))
            if self._prepare.skip_bad:
                upright(image, 1, (0, 0, 0))  # which decodes it
        if len({shape[1:] for shape in shapes}) > 1 and self._prepare.size is None:
            raise ValueError("pictures of several sizes, which resize=... makes one")
        return Header(max(shapes), count, lowest, transparent, more and not every, cut, grayed)

    def _other(self, number: int, shape: tuple[int, ...], first: int, wants: tuple[int, ...]) -> str:
        has, is_first = ("×".join(map(str, sizes)) for sizes in (shape, wants))
        return (
            f"{self._folder / self._files[number]} is {has} (channels×height×width), but {self._files[first]} is "
            f"{is_first}: resize=... makes them one shape"
        )

    def _warn(self, counts: dict[str, int], of: str) -> None:
        if transparent := counts["transparent"]:
            ground = self._prepare.background
            warnings.warn(f"{transparent} {of} may be transparent in parts: they are laid on {ground}", stacklevel=5)
        if more := counts["more"]:
            warnings.warn(f"{more} {of} hold several pictures: the first of each is taken", stacklevel=5)
        if cut := counts["cut"]:
            warnings.warn(f"{cut} {of} have 16 bits per channel in colour: only 8 of them are read", stacklevel=5)

    def _name(self, row: int) -> str:
        """The name of an image: the file's, with a number before the suffix if it is one of several in it."""
        number, k = self._rows[row], self._pictures[row]
        alone = not k and (row + 1 == len(self._rows) or self._rows[row + 1] != number)
        name = PurePosixPath(self._files[number])
        return self._files[number] if alone else str(name.with_name(f"{name.stem}#{k:04d}{name.suffix}"))

    def read(self, rows: Sequence[int]) -> Tensor:
        """Images in any order, (n, C, H, W) float32 in [-1, 1]."""
        made = []
        # Some pictures of an animation may be gray.
        expected = self.shape[0] if self._prepare.frames == "all" else self._channels
        for number, of_one in itertools.groupby(rows, lambda row: self._rows[row]):
            with self._opened(number) as image:
                for row in of_one:
                    _turn_to(image, self._pictures[row])
                    has = shape_of(image, expected)
                    if self._prepare.size is None and has != self.shape:  # it may have changed since
                        raise InputError(self._other(number, has, *self._first))
                    made.append(self._prepare.apply(image, self.shape, signed=self._signed))
        return torch.stack(made)

    def marks(self, count: int) -> Iterator[bytes]:
        """What tells the first `count` images from others: their names and the contents of their files."""
        for number, of_one in itertools.groupby(range(count), lambda row: self._rows[row]):
            path = self._folder / self._files[number]
            with read_errors(path, "an image"):
                content = content_hash(path)
            for row in of_one:
                yield as_bytes(self.names[row]) + b"\0" + content


def _turn_to(image: Image, k: int) -> None:
    """Go to a picture of a file."""
    if k != image.tell():
        image.seek(k)


def content_hash(path: Path) -> bytes:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def as_bytes(name: str) -> bytes:
    """The bytes of a name, also of one that is not UTF-8."""
    return name.encode("utf-8", "surrogatepass")
