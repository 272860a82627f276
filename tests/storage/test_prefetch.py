"""Reading ahead: in order, lazily, never more than `depth` ahead, and no thread is left behind."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

import pytest

from odeddim.storage.prefetch import ahead

PATIENCE = 30  # seconds until a test that waits for the thread gives up


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def numbered(count: int) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(count)]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_in_order_and_whole(count: int, depth: int) -> None:
    got = list(ahead(lambda start, stop: (start, stop, "read"), numbered(count), depth))
    assert got == [((i, i + 1), (i, i + 1, "read")) for i in range(count)]
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ranges_are_taken_in_the_background_and_no_more_than_depth_ahead(depth: int) -> None:
    taken: list[int] = []
    where: set[str] = set()
    read_so_far = [threading.Event() for _ in range(20)]

    def ranges() -> Iterator[tuple[int, int]]:
        for i in range(20):
            taken.append(i)
            where.add(threading.current_thread().name)
            yield i, i + 1

    def read(start: int, stop: int) -> int:
        where.add(threading.current_thread().name)
        read_so_far[start].set()
        return start

    batches = ahead(read, ranges(), depth)
    assert taken == []  # nothing before it is asked for
    for given, _ in enumerate(itertools.islice(batches, 6)):
        assert read_so_far[given + depth].wait(PATIENCE)  # the thread gets on while we do something else
        assert len(taken) == given + depth + 1
    batches.close()
    assert len(taken) == 6 + depth
    assert len(where) == 1
    assert threading.current_thread().name not in where
    assert not threads()


def test_an_exception_comes_up_at_its_place_and_nothing_is_taken_after_it() -> None:
    taken: list[int] = []

    def ranges() -> Iterator[tuple[int, int]]:
        for i in range(9):
            taken.append(i)
            yield i, i + 1

    def read(start: int, stop: int) -> int:
        if start == 3:
            raise OSError("disk")
        return start

    batches = ahead(read, ranges(), 4)
    assert [next(batches)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk"):
        next(batches)
    assert taken == [0, 1, 2, 3]
    assert not threads()


def test_an_exception_of_the_ranges_comes_up_too() -> None:
    def ranges() -> Iterator[tuple[int, int]]:
        yield 0, 1
        raise ValueError("claims")

    batches = ahead(lambda start, stop: start, ranges())
    assert next(batches) == ((0, 1), 0)
    with pytest.raises(ValueError, match="claims"):
        next(batches)
    assert not threads()


def test_an_end_in_the_middle_leaves_no_thread() -> None:
    with contextlib.closing(ahead(lambda start, stop: start, numbered(1000))) as batches:
        for (start, _), _ in batches:
            if start == 2:
                break
    assert not threads()


def test_close_waits_for_the_read_under_way_and_starts_no_other() -> None:
    reading, go_on, read_to_the_end = threading.Event(), threading.Event(), []

    def read(start: int, stop: int) -> int:
        if start == 1:
            reading.set()
            assert go_on.wait(PATIENCE)
        read_to_the_end.append(start)
        return start

    batches = ahead(read, numbered(100), 3)
    next(batches)
    assert reading.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    batches.close()
    assert read_to_the_end == [0, 1]
    assert not threads()


def test_an_interrupt_ends_it() -> None:
    taken: list[int] = []

    def ranges() -> Iterator[tuple[int, int]]:
        for i in range(100):
            taken.append(i)
            yield i, i + 1

    batches = ahead(lambda start, stop: start, ranges())
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    assert not threads()
    assert len(taken) <= 3
    with pytest.raises(StopIteration):
        next(batches)
