"""Images read from files: folders, lists, npz, npy, IDX and HDF5 become tensors (N, C, H, W) in [-1, 1].

Videos become tensors (N, C, F, H, W): see `odeddim.storage.videos`, and arrays of five axes.

- 8-bit values u become u/127.5 - 1, which `odeddim.storage.png.to_bytes` turns back into u exactly.
- Floating-point images lie in [-1, 1], or in [0, 1] and are stretched: an array without a negative value counts as
  [0, 1]. Other ranges are refused, because they could be 0..255 or standardised by some mean. Files that odeddim wrote
  state their range, and are taken as they are.
- The first bytes of a file say its format; its name does not matter.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeddim.storage.array_formats import open_array
from odeddim.storage.arrays import Array
from odeddim.storage.errors import axes_of, called, read_errors
from odeddim.storage.image_files import SUFFIXES, files_below, files_listed
from odeddim.storage.names import Names
from odeddim.storage.opened_files import OpenedFiles, as_bytes, content_hash
from odeddim.storage.pictures import LUMA
from odeddim.storage.preparation import AS_IT_IS, Preparation
from odeddim.storage.videos import ALONE, HERE, OpenedVideos, videos_below
from odeddim.types import InputError

SAMPLE = "the package's sample"
"""What latent files call the package's own images."""

_BLOCK = 1 << 24  # bytes of images looked at together when an array is checked


class ImageSource:
    """N images of one shape, read when they are asked for: `source[i:j]` is (j-i, C, H, W) float32 in [-1, 1].

    Args:
        shape: (C, H, W), or (C, F, H, W) of videos.
        names: One for each image. Files are named by their path below the folder, or as the list names them.
        read: read(rows) is (n, C, H, W) float32, for n >= 1 rows.
        marks: marks(count) tells the first `count` images from others; without it their names do.
        prepared: What was done to them, as of `odeddim.storage.preparation.Preparation.to_dict`.
        skipped: The files that were left out, each with the reason.
        grayed: How many are stored in colour and made gray, in words: "2 of 3 images"; "" for none.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        names: Sequence[str],
        read: Callable[[Sequence[int]], Tensor],
        marks: Callable[[int], Iterable[bytes]] | None = None,
        prepared: Mapping[str, Any] | None = None,
        skipped: Sequence[tuple[str, str]] = (),
        grayed: str = "",
    ) -> None:
        self.shape = shape
        self.names = names
        self.prepared = dict(prepared or {})
        self.skipped = skipped
        self.grayed = grayed
        self._read = read
        self.marks = marks or (lambda count: (as_bytes(name) for name in names[:count]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read(range(*rows.indices(len(self))))

    def read(self, rows: Sequence[int] | None = None) -> Tensor:
        """Read images in any order, repeated or not.

        Args:
            rows: Which images; all of them without it.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            InputError: A file has disappeared, is damaged, or has changed since it was opened.
        """
        every = range(len(self))
        rows = every if rows is None else rows if isinstance(rows, range) else [every[i] for i in rows]
        return self._read(rows) if len(rows) else torch.empty(0, *self.shape)

    def fingerprint(self, count: int | None = None) -> str:
        """A SHA-256 in hex that is the same for the same images, at another time and on another machine.

        It covers the number and the shape of the images. For image files it covers their names and contents; for an
        array file its shape, its type and all of its bytes. Every byte is read, and no pixel is decoded.

        Args:
            count: Only the first so many images.
        """
        count = min(count or len(self), len(self))
        digest = hashlib.sha256(repr((count, self.shape)).encode())
        for mark in self.marks(count):
            digest.update(len(mark).to_bytes(8, "big") + mark)
        return digest.hexdigest()

    def identity(self, path: Path | None, count: int | None = None) -> dict[str, str]:
        """What a provenance records of images: their path and their fingerprint.

        Args:
            path: The path that was given, None for the package's sample.
            count: Only the first so many images.
        """
        return {"path": SAMPLE if path is None else str(path), "sha256": self.fingerprint(count), "of": "contents"}


def open_images(
    path: str | Path | None = None, *, channels: int | None = None, prepare: Preparation | None = None
) -> ImageSource:
    """Open the images of a folder and the folders in it, of one image file, or of an npz, npy, IDX or HDF5 file.

    With `Preparation(frames="video")`, or a number of frames, files and folders hold videos: MP4, WebM and others by
    the package av, GIF, and folders of images, each of which are the frames of one video, in the order of the numbers
    in their names. Arrays of five axes are videos, (N, C, F, H, W) or (N, F, H, W, C).

    In npz and HDF5 files the images are the array `images`, or the only one with three to five axes. The axes of an
    array are (N, H, W), (N, H, W, C) or (N, C, H, W), with C = 1 or 3. Transparent pixels are laid on white, and a file
    of several pictures gives the first; a warning says so. Photos are turned as their EXIF orientation says. Gray
    images of 16 bits keep them, and those of floats follow the rule for arrays, all of them together. Hidden files and
    folders are left alone. Memory does not grow with the number of images, except for the bytes of their names.

    Args:
        path: The folder or file; None for the package's sample, the first 256 test images of Fashion-MNIST. "-" stands
            for a list of image files on standard input, one a line, or each ended by a zero byte; their paths are
            absolute, or relative to the current folder.
        channels: 1 turns colour into gray (ITU-R 601-2), 3 turns gray into colour; None keeps the channels.
        prepare: What is done to the images, such as `odeddim.Preparation(resize=64)`. Arrays are resized channel by
            channel as floats.

    Returns:
        The source of the images.

    Raises:
        InputError: The images cannot be read; the message names the file.

    Example:
        >>> import PIL.Image, odeddim, tempfile
        >>> odeddim.open_images()[:4].shape
        torch.Size([4, 1, 28, 28])
        >>> folder = tempfile.mkdtemp()
        >>> PIL.Image.new("RGB", (640, 480), "red").save(f"{folder}/photo.jpg")
        >>> odeddim.open_images(folder, prepare=odeddim.Preparation(resize=64))[:].shape
        torch.Size([1, 3, 64, 64])
    """
    if path is None:
        with resources.as_file(resources.files("odeddim.data") / "fashion-mnist-test.npz") as sample:
            return open_images(sample, channels=channels, prepare=prepare)
    path, prepare = Path(path), prepare or AS_IT_IS
    if channels not in (None, 1, 3):
        raise InputError(
            f"images have 1 or 3 channels, and cannot be read with {channels}: give channels=1 or channels=3"
        )
    if path == Path("-"):
        checked = not (prepare.skip_bad or prepare.of_videos)
        names = Names.packed(files_listed(sys.stdin.buffer, checked=checked) if sys.stdin else ())
        if not names:
            raise InputError("the list of images on standard input is empty: give one path a line")
        return file_source(Path(), names, channels, prepare)
    if os.path.isdir(path):
        names = Names.packed((videos_below if prepare.of_videos else files_below)(path))
        if not names and prepare.of_videos:
            raise InputError(f"the folder {path} holds no videos ({', '.join(ALONE)}, or folders of images)")
        if not names:
            raise InputError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
        if list(names) == [HERE]:
            path = path.resolve()
            return file_source(path.parent, [path.name], channels, prepare)
        return file_source(path, names, channels, prepare)
    try:
        array = open_array(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an image, an array file or a folder"
        ) from error
    if array is None:
        return file_source(path.parent, [path.name], channels, prepare)
    return array_source(path, array, channels, prepare)


def file_source(folder: Path, names: Sequence[str], channels: int | None, prepare: Preparation) -> ImageSource:
    """The source of the images, or videos, in these files below a folder; arguments as of `open_images`."""
    kind = OpenedVideos if prepare.of_videos else OpenedFiles
    found = kind(folder, names, channels, prepare)
    prepared = prepare.to_dict(len(found.skipped))
    return ImageSource(found.shape, found.names, found.read, found.marks, prepared, found.skipped, found.grayed)


def check_shape(source: ImageSource, shape: Sequence[int], where: str | Path) -> None:
    """Raise an InputError unless images have the shape that a model takes.

    Args:
        source: The images.
        shape: (C, H, W) of the model.
        where: Where the images came from, for the message.
    """
    if source.shape != tuple(shape):
        raise other_shape(source, "×".join(map(str, shape)), where)


def other_shape(source: ImageSource, wants: str, where: str | Path) -> InputError:
    """An error that says that images do not have a shape that a model takes.

    Args:
        source: The images.
        wants: The shapes that the model takes, in words.
        where: Where the images came from.
    """
    has = "×".join(map(str, source.shape))
    frames = "frames=N takes the first N frames of each, and " if len(source.shape) == 4 else ""
    return InputError(
        f"the {called(source.shape)} of {where} are {has} ({axes_of(source.shape)}), but the model takes {wants}: "
        f"{frames}resize=... scales and crops them as they are read"
    )


def from_bytes(content: Tensor) -> Tensor:
    return content.to(torch.float32).div_(127.5).sub_(1)


# Arrays.


def array_source(path: Path, array: Array, channels: int | None, prepare: Preparation) -> ImageSource:
    """The source of the images in an array (N, H, W), (N, H, W, C) or (N, C, H, W), or of videos, with F before H."""
    axes = array.axes or _layout(path, array.shape)
    n, *sizes = array.shape
    if not n or 0 in sizes:
        raise InputError(f"{path} holds no images, its shape is {array.shape}: give another file")
    *counts, h, w, has = [*sizes, 1] if axes == "NHW" else sizes if axes.endswith("C") else [*sizes[1:], sizes[0]]

    def fetch(rows: Sequence[int]) -> Tensor:
        with read_errors(path, "images"):
            content = torch.from_numpy(array.rows(rows))
        content = content[:, None] if axes == "NHW" else content.movedim(-1, 1) if axes.endswith("C") else content
        return content[:, :, : prepare.most_frames] if counts else content

    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{path} holds {array.dtype} values: save the images as uint8 (0..255) or float in [-1, 1]")
    if counts and (prepare.most_frames or 1) > counts[0]:
        raise InputError(f"{path} has videos of {counts[0]} frames, fewer than frames={prepare.frames}: give fewer")
    counts = [prepare.most_frames or count for count in counts]
    block = max(1, _BLOCK // (array.dtype.itemsize * math.prod(sizes)))
    stretch = array.dtype.kind == "f" and check_floats(path, fetch, n, block, array.declared)

    def read(rows: Sequence[int]) -> Tensor:
        x = fetch(rows)
        if x.dtype == torch.uint8:
            x = from_bytes(x)
        elif stretch:
            x = x * 2 - 1
        return prepared_array(x.to(torch.float32), channels, prepare)

    def marks(_: int) -> Iterator[bytes]:
        yield repr((array.shape, str(array.dtype))).encode()
        with read_errors(path, "images"):
            yield content_hash(path)

    shape = (channels or has, *counts, *(prepare.size or (h, w)))
    grayed = f"{n} of {n} images" if (channels, has) == (1, 3) else ""
    return ImageSource(shape, array.names or Names.numbers(n), read, marks, prepare.to_dict(), grayed=grayed)


def _layout(path: Path, shape: tuple[int, ...]) -> str:
    """Which axis holds the channels; raises an InputError where the shape does not determine it."""
    if len(shape) in (4, 5):
        frames, its = ("F", "F, ") if len(shape) == 5 else ("", "")
        first, last = shape[1] in (1, 3), shape[-1] in (1, 3)
        if first != last:
            return f"NC{frames}HW" if first else f"N{frames}HWC"
        problem = "either axis could be the channels" if first else "neither axis has 1 or 3 channels"
        raise InputError(f"{path} has shape {shape}, and {problem}: save it as (N, C, {its}H, W) or (N, {its}H, W, C)")
    if len(shape) != 3:
        raise InputError(f"{path} has shape {shape}: save images as (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if shape[0] == 3 or shape[2] in (1, 3):
        raise InputError(
            f"{path} has shape {shape}, which is one colour image or {shape[0]} gray ones: save it with four axes, "
            "(N, C, H, W)"
        )
    return "NHW"


def check_floats(path: Path, fetch: Callable[[Sequence[int]], Tensor], n: int, block: int, declared: bool) -> bool:
    """Whether float images lie in [0, 1].

    Raises an InputError if some are NaN or infinite, or lie beyond [-1, 1] where the file does not declare its range.
    """
    low, high = math.inf, -math.inf
    for start in range(0, n, block):
        x = fetch(range(start, min(start + block, n))).flatten(1)
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            raise InputError(
                f"image {start + int(finite.int().argmin())} of {path} holds NaN or infinite values: leave it out"
            )
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    if declared:
        return False
    if low < -1 or high > 1:
        raise InputError(
            f"{path} holds floats from {low:.6g} to {high:.6g}: scale them to [-1, 1] or [0, 1], or save them as uint8"
        )
    return low >= 0


def prepared_array(x: Tensor, channels: int | None, prepare: Preparation) -> Tensor:
    """Images (n, C, H, W) float32, or videos (n, C, F, H, W), prepared and in as many channels as were asked for."""
    if x.ndim == 5:
        frames = prepared_array(x.movedim(2, 1).flatten(0, 1), channels, prepare)
        return frames.reshape(len(x), x.shape[2], *frames.shape[1:]).movedim(1, 2).contiguous()
    return prepare.apply_to_array(with_channels(x, channels).contiguous())


def with_channels(x: Tensor, channels: int | None) -> Tensor:
    """(n, C, H, W) with as many channels as were asked for."""
    if channels is None or channels == x.shape[1]:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return torch.einsum("nchw,c->nhw", x, torch.tensor(LUMA))[:, None]
