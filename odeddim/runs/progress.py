"""What is shown of work under way: a bar in a terminal, a line now and then elsewhere.

Work is counted in images, or in evaluations where no images come one after another. A batch under way counts by the
steps that it has made, so what is done may be a fraction.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeAlias

from odeddim.storage.workers import rank

Advance: TypeAlias = Callable[[float], Any]
"""advance(count): so many more are done."""

log = logging.getLogger("odeddim")
FIRST, LONGEST = 10.0, 300.0
"""Seconds to the first line where no terminal is, and between lines at most; the gaps double."""
NOTEBOOK = 0.5
"""Seconds between two states of the line in a notebook, which is written anew in its place."""


class Display:
    """A display of progress; this one chooses by where standard error goes, and of several processes the first shows.

    Args:
        still: Whether a bar is drawn only when it is moved on, and not by a thread besides, which would take time from
            what is measured.
    """

    def __init__(self, *, still: bool = False) -> None:
        self.still = still

    @contextlib.contextmanager
    def __call__(self, total: float, unit: str, done: float = 0) -> Iterator[Advance]:
        """A context in which work is shown: entering it gives the function that moves it on.

        Args:
            total: How much there is to do.
            unit: What is done, in a word: "encoding".
            done: How much is done already.
        """
        from rich.console import Console

        console = Console(stderr=True)
        with contextlib.ExitStack() as stack:
            if rank()[0] > 0:
                yield lambda count: None
            elif console.is_terminal:
                yield stack.enter_context(_bar(console, total, unit, done, self.still))
            else:
                lines = Lines(total, unit, done, again=console.is_jupyter)
                yield stack.enter_context(lines.ticking(still=self.still))


Progress: TypeAlias = bool | Callable[[float, float], Any] | Display
"""What shows progress: False for nothing; True for a bar in a terminal, in a notebook a line that is written anew, and
elsewhere lines at growing intervals; or a function, called as progress(done, total) when there is more to tell."""


def shown(progress: Progress, total: float, unit: str, done: float = 0) -> AbstractContextManager[Advance]:
    """A context in which work is shown as is wished; see `Display.__call__`, whose other arguments these are."""
    if done:
        log.debug("%s: %s are done already", unit, of_all(done, total))
    if isinstance(progress, Display):
        return progress(total, unit, done)
    if callable(progress):
        return _told(progress, total, done)
    return Display()(total, unit, done) if progress else _silent()


@contextlib.contextmanager
def _silent() -> Iterator[Advance]:
    yield lambda count: None


@contextlib.contextmanager
def _told(progress: Callable[[float, float], Any], total: float, done: float) -> Iterator[Advance]:
    def advance(count: float) -> None:
        nonlocal done
        done += count
        progress(done, total)

    yield advance


@contextlib.contextmanager
def _bar(console: Any, total: float, unit: str, done: float, still: bool) -> Iterator[Advance]:
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, auto_refresh=not still) as bars:
        task = bars.add_task(unit, total=total, words=of_all(done, total))
        bars.update(task, completed=done)

        def advance(count: float) -> None:
            reached = bars.tasks[0].completed + count
            bars.update(task, completed=reached, refresh=still, words=of_all(reached, total))

        yield advance


def of_all(done: float, total: float) -> str:
    """How much is done, in whole numbers: "320/1000"."""
    return f"{int(done + 1e-6)}/{int(total)}"


class Lines:
    """Lines of text about work under way, the first after ten seconds, then at growing intervals.

    Args:
        total, unit, done: As of `Display.__call__`.
        again: Whether each line is written in the place of the one before, twice a second, as notebooks show it.
        write: What writes a text; by default to standard error.
        clock: A clock in seconds.
    """

    def __init__(
        self,
        total: float,
        unit: str,
        done: float = 0,
        *,
        again: bool = False,
        write: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.done, self.begun_at = total, unit, done, done
        self.again, self.write, self.clock = again, write or _to_stderr, clock
        self.began = clock()
        self.gap, self.longest = (NOTEBOOK, NOTEBOOK) if again else (FIRST, LONGEST)
        self.due = self.began + (0 if again else FIRST)
        self.last = again  # whether to write a last line, too
        self.lock = threading.Lock()
        self.width = 0

    def advance(self, count: float) -> None:
        """So many more are done."""
        with self.lock:
            self.done += count
        self.tick()

    def tick(self) -> None:
        """Write a line if it is time for one."""
        with self.lock:
            now = self.clock()
            if now < self.due:
                return
            self.gap = min(2 * self.gap, self.longest)
            self.due = now + self.gap
            self._write()

    def _write(self) -> None:
        words = self.words()
        if self.again:
            self.write("\r" + words.ljust(self.width))
            self.width = len(words)
        else:
            self.write(words + "\n")

    def words(self) -> str:
        """The line: "encoding: 320/1000, 12.3/s, 0:00:55 left"."""
        spent, made = self.clock() - self.began, self.done - self.begun_at
        text = f"{self.unit}: {of_all(self.done, self.total)}"
        if made <= 0 or spent <= 0:
            return f"{text} after {timedelta(seconds=round(spent))}"
        left = timedelta(seconds=round((self.total - self.done) * spent / made))
        rate = made / spent
        often = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
        return f"{text}, {often}, {left} left"

    @contextlib.contextmanager
    def ticking(self, *, still: bool = False) -> Iterator[Advance]:
        """A context in which lines come even while nothing is finished; still: they do not."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1.0):
                self.tick()

        watcher = threading.Thread(target=watch, daemon=True)
        if not still:
            watcher.start()
        try:
            yield self.advance
        finally:
            over.set()
            if not still:
                watcher.join()
            if self.last:
                self._write()
            if self.again:
                self.write("\n")


def _to_stderr(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a full disk, or a stream that is closed: the work goes on
        sys.stderr.write(text)
        sys.stderr.flush()
