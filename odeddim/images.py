"""Images from files and back: folders, npz, npy, IDX and HDF5 -> tensors (N, C, H, W) in [-1, 1]; tensors -> PNG.

- 8-bit values u become u/127.5 - 1. Writing rounds (x + 1)·127.5 to the nearest integer and clips it to 0..255, so
  that an 8-bit image that was read and is written again is the same, bit for bit.
- Floating-point images lie in [-1, 1], or in [0, 1] and are stretched: an array without a single negative value counts
  as [0, 1]. Anything beyond is refused, for it could be 0..255 or standardised by somebody's mean. Files that odeddim
  wrote say their range, and are taken as they are.
- What a file is, its first bytes say; its name does not matter.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from odeddim.files import replacing
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""The files of a folder that count as images."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's
_BLOCK = 4096  # images looked at together when an array is checked


class ImageSource:
    """N images of one shape (C, H, W), read when asked for: `source[i:j]` is (j-i, C, H, W) float32 in [-1, 1].

    shape: (C, H, W). names: one per image, of files their path below the folder.
    """

    def __init__(
        self, shape: tuple[int, int, int], names: Sequence[str], read: Callable[[Sequence[int]], Tensor]
    ) -> None:
        self.shape = shape
        self.names = names
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read(range(*rows.indices(len(self))))

    def read(self, rows: Sequence[int] | None = None) -> Tensor:
        """Images in any order, repeated or not; all of them without an argument. (n, C, H, W) float32 in [-1, 1]."""
        rows = range(len(self)) if rows is None else rows
        return self._read(rows) if len(rows) else torch.empty(0, *self.shape)


def open_images(path: str | Path, *, channels: int | None = None) -> ImageSource:
    """The images of a folder (and the folders in it), of one image file, or of an npz, npy, IDX or HDF5 file.

    channels: 1 turns colour into gray (ITU-R 601-2), 3 gray into colour; None takes them as they are.
    npz and HDF5: the array `images`, or the only one with three or four axes. Axes may be (N, H, W), (N, H, W, C) or
    (N, C, H, W) with C = 1 or 3. Transparency is dropped; photos are turned as their EXIF orientation says.
    Errors: InputError naming the file, for anything that cannot be used.
    """
    path = Path(path)
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels; they cannot be read with {channels}")
    if os.path.isdir(path):
        names = sorted(
            file.relative_to(path).as_posix()
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not names:
            raise InputError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
        return _files(path, names, channels)
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an image, an array file or a folder"
        ) from None
    if head.startswith(b"PK"):
        return _npz(path, channels)
    if head.startswith(b"\x93NUMPY"):
        with _reading(path, "a numpy array"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        return _array(path, array, channels)
    if head.startswith(b"\x89HDF"):
        return _hdf5(path, channels)
    if head.startswith((b"\x1f\x8b", b"\0\0\x08", b"\0\0\x09", b"\0\0\x0b", b"\0\0\x0c", b"\0\0\x0d", b"\0\0\x0e")):
        return _array(path, read_idx(path), channels, layout="NHW")
    return _files(path.parent, [path.name], channels)


def sample_images() -> ImageSource:
    """The package's own sample: the first 256 test images of Fashion-MNIST, (256, 1, 28, 28)."""
    with resources.as_file(resources.files("odeddim.data") / "fashion-mnist-test.npz") as path:
        return open_images(path)


def check_shape(source: ImageSource, shape: Sequence[int], where: str | Path) -> None:
    """Raise an InputError unless the images have the shape (C, H, W) that a model takes; `where` they came from."""
    if source.shape != tuple(shape):
        has, wants = "×".join(map(str, source.shape)), "×".join(map(str, shape))
        raise InputError(
            f"the images of {where} are {has} (channels×height×width), but the model takes {wants}: resize them"
        )


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """The images of an IDX file (MNIST's format), gzipped or not: (N, H, W) uint8.

    Header, big-endian: two zero bytes, the type (8: unsigned byte), the number of axes, then each size as 4 bytes.
    """
    with open(path, "rb") as raw:
        opener: Any = gzip.open if raw.read(2) == b"\x1f\x8b" else open
    with _reading(path, "an IDX file"), opener(path, "rb") as file:
        magic = _take(file, 4)
        if len(magic) < 4 or magic[:2] != b"\0\0":
            raise InputError(f"{path} is not an IDX file: it does not begin with two zero bytes")
        if magic[2] != 8:
            raise InputError(
                f"{path} holds values of IDX type {magic[2]:#04x}; only unsigned bytes (0x08) are images here"
            )
        if magic[3] != 3:
            raise InputError(f"{path} has {magic[3]} axes where images have 3 (N, H, W): is it the file of labels?")
        header = _take(file, 12)
        n, h, w = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4, 8))
        content = _take(file, n * h * w)
        if len(header) < 12 or len(content) < n * h * w:
            raise InputError(f"{path} is cut off: {len(content)} of {n * h * w} bytes are there; copy it again")
        if file.read(1):
            raise InputError(f"{path} is longer than the {n}×{h}×{w} bytes that its header announces: is it damaged?")
    return np.frombuffer(content, np.uint8).reshape(n, h, w)


def _take(file: IO[bytes], count: int) -> bytes:
    """Up to count bytes. In blocks, so that a wrong header cannot ask for more memory than the file fills."""
    blocks = []
    while count and (block := file.read(min(count, 1 << 20))):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises on a broken file becomes one sentence that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, struct, Pillow's plug-ins and h5py raise nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} cannot be read as {kind} ({reason}): copy it again or leave it out") from None


def _from_bytes(content: Tensor) -> Tensor:
    return content.to(torch.float32).div_(127.5).sub_(1)


# Arrays: one reader for all the files that hold one.


def _npz(path: Path, channels: int | None) -> ImageSource:
    with _reading(path, "an npz file"), np.load(path, allow_pickle=False) as arrays:
        # Each look at an array unpacks it: look at no others than needed.
        keys = ["images"] if "images" in arrays.files else arrays.files
        array = arrays[_pick_array(path, {key: arrays[key].ndim for key in keys})]
    return _array(path, array, channels)


def _hdf5(path: Path, channels: int | None) -> ImageSource:
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    with _reading(path, "an HDF5 file"):
        file = h5py.File(path, "r")  # stays open as long as the source: images are read when asked for
        kind = str(file.attrs.get("format", "odeddim images"))
        if kind.startswith("odeddim") and kind != "odeddim images":
            raise InputError(f"{path} holds {kind.removeprefix('odeddim ')}, not images: `odeddim decode` it first")
        file.visititems(visit)
        data = found[_pick_array(path, {name: dataset.ndim for name, dataset in found.items()})]
        names = [name.decode() for name in found["names"][:]] if "names" in found else None
        declared = file.attrs.get("range") == "[-1, 1]"
    return _array(path, data, channels, names=names, declared=declared)


def _pick_array(path: Path, axes: dict[str, int]) -> str:
    """The name of the array with the images, among arrays with so many axes."""
    if "images" in axes:
        return "images"
    candidates = [name for name, ndim in axes.items() if ndim in (3, 4)]
    if len(candidates) != 1:
        has = ", ".join(sorted(axes)) or "nothing"
        raise InputError(
            f"{path} has no array `images` and not exactly one with 3 or 4 axes (it has: {has}): name it so"
        )
    return candidates[0]


def _array(
    path: Path,
    array: Any,
    channels: int | None,
    *,
    layout: str | None = None,
    names: list[str] | None = None,
    declared: bool = False,
) -> ImageSource:
    """The source for an array or data set, (N, H, W), (N, H, W, C) or (N, C, H, W); declared: its range is known."""
    layout = layout or _layout(path, array.shape)
    n, *sizes = array.shape
    if not n or 0 in sizes:
        raise InputError(f"{path} holds no images: its shape is {array.shape}")
    if names is not None and len(names) != n:
        raise InputError(f"{path} has {n} images and {len(names)} names: one of the two is cut off")
    h, w, has = {"NHW": (*sizes, 1), "NHWC": tuple(sizes), "NCHW": (*sizes[1:], sizes[0])}[layout]

    def fetch(rows: Sequence[int]) -> Tensor:
        with _reading(path, "images"):
            content = torch.from_numpy(_rows(array, rows))
        return content[:, None] if layout == "NHW" else content.movedim(-1, 1) if layout == "NHWC" else content

    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{path} holds {array.dtype} values: save the images as uint8 (0..255) or float in [-1, 1]")
    stretch = array.dtype.kind == "f" and _check_floats(path, fetch, n, declared)

    def read(rows: Sequence[int]) -> Tensor:
        x = fetch(rows)
        if x.dtype == torch.uint8:
            x = _from_bytes(x)
        elif stretch:
            x = x * 2 - 1
        return _with_channels(x.to(torch.float32), channels).contiguous()

    return ImageSource((channels or has, h, w), names or [f"{i:06d}" for i in range(n)], read)


def _rows(array: Any, rows: Sequence[int]) -> np.ndarray[Any, Any]:
    """array[rows] as memory of our own. HDF5 wants rising rows without repeats: each is read once and handed round."""
    if isinstance(rows, range) and rows.step == 1:
        return np.array(array[rows.start : rows.stop])
    unique, inverse = np.unique(np.asarray(rows), return_inverse=True)
    return np.asarray(array[unique])[inverse]


def _layout(path: Path, shape: tuple[int, ...]) -> str:
    """Which axis holds the channels; an InputError where the shape leaves it open."""
    if len(shape) == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first != last:
            return "NCHW" if first else "NHWC"
        problem = "either axis could be the channels" if first else "neither axis has 1 or 3 channels"
        raise InputError(f"{path} has shape {shape}: {problem}, where (N, C, H, W) or (N, H, W, C) is needed")
    if len(shape) != 3:
        raise InputError(f"{path} has shape {shape}: images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if shape[0] == 3 or shape[2] in (1, 3):
        raise InputError(
            f"{path} has shape {shape}: one colour image or {shape[0]} gray ones? Save it with four axes, (N, C, H, W)"
        )
    return "NHW"


def _check_floats(path: Path, fetch: Callable[[Sequence[int]], Tensor], n: int, declared: bool) -> bool:
    """Whether float images lie in [0, 1]; an InputError if some are NaN, or lie beyond [-1, 1] undeclared."""
    low, high = math.inf, -math.inf
    for start in range(0, n, _BLOCK):
        block = fetch(range(start, min(start + _BLOCK, n))).flatten(1)
        finite = torch.isfinite(block).all(dim=1)
        if not bool(finite.all()):
            raise InputError(
                f"image {start + int(finite.int().argmin())} of {path} holds NaN or infinite values: leave it out"
            )
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if declared:
        return False
    if low < -1 or high > 1:
        raise InputError(
            f"{path} holds floats from {low:.6g} to {high:.6g}: scale them to [-1, 1] or [0, 1], or save them as uint8"
        )
    return low >= 0


def _with_channels(x: Tensor, channels: int | None) -> Tensor:
    """(n, C, H, W) with as many channels as asked for."""
    if channels is None or channels == x.shape[1]:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return torch.einsum("nchw,c->nhw", x, torch.tensor(_LUMA))[:, None]


# Image files, through Pillow.


def _files(folder: Path, names: list[str], channels: int | None) -> ImageSource:
    """The source for image files. All headers are looked at now: an odd one out should not stop a long run later."""
    first: tuple[int, int, int] | None = None
    for name in names:
        with _opened(folder / name) as image:
            width, height = image.size
            if _is_turned(image):
                width, height = height, width
            shape = (channels or _channels(image), height, width)
        first = first or shape
        if shape != first:
            has, wants = "×".join(map(str, shape)), "×".join(map(str, first))
            raise InputError(
                f"{folder / name} is {has} (channels×height×width), but {names[0]} is {wants}: bring them to one size"
            )
    assert first is not None

    def read(rows: Sequence[int]) -> Tensor:
        return _from_bytes(torch.stack([_decode(folder / names[i], first) for i in rows]))

    return ImageSource(first, names, read)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    import PIL.Image

    with _reading(path, "an image"), PIL.Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path} has more than 8 bits per channel (mode {image.mode}): save it with 8")
        yield image


def _channels(image: Image) -> int:
    return 1 if image.mode in ("1", "L", "LA") else 3


def _is_turned(image: Image) -> bool:
    """Whether the EXIF orientation swaps height and width; only in JPEG, which is what cameras write."""
    return image.format == "JPEG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _decode(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """One image as uint8 (C, H, W)."""
    import PIL.ImageOps

    with _opened(path) as image:
        upright = PIL.ImageOps.exif_transpose(image) if image.format == "JPEG" else image
        content = np.array(upright.convert("L" if shape[0] == 1 else "RGB"))
        if content.shape[:2] != shape[1:]:
            raise InputError(
                f"{path} changed its size to {content.shape[0]}×{content.shape[1]} while it was being used"
            )
    return torch.from_numpy(content).reshape(*shape[1:], shape[0]).movedim(-1, 0)


# Writing.


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 of the same shape: (x + 1)·127.5 rounded to the nearest, clipped to 0..255."""
    if not bool(torch.isfinite(images).all()):
        raise InputError("an image to be written holds NaN or infinite values: try more steps or another solver")
    return images.detach().cpu().to(torch.float64).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def save_image(image: Tensor, path: str | Path) -> None:
    """One image (C, H, W) in [-1, 1] as a PNG, C = 1 or 3. What was at `path` is replaced only by the whole file."""
    import PIL.Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"a PNG holds 1 or 3 channels: an image of shape {tuple(image.shape)} cannot be written as {path}"
        )
    content = to_bytes(image).movedim(0, -1)
    pixels = content[:, :, 0] if image.shape[0] == 1 else content
    with replacing(Path(path)) as temporary:
        PIL.Image.fromarray(pixels.contiguous().numpy()).save(temporary, format="PNG")


def save_sheet(images: Tensor, path: str | Path, columns: int | None = None) -> None:
    """Images (n, C, H, W) in [-1, 1] side by side in one PNG, row by row; as square as can be without `columns`.

    The last row is filled up with black.
    """
    n, c, h, w = images.shape
    if n == 0:
        raise InputError(f"there are no images to write to {path}")
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = torch.full((rows * columns, c, h, w), -1.0)
    cells[:n] = images.detach().cpu()
    save_image(cells.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w), path)
