"""Errors while a file is read: a broken file becomes one sentence that names it, a mistake of the program stays one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from odeddim.types import InputError

ADVICE = ": copy it again or leave it out"
_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError)


@contextlib.contextmanager
def read_errors(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a broken file into one sentence that names the file.

    Args:
        path: The file that is read in the block.
        kind: What it is read as, such as "an image".

    Raises:
        InputError: The file cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, struct, Pillow's plug-ins and h5py raise nearly anything
        if is_ours(error):
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} cannot be read as {kind} ({reason}){ADVICE}") from error


def is_ours(error: Exception) -> bool:
    """Whether an error raised while a file was read is a mistake of the program, and does not mean a broken file.

    It is one if its kind is that of a mistake and a line of this package raised it: the package looks at what a file
    holds before it uses it.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, _MISTAKES) and where.partition(".")[0] == "odeddim"


def short(error: Exception) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split())[:200]


def called(shape: Sequence[int]) -> str:
    """What things of a shape (C, H, W) or (C, F, H, W) are called: "images" or "videos"."""
    return "videos" if len(shape) == 4 else "images"


def axes_of(shape: Sequence[int]) -> str:
    """The axes of an image (C, H, W) or of a video (C, F, H, W), in words."""
    return "channels×frames×height×width" if len(shape) == 4 else "channels×height×width"
