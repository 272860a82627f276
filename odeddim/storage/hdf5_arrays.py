"""Arrays in HDF5 files, whoever wrote them.

HDF5 may keep data in other files. Only `<file name>.parts/` beside the file is read: a file from a stranger must not
make us read others.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from odeddim.storage.arrays import Array, Rows, pick, take_rows
from odeddim.storage.errors import read_errors
from odeddim.storage.hdf5 import items, parts_beside, unescaped
from odeddim.storage.names import Names
from odeddim.types import InputError

_KEPT = 2  # HDF5 chunks kept unpacked, so that a batch smaller than a chunk does not unpack it again
_MOST_CHUNK = 1 << 30  # bytes of an HDF5 chunk, which is unpacked as a whole: those of one video
_MOST_NAME = 1 << 14  # bytes
_NAMES = 4096  # names read together


def open_hdf5(path: Path) -> Array:
    """The array with the images in an HDF5 file.

    Raises:
        InputError: The file is damaged, or its data lie where they are not read.
    """
    with read_errors(path, "an HDF5 file"):
        # The file stays open as long as the array, whose rows are read when they are asked for.
        file = h5py.File(os.path.realpath(path), "r")
        kind, declared = (_words(file.attrs.get(key)) for key in ("format", "range"))
        if kind.startswith("odeddim") and kind != "odeddim images":
            raise InputError(f"{path} holds {kind.removeprefix('odeddim ')}, not images: `odeddim decode` it first")
        for name in (b"images", b"names"):
            if file.id.links.exists(name) and file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise InputError(f"{path}: `{name.decode()}` is only a link: save the data under that name")
        found = [name for name, item in items(file, depth=8) if isinstance(item, h5py.Dataset)]
        keys = ["images"] if "images" in found else found
        data = _keeping_few(file, pick(path, {key: _axes(file[key]) for key in keys}))
        rows = _hdf5_rows(path, data)
        names = _hdf5_names(path, file["names"], data.shape[0]) if "names" in found else None
        return Array(data.shape, data.dtype, rows, names=names, declared=declared == "[-1, 1]")


def _keeping_few(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that keeps only a few chunks unpacked: HDF5's own limit does not depend on their size."""
    data = file[name]
    if data.is_virtual or data.chunks is None:
        return data
    access = data.id.get_access_plist()
    access.set_chunk_cache(521, _KEPT * data.dtype.itemsize * math.prod(data.chunks), 0.75)
    del data  # while it is open, its first limit holds
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _axes(data: h5py.Dataset) -> int:
    """How many axes a data set has. Its shape is not asked for: a virtual data set might open other files for that."""
    return int(data.virtual_sources()[0].vspace.get_simple_extent_ndims() if data.is_virtual else data.ndim)


def _words(value: object) -> str:
    """The text of an attribute, of fixed length or not; "" for anything else."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _hdf5_names(path: Path, data: h5py.Dataset, count: int) -> Names:
    if data.shape != (count,):
        has = data.shape[0] if data.shape else 0
        raise InputError(f"{path} has {count} images and {has} names: one of the two is cut off, copy the file again")
    if data.dtype.itemsize > _MOST_NAME:
        raise InputError(f"{path} has names of {data.dtype.itemsize} bytes: shorten them")
    rows = _hdf5_rows(path, data)
    blocks = (rows(range(start, min(start + _NAMES, count))) for start in range(0, count, _NAMES))
    return Names.packed(name.decode() for block in blocks for name in block)


def _hdf5_rows(path: Path, data: h5py.Dataset) -> Rows:
    """Rows of a data set that lies in its file, or in the parts beside it, and that has been written."""
    if data.is_virtual:
        return _parts(path, data)
    if data.external:
        raise InputError(
            f"{path}: the data of {data.name} lie in another file, which is not read: save them in this one"
        )
    if data.chunks is None:
        held, needed, what = data.id.get_storage_size(), data.nbytes, "bytes"
    else:
        grid = [-(-size // chunk) for size, chunk in zip(data.shape, data.chunks, strict=True)]
        held, needed, what = data.id.get_num_chunks(), math.prod(grid), "chunks"
        if data.dtype.itemsize * math.prod(data.chunks) > _MOST_CHUNK:
            raise InputError(
                f"{path}: {data.name} has chunks of over {_MOST_CHUNK} bytes: make them smaller (h5repack)"
            )
    if held < needed:
        raise InputError(f"{path}: of {data.name} {held} of {needed} {what} have been written: copy or make it again")

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        with read_errors(path, "images"):
            return take_rows(data, wanted)

    return rows


def _parts(path: Path, data: h5py.Dataset) -> Rows:
    """Rows of a virtual data set.

    HDF5 itself would give zeros for a part that is missing, or when too many files are open.
    """
    parts, edges = _parts_of(path, data)
    shape, kind = data.shape, data.dtype.kind

    def read(number: int, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        part, name = parts[number]
        count = edges[number + 1] - edges[number]
        with read_errors(part, "a part"), h5py.File(part, "r") as file:
            if "/" in name or file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise InputError(
                    f"{part}: `{name}` is only a link, or lies in a group, which parts of {path} do not have: copy "
                    "both again"
                )
            data = file[name]
            if data.is_virtual or data.shape != (count, *shape[1:]) or data.dtype.kind != kind:  # text may be wider
                raise InputError(f"{part} is not the part of {path} that it was: copy both again")
            return _hdf5_rows(part, data)(wanted)

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        of_one_part = itertools.groupby(wanted, lambda row: bisect.bisect(edges, row) - 1)
        return np.concatenate([read(i, [row - edges[i] for row in group]) for i, group in of_one_part])

    return rows


def _parts_of(path: Path, data: h5py.Dataset) -> tuple[list[tuple[Path, str]], list[int]]:
    """The parts of a virtual data set, each a file and the name of its data set, and where they begin.

    Part i holds the rows from edges[i] to edges[i + 1].
    """
    folder = parts_beside(path)
    parts: list[tuple[Path, str]] = []
    edges = [0]
    sources = [
        (*space.get_select_bounds(), space.get_select_npoints(), unescaped(file_name), name)
        for space, file_name, name, _ in data.virtual_sources()
    ]
    for first, last, values, file_name, name in sorted(sources):
        part = folder.parent / file_name
        if Path(os.path.realpath(part)).parent != folder:
            raise InputError(
                f"{path}: the data of {data.name} lie in {file_name}, and not beside it in {folder.name}: copy them "
                "there"
            )
        if not part.is_file():
            raise InputError(f"{path}: its part {part} is missing: copy the folder {folder.name} with it")
        if first[0] != edges[-1] or values != (last[0] + 1 - first[0]) * math.prod(data.shape[1:]):
            raise InputError(f"{path}: the parts of {data.name} are not whole rows, one after the other: save it anew")
        parts.append((part, name))
        edges.append(last[0] + 1)
    if edges[-1] < data.shape[0]:
        raise InputError(
            f"{path}: of {data.name} {edges[-1]} of {data.shape[0]} rows have been written: finish it first"
        )
    return parts, edges
