"""HDF5 files that are never half-written, and whose writer survives a full disk.

The HDF5 library keeps data back and writes it when objects are closed; when such a write fails it prints tracebacks
and ends in a segmentation fault. So it is given a file that never fails: errors are remembered and raised by `commit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py

from odeddim.files import replacing

SUFFIXES = (".h5", ".hdf5")


class _Sink:
    """A file for HDF5 to write to: the first error is kept, and what comes after it is dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                at = self._file.tell()
                written = self._file.write(data)
                while written < len(data):  # an unbuffered file may take a part; the next call says why
                    self._file.seek(at + written)
                    written += self._file.write(data[written:])
            except OSError as error:
                self.error = error
        return len(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")  # what was dropped reads as zeros: it will be discarded

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        pass  # the file is unbuffered


class HDF5Writer(h5py.File):  # type: ignore[misc]
    """An h5py.File under construction; `commit` after each batch stops a run whose disk is full."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, "w")
        self._sink = sink

    def commit(self) -> None:
        """Hand everything to the operating system; raises the OSError of any write that failed."""
        self.flush()
        if self._sink.error is not None:
            raise self._sink.error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[HDF5Writer]:
    """A new HDF5 file that takes its place under `path` when the block ends, and not before or after an error."""
    with replacing(path) as temporary, open(temporary, "w+b", buffering=0) as raw:
        sink = _Sink(raw)
        with HDF5Writer(sink) as file:
            yield file
        if sink.error is not None:
            raise sink.error
