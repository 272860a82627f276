"""Images written as PNG files, each with notes that say which run it belongs to."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

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


def encoded(image: Tensor, path: Path, notes: Mapping[str, str] | None = None) -> bytes:
    """An image as the content of a PNG.

    Args:
        image: (C, H, W), as of `picture`.
        path: The file that it goes to, for the message.
        notes: What is known of the image, in ASCII; `notes_of` reads it.

    Raises:
        InputError: The image cannot be written as a PNG.
    """
    written = io.BytesIO()
    picture(image, path).save(written, format="PNG", pnginfo=png_notes(notes))
    return written.getvalue()


def picture(image: Tensor, path: str | Path) -> Image:
    """An image as Pillow has it, gray or RGB.

    Args:
        image: (C, H, W) in [-1, 1], or uint8 as of `to_bytes`.
        path: The file that it goes to, for the message.

    Raises:
        InputError: It has neither 1 nor 3 channels, or holds NaN or infinite values.
    """
    import PIL.Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"an image of shape {tuple(image.shape)} cannot be written as {path}: a picture has 1 or 3 channels, so "
            "give (1, H, W) or (3, H, W)"
        )
    content = (image if image.dtype == torch.uint8 else to_bytes(image)).movedim(0, -1)
    pixels = content[:, :, 0] if image.shape[0] == 1 else content
    return PIL.Image.fromarray(pixels.contiguous().numpy())


def png_notes(notes: Mapping[str, str] | None) -> PngInfo:
    """Notes as Pillow writes them into a PNG."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, note in (notes or {}).items():
        info.add_text(key, note)
    return info


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
    """The notes that `encoded` wrote into a PNG; none if the file is missing or is not a PNG."""
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
