"""Images written as PNG files, one by one or on a sheet, each with notes that say which run it belongs to."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from odeddim.storage.atomic import replacing
from odeddim.types import InputError

MARK = "odeddim"
"""The note of a PNG that says which run it belongs to."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = 1 << 16  # the first bytes of a PNG, in which its notes are


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit values: (x + 1)·127.5 rounded to the nearest integer, clipped to 0..255.

    An 8-bit image that was read is the same again, bit for bit.

    Args:
        images: Any shape.

    Returns:
        uint8 of the same shape, on the CPU.

    Raises:
        InputError: Some values are NaN or infinite.
    """
    if not bool(torch.isfinite(images).all()):
        raise InputError("an image to be written holds NaN or infinite values: try more steps or another solver")
    return images.detach().cpu().to(torch.float64).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def save_image(
    image: Tensor, path: str | Path, notes: Mapping[str, str] | None = None, temporary: Path | None = None
) -> None:
    """Write an image as a PNG. What was at `path` is replaced only by the whole file.

    Args:
        image: (C, H, W) in [-1, 1], with C = 1 or 3.
        path: The file.
        notes: What is known of the image, in ASCII; `notes_of` reads it.
        temporary: Where the file lies until it is whole; see `odeddim.storage.atomic.replacing`.

    Raises:
        InputError: The image cannot be written as a PNG, or the disk does not take it.
    """
    import PIL.Image
    from PIL.PngImagePlugin import PngInfo

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"an image of shape {tuple(image.shape)} cannot be written as {path}: a PNG holds 1 or 3 channels, so give "
            "(1, H, W) or (3, H, W)"
        )
    content = to_bytes(image).movedim(0, -1)
    pixels = content[:, :, 0] if image.shape[0] == 1 else content
    info = PngInfo()
    for key, note in (notes or {}).items():
        info.add_text(key, note)
    with replacing(Path(path), temporary) as place:
        PIL.Image.fromarray(pixels.contiguous().numpy()).save(place, format="PNG", pnginfo=info)


def is_whole(path: Path, mark: str) -> bool:
    """Whether a file is a PNG that has a mark among its notes, is complete and fits all its checksums."""
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return False
    at = len(_PNG)
    if content[:at] != _PNG or mark.encode() not in bytes(content[:_NOTES]):
        return False
    while at + 12 <= len(content):  # a chunk: length, kind, content, CRC-32 of the last two
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return False
        if bytes(content[at + 4 : at + 8]) == b"IEND":
            return True
        at = end + 4
    return False


def notes_of(path: Path) -> dict[str, str]:
    """The notes that `save_image` wrote into a PNG; none if the file is missing or is not a PNG."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return {str(key): note for key, note in image.info.items() if isinstance(note, str)}
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return {}


def size_of(path: Path) -> tuple[int, int]:
    """The height and the width of a PNG."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        return image.height, image.width


def save_sheet(
    images: Tensor,
    path: str | Path,
    columns: int | None = None,
    notes: Mapping[str, str] | None = None,
    temporary: Path | None = None,
) -> None:
    """Write images side by side in one PNG, row by row. The last row is filled up with black.

    Args:
        images: (n, C, H, W) in [-1, 1].
        path: The file.
        columns: How many images a row has; without it the sheet is as square as possible.
        notes: As for `save_image`.
        temporary: As for `save_image`.

    Raises:
        InputError: There are no images, or the sheet cannot be written.
    """
    n, c, h, w = images.shape
    if n == 0:
        raise InputError(f"there are no images to write to {path}: give at least one")
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = torch.full((rows * columns, c, h, w), -1.0)
    cells[:n] = images.detach().cpu()
    sheet = cells.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    save_image(sheet, path, notes, temporary)
