"""Ctrl-C and other signals that end a process, delayed until a step is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def postponed(*, impatient: bool = True) -> Iterator[Callable[[], bool]]:
    """Delay signals that end the process until the block ends, so that they do not interrupt a step.

    Args:
        impatient: Whether a second signal takes effect at once. (With Ctrl-C, torchrun's processes get two.)

    Only the main thread can delay signals; in other threads nothing changes.

    Yields:
        A function that returns whether a signal has arrived.
    """
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1 and impatient:
            signal.signal(number, previous.get(number, signal.SIG_DFL))
            signal.raise_signal(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")):
            if number is not None and signal.getsignal(number) not in (
                signal.SIG_IGN,
                None,
            ):  # nohup, for example, ignores SIGHUP
                previous[number] = signal.signal(number, handler)
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        if asked:
            signal.raise_signal(asked[0])
