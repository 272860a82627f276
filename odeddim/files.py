"""Files that are never half-written: everything is written beside its place and renamed into it when whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from odeddim.types import InputError


def check_place(path: Path) -> None:
    """Raise an InputError unless a file can take its place under `path`: told before a long run, not after it."""
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of {path.name} does not exist: make it first")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no ordinary file, but a folder or a device: give another name")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} of {path.name} cannot be written to: choose another")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is synced and renamed to `path`, otherwise removed.

    After a kill -9 a `.NAME.PID.tmp` may stay behind; `path` itself is the old file or the new one, never a part.
    """
    path = Path(path)
    check_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); what was there is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)
