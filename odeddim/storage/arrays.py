"""Arrays in files, of any size, read row by row: npy, npz, IDX (gzipped or not) and HDF5.

- A header is believed as far as the file bears it out: no memory is reserved for what is not there.
- What lies in the file as it is, is read at its place. What is compressed comes from a stream that only goes forwards:
  rows that are asked for in order are taken from it as they come. Asked for in another order they are unpacked once,
  to a temporary file, so that training costs disk and neither memory nor a pass for each batch.
- HDF5 may keep data in other files. Only `<file name>.parts/` beside the file is read: a file from a stranger must not
  make us read others.
"""

from __future__ import annotations

import array
import bisect
import contextlib
import functools
import gzip
import io
import itertools
import math
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, overload

import h5py
import numpy as np

from odeddim.storage.atomic import is_ours
from odeddim.storage.hdf5 import items, unescaped
from odeddim.types import InputError

Rows = Callable[[Sequence[int]], "np.ndarray[Any, Any]"]
_File = IO[bytes] | gzip.GzipFile

MOST_BYTES = 1 << 30  # of one row: compressed, a small file can claim any size

_PIECE = 1 << 20  # bytes taken from a file at a time
_HEADER = 1 << 16  # bytes in which the header of an npy file must end
_KEPT = 2  # HDF5 chunks kept unpacked, so that a batch smaller than a chunk does not unpack it again
_MOST_CHUNK = 1 << 28  # bytes of an HDF5 chunk, which is unpacked as a whole
_MOST_NAME = 1 << 14  # bytes
_NAMES = 4096  # names read together


class Names(Sequence[str]):
    """Strings that take little memory; a slice is a list of them."""

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count = count
        self._name = name

    @classmethod
    def numbers(cls, count: int) -> Names:
        """000000, 000001, ..."""
        return cls(count, lambda i: f"{i:06d}")

    @classmethod
    def packed(cls, names: Iterable[str]) -> Names:
        """Any strings, file names that are no UTF-8 among them: their bytes, and 8 more for each."""
        content, ends = bytearray(), array.array("q", [0])
        for name in names:
            content += name.encode("utf-8", "surrogatepass")
            ends.append(len(content))
        return cls(len(ends) - 1, lambda i: content[ends[i] : ends[i + 1]].decode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._name(i) for i in range(self._count)[place]]
        return self._name(range(self._count)[place])


@dataclass(frozen=True)
class Array:
    """An array in a file, of which rows are read when asked for.

    shape: (N, *). rows(wanted): (n, *) in memory of their own, 0 <= wanted < N in any order, repeated or not; an
    InputError naming the file where it is damaged, was cut off or has changed since. axes: "NHW" where the format says
    it. names: one for each row, where the file has them. declared: it says itself that its values are in [-1, 1].
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Rows
    axes: str | None = None
    names: Names | None = None
    declared: bool = False


def open_array(path: Path) -> Array | None:
    """The array in an npz, npy, IDX or HDF5 file, by its first bytes; None for any other file.

    npz and HDF5: the array `images`, or the only one with three or four axes.
    Errors: InputError naming the file, if it cannot be read or does not hold what its header says.
    """
    with open(path, "rb") as file:
        head = file.read(_HEADER)
    if head.startswith(b"PK"):
        found = _npz(path)
    elif head.startswith(b"\x93NUMPY"):
        found = _stored(path, _npy_header(path, "a numpy array", head))
    elif head.startswith(b"\x89HDF"):
        found = _hdf5(path)
    elif head.startswith(b"\x1f\x8b"):
        with reading(path, "an IDX file"):
            with gzip.open(path) as content:
                header = _idx_header(path, content.read(16))
            stream = _Stream(path, header, functools.partial(gzip.open, path))
            stream.check()  # gzip does not say how much there is: told now, and not at the end of a long run
        found = Array(header.shape, header.dtype, stream.rows, axes="NHW")
    elif head[:2] == b"\0\0" and head[2:3] in (b"\x08", b"\x09", b"\x0b", b"\x0c", b"\x0d", b"\x0e"):
        found = _stored(path, _idx_header(path, head[:16]), axes="NHW")
    else:
        return None
    row = found.dtype.itemsize * math.prod(found.shape[1:])
    if row > MOST_BYTES:
        raise InputError(f"{path} has images of {row / 1e9:.3g} GB each, by its header: more than odeddim reads")
    return found


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises on a broken file becomes one sentence that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, struct, Pillow's plug-ins and h5py raise nearly anything
        if is_ours(error):
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} cannot be read as {kind} ({reason}): copy it again or leave it out") from error


# Rows one after the other, behind a header.


@dataclass(frozen=True)
class _Header:
    """What a header says: `length` is its own, in bytes; with `columns` the array is in Fortran's order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    length: int
    columns: bool = False

    @property
    def row(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.dtype.itemsize * math.prod(self.shape)

    def check(self, path: Path, held: int) -> None:
        """Raise an InputError unless the rows held, in bytes, are those announced."""
        if held < self.size:
            raise InputError(f"{path} is cut off: {max(held, 0)} of {self.size} bytes are there; copy it again")
        if held > self.size:
            shape = "×".join(map(str, self.shape))
            raise InputError(f"{path} is longer than the {shape} values that its header announces: is it damaged?")


def _npy_header(path: Path, kind: str, start: bytes) -> _Header:
    with reading(path, kind):
        file = io.BytesIO(start)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of npy, which holds no images")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("Python objects, which could run code")
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {shape}")
        return _Header(shape, dtype, file.tell(), columns and len(shape) > 1)


def _idx_header(path: Path, start: bytes) -> _Header:
    """Big-endian: two zero bytes, the type (8: unsigned byte), the number of axes, then each size as 4 bytes."""
    if len(start) < 4 or start[:2] != b"\0\0":
        raise InputError(f"{path} is not an IDX file: it does not begin with two zero bytes")
    if start[2] != 8:
        raise InputError(f"{path} holds values of IDX type {start[2]:#04x}; only unsigned bytes (0x08) are images here")
    if start[3] != 3:
        raise InputError(f"{path} has {start[3]} axes where images have 3 (N, H, W): is it the file of labels?")
    if len(start) < 16:
        raise InputError(f"{path} is cut off in its header: copy it again")
    sizes = tuple(int.from_bytes(start[i : i + 4], "big") for i in (4, 8, 12))
    return _Header(sizes, np.dtype(np.uint8), 16)


def _stored(path: Path, header: _Header, axes: str | None = None, start: int = 0, length: int | None = None) -> Array:
    """Rows that lie in a file as they are: the header begins at byte `start`, and both have `length` bytes."""
    size = os.path.getsize(path)
    header.check(path, (size - start if length is None else length) - header.length)

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        with reading(path, "images"), open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise InputError(f"{path} changed its size while it was being used: leave it as it is until the end")
            return _rows_at(file, start + header.length, header, wanted)

    return Array(header.shape, header.dtype, rows, axes)


def _rows_at(file: IO[bytes], start: int, header: _Header, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
    """Rows of an array that begins at byte `start`."""
    if header.columns:
        return _rows(np.memmap(file, header.dtype, "r", start, header.shape, "F"), wanted)
    content = bytearray()
    for row, count in [(wanted[0], len(wanted))] if _is_run(wanted) else [(row, 1) for row in wanted]:
        file.seek(start + row * header.row)
        content += _take(file, count * header.row)
    return np.frombuffer(content, header.dtype).reshape(len(wanted), *header.shape[1:])


def _take(file: _File, count: int) -> bytearray:
    """Up to count bytes, piece by piece: a wrong header cannot ask for more memory than the file fills."""
    content = bytearray()
    while len(content) < count and (piece := file.read(min(count - len(content), _PIECE))):
        content += piece
    return content


def _is_run(rows: Sequence[int]) -> bool:
    """Whether each row follows the one before it."""
    return rows.step == 1 if isinstance(rows, range) else all(b - a == 1 for a, b in itertools.pairwise(rows))


def _rows(array: Any, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
    """array[wanted], copied. HDF5 wants rising rows without repeats: each is read once and handed round."""
    if _is_run(wanted):
        return np.array(array[wanted[0] : wanted[0] + len(wanted)])
    unique, inverse = np.unique(np.asarray(wanted), return_inverse=True)
    return np.asarray(array[unique])[inverse]


class _Stream:
    """Rows that can only be unpacked from the first one on; `unpack` begins anew, at the header."""

    def __init__(self, path: Path, header: _Header, unpack: Callable[[], _File]) -> None:
        self._path, self._header, self._unpack = path, header, unpack
        self._stream: _File | None = None
        self._next = 0  # the row that the stream gives next
        self._file: IO[bytes] | None = None  # everything unpacked, once it was asked for out of order
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for file in (self._stream, self._file):
            if file is not None:
                file.close()

    def rows(self, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        with self._lock, reading(self._path, "images"):
            in_order = _is_run(wanted) and (wanted[0] >= self._next or wanted[0] == 0)
            if self._file is None and in_order and not self._header.columns:
                content = self._forwards(wanted[0], len(wanted))
                return np.frombuffer(content, self._header.dtype).reshape(len(wanted), *self._header.shape[1:])
            self._file = self._file or self._unpacked()
            return _rows_at(self._file, self._header.length, self._header, wanted)

    def check(self) -> None:
        """Unpack everything once; an InputError if it is not as long as announced, or damaged."""
        self._forwards(self._header.shape[0], 0)

    def _forwards(self, start: int, count: int) -> bytearray:
        """The bytes of so many rows; those before them are passed over."""
        stream, self._stream = self._stream, None  # after an error it begins anew
        if stream is None or start < self._next:
            stream, self._next = self._unpack(), 0
            _take(stream, self._header.length)
        row, n = self._header.row, self._header.shape[0]
        held, skip = self._next * row, (start - self._next) * row
        while skip and (piece := stream.read(min(skip, _PIECE))):
            held, skip = held + len(piece), skip - len(piece)
        content = _take(stream, count * row)
        held += len(content)
        if held < (start + count) * row:
            self._header.check(self._path, held)
        if start + count == n:
            self._header.check(self._path, held + len(stream.read(1)))  # at the end the checksum is compared, too
        self._stream, self._next = stream, start + count
        return content

    def _unpacked(self) -> IO[bytes]:
        """Header and rows in a temporary file, which has no name and goes with us."""
        size, folder = self._header.length + self._header.size, tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{self._path} is compressed and read out of order, for which it is unpacked in {folder}: "
                f"{size / 1e9:.3g} GB are needed and {free / 1e9:.3g} free; set TMPDIR, or save it with np.savez"
            )
        file, held = tempfile.TemporaryFile(), 0  # noqa: SIM115 - as long as the stream
        with self._unpack() as stream:
            while held <= size and (piece := stream.read(_PIECE)):
                held += file.write(piece)
        self._header.check(self._path, held - self._header.length)
        return file


def _npz(path: Path) -> Array:
    headers: dict[str, _Header] = {}
    with reading(path, "an npz file"):
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            for key in ["images"] if "images" in members else members:
                with archive.open(members[key]) as file:
                    headers[key] = _npy_header(path, "an npz file", file.read(_HEADER))
        key = _pick(path, {key: len(header.shape) for key, header in headers.items()})
        header, info = headers[key], members[key]
        if info.compress_type != zipfile.ZIP_STORED:
            header.check(path, info.file_size - header.length)

            def unpack() -> IO[bytes]:
                with zipfile.ZipFile(path) as archive:  # its file is closed with the stream
                    return archive.open(info)

            return Array(header.shape, header.dtype, _Stream(path, header, unpack).rows)
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)  # of which the last four bytes say how long the name and the rest before the data are
        start = (
            info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        )
        return _stored(path, header, start=start, length=info.file_size)


def _pick(path: Path, axes: dict[str, int]) -> str:
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


# HDF5.


def _hdf5(path: Path) -> Array:
    with reading(path, "an HDF5 file"):
        # It stays open as long as the array: rows are read when asked for.
        file = h5py.File(os.path.realpath(path), "r")
        kind, declared = (_words(file.attrs.get(key)) for key in ("format", "range"))
        if kind.startswith("odeddim") and kind != "odeddim images":
            raise InputError(f"{path} holds {kind.removeprefix('odeddim ')}, not images: `odeddim decode` it first")
        for name in (b"images", b"names"):
            if file.id.links.exists(name) and file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise InputError(f"{path}: `{name.decode()}` is only a link: save the data themselves under that name")
        found = [name for name, item in items(file, depth=8) if isinstance(item, h5py.Dataset)]
        keys = ["images"] if "images" in found else found
        data = _keeping_few(file, _pick(path, {key: _axes(file[key]) for key in keys}))
        rows = _hdf5_rows(path, data)
        names = _hdf5_names(path, file["names"], data.shape[0]) if "names" in found else None
        return Array(data.shape, data.dtype, rows, names=names, declared=declared == "[-1, 1]")


def _keeping_few(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that keeps a few chunks unpacked and not more: HDF5's own bound knows nothing of their size."""
    data = file[name]
    if data.is_virtual or data.chunks is None:
        return data
    access = data.id.get_access_plist()
    access.set_chunk_cache(521, _KEPT * data.dtype.itemsize * math.prod(data.chunks), 0.75)
    del data  # open twice, it would keep its first bound
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _axes(data: h5py.Dataset) -> int:
    """How many; asked for its shape, a virtual data set might open other files."""
    return int(data.virtual_sources()[0].vspace.get_simple_extent_ndims() if data.is_virtual else data.ndim)


def _words(value: object) -> str:
    """Text of an attribute, of fixed length or not; "" for anything else."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _hdf5_names(path: Path, data: h5py.Dataset, count: int) -> Names:
    if data.shape != (count,):
        has = data.shape[0] if data.shape else 0
        raise InputError(f"{path} has {count} images and {has} names: one of the two is cut off")
    if data.dtype.itemsize > _MOST_NAME:
        raise InputError(f"{path} has names of {data.dtype.itemsize} bytes: shorten them")
    rows = _hdf5_rows(path, data)
    blocks = (rows(range(start, min(start + _NAMES, count))) for start in range(0, count, _NAMES))
    return Names.packed(name.decode() for block in blocks for name in block)


def _hdf5_rows(path: Path, data: h5py.Dataset) -> Rows:
    """Reads the rows of a data set that lies in its file, or in the parts beside it, and has been written."""
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
        with reading(path, "images"):
            return _rows(data, wanted)

    return rows


def _parts(path: Path, data: h5py.Dataset) -> Rows:
    """Rows of a virtual data set. HDF5 itself gives zeros for a part that is missing, or that is one file too many."""
    place = Path(os.path.realpath(path))
    folder = place.with_name(f"{place.name}.parts")
    parts, edges = [], [0]  # part i holds the rows from edges[i] to edges[i + 1]
    sources = [
        (*space.get_select_bounds(), space.get_select_npoints(), unescaped(file_name), name)
        for space, file_name, name, _ in data.virtual_sources()
    ]
    for first, last, values, file_name, name in sorted(sources):
        part = place.parent / file_name
        if Path(os.path.realpath(part)).parent != folder:
            raise InputError(f"{path}: the data of {data.name} lie in {file_name}, and not beside it in {folder.name}")
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
    shape, kind = data.shape, data.dtype.kind

    def read(number: int, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        part, name = parts[number]
        count = edges[number + 1] - edges[number]
        with reading(part, "a part"), h5py.File(part, "r") as file:
            if "/" in name or file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise InputError(
                    f"{part}: `{name}` is only a link, or lies in a group: the parts of {path} have neither"
                )
            data = file[name]
            if data.is_virtual or data.shape != (count, *shape[1:]) or data.dtype.kind != kind:  # text may be wider
                raise InputError(f"{part} is not the part of {path} that it was: copy both again")
            return _hdf5_rows(part, data)(wanted)

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        read_together = itertools.groupby(wanted, lambda row: bisect.bisect(edges, row) - 1)
        return np.concatenate([read(i, [row - edges[i] for row in group]) for i, group in read_together])

    return rows
