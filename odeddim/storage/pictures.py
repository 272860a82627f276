"""What is in an image of Pillow: its shape, its transparency, its depth, and its pixels, upright and without alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTOS = ("JPEG", "MPO")
"""The formats of cameras. The EXIF orientation counts there, and only there."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow has it
_GRAY = ("1", "L", "LA", "F")


def is_deep(image: Image) -> bool:
    """Whether there are more than 8 bits per channel; Pillow has such images in gray only."""
    return image.mode.startswith(("I", "F"))


def is_cut(image: Image) -> bool:
    """Whether the file has 16 bits per channel in colour, of which Pillow reads 8."""
    return not is_deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def may_be_transparent(image: Image) -> bool:
    """Whether an image has an alpha channel, or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def has_more(image: Image) -> bool:
    """Whether there is more than one picture in a file; False if what follows the first cannot be read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # on broken files Pillow raises nearly anything
        return False


def shape_of(image: Image, channels: int | None) -> tuple[int, int, int]:
    """(C, H, W) of an image when it is upright. channels: C, if it is not the image's own."""
    width, height = image.size
    if image.format in PHOTOS and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    return channels or (1 if image.mode in _GRAY or is_deep(image) else 3), height, width


def check_depth(image: Image) -> None:
    """Raise a ValueError if an image has whole numbers of 32 bits, which have no known range."""
    if image.mode == "I" and image.format == "TIFF":
        raise ValueError("whole numbers of 32 bits: save it with 16 bits, or as floats in [-1, 1]")


def lowest_of(image: Image) -> float:
    """The lowest value of an image of floats, as it is in the file; 0 of whole numbers.

    Raises:
        ValueError: Some are NaN or infinite, or lie beyond [-1, 1].
    """
    if image.mode != "F":
        return 0.0
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if low < -1 or high > 1:
        raise ValueError(f"floats from {low:.6g} to {high:.6g}: scale them to [-1, 1] or [0, 1]")
    return low


def colour_of(words: str) -> tuple[int, int, int]:
    """A colour by its name or as #rrggbb.

    Raises:
        InputError: There is no such colour, or it is transparent itself.
    """
    from PIL import ImageColor

    try:
        found = ImageColor.getrgb(words)
    except (ValueError, AttributeError) as error:
        raise InputError(f"background={words!r} is no colour: give a name such as 'white', or '#rrggbb'") from error
    if len(found) == 4 and found[3] != 255:
        raise InputError(f"background={words!r} is transparent itself: give '#rrggbb'")
    return found[0], found[1], found[2]


def luma(colour: Sequence[float]) -> float:
    """The gray of a colour ."""
    return sum(weight * value for weight, value in zip(LUMA, colour, strict=True))


def upright(image: Image, channels: int, background: Sequence[int], *, signed: bool = False) -> Image:
    """An image turned as its EXIF orientation says, laid on the background, and converted.

    Args:
        image: The image.
        channels: 1 for gray, 3 for colour.
        background: The colour behind transparent parts, 0..255 each.
        signed: Whether floats lie in [-1, 1]; otherwise they lie in [0, 1].

    Returns:
        Of 8 bits, of mode L or RGB; of mode F in [-1, 1] if the image has more bits.

    Raises:
        ValueError: As of `check_depth`.
    """
    import PIL.Image
    import PIL.ImageOps

    image = PIL.ImageOps.exif_transpose(image) if image.format in PHOTOS else image
    if is_deep(image):
        return PIL.Image.fromarray(_deep_values(image, background, signed))
    if may_be_transparent(image):
        ground = PIL.Image.new("RGBA", image.size, (*background, 255))
        image = PIL.Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _deep_values(image: Image, background: Sequence[int], signed: bool) -> np.ndarray[Any, Any]:
    """The values (H, W) float32 in [-1, 1] of a gray image of more than 8 bits."""
    check_depth(image)
    values = np.asarray(image)
    if image.mode == "F":
        return values if signed else values * np.float32(2) - np.float32(1)
    found = values.astype(np.float32) / np.float32(32767.5) - np.float32(1)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a PNG's one gray that is transparent
        found[values == clear] = luma(background) / 127.5 - 1
    return found
