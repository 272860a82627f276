"""Sources: whatever holds images becomes an `ImageSource`, which reads each image when it is asked for.

What may be given, wherever a job takes images:

- a path, as of `open_images`: a folder with the folders in it, an image, npz, npy, IDX, HDF5, or "-";
- hf:PATH, a dataset of Hugging Face that `save_to_disk` wrote on this machine; nothing is downloaded;
- a list of paths of image files;
- a numpy array, a tensor or an HDF5 dataset: (N, H, W), (N, H, W, C) or (N, C, H, W), of videos (N, C, F, H, W) or
  (N, F, H, W, C);
- a `datasets.Dataset`: its column `image`, or its only column of images;
- any object with a length and items, such as torch's map-style datasets. An item is an image, or a tuple that begins
  with one: an image of Pillow, or an array or tensor (H, W), (H, W, C) or (C, H, W);
- an `ImageSource`, which is taken as it is.

Values are uint8 or floats, under the rules of `odeddim.storage.images`, all images of a source alike. Fingerprints are
those of contents: arrays by all their values, datasets by the values of each image that is taken, which are all read
for it. Names are those of files where a dataset tells them (`datasets`; `samples`, as torchvision's folders have it),
and otherwise numbers.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from odeddim.storage.arrays import Array, take_rows
from odeddim.storage.errors import read_errors
from odeddim.storage.images import (
    ImageSource,
    array_source,
    check_floats,
    file_source,
    from_bytes,
    open_images,
    prepared_array,
)
from odeddim.storage.names import Names
from odeddim.storage.pictures import shape_of
from odeddim.storage.preparation import AS_IT_IS, Preparation
from odeddim.types import InputError

Images: TypeAlias = Any
"""What `source_of` takes."""

SAVED = "hf:"
"""Before the path of a dataset that `save_to_disk` wrote."""

_BLOCK = 1 << 24  # bytes of an array that are looked at together
_PATHS = 1000  # rows of a table whose file names are read together


def source_of(images: Images, *, channels: int | None = None, prepare: Preparation | None = None) -> ImageSource:
    """The images of a path or of an object in memory.

    Memory does not grow with the number of images, except for the bytes of their names.

    Args:
        images: What holds them, see `odeddim.storage.sources`.
        channels: 1 turns colour into gray (ITU-R 601-2), 3 turns gray into colour; None keeps the channels.
        prepare: What is done to each image; by default it stays as it is. An `ImageSource` is prepared once only.

    Returns:
        The source of the images.

    Raises:
        InputError: The images cannot be read, or the object is none that holds images.

    Example:
        >>> import numpy
        >>> from odeddim.storage.sources import source_of
        >>> source_of(numpy.zeros((5, 8, 8), numpy.uint8))[:2].shape
        torch.Size([2, 1, 8, 8])
    """
    prepare = prepare or AS_IT_IS
    if isinstance(images, ImageSource):
        return _prepared(images, prepare)
    where = place_of(images) or Path("nothing")
    if isinstance(images, (str, os.PathLike)):
        if not str(where).startswith(SAVED):
            return open_images(where, channels=channels, prepare=prepare)
        images = _saved(str(where).removeprefix(SAVED))
    if isinstance(images, Mapping):
        splits = ", ".join(map(str, images))
        raise InputError(f"{where} holds several sets of images ({splits}): give one of them")
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise InputError(
            f"images cannot be read from {where}, which has no length or no items: give a path, a list of paths, an "
            "array, a tensor or a map-style dataset"
        )
    if not len(images):
        raise InputError(f"{where} holds no images: give another source")
    if hasattr(images, "shape") and hasattr(images, "dtype"):
        return _of_array(images, where, channels, prepare)
    if isinstance(images, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in images):
        return file_source(Path(), Names.packed(map(os.fspath, images)), channels, prepare)
    if hasattr(images, "features") and hasattr(images, "column_names"):
        column = _column(images, where)
        return _Items(_alone(images, column), where, channels, prepare, column).source(_table_names(images, column))
    return _Items(images, where, channels, prepare).source(_sample_names(images))


def place_of(images: Images) -> Path | None:
    """Where images come from, for messages and provenances: a path, or words such as "the Dataset in memory".

    Args:
        images: What holds them; None for the package's sample, which has no place.
    """
    if images is None:
        return None
    if isinstance(images, (str, os.PathLike)):
        return Path(images)
    return Path(f"the {type(images).__name__} in memory")


def _prepared(source: ImageSource, prepare: Preparation) -> ImageSource:
    """A source whose images are prepared, unless they were already."""
    said = prepare.to_dict()
    if not said or {key: value for key, value in source.prepared.items() if key != "skipped"} == said:
        return source
    if source.prepared:
        raise InputError("the images have been prepared otherwise already: leave out prepare=..., or open them with it")
    shape = (source.shape[0], *source.shape[1:-2], *(prepare.size or source.shape[-2:]))

    def read(rows: Sequence[int]) -> Tensor:
        return prepared_array(source.read(rows), None, prepare)

    return ImageSource(shape, source.names, read, source.marks, said)


def _saved(path: str) -> Any:
    """A dataset that `save_to_disk` wrote."""
    if not os.path.isdir(path):
        raise InputError(f"{SAVED}{path}: there is no folder {path}: give one that a dataset's save_to_disk wrote")
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(f"{SAVED}{path} needs the package datasets: pip install 'odeddim[datasets]'") from error
    with read_errors(Path(path), "a dataset that save_to_disk wrote"):
        return library.load_from_disk(path)


# Arrays in memory.


def _of_array(images: Any, where: Path, channels: int | None, prepare: Preparation) -> ImageSource:
    """The source of images in an array, a tensor or an HDF5 dataset."""
    if isinstance(images, Tensor):
        array = _rows_of(images)
    else:
        array = Array(tuple(images.shape), np.dtype(images.dtype), lambda wanted: take_rows(images, wanted))
    found = array_source(where, array, channels, prepare)
    block = max(1, _BLOCK * len(array.shape) // max(1, array.dtype.itemsize * int(np.prod(array.shape[1:]))))

    def marks(_: int) -> Iterator[bytes]:
        yield repr((array.shape, str(array.dtype))).encode()
        for start in range(0, len(found), block):
            rows = array.rows(range(start, min(start + block, len(found))))
            yield hashlib.sha256(np.ascontiguousarray(rows).data).digest()

    return ImageSource(found.shape, found.names, found.read, marks, found.prepared, grayed=found.grayed)


def _rows_of(tensor: Tensor) -> Array:
    """A tensor on any device as an array; dtypes that numpy does not have become float32."""

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        picked = tensor.detach()[torch.tensor([*wanted], dtype=torch.int64, device=tensor.device)].cpu()
        return (picked.float() if picked.dtype == torch.bfloat16 else picked).numpy()

    return Array(tuple(tensor.shape), rows([]).dtype, rows)


# Datasets, item by item.


class _Items:
    """Images that are the items of an object, under the rules of the first of them.

    Args:
        items: The object.
        where: What it is, for messages.
        channels: As of `source_of`.
        prepare: What is done to each image.
        column: Of items that are rows by name, what the image is called.
    """

    def __init__(
        self, items: Any, where: Path, channels: int | None, prepare: Preparation, column: str = "image"
    ) -> None:
        self._items, self._where, self._channels, self._column = items, where, channels, column
        self._prepare = prepare
        self._first: Tensor | None = None
        self._pictures: bool | None = None  # whether items are Pillow's, which are prepared as such
        self._own = 0  # the channels of the first of these, before that
        self._first = self._one(0)
        if self._first.numpy().tobytes() != self._one(0).numpy().tobytes():  # NaN is told elsewhere
            raise InputError(
                f"{where} gives another image whenever it is read: leave out its random transformations, so that "
                "latents belong to images"
            )

    def source(self, names: Sequence[str] | None) -> ImageSource:
        """The source of the images, under their names or numbers."""
        count, first = len(self._items), self._first
        assert first is not None
        floats = first.is_floating_point() and not self._pictures
        stretch = floats and check_floats(self._where, self._raw, count, 1, False)

        def read(rows: Sequence[int]) -> Tensor:
            x = self._raw(rows)
            if self._pictures:
                return x
            x = from_bytes(x) if x.dtype == torch.uint8 else x * 2 - 1 if stretch else x
            return prepared_array(x, self._channels, self._prepare)

        def marks(count: int) -> Iterator[bytes]:
            for i in range(count):
                x = self._one(i)
                yield str(x.dtype).encode() + hashlib.sha256(x.contiguous().numpy().data).digest()

        sides = self._prepare.size or first.shape[-2:]
        shape = (self._channels or first.shape[0], *first.shape[1:-2], *sides)
        known = names or Names.numbers(count)
        return ImageSource(shape, known, read, marks, self._prepare.to_dict(), grayed=self._grayed(first))

    def _grayed(self, first: Tensor) -> str:
        """As of `ImageSource`. Pictures of Pillow may be of both kinds, of which only the first is looked at here."""
        if self._channels != 1 or (self._own or first.shape[0]) == 1:
            return ""
        count = len(self._items)
        return f"at least 1 of {count} images" if self._pictures else f"{count} of {count} images"

    def _raw(self, rows: Sequence[int]) -> Tensor:
        """(n, C, H, W): float32 in [-1, 1] of Pillow's images, prepared; of others uint8 or float32, as they are."""
        return torch.stack([self._one(i) for i in rows])

    def _one(self, i: int) -> Tensor:
        """One image, (C, H, W), as in `_raw`."""
        which = Path(f"image {i} of {self._where}")
        with read_errors(which, "an image"):
            item = self._image(self._items[i])
            pictures = hasattr(item, "getbands")
            x = self._of_pillow(item, which) if pictures else self._of_array(item, which)
        first, self._pictures = self._first, pictures if self._pictures is None else self._pictures
        if pictures != self._pictures or (first is not None and (x.shape != first.shape or x.dtype != first.dtype)):
            both = (x, x if first is None else first)
            has, wants = (f"{'×'.join(map(str, each.shape))} {each.dtype}".replace("torch.", "") for each in both)
            raise InputError(
                f"{which} is {has} (channels×height×width), but image 0 is {wants}: make them of one size and kind, or "
                "give resize=... for images of Pillow"
            )
        return x

    def _image(self, item: Any) -> Any:
        """What an item holds: an image of Pillow, an array or a tensor."""
        if isinstance(item, Mapping) and self._column in item:
            return item[self._column]
        return item[0] if isinstance(item, (tuple, list)) and item else item

    def _of_pillow(self, item: Any, which: Path) -> Tensor:
        if item.mode == "F":
            raise InputError(f"{which} holds floats, whose range is not known: give it as an array in [-1, 1]")
        own, height, width = shape_of(item, None)
        self._own = self._own or own
        channels = self._channels or own
        return self._prepare.apply(item, (channels, *(self._prepare.size or (height, width))))

    def _of_array(self, item: Any, which: Path) -> Tensor:
        if not isinstance(item, (Tensor, np.ndarray)):
            raise InputError(
                f"{which} is a {type(item).__name__}: items are images of Pillow, arrays or tensors, or tuples that "
                "begin with one"
            )
        x = item.detach().cpu() if isinstance(item, Tensor) else torch.from_numpy(np.array(item))
        if x.dtype != torch.uint8 and not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise InputError(f"{which} holds {kind} values: give uint8 (0..255) or floats in [-1, 1]")
        x = _channels_first(x if x.dtype == torch.uint8 else x.to(torch.float32), which)
        return x[:, : self._prepare.most_frames] if x.ndim == 4 else x


def _channels_first(x: Tensor, which: Path) -> Tensor:
    """(C, H, W) of an image (H, W), (C, H, W) or (H, W, C); (C, F, H, W) of a video that, or (F, H, W, C)."""
    if x.ndim == 2 and x.numel():
        return x[None]
    if x.ndim in (3, 4) and x.numel():
        first, last = x.shape[0] in (1, 3), x.shape[-1] in (1, 3)
        if first != last:
            return x if first else x.movedim(-1, 0)
    raise InputError(
        f"{which} has shape {tuple(x.shape)}: give (H, W), (C, H, W) or (H, W, C), of videos (C, F, H, W) or "
        "(F, H, W, C), with C = 1 or 3 at one place"
    )


def _sample_names(items: Any) -> Names | None:
    """The names of files where a dataset lists them as torchvision's folders do: `samples`, of (path, class)."""
    samples, root = getattr(items, "samples", None), getattr(items, "root", None)
    if not isinstance(samples, list) or len(samples) != len(items) or not isinstance(root, (str, os.PathLike)):
        return None
    if not all(isinstance(each, tuple) and each and isinstance(each[0], str) for each in samples):
        return None
    return Names.packed(Path(os.path.relpath(path, root)).as_posix() for path, *_ in samples)


# Datasets of Hugging Face, whose package is not imported here: an object is known by what it has.


def _column(table: Any, where: Path) -> str:
    """The column of the images."""
    of_images = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    if "image" in table.features:
        return "image"
    if len(of_images) != 1:
        has = ", ".join(map(str, table.features)) or "nothing"
        raise InputError(f"{where} has no column `image` and not exactly one of images (it has: {has}): rename it so")
    return str(of_images[0])


def _alone(table: Any, column: str) -> Any:
    """A table without its other columns, which need not be decoded; a transformation of the user's sees all."""
    return table if table.format["type"] == "custom" else table.select_columns([column])


def _table_names(table: Any, column: str) -> Names | None:
    """The names of a table's files; None if an image has none."""
    if type(table.features[column]).__name__ != "Image":
        return None
    arrow = table.select_columns([column]).with_format("arrow")

    def paths() -> Iterator[str]:
        for start in range(0, len(arrow), _PATHS):
            for chunk in arrow[start : start + _PATHS].column(column).chunks:
                yield from chunk.field("path").to_pylist()

    return Names.packed(paths()) if all(paths()) else None
