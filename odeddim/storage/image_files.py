"""Image files: which ones a folder or a list names, and how Pillow opens them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from odeddim.storage.errors import read_errors
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""The files of a folder that count as images."""

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")  # for others Pillow may start other programs
_LONGEST_PATH = 1 << 16  # bytes; systems allow some 4096


def files_below(folder: Path) -> Iterator[str]:
    """The image files in a folder and the folders in it: their paths below it, with slashes, in order.

    What is hidden, with a name that begins with a dot, is left alone: macOS keeps notes on a.png in ._a.png.

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
                    if not entry.name.startswith(".")
                    and (
                        (deeper := entry.is_dir(follow_symlinks=False))
                        or (os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file())
                    )
                ]
        except OSError as error:
            raise InputError(f"the folder {folder / name} cannot be read ({error.strerror}): move it away") from error
        waiting += sorted(folders_and_images, reverse=True)


def files_listed(stream: IO[bytes], *, checked: bool = True) -> Iterator[str]:
    """The paths in a list, each ended by a line break or each by a zero byte.

    Args:
        stream: The list.
        checked: Whether to look if there are such files.

    Raises:
        InputError: One of them is not a file.
    """
    for number, line in enumerate(_lines(stream), 1):
        name = os.fsdecode(line)
        if not line.strip():
            continue
        if checked and not os.path.isfile(name):
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
        InputError: It is damaged.
    """
    import PIL.Image

    with read_errors(path, "an image"), PIL.Image.open(path, formats=_FORMATS) as image:
        yield image
