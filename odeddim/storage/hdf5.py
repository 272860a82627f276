"""HDF5 files that are never half-written, whose writer survives a full disk, and whose reader trusts no header.

The HDF5 library holds data back and writes them when objects are closed. When such a write fails, the library prints
tracebacks and ends in a segmentation fault. So it is given a file that never fails: errors are remembered, and `commit`
raises them. A signal that arrives while the library writes would be printed and lost, so it waits for `commit` as well.

Everything that odeddim writes is in version 1.10 of the format, whose metadata have checksums. It holds no text of
variable length, because the heap of such text has no checksum. A writer that is killed leaves an unreadable file, so no
file is read before it is whole.
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

from odeddim.storage.atomic import replacing
from odeddim.storage.errors import is_ours, short
from odeddim.types import InputError

PARTS = ".parts"
"""What the name of a file's parts adds to that of the file."""

SUFFIXES = (".h5", ".hdf5")
CHUNK = 64  # rows that are read and checked together
MOST_CHUNK = 1 << 25  # bytes


class _Sink:
    """A file for HDF5 to write to: the first error is kept, and later writes are dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                at = self._file.tell()
                written = self._file.write(data)
                while written < len(data):  # an unbuffered file may take only some of it; the next call says why
                    self._file.seek(at + written)
                    written += self._file.write(data[written:])
            except OSError as error:
                self.error = error
        return len(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(
            size, b"\0"
        )  # dropped writes read as zeros, in a file that will be discarded

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
    """The disk did not take what was written.

    It is no OSError, so that it is not taken for an error of a file that is read at the same time.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class HDF5Writer(h5py.File):  # type: ignore[misc]
    """An h5py.File under construction; `commit` after each batch stops a run when the disk is full."""

    def __init__(self, sink: _Sink, raise_held: Callable[[], None]) -> None:
        super().__init__(sink, "w", libver=("v110", "v110"))
        self._sink, self._raise_held = sink, raise_held

    def commit(self) -> None:
        """Hand everything to the operating system. If a write has failed, `writing` ends with its OSError."""
        self.flush()
        if self._sink.error is not None:
            raise _Unwritten(self._sink.error)
        self._raise_held()


@contextlib.contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[HDF5Writer]:
    """A new HDF5 file that takes its place under `path` when the block ends without an error.

    Args:
        path: The file.
        temporary: Where it lies until it is whole; see `odeddim.storage.atomic.replacing`.

    Raises:
        InputError: The disk does not take the file; what was at `path` is untouched.
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
    """Hold Ctrl-C and SIGTERM back until the block ends, or until the function that it yields is called."""
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
        if callable(handler):  # a signal that is ignored, or ends the process, keeps doing so
            signal.signal(number, hold)
    try:
        yield raise_held
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
    raise_held()


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def text(words: str) -> np.ndarray[Any, Any]:
    """Text as HDF5 holds it, at a fixed length."""
    content = words.encode()
    return np.array(content, h5py.string_dtype("utf-8", max(len(content), 1)))


def words(value: object) -> str:
    """The text of an attribute or a scalar dataset, as a string."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise ValueError(f"text is expected, not {value!r:.50}")
    return value


def add_rows(file: h5py.File, name: str, count: int, like: np.ndarray[Any, Any]) -> h5py.Dataset:
    """A new dataset of `count` rows like those of an array (B, *).

    It has chunks of at most 64 rows, each with a checksum.
    """
    shape = like.shape[1:]
    row = max(like.dtype.itemsize * int(np.prod(shape, dtype=np.int64)), 1)
    chunk = max(1, min(CHUNK, count, MOST_CHUNK // row))
    return file.create_dataset(
        name, (count, *shape), like.dtype, chunks=(chunk, *shape), fletcher32=True, fillvalue=nothing(like.dtype)
    )


def nothing(dtype: np.dtype[Any]) -> Any:
    """The value of a chunk that a damaged index no longer finds: NaN and not 0, where the type has it."""
    return np.nan if dtype.kind == "f" else None


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[h5py.File]:
    """An HDF5 file that odeddim wrote, opened to be read.

    Args:
        path: The file.
        what: What it should be, in words, for a path where no file is.

    Raises:
        InputError: There is no file, or the library cannot read it, also in the block.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give {what}")
    try:
        file = h5py.File(os.path.realpath(path), "r")  # an index finds its parts beside itself, not beside a link
    except OSError as error:
        raise InputError(f"{path} is not a readable HDF5 file: it is damaged, cut off or of another format") from error
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
    """The items of a group and of the groups in it, each with its name. Links are left out.

    h5py's `visititems` cannot do this: a hundred thousand groups, each in the one before, overflow its stack.

    Args:
        group: The group, or a file.
        depth: How many groups may lie in each other.
        within: The name of the group, with a slash.

    Raises:
        InputError: Groups lie deeper than `depth`.
    """
    for key in group:
        if group.id.links.get_info(os.fsencode(key)).type == h5py.h5l.TYPE_HARD:
            name, item = f"{within}{key}", group[key]
            yield name, item
            if isinstance(item, h5py.Group):
                if depth == 1 and len(item):
                    raise InputError(
                        f"{group.file.filename}: '{name}' lies in too many groups: odeddim did not write that"
                    )
                yield from items(item, depth - 1, f"{name}/")


def parts_beside(path: Path) -> Path:
    """The folder of the parts that a file is made of; for a link, beside the file that it points to."""
    return Path(f"{os.path.realpath(path)}{PARTS}")


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset of this name, all of which lies in the file itself or in the parts beside it.

    A file from a stranger must not make us read other files, nor reserve memory for data that it only claims to hold.

    Raises:
        InputError: The dataset is missing or incomplete, or odeddim did not write it.
    """
    at = ""
    for step in name.split("/"):  # h5py itself would follow a link
        at = f"{at}/{step}"
        if file.id.links.exists(at.encode()) and file.id.links.get_info(at.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{path}: '{name}' is a link to somewhere else: odeddim did not write that")
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{path}: the dataset '{name}' is missing: the file is damaged, or another program wrote it")
    if data.external:
        raise InputError(f"{path}: the data of '{name}' lie in another file: odeddim did not write that")
    if data.dtype.kind not in "fiubS":
        raise InputError(f"{path}: '{name}' holds {data.dtype} values: odeddim did not write that")
    size = data.dtype.itemsize * int(np.prod(data.shape, dtype=object))
    if data.is_virtual:
        folder = parts_beside(path)
        held = 0
        for source in {unescaped(source.file_name) for source in data.virtual_sources()}:
            if Path(source).parent != Path(folder.name):
                raise InputError(
                    f"{path}: the data of '{name}' lie in {source}, not in {folder.name}: odeddim did not write that"
                )
            with contextlib.suppress(OSError):  # if a part is missing, its rows will not fit their checksums
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
    """The name of a file as virtual datasets need it, where % stands for numbers."""
    return name.replace("%", "%%")


def unescaped(name: str) -> str:
    """The name of a file, from the form that virtual datasets need."""
    return name.replace("%%", "%")
