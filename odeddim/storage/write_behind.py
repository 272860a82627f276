"""Write-behind: a thread writes results while the network works on the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2
"""So many results wait to be written; while more do, no further one is asked for."""


def behind(write: Callable[[T], Any], results: Iterable[T]) -> Generator[T, None, None]:
    """Write results in order, by one thread in the background, and yield each once it is written.

    An exception of `write` is raised at its place in the order, and nothing is written after it. Where `results` raises
    one, or the generator is closed, what has come before is written first: it is finished, and there is little of it.

    Args:
        write: write(result) writes a result.
        results: The results; the next one is asked for in the caller's thread.

    Yields:
        Each result.
    """
    waiting: deque[tuple[T, Future[Any]]] = deque()
    failed = False

    def work(result: T) -> None:
        nonlocal failed
        if failed:
            return
        try:
            write(result)
        except BaseException:
            failed = True
            raise

    def written() -> T:
        result, future = waiting.popleft()
        future.result()
        return result

    with ThreadPoolExecutor(1, "behind") as thread:
        for result in results:
            waiting.append((result, thread.submit(work, result)))
            while waiting and (len(waiting) > DEPTH or waiting[0][1].done()):
                yield written()
        while waiting:
            yield written()
