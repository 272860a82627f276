"""Reading ahead: the next rows are read while the network works on these."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(
    read: Callable[[int, int], T], ranges: Iterable[tuple[int, int]], depth: int = 2
) -> Generator[tuple[tuple[int, int], T], None, None]:
    """((start, stop), read(start, stop)) for each of the ranges, in their order, read by one thread in the background.

    At most `depth` >= 1 ranges are taken beyond the one that was given out last, and none before the first is asked
    for. An exception of `read` or of `ranges` comes up at its place, and no range is taken after it. The thread has
    ended when the generator has: at its end, after an exception, or at `close()`, which waits for a read under way.
    Whoever may stop early closes it: `with contextlib.closing(ahead(...)) as batches`.
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
