"""Waiting for a latent file that another process is still writing."""

from __future__ import annotations

import time
from pathlib import Path

from odeddim.jobs.work import log
from odeddim.storage.standing import Standing, standing
from odeddim.types import InputError

LOOK = 1.0  # seconds between two looks
BEGIN = 60.0  # seconds in which a file that is not there must have been begun
AGAIN = 5.0  # seconds in which a process must be back at work
TELL = 60.0  # seconds between two lines


def wait_for(path: Path) -> None:
    """Wait until a latent file is whole. A line says what it waits for, and once a minute how far that is.

    Args:
        path: The file. It may be missing for a minute, while the process that makes it starts.

    Raises:
        InputError: No process has begun the file, or none is at work on it any more; or odeddim does not write it.
    """
    told = working = readable = time.monotonic()
    line, begun = "", False
    while True:
        looked, before = time.monotonic(), line
        try:
            now = standing(path)
        except InputError:  # perhaps because the parts that the file shows have just been made one
            if looked - readable >= AGAIN:
                raise
            time.sleep(LOOK)
            continue
        if now.whole:
            return
        readable = looked
        if now.at_work or now.begun != begun:  # who has just begun is about to be at work
            working, begun = looked, now.begun
        _check(path, now, looked - working)
        line = "has not been begun yet" if not now.begun else "is unfinished"
        if line != before or looked - told >= TELL:
            told = looked
            log.info("waiting for %s, which %s%s", path, line, f": {_amount(now)}" if now.total else "")
        time.sleep(LOOK)


def _amount(now: Standing) -> str:
    return f"{now.done} of {now.total} latents are there"


def _check(path: Path, now: Standing, idle: float) -> None:
    """Raise an InputError if nobody is at work: after a few seconds, or a minute if nothing is there yet."""
    if not now.begun and idle >= BEGIN:
        raise InputError(f"{path} does not exist, and no process has begun it within {BEGIN:g} seconds: start that")
    if now.begun and idle >= AGAIN:
        raise InputError(
            f"{path} is unfinished ({_amount(now)}), and no process is at work on it: run the command that makes it "
            "again, or take what is there, without wait=True"
        )
