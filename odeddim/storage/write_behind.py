"""Write-behind: a thread writes results while the network works on the next ones, several at once if they come fast."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
DEPTH = 2
"""So many results may wait to be written however long they wait."""
PATIENCE = 1.0
"""Seconds: where more wait, and one of them for so long, no further result is asked for."""
REST = 0.25
"""Seconds between two times of writing: what has come meanwhile is written together, with few files and syncs."""


def behind(
    write: Callable[[T], Any],
    results: Iterable[T],
    together: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Generator[T, None, None]:
    """Write results in order, by one thread in the background, and yield each once it is written.

    An exception of `write` is raised, and nothing is written after it. Where `results` raises one, or the generator is
    closed, what has come before is written first: it is finished, and there is little of it.

    Args:
        write: write(result) writes a result.
        results: The results; the next one is asked for in the caller's thread.
        together: A context in which several results are written; they are written when it ends.

    Yields:
        Each result.
    """
    writer = _Writer(write, together)
    thread = threading.Thread(target=writer.work, name="behind")
    thread.start()
    try:
        for result in results:
            yield from writer.take(result)
    finally:
        writer.end()
        thread.join()
    yield from writer.written()


class _Writer(Generic[T]):
    """What the two threads share."""

    def __init__(self, write: Callable[[T], Any], together: Callable[[], AbstractContextManager[Any]]) -> None:
        self._write, self._together = write, together
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, T]] = deque()  # each with the time when it came
        self._written: list[T] = []
        self._over = False
        self._error: BaseException | None = None

    def take(self, result: T) -> list[T]:
        """Have a result written later; those that have been written since the last call."""
        with self._changed:
            self._waiting.append((time.monotonic(), result))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None or not self._is_late())
        return self.written()

    def _is_late(self) -> bool:
        if len(self._waiting) <= DEPTH:
            return False
        return time.monotonic() - self._waiting[0][0] > PATIENCE

    def written(self) -> list[T]:
        """Those that have been written since the last call; raises what `write` has raised."""
        with self._changed:
            if self._error is not None:
                raise self._error
            written, self._written = self._written, []
        return written

    def end(self) -> None:
        """No further result will come."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def work(self) -> None:
        """Write what comes, until no more will, or something cannot be written."""
        rested = 0.0
        try:
            while self._write_some(rested):
                rested = time.monotonic() + REST
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _write_some(self, rested: float) -> bool:
        """Write what waits, once the thread has rested; False if nothing does, and no more will come."""
        some = self._next(rested)
        with self._together():
            for result in some:
                self._write(result)
        with self._changed:
            self._written += some
        return bool(some)

    def _next(self, rested: float) -> list[T]:
        """All that waits, once something does, or no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._waiting)
            self._changed.wait_for(lambda: self._over, max(0.0, rested - time.monotonic()))
            some = [result for _, result in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        return some
