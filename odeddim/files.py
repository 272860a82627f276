"""Files that are never half-written: everything is written beside its place and renamed into it when whole."""

from __future__ import annotations

import contextlib
import itertools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from odeddim.types import InputError

_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError)
_numbers = itertools.count()
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def check_place(path: Path, *inputs: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Raise an InputError unless a file can take its place under `path`: told before a long run, not after it.

    inputs: files that are being read, which must not be replaced. suffixes: what the name may end in, if it matters.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: name the file {' or '.join('NAME' + suffix for suffix in suffixes)}")
    if not os.path.isdir(path.parent):
        raise InputError(f"the folder {path.parent} of {path.name} does not exist: make it first")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is no ordinary file, but a folder or a device: give another name")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} of {path.name} cannot be written to: choose another")
    for source in inputs:
        if source is not None and os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise InputError(f"{path} is what is being read: give the output another name")


def plain_text(name: str) -> str:
    """A name that can be written as UTF-8: file names may hold other bytes, which become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def is_ours(error: Exception) -> bool:
    """Whether an error that was raised while a file was read is a mistake of the program, and says nothing of the file.

    Such kinds of it, raised by a line of this package: what a file holds is looked at before it is used.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, _MISTAKES) and where.partition(".")[0] == "odeddim"


def printable(words: str) -> str:
    """Words on one line as a terminal shows them: what would move its cursor, break the line or turn it is escaped."""
    return "".join(c.encode("unicode_escape").decode() if is_hidden(c) else c for c in words)


def is_hidden(character: str) -> bool:
    """Whether a character is a control code, a line break, half of one, or turns the direction of writing."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is synced and renamed to `path`, otherwise removed.

    After a kill -9 the temporary file stays behind; `path` itself is the old file or the new one, never a part.
    temporary: another place for it, on the same disk, where somebody looks after what is left behind.
    """
    check_place(path)
    place = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    temporary = temporary or place.with_name(f".odeddim-{os.getpid()}-{next(_numbers)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
        sync_folder(place.parent)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}); what was there is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
