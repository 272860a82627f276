"""Prefetch: a thread reads the next rows while the network works on the present ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(
    read: Callable[[int, int], T], ranges: Iterable[tuple[int, int]], depth: int = 2
) -> Generator[tuple[tuple[int, int], T], None, None]:
    """Read ranges ahead, in order, by one thread in the background.

    No range is taken before the first result is asked for. An exception of `read` or of `ranges` is raised at its place
    in the order, and no range is taken after it. The thread ends with the generator: after the last range, after an
    exception, or at `close()`, which waits for a read in progress. A caller that may stop early must close the
    generator: `with contextlib.closing(ahead(...)) as batches`.

    Args:
        read: read(start, stop) reads a range.
        ranges: The ranges (start, stop).
        depth: At most so many ranges, >= 1, are taken beyond the one that was yielded last.

    Yields:
        ((start, stop), read(start, stop)) for each range.
    """
    todo: Iterator[tuple[int, int]] = iter(ranges)

    def work() -> tuple[tuple[int, int], T] | None:
        nonlocal todo
        try:
            taken = next(todo, None)
            return None if taken is None else (taken, read(*taken))
        except BaseException:
            todo = iter(())
            raise

    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(work) for _ in range(depth))
        try:
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(work))
                yield batch
        finally:
            for future in waiting:
                future.cancel()
