"""Files that are never half-written: each is written beside its place, and renamed into it when it is whole.

No file is replaced that the same command has not written itself: see `check_own`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from odeddim.types import InputError

_numbers = itertools.count()
_TEMPORARY = re.compile(r"\.odeddim-(.+)-([0-9]{1,9})-[0-9]+\.tmp")
_MARK = re.compile(rb"odeddim-[0-9a-f]{32}")
_naming = threading.Lock()
"""Held while a file gets a name: Linux lets threads that wait for a folder spin, and they wait for Python besides."""
_ABANDONED = 86_400.0  # seconds after which a temporary file of another machine belongs to nobody
_ENDS = 1 << 16  # bytes at both ends of a file in which a mark stands
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def check_place(path: Path, *inputs: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Raise an InputError unless a file can be written to `path`: before a long run, not after it.

    Folders that are missing above it are made when something is written, and not before.

    Args:
        path: The file.
        *inputs: Files that are being read, which must not be replaced.
        suffixes: The suffixes that the name may have; any if empty.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: name the file {' or '.join('NAME' + suffix for suffix in suffixes)}")
    above = nearest_above(path)
    if not os.path.isdir(above):
        raise InputError(f"{above} is a file, so {path} cannot be made below it: give another name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a folder or a device, not a file: give another name")
    if not os.access(above, os.W_OK):
        raise InputError(f"the folder {above} of {path.name} cannot be written to: choose another")
    for source in inputs:
        if source is not None and os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise InputError(f"{path} is being read: give the output another name")


def nearest_above(path: Path) -> Path:
    """The nearest folder above a file that exists; a file, if one is in the way."""
    return next((above for above in path.parents if os.path.lexists(above)), Path())


def make_above(path: Path) -> None:
    """Make the folders above a file that are missing.

    Raises:
        InputError: The system does not make them.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {path.parent} cannot be made ({error.strerror}): give another name") from error


def mark_of(*what: object) -> str:
    """A mark in a file, by which a later run knows that the file is its own.

    Args:
        *what: What tells the run from others, as JSON can hold it.
    """
    return f"odeddim-{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]}"


def has_mark(path: Path, mark: str) -> bool:
    """Whether a mark is in the first or the last 64 KiB of a file; False if the file cannot be read."""
    return any(mark.encode() in end for end in _ends(path))


def found_mark(path: Path) -> str:
    """The first mark in the first or the last 64 KiB of a file; "" if there is none or the file cannot be read."""
    found = (_MARK.search(end) for end in _ends(path))
    return next((match[0].decode() for match in found if match), "")


def _ends(path: Path) -> tuple[bytes, ...]:
    """The first and the last bytes of a file; nothing if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            first = file.read(_ENDS)
            file.seek(-min(_ENDS, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return first, file.read()
    except OSError:
        return ()


def check_own(path: Path, own: Callable[[Path], bool], *, overwrite: bool = False) -> None:
    """Raise an InputError if a file lies at `path` that is not the command's own: before a run, not after it.

    Args:
        path: The file.
        own: Whether the same command has written a file, by a mark in it or by a note elsewhere.
        overwrite: Whether any file may be replaced.
    """
    if not overwrite and os.path.exists(path) and not own(path):
        raise InputError(
            f"{path} is there already, and this command with these settings has not written it: "
            "give another name, or overwrite=True to replace it"
        )


def plain_text(name: str) -> str:
    """A name that can be written as UTF-8. File names may hold other bytes, which become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def printable(words: str) -> str:
    """Words as one line of a terminal: characters that move its cursor, break or turn the line are escaped."""
    return "".join(c.encode("unicode_escape").decode() if is_hidden(c) else c for c in words)


def is_hidden(character: str) -> bool:
    """Whether a character is a control code, a line break or a lone surrogate, or turns the direction of writing."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path, whose file is synced and renamed to `path` if the block succeeds, and removed otherwise.

    `path` itself is always the old file or the new one, never a part of it; folders above it that are missing are made.
    After a kill the temporary file stays, until something is replaced in the same folder again.

    Args:
        path: The file.
        temporary: Another temporary path on the same disk; the caller removes what a kill leaves there.

    Raises:
        InputError: The disk does not take the file; what was at `path` is untouched.
    """
    check_place(path)
    place = Path(os.path.realpath(path))  # a link stays, and the file that it points to is replaced
    if temporary is None:
        make_above(place)
        sweep(place.parent)
        temporary = temporary_beside(place)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
        sync_folder(place.parent)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_by(path: Path, content: bytes) -> None:
    """Replace a file as `replacing` does, but leave its folder to be synced by the caller, once for many files.

    Args:
        path: The file, in a folder that is there.
        content: What it will hold.

    Raises:
        InputError: The disk does not take the file; what was at `path` is untouched.
    """
    place = Path(os.path.realpath(path)) if os.path.islink(path) else path
    temporary, rest = temporary_beside(place), memoryview(content)
    try:
        with _naming:
            file = open(temporary, "wb", buffering=0)  # noqa: SIM115 - closed below
        with file:
            while rest:  # the disk may take only some of it; the next call says why
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        with _naming:
            os.replace(temporary, place)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        check_place(path)  # which may say more
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({error.strerror or error}); what was there is untouched")


def temporary_beside(path: Path) -> Path:
    """A place for a file that is not whole yet. Its name says which process of which machine writes it."""
    return path.with_name(f".odeddim-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}.tmp")


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed processes have left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            match = _TEMPORARY.fullmatch(item.name)
            if match and _is_abandoned(item, match[1], int(match[2])):
                with contextlib.suppress(OSError):
                    os.unlink(item.path)


def _is_abandoned(item: os.DirEntry[str], host: str, process: int) -> bool:
    if host == socket.gethostname() and os.name != "nt":  # on Windows signal 0 would end the process
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # the process belongs to another user
    try:
        return time.time() - item.stat().st_mtime > _ABANDONED
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
