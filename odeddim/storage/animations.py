"""Animations of images: GIF and WebP by Pillow, MP4 (H.264) by PyAV, which brings its own encoder."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from odeddim.storage.atomic import check_place, replacing
from odeddim.storage.png import picture
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".gif", ".webp", ".mp4")
FPS = 10
MOST_FPS = 50  # a GIF counts hundredths of a second, and players take fewer than 2 of them for 10
MOST_FRAMES = 10_000

_SIDE = 256  # pixels that the shorter side of a frame has at least, by default


@dataclass(frozen=True)
class Animation:
    """An animation to be made, and how.

    Attributes:
        path: The file: NAME.gif, NAME.webp or NAME.mp4.
        fps: Frames a second, 1 to 50. A GIF counts in hundredths of a second, and takes the nearest.
        scale: How many times the images are enlarged; None for the least with which their shorter side has 256 pixels.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> import odeddim, pathlib
        >>> odeddim.jobs.Animation(pathlib.Path("path.gif"), fps=20).path.suffix
        '.gif'
    """

    path: Path
    fps: int = FPS
    scale: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not isinstance(self.fps, (int, float)) or not 1 <= self.fps <= MOST_FPS:
            raise InputError(f"fps={self.fps}: give 1 to {MOST_FPS} frames a second")
        if self.scale is not None and self.scale < 1:
            raise InputError(f"scale={self.scale}: give a whole number, 1 or more")

    def check(self, *inputs: Path | None) -> None:
        """Raise an InputError if the animation cannot be written to its place, or its encoder is missing."""
        check_place(self.path, *inputs, suffixes=SUFFIXES)
        if self.path.suffix.lower() == ".mp4":
            check_encoder(self.path, "name the file NAME.gif or NAME.webp")

    def save(self, images: Iterable[Tensor], mark: str, temporary: Path | None = None) -> None:
        """Write images as the animation, one frame each. It repeats for ever, where the format can say so.

        Args:
            images: (C, H, W) each, in [-1, 1], with C = 1 or 3.
            mark: What says in the file which run it belongs to.
            temporary: Where the file lies until it is whole; see `odeddim.storage.atomic.replacing`.

        Raises:
            InputError: An image cannot be drawn, or the disk does not take the file.
        """
        frames = self._frames(images)
        with replacing(self.path, temporary) as place:
            WRITERS[self.path.suffix.lower()](place, frames, self.fps, mark)

    def _frames(self, images: Iterable[Tensor]) -> Iterator[Image]:
        import PIL.Image

        for image in images:
            frame = picture(image, self.path)
            scale = self.scale or math.ceil(_SIDE / min(frame.size))
            yield frame.resize((frame.width * scale, frame.height * scale), PIL.Image.Resampling.NEAREST)


def check_encoder(path: Path, instead: str) -> None:
    """Raise an InputError if there is no encoder of MP4. instead: what to do without one."""
    if importlib.util.find_spec("av") is None:
        raise InputError(f"{path}: an MP4 needs the package av: `pip install 'odeddim[video]'`, or {instead}")


def _write_gif(place: Path, frames: Iterator[Image], fps: int, mark: str) -> None:
    more: dict[str, Any] = {"duration": 10 * round(100 / fps), "loop": 0, "comment": mark.encode()}
    next(frames).save(place, format="GIF", save_all=True, append_images=frames, **more)


def _write_webp(place: Path, frames: Iterator[Image], fps: int, mark: str) -> None:
    import PIL.Image

    exif = PIL.Image.Exif()
    exif[0x010E] = mark
    more: dict[str, Any] = {"duration": round(1000 / fps), "loop": 0, "exif": exif.tobytes()}
    next(frames).save(place, format="WEBP", save_all=True, append_images=frames, lossless=True, **more)


def _write_mp4(place: Path, frames: Iterator[Image], fps: int, mark: str) -> None:
    import av
    import PIL.Image

    # bitexact: without dates and versions, so that the same images give the same bytes.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(place), "w", format="mp4", options=options) as container:
        container.metadata["comment"] = mark
        stream: Any = None
        for frame in frames:
            if stream is None:
                # What looks ahead reads beyond the frames in x264, and then the bytes differ from run to run.
                still = "bframes=0:mbtree=0:rc-lookahead=0"
                encoder = {"crf": "16", "threads": "1", "x264-params": still}
                stream = container.add_stream("libx264", rate=Fraction(fps), options=encoder)
                stream.pix_fmt = "yuv420p"  # which every player can show; it needs even sides
                stream.width, stream.height = (side + side % 2 for side in frame.size)
            page = PIL.Image.new("RGB", (stream.width, stream.height))
            for corner in ((page.width - frame.width, page.height - frame.height), (0, 0)):
                page.paste(frame, corner)  # an odd side gets its last pixels twice
            container.mux(stream.encode(av.VideoFrame.from_image(page)))  # type: ignore[no-untyped-call,unused-ignore]
        container.mux(stream.encode())


WRITERS: dict[str, Callable[[Path, Iterator[Image], int, str], None]] = {
    ".gif": _write_gif,
    ".webp": _write_webp,
    ".mp4": _write_mp4,
}
"""By suffix, what writes frames of one size to a place: write(place, frames, fps, words within the file)."""
