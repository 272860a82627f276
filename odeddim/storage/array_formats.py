"""Arrays in files, by format: npy, npz, IDX (gzipped or not) and HDF5."""

from __future__ import annotations

import functools
import gzip
import io
import itertools
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from odeddim.storage.arrays import Array, pick
from odeddim.storage.errors import read_errors
from odeddim.storage.hdf5_arrays import open_hdf5
from odeddim.storage.names import Names
from odeddim.storage.stored_rows import Header, Stream, stored
from odeddim.types import InputError

MOST_BYTES = 1 << 30  # of one row: compressed, a small file can claim any size

_HEADER = 1 << 16  # bytes in which the header of an npy file must end
_NAMES = 4096  # names read together


def open_array(path: Path) -> Array | None:
    """Open the array in an npz, npy, IDX or HDF5 file. The first bytes say the format; the name does not matter.

    Args:
        path: The file.

    Returns:
        In npz and HDF5 the array `images`, or the only one with three to five axes; None for a file of another format.

    Raises:
        InputError: The file cannot be read, or does not hold what its header says.
        OSError: The system cannot open the file.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    if head.startswith(b"PK"):
        found = _open_npz(path)
    elif head.startswith(b"\x93NUMPY"):
        found = stored(path, _npy_header(path, "a numpy array", head))
    elif head.startswith(b"\x89HDF"):
        found = open_hdf5(path)
    elif head.startswith(b"\x1f\x8b"):
        with read_errors(path, "an IDX file"):
            with gzip.open(path) as content:
                header = _idx_header(path, content.read(16))
            stream = Stream(path, header, functools.partial(gzip.open, path))
            stream.check()  # gzip does not say its length: a file cut off is found now, not at the end of a run
        found = Array(header.shape, header.dtype, stream.rows, axes="NHW")
    elif head[:2] == b"\0\0" and head[2:3] in (b"\x08", b"\x09", b"\x0b", b"\x0c", b"\x0d", b"\x0e"):
        found = stored(path, _idx_header(path, head[:16]), axes="NHW")
    else:
        return None
    row = found.dtype.itemsize * math.prod(found.shape[1:])
    if row > MOST_BYTES:
        raise InputError(
            f"{path} has images of {row / 1e9:.3g} GB each, by its header, which is more than odeddim reads: split them"
        )
    return found


def _npy_header(path: Path, kind: str, start: bytes) -> Header:
    with read_errors(path, kind):
        file = io.BytesIO(start)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of npy, which is not for images")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("Python objects, which could run code")
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {shape}")
        return Header(shape, dtype, file.tell(), columns and len(shape) > 1)


def _idx_header(path: Path, start: bytes) -> Header:
    """Big-endian: two zero bytes, the type (8: unsigned byte), the number of axes, then each size as 4 bytes."""
    if len(start) < 4 or start[:2] != b"\0\0":
        raise InputError(f"{path} is not an IDX file: it does not begin with two zero bytes")
    if start[2] != 8:
        raise InputError(f"{path} holds values of IDX type {start[2]:#04x}, but images are unsigned bytes (0x08)")
    if start[3] != 3:
        raise InputError(
            f"{path} has {start[3]} axes, but images have 3 (N, H, W): give the file of images, not of labels"
        )
    if len(start) < 16:
        raise InputError(f"{path} is cut off in its header: copy it again")
    sizes = tuple(int.from_bytes(start[i : i + 4], "big") for i in (4, 8, 12))
    return Header(sizes, np.dtype(np.uint8), 16)


def _open_npz(path: Path) -> Array:
    headers: dict[str, Header] = {}
    with read_errors(path, "an npz file"):
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            for key in ["images"] if "images" in members else members:
                with archive.open(members[key]) as file:
                    headers[key] = _npy_header(path, "an npz file", file.read(_HEADER))
        key = pick(path, {key: len(header.shape) for key, header in headers.items()})
        found = _member(path, headers[key], members[key])
        if "odeddim" not in members or "names" not in members:
            return found
        with zipfile.ZipFile(path) as archive, archive.open(members["names"]) as file:
            header = _npy_header(path, "an npz file", file.read(_HEADER))
        rows, count = _member(path, header, members["names"]).rows, found.shape[0]
        if header.dtype.kind != "U" or header.shape != (count,):
            raise InputError(f"{path}: its names are not those of {count} images: make it again")
        blocks = (rows(range(start, min(start + _NAMES, count))).tolist() for start in range(0, count, _NAMES))
        return replace(found, names=Names.packed(itertools.chain.from_iterable(blocks)), declared=True)


def _member(path: Path, header: Header, info: zipfile.ZipInfo) -> Array:
    """An array of an npz file, compressed or not."""
    if info.compress_type != zipfile.ZIP_STORED:
        header.check(path, info.file_size - header.length)

        def unpack() -> IO[bytes]:
            with zipfile.ZipFile(path) as archive:  # the stream keeps the file open
                return archive.open(info)

        return Array(header.shape, header.dtype, Stream(path, header, unpack).rows)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)  # ends with the lengths of the name and of the extra field, which come before the data
    name, extra = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + 30 + name + extra
    return stored(path, header, start=start, length=info.file_size)
