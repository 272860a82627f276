"""Images from files and back: folders, lists, npz, npy, IDX and HDF5 -> tensors (N, C, H, W) in [-1, 1]; -> PNG.

- 8-bit values u become u/127.5 - 1. Writing rounds (x + 1)·127.5 to the nearest integer and clips it to 0..255, so
  that an 8-bit image that was read and is written again is the same, bit for bit.
- Floating-point images lie in [-1, 1], or in [0, 1] and are stretched: an array without a single negative value counts
  as [0, 1]. Anything beyond is refused, for it could be 0..255 or standardised by somebody's mean. Files that odeddim
  wrote say their range, and are taken as they are.
- What a file is, its first bytes say; its name does not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from odeddim.storage.arrays import Array, Names, open_array, reading
from odeddim.storage.atomic import replacing
from odeddim.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""The files of a folder that count as images."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's
_PHOTOS = ("JPEG", "MPO")
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")  # of others Pillow may start other programs
_BLOCK = 1 << 24  # bytes of images looked at together when an array is checked
_LONGEST_PATH = 1 << 16  # bytes; systems allow some 4096
_PIECE = 1 << 20  # bytes of a file that its fingerprint reads at a time
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = 1 << 16  # bytes of a PNG in which its notes stand
MARK = "odeddim"
"""The note of a PNG that says which run it is of."""


class ImageSource:
    """N images of one shape (C, H, W), read when asked for: `source[i:j]` is (j-i, C, H, W) float32 in [-1, 1].

    shape: (C, H, W). names: one per image, of files their path below the folder, or as the list gives it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        names: Sequence[str],
        read: Callable[[Sequence[int]], Tensor],
        marks: Callable[[int], Iterable[bytes]] | None = None,
    ) -> None:
        """read(rows): (n, C, H, W) float32 of n >= 1 images. marks(count): what tells the first so many images from
        others; their names."""
        self.shape = shape
        self.names = names
        self._read = read
        self._marks = marks or (lambda count: (_bytes(name) for name in names[:count]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read(range(*rows.indices(len(self))))

    def read(self, rows: Sequence[int] | None = None) -> Tensor:
        """Images in any order, repeated or not; all of them without an argument. (n, C, H, W) float32 in [-1, 1].

        Errors: InputError naming the file that has disappeared, is damaged or is no longer what it was.
        """
        every = range(len(self))
        rows = every if rows is None else rows if isinstance(rows, range) else [every[i] for i in rows]
        return self._read(rows) if len(rows) else torch.empty(0, *self.shape)

    def fingerprint(self, count: int | None = None) -> str:
        """A SHA-256 in hex that is the same for the same source, at another time and on another machine.

        No pixel is decoded, but every byte is read. It covers number and shape of the images; of files their names and
        contents, of the first `count` only if that is given; of an array file its shape and type and all of its bytes.
        """
        count = min(count or len(self), len(self))
        digest = hashlib.sha256(repr((count, self.shape)).encode())
        for mark in self._marks(count):
            digest.update(len(mark).to_bytes(8, "big") + mark)
        return digest.hexdigest()

    def identity(self, path: Path | None, count: int | None = None) -> dict[str, str]:
        """What a provenance says of the first `count` images, or all: the path that was given, None for the package's
        sample, and the fingerprint."""
        return {"path": SAMPLE if path is None else str(path), "sha256": self.fingerprint(count), "of": "contents"}


def open_images(path: str | Path, *, channels: int | None = None) -> ImageSource:
    """The images of a folder (and the folders in it), of one image file, or of an npz, npy, IDX or HDF5 file.

    path: "-" stands for a list of image files on standard input, one a line or each ended by a zero byte; what is not
    absolute counts from the current folder.
    channels: 1 turns colour into gray (ITU-R 601-2), 3 gray into colour; None takes them as they are.
    npz and HDF5: the array `images`, or the only one with three or four axes. Axes may be (N, H, W), (N, H, W, C) or
    (N, C, H, W) with C = 1 or 3. What is transparent is laid on white, and of several pictures in a file the first is
    taken; a warning says so. Photos are turned as their EXIF orientation says.
    Memory does not grow with the number of images, but for the bytes of their names.
    Errors: InputError naming the file, for anything that cannot be used.
    """
    path = Path(path)
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels; they cannot be read with {channels}")
    if path == Path("-"):
        names = Names.packed(_listed(sys.stdin.buffer) if sys.stdin else ())
        if not names:
            raise InputError("the list of images on standard input is empty: give one path a line")
        return _files(Path(), names, channels)
    if os.path.isdir(path):
        names = Names.packed(_below(path))
        if not names:
            raise InputError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
        return _files(path, names, channels)
    try:
        array = open_array(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an image, an array file or a folder"
        ) from error
    return _files(path.parent, [path.name], channels) if array is None else _array(path, array, channels)


SAMPLE = "the package's sample"
"""What latent files call the package's own images."""


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


def _from_bytes(content: Tensor) -> Tensor:
    return content.to(torch.float32).div_(127.5).sub_(1)


# Arrays.


def _array(path: Path, array: Array, channels: int | None) -> ImageSource:
    """The source for an array (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    axes = array.axes or _layout(path, array.shape)
    n, *sizes = array.shape
    if not n or 0 in sizes:
        raise InputError(f"{path} holds no images: its shape is {array.shape}")
    h, w, has = {"NHW": (*sizes, 1), "NHWC": tuple(sizes), "NCHW": (*sizes[1:], sizes[0])}[axes]

    def fetch(rows: Sequence[int]) -> Tensor:
        with reading(path, "images"):
            content = torch.from_numpy(array.rows(rows))
        return content[:, None] if axes == "NHW" else content.movedim(-1, 1) if axes == "NHWC" else content

    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{path} holds {array.dtype} values: save the images as uint8 (0..255) or float in [-1, 1]")
    block = max(1, _BLOCK // (array.dtype.itemsize * h * w * has))
    stretch = array.dtype.kind == "f" and _check_floats(path, fetch, n, block, array.declared)

    def read(rows: Sequence[int]) -> Tensor:
        x = fetch(rows)
        if x.dtype == torch.uint8:
            x = _from_bytes(x)
        elif stretch:
            x = x * 2 - 1
        return _with_channels(x.to(torch.float32), channels).contiguous()

    def marks(_: int) -> Iterator[bytes]:
        yield repr((array.shape, str(array.dtype))).encode()
        with reading(path, "images"):
            yield _content_hash(path)

    return ImageSource((channels or has, h, w), array.names or Names.numbers(n), read, marks)


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


def _check_floats(path: Path, fetch: Callable[[Sequence[int]], Tensor], n: int, block: int, declared: bool) -> bool:
    """Whether float images lie in [0, 1]; an InputError if some are NaN, or lie beyond [-1, 1] undeclared."""
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


def _with_channels(x: Tensor, channels: int | None) -> Tensor:
    """(n, C, H, W) with as many channels as asked for."""
    if channels is None or channels == x.shape[1]:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return torch.einsum("nchw,c->nhw", x, torch.tensor(_LUMA))[:, None]


# Image files, through Pillow.


def _below(folder: Path) -> Iterator[str]:
    """The image files in a folder and the folders in it: their paths below it, with slashes, in order."""
    waiting = [""]  # the next one last; folders end in a slash, and so come where their files belong
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
            raise InputError(f"the folder {folder / name} cannot be read ({error.strerror}): take it out") from error
        waiting += sorted(folders_and_images, reverse=True)


def _listed(stream: IO[bytes]) -> Iterator[str]:
    """The paths in a list, with lines or zero bytes between them; an InputError for one that is no file."""
    for number, line in enumerate(_lines(stream), 1):
        name = os.fsdecode(line)
        if not line.strip():
            continue
        if not os.path.isfile(name):
            raise InputError(
                f"line {number} of the list on standard input names no file: {name[:200]!r} (from {os.getcwd()})"
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


def _files(folder: Path, names: Sequence[str], channels: int | None) -> ImageSource:
    """The source for image files. All headers are looked at now: an odd one out should not stop a long run later."""
    with _opened(folder / names[0]) as image:
        shape = _shape(image, channels)

    def check(name: str, image: Image) -> None:
        if _shape(image, channels) != shape:
            has, wants = ("×".join(map(str, sizes)) for sizes in (_shape(image, channels), shape))
            raise InputError(
                f"{folder / name} is {has} (channels×height×width), but {names[0]} is {wants}: bring them to one size"
            )

    def decode(name: str) -> Tensor:
        with _opened(folder / name) as image:
            check(name, image)  # it may have changed since
            return _decode(image, shape)

    def read(rows: Sequence[int]) -> Tensor:
        return _from_bytes(torch.stack([decode(names[i]) for i in rows]))

    def marks(count: int) -> Iterator[bytes]:
        for i in range(count):
            with reading(folder / names[i], "an image"):
                yield _bytes(names[i]) + b"\0" + _content_hash(folder / names[i])

    transparent = moving = 0
    for name in names:
        with _opened(folder / name) as image:
            check(name, image)
            transparent += _may_be_transparent(image)
            moving += _has_more(image)
    of = f"of {len(names)} images"
    if transparent:
        warnings.warn(f"{transparent} {of} may be transparent in parts: they are laid on white", stacklevel=3)
    if moving:
        warnings.warn(f"{moving} {of} hold several pictures: the first of each is taken", stacklevel=3)
    return ImageSource(shape, names, read, marks)


def _content_hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def _may_be_transparent(image: Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _has_more(image: Image) -> bool:
    """Whether there is more than one picture in a file, as far as it can be read: what follows the first is not."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # of broken files, Pillow raises nearly anything
        return False


def _bytes(name: str) -> bytes:
    """A name, also one that is no UTF-8."""
    return name.encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    import PIL.Image

    with reading(path, "an image"), PIL.Image.open(path, formats=_FORMATS) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path} has more than 8 bits per channel (mode {image.mode}): save it with 8")
        yield image


def _shape(image: Image, channels: int | None) -> tuple[int, int, int]:
    """(C, H, W) as it will be read. Only of JPEG, which is what cameras write, the EXIF orientation counts."""
    width, height = image.size
    if image.format in _PHOTOS and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    return channels or (1 if image.mode in ("1", "L", "LA") else 3), height, width


def _decode(image: Image, shape: tuple[int, int, int]) -> Tensor:
    """One image as uint8 (C, H, W)."""
    import PIL.Image
    import PIL.ImageOps

    upright = PIL.ImageOps.exif_transpose(image) if image.format in _PHOTOS else image
    if _may_be_transparent(upright):
        upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    content = np.array(upright.convert("L" if shape[0] == 1 else "RGB"))
    return torch.from_numpy(content).reshape(*shape[1:], shape[0]).movedim(-1, 0)


# Writing.


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 of the same shape: (x + 1)·127.5 rounded to the nearest, clipped to 0..255."""
    if not bool(torch.isfinite(images).all()):
        raise InputError("an image to be written holds NaN or infinite values: try more steps or another solver")
    return images.detach().cpu().to(torch.float64).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def save_image(
    image: Tensor, path: str | Path, notes: Mapping[str, str] | None = None, temporary: Path | None = None
) -> None:
    """One image (C, H, W) in [-1, 1] as a PNG, C = 1 or 3. What was at `path` is replaced only by the whole file.

    notes: what is known of it, ASCII, which `notes_of` reads. temporary: see `odeddim.storage.atomic.replacing`.
    """
    import PIL.Image
    from PIL.PngImagePlugin import PngInfo

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"a PNG holds 1 or 3 channels: an image of shape {tuple(image.shape)} cannot be written as {path}"
        )
    content = to_bytes(image).movedim(0, -1)
    pixels = content[:, :, 0] if image.shape[0] == 1 else content
    info = PngInfo()
    for key, note in (notes or {}).items():
        info.add_text(key, note)
    with replacing(Path(path), temporary) as place:
        PIL.Image.fromarray(pixels.contiguous().numpy()).save(place, format="PNG", pnginfo=info)


def is_whole(path: Path, mark: str) -> bool:
    """Whether a file is a PNG with this mark among its notes, to its end and with every checksum right."""
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
    """The notes that `save_image` wrote into a PNG; none of a file that is no PNG, or not there."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return {str(key): note for key, note in image.info.items() if isinstance(note, str)}
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return {}


def save_sheet(
    images: Tensor,
    path: str | Path,
    columns: int | None = None,
    notes: Mapping[str, str] | None = None,
    temporary: Path | None = None,
) -> None:
    """Images (n, C, H, W) in [-1, 1] side by side in one PNG, row by row; as square as can be without `columns`.

    The last row is filled up with black. notes, temporary: as of `save_image`.
    """
    n, c, h, w = images.shape
    if n == 0:
        raise InputError(f"there are no images to write to {path}")
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = torch.full((rows * columns, c, h, w), -1.0)
    cells[:n] = images.detach().cpu()
    sheet = cells.reshape(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
    save_image(sheet, path, notes, temporary)
