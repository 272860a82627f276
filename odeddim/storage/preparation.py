"""Preparation: how images of any size, depth and transparency become images of the shape that a model takes.

The order: the image is turned upright, laid on the background where it is transparent, converted to gray or colour,
resized, and cropped or padded. Pillow resizes by the antialiased Lanczos filter: `PIL.ImageOps.fit` crops,
`PIL.Image.Image.resize` stretches, and what pads does as `PIL.ImageOps.pad`. Images of 8 bits are resized as such;
images of more bits, floats and arrays as float32. Values are not made linear in light first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from odeddim.storage.pictures import colour_of, luma, upright
from odeddim.types import InputError, pick

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL = "model"
"""The model's own size."""

VIDEO = "video"
"""All frames of a video."""

RESAMPLING = "lanczos"
_MOST = 1 << 15  # pixels of a side
_WHITE = "#ffffff"


@dataclass(frozen=True)
class Preparation:
    """What is done to images before a model sees them.

    Attributes:
        resize: The size: S for S×S pixels, (H, W), or "model" for the model's own size. None leaves the size as it is,
            and is "model" where `crop` or `pad` ask for it.
        crop: "center", also the default where there is a size: scale the image until its shorter side fits, and cut
            off both ends of the longer one. With 8-bit images this is torchvision's Resize and CenterCrop with
            Lanczos, but for rounding. "none": stretch to the size, as diffusers' image processors do.
        pad: Scale the image until its longer side fits, and fill up with the background, in place of `crop`.
        background: A colour's name or #rrggbb, on which transparent images are laid, and with which images are padded.
        frames: Of animations and files of several pictures: "first", or "all", each as an image of its own, which are
            called NAME#0000, NAME#0001, ... with the file's suffix. Of a photograph in several views, the first is
            taken. "video": all of them as one video, or for a whole number N the first N of them; then files are videos
            too, and so is a folder of frames. For models of videos that is the default.
        skip_bad: Whether to leave out files that cannot be read. Every file is decoded when the source is opened, so
            that none stops a run later. `ImageSource.skipped` lists them.

    Raises:
        InputError: If a value cannot be used, or two exclude each other.

    Example:
        >>> import odeddim
        >>> odeddim.Preparation(resize=64, pad=True, background="black").to_dict()
        {'resize': [64, 64], 'pad': True, 'resampling': 'lanczos', 'background': '#000000'}
    """

    resize: int | tuple[int, int] | str | None = None
    crop: str | None = None
    pad: bool = False
    background: str = "white"
    frames: str | int = "first"
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.crop is not None:
            pick(self.crop, ("center", "none"), "crop")
        if isinstance(self.frames, str):
            pick(self.frames, ("first", "all", VIDEO), "choice of frames")
        elif isinstance(self.frames, bool) or self.frames < 1:
            raise InputError(f"frames={self.frames!r}: give a whole number, 1 or more, 'first', 'all' or 'video'")
        if self.pad and self.crop == "center":
            raise InputError("pad=True fills up where crop=center cuts off: give one of the two")
        colour_of(self.background)
        if self.resize is None and (self.pad or self.crop == "center"):
            object.__setattr__(self, "resize", MODEL)
        if self.resize not in (None, MODEL):
            object.__setattr__(self, "resize", _sides(self.resize))

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of prepared images; None if their size stays as it is.

        Raises:
            InputError: The size is that of a model which is not known here.
        """
        if self.resize == MODEL:
            raise InputError("no model is known here whose size the images could take: give resize=SIZE")
        assert not isinstance(self.resize, (int, str))
        return self.resize

    def for_model(self, shape: Sequence[int] | None) -> Preparation:
        """This preparation, with the size of a model where it says "model".

        Args:
            shape: (C, H, W) of the model's own images, or (C, F, H, W); None if it takes any.

        Raises:
            InputError: The model takes any size, and none is given.
        """
        if self.resize != MODEL:
            return self
        if shape is None:
            raise InputError("the model takes images of any size: say which one with resize=SIZE")
        return replace(self, resize=(shape[-2], shape[-1]))

    @property
    def of_videos(self) -> bool:
        """Whether several pictures are one video."""
        return self.frames not in ("first", "all")

    @property
    def most_frames(self) -> int | None:
        """How many frames of each video are taken; None for all."""
        return self.frames if isinstance(self.frames, int) else None

    def for_videos(self) -> Preparation:
        """This preparation, with videos whose frames are all taken unless it says how many."""
        return self if self.of_videos else replace(self, frames=VIDEO)

    def to_dict(self, skipped: int = 0) -> dict[str, Any]:
        """What changes the images, as JSON can hold it; the rest is as usual.

        Args:
            skipped: How many files were skipped.
        """
        said: dict[str, Any] = {}
        if self.size is not None:
            fit = {"pad": True} if self.pad else {"crop": self.crop or "center"}
            said = {"resize": list(self.size), **fit, "resampling": RESAMPLING}
        background = "#{:02x}{:02x}{:02x}".format(*colour_of(self.background))
        said |= {"background": background} if background != _WHITE else {}
        said |= {"frames": self.frames} if self.frames != "first" else {}
        return said | ({"skipped": skipped} if skipped else {})

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Preparation | None:
        """The preparation that `to_dict` describes; None for nothing.

        Raises:
            InputError: It describes none of this version.
        """
        if not said:
            return None
        known = dict(said)
        skips, by = bool(known.pop("skipped", 0)), known.pop("resampling", RESAMPLING)
        try:
            if by != RESAMPLING:
                raise InputError(f"resampling {by!r}")
            return cls(**known, skip_bad=skips)
        except (InputError, TypeError) as error:
            raise InputError(f"the images were prepared as this version cannot: {error}") from error

    def apply(self, image: Image, shape: Sequence[int], *, signed: bool = False) -> Tensor:
        """Prepare one image of Pillow, opened or made.

        Args:
            image: The image, of any mode that `odeddim.storage.pictures.upright` takes.
            shape: (C, H, W) of the result; H and W as the preparation says, or as the image has them.
            signed: Whether floats lie in [-1, 1]; otherwise they lie in [0, 1].

        Returns:
            (C, H, W) float32 in [-1, 1].
        """
        colour = colour_of(self.background)
        picture = upright(image, shape[0], colour, signed=signed)
        gray = luma(colour)
        fill = {"RGB": colour, "L": round(gray), "F": _value(gray)}[picture.mode]
        x = torch.from_numpy(np.array(self._fitted(picture, fill)))
        if picture.mode == "F":
            return x.clamp(-1, 1).expand(*shape)
        return x.to(torch.float32).div_(127.5).sub_(1).reshape(*shape[1:], shape[0]).movedim(-1, 0)

    def apply_to_array(self, images: Tensor) -> Tensor:
        """Resize images (n, C, H, W) float32, each channel by itself; what lies beyond [-1, 1] is not clipped."""
        if self.size is None or tuple(images.shape[2:]) == self.size:
            return images
        import PIL.Image

        colour = colour_of(self.background)
        fills = [_value(value) for value in (colour if images.shape[1] == 3 else (luma(colour),))]
        low, high = min(-1.0, float(images.min())), max(1.0, float(images.max()))
        planes = enumerate(images.flatten(0, 1).numpy())
        made = [np.array(self._fitted(PIL.Image.fromarray(each), fills[i % len(fills)])) for i, each in planes]
        return torch.from_numpy(np.stack(made)).clamp(low, high).reshape(*images.shape[:2], *self.size)

    def _fitted(self, picture: Image, fill: Any) -> Image:
        """An upright picture of mode L, RGB or F, in the size of the preparation. fill: what pads it."""
        if self.size is None:
            return picture
        import PIL.ImageOps
        from PIL.Image import Resampling

        size = self.size[::-1]
        if self.pad:
            return _padded(picture, size, fill)
        if self.crop == "none":
            return picture.resize(size, Resampling.LANCZOS)
        return PIL.ImageOps.fit(picture, size, Resampling.LANCZOS)


AS_IT_IS = Preparation()
"""The preparation without any option."""


def _padded(picture: Image, size: tuple[int, int], fill: Any) -> Image:
    """As `PIL.ImageOps.pad`, which fails on an image so long that its shorter side would have no pixel."""
    import PIL.Image

    (width, height), (w, h) = picture.size, size
    if width * h > height * w:
        h = max(1, round(height / width * w))
    else:
        w = max(1, round(width / height * h))
    whole = PIL.Image.new(picture.mode, size, fill)
    place = (round((size[0] - w) / 2), round((size[1] - h) / 2))
    whole.paste(picture.resize((w, h), PIL.Image.Resampling.LANCZOS), place)
    return whole


def _value(byte: float) -> float:
    """0..255 as a value in [-1, 1]."""
    return byte / 127.5 - 1


def _sides(given: Any) -> tuple[int, int]:
    """(H, W) of a size as users say it."""
    sides = tuple(given) if isinstance(given, (list, tuple)) else (given, given)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= _MOST for side in sides):
        raise InputError(
            f"resize={given!r:.80}: give one whole number of pixels up to {_MOST}, two of them (height, width), or "
            "'model'"
        )
    return sides
