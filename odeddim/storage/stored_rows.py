"""Rows that lie in a file one after the other, behind a header: as they are, or in a compressed stream.

- A header is believed as far as the file bears it out: no memory is reserved for rows that are not there.
- Rows that lie in the file as they are, are read at their place.
- A compressed stream can only be read forwards. Rows that are asked for in order are taken from it as they come. When
  they are asked for in another order, the stream is unpacked once, to a temporary file: training costs disk space, and
  neither memory nor a pass over the file for each batch.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from odeddim.storage.arrays import Array, in_order, take_rows
from odeddim.storage.errors import read_errors
from odeddim.types import InputError

_File = IO[bytes] | gzip.GzipFile

_PIECE = 1 << 20  # bytes taken from a file at a time


@dataclass(frozen=True)
class Header:
    """What the header of an array says.

    Attributes:
        shape: (N, *).
        dtype: The type of the values.
        length: Bytes of the header itself.
        columns: Whether the values lie in Fortran's order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    length: int
    columns: bool = False

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.dtype.itemsize * math.prod(self.shape)

    def check(self, path: Path, held: int) -> None:
        """Raise an InputError unless the bytes held are as many as the rows announced take."""
        if held < self.size:
            raise InputError(f"{path} is cut off: {max(held, 0)} of {self.size} bytes are there: copy it again")
        if held > self.size:
            shape = "×".join(map(str, self.shape))
            raise InputError(
                f"{path} is longer than the {shape} values that its header announces: it is damaged, copy it again"
            )


def stored(path: Path, header: Header, axes: str | None = None, start: int = 0, length: int | None = None) -> Array:
    """Rows that lie in a file as they are.

    Args:
        path: The file.
        header: What its header says.
        axes: "NHW" where the format determines it.
        start: The byte at which the header begins.
        length: Bytes of header and rows together; without it the rest of the file.

    Raises:
        InputError: The file is shorter or longer than the header says.
    """
    size = os.path.getsize(path)
    header.check(path, (size - start if length is None else length) - header.length)

    def rows(wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        with read_errors(path, "images"), open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise InputError(f"{path} changed its size while it was being used: leave it unchanged until the end")
            return _rows_at(file, start + header.length, header, wanted)

    return Array(header.shape, header.dtype, rows, axes)


def _rows_at(file: IO[bytes], start: int, header: Header, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
    """Rows of an array that begins at byte `start`."""
    if header.columns:
        return take_rows(np.memmap(file, header.dtype, "r", start, header.shape, "F"), wanted)
    content = bytearray()
    for row, count in [(wanted[0], len(wanted))] if in_order(wanted) else [(row, 1) for row in wanted]:
        file.seek(start + row * header.row)
        content += take_bytes(file, count * header.row)
    return np.frombuffer(content, header.dtype).reshape(len(wanted), *header.shape[1:])


def take_bytes(file: _File, count: int) -> bytearray:
    """Up to `count` bytes, piece by piece: a wrong header cannot reserve more memory than the file fills."""
    content = bytearray()
    while len(content) < count and (piece := file.read(min(count - len(content), _PIECE))):
        content += piece
    return content


class Stream:
    """Rows that can only be unpacked from the first one on.

    Args:
        path: The file, for messages.
        header: What the header of the unpacked array says.
        unpack: Opens the stream anew, at the header.
    """

    def __init__(self, path: Path, header: Header, unpack: Callable[[], _File]) -> None:
        self._path, self._header, self._unpack = path, header, unpack
        self._stream: _File | None = None
        self._next = 0  # the row that the stream gives next
        self._file: IO[bytes] | None = None  # everything unpacked, once rows were asked for out of order
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for file in (self._stream, self._file):
            if file is not None:
                file.close()

    def rows(self, wanted: Sequence[int]) -> np.ndarray[Any, Any]:
        """The rows wanted, (n, *); see `odeddim.storage.arrays.Array`."""
        with self._lock, read_errors(self._path, "images"):
            forwards = in_order(wanted) and (wanted[0] >= self._next or wanted[0] == 0)
            if self._file is None and forwards and not self._header.columns:
                content = self._forwards(wanted[0], len(wanted))
                return np.frombuffer(content, self._header.dtype).reshape(len(wanted), *self._header.shape[1:])
            self._file = self._file or self._unpacked()
            return _rows_at(self._file, self._header.length, self._header, wanted)

    def check(self) -> None:
        """Unpack everything once; raise an InputError if it is damaged, or not as long as announced."""
        self._forwards(self._header.shape[0], 0)

    def _forwards(self, start: int, count: int) -> bytearray:
        """The bytes of `count` rows from row `start` on; the rows before them are passed over."""
        stream, self._stream = self._stream, None  # after an error the stream begins anew
        if stream is None or start < self._next:
            stream, self._next = self._unpack(), 0
            take_bytes(stream, self._header.length)
        row, n = self._header.row, self._header.shape[0]
        held, skip = self._next * row, (start - self._next) * row
        while skip and (piece := stream.read(min(skip, _PIECE))):
            held, skip = held + len(piece), skip - len(piece)
        content = take_bytes(stream, count * row)
        held += len(content)
        if held < (start + count) * row:
            self._header.check(self._path, held)
        if start + count == n:
            self._header.check(self._path, held + len(stream.read(1)))  # at its end the stream compares its checksum
        self._stream, self._next = stream, start + count
        return content

    def _unpacked(self) -> IO[bytes]:
        """Header and rows in a temporary file, which has no name and disappears when the process ends."""
        size, folder = self._header.length + self._header.size, tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{self._path} is compressed and read out of order, so it is unpacked in {folder}, where "
                f"{size / 1e9:.3g} GB are needed and {free / 1e9:.3g} free: set TMPDIR, or save it with np.savez"
            )
        file, held = tempfile.TemporaryFile(), 0  # noqa: SIM115 - as long as the stream
        with self._unpack() as stream:
            while held <= size and (piece := stream.read(_PIECE)):
                held += file.write(piece)
        self._header.check(self._path, held - self._header.length)
        return file
