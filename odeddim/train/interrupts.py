"""Ctrl-C and the signals that end a process, held back until a step is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Within the block a signal to end only sets a flag, so that no step is torn; it arrives when the block ends.

    A second signal arrives at once. Outside the main thread, which alone can do this, nothing is held back.

    Yields:
        A function that says whether a signal has come.
    """
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            signal.signal(number, previous.get(number, signal.SIG_DFL))
            signal.raise_signal(number)

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")):
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                previous[number] = signal.signal(number, handler)
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        if asked:
            signal.raise_signal(asked[0])
