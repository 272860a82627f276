"""Image files read through Pillow: which files a folder or a list names, and what is in each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from odeddim.storage.errors import read_errors
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""The files of a folder that count as images."""

_PHOTOS = ("JPEG", "MPO")
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")  # for others Pillow may start other programs
_LONGEST_PATH = 1 << 16  # bytes; systems allow some 4096


def files_below(folder: Path) -> Iterator[str]:
    """The image files in a folder and the folders in it: their paths below it, with slashes, in order.

    Raises:
        InputError: One of the folders cannot be read.
    """
    waiting = [""]  # the next one last; a folder's name ends in a slash, and so sorts as its files do
    while waiting:
        name = waiting.pop()
        if name and not name.endswith("/"):
            yield name
            continue
        try:
            with os.scandir(folder / name) as entries:
                folders_and_images = [
                    f"{name}{entry.name}/" if deeper else name + entry.name
                    for entry in entries
                    if (deeper := entry.is_dir(follow_symlinks=False))
                    or (os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file())
                ]
        except OSError as error:
            raise InputError(f"the folder {folder / name} cannot be read ({error.strerror}): move it away") from error
        waiting += sorted(folders_and_images, reverse=True)


def files_listed(stream: IO[bytes]) -> Iterator[str]:
    """The paths in a list, each ended by a line break or each by a zero byte.

    Raises:
        InputError: One of them is not a file.
    """
    for number, line in enumerate(_lines(stream), 1):
        name = os.fsdecode(line)
        if not line.strip():
            continue
        if not os.path.isfile(name):
            raise InputError(
                f"line {number} of the list on standard input names no file: {name[:200]!r} (in {os.getcwd()})"
            )
        yield name


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    rest = stream.read(_LONGEST_PATH)
    end = b"\0" if b"\0" in rest else b"\n"  # no path holds a zero byte, and none is longer than this
    while rest:
        *lines, rest = rest.split(end)
        yield from (line.removesuffix(b"\r") if end == b"\n" else line for line in lines)
        more = stream.read(_LONGEST_PATH)
        if not more or len(rest) > _LONGEST_PATH:
            yield rest
            return
        rest += more


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image]:
    """An image file opened by Pillow, which has read its header.

    Raises:
        InputError: It is damaged, or has more than 8 bits per channel.
    """
    import PIL.Image

    with read_errors(path, "an image"), PIL.Image.open(path, formats=_FORMATS) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path} has more than 8 bits per channel (mode {image.mode}): save it with 8")
        yield image


def shape_of(image: Image, channels: int | None) -> tuple[int, int, int]:
    """(C, H, W) as an image will be read. The EXIF orientation counts in JPEG, which cameras write, and only there."""
    width, height = image.size
    if image.format in _PHOTOS and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    return channels or (1 if image.mode in ("1", "L", "LA") else 3), height, width


def decode(image: Image, shape: tuple[int, int, int]) -> Tensor:
    """The pixels of an image, uint8 of shape (C, H, W)."""
    import PIL.Image
    import PIL.ImageOps

    upright = PIL.ImageOps.exif_transpose(image) if image.format in _PHOTOS else image
    if may_be_transparent(upright):
        upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    content = np.array(upright.convert("L" if shape[0] == 1 else "RGB"))
    return torch.from_numpy(content).reshape(*shape[1:], shape[0]).movedim(-1, 0)


def may_be_transparent(image: Image) -> bool:
    """Whether an image has an alpha channel, or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def has_more(image: Image) -> bool:
    """Whether there is more than one picture in a file; False if what follows the first cannot be read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # on broken files Pillow raises nearly anything
        return False
