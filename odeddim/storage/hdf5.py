"""HDF5 files that are never half-written, whose writer survives a full disk, and whose reader believes nothing.

The HDF5 library keeps data back and writes it when objects are closed; when such a write fails it prints tracebacks
and ends in a segmentation fault. So it is given a file that never fails: errors are remembered and raised by `commit`.
A signal that arrives while the library writes would be printed and lost, so it waits for `commit` as well.

Everything odeddim writes is in version 1.10 of the format, whose metadata carry checksums, and holds no text of
variable length, whose heap carries none. A killed writer leaves such a file unreadable; none of ours is read before it
is whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import h5py
import numpy as np

from odeddim.storage.atomic import is_ours, replacing
from odeddim.types import InputError

SUFFIXES = (".h5", ".hdf5")
CHUNK = 64  # rows that are read and checked together
MOST_CHUNK = 1 << 25  # bytes


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


class _Unwritten(Exception):  # noqa: N818 - it never leaves this module
    """The disk did not take what was written. No OSError: of a file that is read meanwhile that would say the same."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class HDF5Writer(h5py.File):  # type: ignore[misc]
    """An h5py.File under construction; `commit` after each batch stops a run whose disk is full."""

    def __init__(self, sink: _Sink, raise_held: Callable[[], None]) -> None:
        super().__init__(sink, "w", libver=("v110", "v110"))
        self._sink, self._raise_held = sink, raise_held

    def commit(self) -> None:
        """Hand everything to the operating system; `writing` ends with the OSError of any write that failed."""
        self.flush()
        if self._sink.error is not None:
            raise _Unwritten(self._sink.error)
        self._raise_held()


@contextlib.contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[HDF5Writer]:
    """A new HDF5 file that takes its place under `path` when the block ends, and not before or after an error.

    temporary: see `odeddim.storage.atomic.replacing`.
    """
    with _interrupts_held() as raise_held, replacing(path, temporary) as place, open(place, "w+b", buffering=0) as raw:
        sink = _Sink(raw)
        try:
            with HDF5Writer(sink, raise_held) as file:
                yield file
        except _Unwritten as stop:
            raise stop.error from stop
        if sink.error is not None:
            raise sink.error


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM are kept from their handlers until the block ends, or until the function given is called."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)

    def raise_held() -> None:
        while held:
            handler = handlers[signal.Signals(held.pop())]
            assert callable(handler)
            handler(signal.SIGINT, None)

    for number, handler in handlers.items():
        if callable(handler):  # what is ignored stays so, and what ends the process does
            signal.signal(number, hold)
    try:
        yield raise_held
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
    raise_held()


def text(words: str) -> np.ndarray[Any, Any]:
    """Text as HDF5 holds it at a fixed length."""
    content = words.encode()
    return np.array(content, h5py.string_dtype("utf-8", max(len(content), 1)))


def words(value: object) -> str:
    """Text as HDF5 gave it, of an attribute or a scalar dataset."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise ValueError(f"text is expected, not {value!r:.50}")
    return value


def add_rows(file: h5py.File, name: str, count: int, like: np.ndarray[Any, Any]) -> h5py.Dataset:
    """A new dataset of `count` rows like those of an array (B, *), in chunks of at most 64, each with a checksum."""
    shape = like.shape[1:]
    row = max(like.dtype.itemsize * int(np.prod(shape, dtype=np.int64)), 1)
    chunk = max(1, min(CHUNK, count, MOST_CHUNK // row))
    return file.create_dataset(
        name, (count, *shape), like.dtype, chunks=(chunk, *shape), fletcher32=True, fillvalue=nothing(like.dtype)
    )


def nothing(dtype: np.dtype[Any]) -> Any:
    """What a chunk that a damaged index no longer finds reads as: NaN and not zeros, where the type has it."""
    return np.nan if dtype.kind == "f" else None


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[h5py.File]:
    """An HDF5 file, opened to be read; whatever the library raises on a broken one is one InputError.

    what: in words, what it should be.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file: give {what}")
    try:
        file = h5py.File(os.path.realpath(path), "r")  # the parts of an index lie beside it, not beside a link to it
    except OSError as error:
        raise InputError(f"{path} is not a readable HDF5 file: it is damaged, cut short or something else") from error
    try:
        with file:
            yield file
    except InputError:
        raise
    except (KeyError, ValueError, TypeError, OSError, AttributeError, RuntimeError, OverflowError) as error:
        if is_ours(error):
            raise
        raise InputError(f"{path} is damaged: {short(error)}") from error


def items(group: h5py.Group, depth: int, within: str = "") -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """What lies in a group and the groups in it, under no link, each with its name; an InputError below `depth`.

    Not by h5py's `visititems`: a hundred thousand groups, each in the one before, overflow the library's stack.
    """
    for key in group:
        if group.get(key, getclass=True, getlink=True) is h5py.HardLink:
            name, item = f"{within}{key}", group[key]
            yield name, item
            if isinstance(item, h5py.Group):
                if depth == 1 and len(item):
                    raise InputError(f"{group.file.filename}: '{name}' is a group too deep in others")
                yield from items(item, depth - 1, f"{name}/")


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset of this name if it lies in the file itself, or in the parts beside it, and all of it is there.

    A file from a stranger must not make us read other files, nor reserve memory for what it only claims to hold.
    """
    at = ""
    for step in name.split("/"):  # h5py itself would follow a link to see whether it is there
        at = f"{at}/{step}"
        if file.id.links.exists(at.encode()) and file.id.links.get_info(at.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{path}: '{name}' is a link to somewhere else: odeddim did not write that")
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{path}: the dataset '{name}' is missing: it is damaged or was written by something else")
    if data.external:
        raise InputError(f"{path}: the data of '{name}' lie in another file: odeddim did not write that")
    if data.dtype.kind not in "fiubS":
        raise InputError(f"{path}: '{name}' holds {data.dtype} values: odeddim did not write that")
    size = data.dtype.itemsize * int(np.prod(data.shape, dtype=object))
    if data.is_virtual:
        folder = Path(f"{path.resolve()}.parts")
        held = 0
        for source in {unescaped(source.file_name) for source in data.virtual_sources()}:
            if Path(source).parent != Path(folder.name):
                raise InputError(f"{path}: the data of '{name}' lie in {source}, not in {folder.name}")
            with contextlib.suppress(OSError):  # of one that is missing, the rows will not fit their checksums
                held += (folder.parent / source).stat().st_size
    else:
        # A header may claim more than the file is long.
        held = min(data.id.get_storage_size(), path.stat().st_size)
        made = data.id.get_create_plist()
        if any(made.get_filter(i)[0] != h5py.h5z.FILTER_FLETCHER32 for i in range(made.get_nfilters())):
            raise InputError(f"{path}: '{name}' is compressed or filtered: odeddim did not write that")
        if data.chunks is not None and data.dtype.itemsize * math.prod(data.chunks) > max(size, MOST_CHUNK):
            raise InputError(f"{path}: '{name}' has chunks of {data.chunks}: odeddim did not write that")
    if size > held:
        raise InputError(f"{path}: '{name}' declares {size} bytes {data.shape} and holds {held}: it is damaged")
    return data


def escaped(name: str) -> str:
    """A file's name as virtual datasets have it, in which % stands for numbers."""
    return name.replace("%", "%%")


def unescaped(name: str) -> str:
    """A file's name, of one as virtual datasets have it."""
    return name.replace("%%", "%")


def short(error: Exception) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split())[:200]
