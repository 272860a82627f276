"""Writing while the network works: in order, bounded, and nothing that is finished is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import odeddim
from odeddim.ode.field import VectorField
from odeddim.storage import write_behind
from odeddim.storage.hdf5 import writing
from odeddim.storage.resumable import Run
from odeddim.storage.write_behind import DEPTH, behind
from odeddim.types import InputError


def test_everything_is_written_in_order_before_it_is_yielded() -> None:
    kept: list[int] = []
    for i in behind(kept.append, range(50)):
        assert kept[: i + 1] == list(range(i + 1))
    assert kept == list(range(50))


def test_the_next_is_made_while_one_is_written_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "PATIENCE", 0.0)
    monkeypatch.setattr(write_behind, "REST", 0.0)
    made, gate, kept = [], threading.Event(), []

    def results() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            if i == DEPTH:
                gate.set()  # made while the first is still being written
            time.sleep(0.001)
            yield i

    def write(i: int) -> None:
        assert gate.wait(10)
        time.sleep(0.003)
        assert len(made) - len(kept) <= 2 * (DEPTH + 1) + 1  # those that wait, those in work, and the next
        kept.append(i)

    assert list(behind(write, results())) == kept == list(range(20))


def test_results_that_come_fast_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once, and those that come while the thread rests in one go."""
    monkeypatch.setattr(write_behind, "REST", 0.5)
    groups: list[list[int]] = []
    arrived = threading.Event()

    @contextlib.contextmanager
    def together() -> Iterator[None]:
        groups.append([])
        yield

    def results() -> Iterator[int]:
        yield 0
        assert arrived.wait(10)
        for i in range(1, 40):
            time.sleep(0.002)
            yield i

    def write(i: int) -> None:
        groups[-1].append(i)
        arrived.set()

    assert list(behind(write, results(), together)) == list(range(40))
    assert [i for group in groups for i in group] == list(range(40))
    assert groups[0] == [0]
    assert 2 <= len([group for group in groups if group]) < 10


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too slow holds up the work, and not the memory."""
    monkeypatch.setattr(write_behind, "PATIENCE", 0.05)
    made = 0

    def results() -> Iterator[int]:
        nonlocal made
        for i in range(400):
            made += 1
            time.sleep(0.001)
            yield i

    def write(i: int) -> None:
        if i == 0:
            time.sleep(0.5)  # while others come
            assert made < 200

    assert len(list(behind(write, results()))) == 400


def test_an_error_of_writing_ends_the_work() -> None:
    kept: list[int] = []

    def write(i: int) -> None:
        if i == 3:
            raise InputError("the disk is full")
        kept.append(i)

    found = behind(write, iter(range(1000)))  # some of them wait when it fails
    with pytest.raises(InputError, match="the disk is full"):
        list(found)
    assert kept == [0, 1, 2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_what_is_finished_is_written_before_it_ends(stop: type[BaseException]) -> None:
    kept: list[int] = []

    def write(i: int) -> None:
        time.sleep(0.02)
        kept.append(i)

    def results() -> Iterator[int]:
        yield from range(3)
        raise stop

    def slowly() -> Iterator[int]:
        nonlocal given
        for i in range(90):
            given += 1
            yield i
            time.sleep(0.01)

    given = 0
    with pytest.raises(stop):
        list(behind(write, results()))
    assert kept == [0, 1, 2]
    kept.clear()
    with closing(behind(write, slowly())) as found:
        first = next(found)
    assert kept == list(range(len(kept)))
    assert first == 0
    assert len(kept) == given


def test_an_interrupted_job_keeps_each_batch_that_was_encoded(tmp_path: Path) -> None:
    """Ctrl-C within the evaluations of batch 4: batches 0 to 3 are on the disk, and the run goes on from there."""
    model = odeddim.load("exact-mixture")
    network, calls = model.eps, []

    def interrupted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 4 * 3 + 2:
            raise KeyboardInterrupt
        return network(x, t)

    stopping = VectorField(interrupted, model.schedule, name=model.name, sha256=model.sha256, shape=model.shape)
    how = {"count": 40, "solver": "euler", "steps": 3, "machine": odeddim.jobs.Machine(batch_size=8, network_batch=8)}
    with pytest.raises(KeyboardInterrupt):
        odeddim.jobs.encode(None, tmp_path / "z.h5", model=stopping, **how)
    with odeddim.open(tmp_path / "z.h5") as file:
        assert len(file) == 32


def test_batches_that_follow_each_other_are_one_part(tmp_path: Path) -> None:
    """Of one kind; whatever happens before the end of `together`, what was committed is written there."""
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    run = Run(tmp_path / "x.h5", 9, {})
    with pytest.raises(KeyboardInterrupt), run, run.together():  # noqa: PT012
        for start, stop in ((0, 1), (1, 3), (5, 6), (4, 5)):
            run.commit(start, stop, {"rows": rows[start:stop]})
        run.commit(6, 7, {"rows": np.zeros((1, 2), np.float64)})
        run.commit(7, 8, {"rows": np.ones((1, 2), np.float64)}, note=1)
        run.commit(8, 9, {"rows": np.ones((1, 2), np.float64)}, note=2)
        assert run.done == 0
        raise KeyboardInterrupt
    parts = sorted(path.stem for path in (tmp_path / "x.h5.parts").glob("*.h5"))
    spans = ("0-3", "4-5", "5-6", "6-7", "7-8", "8-9")
    assert parts == ["{:09d}-{:09d}".format(*map(int, span.split("-"))) for span in spans]
    with h5py.File(tmp_path / "x.h5.parts" / f"{parts[0]}.h5") as file:
        assert np.array_equal(file["rows"][:], rows[:3])


def test_no_part_of_many_batches_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odeddim.storage.parts._LARGEST_HELD", 32)
    with Run(tmp_path / "x.h5", 9, {}) as run, run.together():
        for start, stop in ((0, 1), (1, 2), (2, 4), (4, 8)):
            run.commit(start, stop, {"rows": np.zeros((stop - start, 2), np.float32)})
    parts = sorted(path.stem for path in (tmp_path / "x.h5.parts").glob("*.h5"))
    assert parts == ["000000000-000000004", "000000004-000000008"]


def test_a_disk_that_is_full_while_batches_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts before are done, the sentence says how many, and the same run goes on from there."""

    def full(path: Path, *more: Any) -> contextlib.AbstractContextManager[Any]:
        if path.stem.startswith("000000004"):
            raise InputError(f"{path} cannot be written (No space left on device)")
        return writing(path, *more)

    monkeypatch.setattr("odeddim.storage.parts.writing", full)

    def write(run: Run) -> None:
        with run.together():
            for start, stop in ((0, 1), (1, 2), (4, 5), (6, 7)):
                run.commit(start, stop, {"rows": np.zeros((stop - start, 2), np.float32)})

    with Run(tmp_path / "x.h5", 9, {}) as run:
        with pytest.raises(InputError, match=r"No space .*; 2 of 9 rows are done and safe: the same"):
            write(run)
        assert run.spans() == [(0, 2)]


def test_jobs_write_in_another_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the progress is told in the caller's."""
    writers, tellers = set(), set()
    from odeddim.latents.latent_file import LatentRun

    write = LatentRun.write
    monkeypatch.setattr(LatentRun, "write", lambda *given: (writers.add(threading.get_ident()), write(*given))[1])
    odeddim.jobs.encode(
        None, tmp_path / "z.h5", count=4, steps=3, model="exact-mixture",
        progress=lambda done, total: tellers.add(threading.get_ident()),
    )  # fmt: skip
    assert tellers == {threading.get_ident()}
    assert writers
    assert threading.get_ident() not in writers
    assert write_behind.DEPTH >= 1
