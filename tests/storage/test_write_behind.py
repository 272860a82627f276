"""Writing while the network works: in order, bounded, and nothing that is finished is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

import odeddim
from odeddim.ode.field import VectorField
from odeddim.storage import write_behind
from odeddim.storage.write_behind import DEPTH, behind
from odeddim.types import InputError


def test_everything_is_written_in_order_before_it_is_yielded() -> None:
    kept: list[int] = []
    for i in behind(kept.append, range(50)):
        assert kept[: i + 1] == list(range(i + 1))
    assert kept == list(range(50))


def test_the_next_is_made_while_one_is_written_and_few_wait() -> None:
    made, gate, kept = [], threading.Event(), []

    def results() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            if i == DEPTH:
                gate.set()  # made while the first is still being written
            yield i

    def write(i: int) -> None:
        assert gate.wait(10)
        assert len(made) <= i + DEPTH + 2
        kept.append(i)

    assert list(behind(write, results())) == kept == list(range(10))


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

    with pytest.raises(stop):
        list(behind(write, results()))
    assert kept == [0, 1, 2]
    kept.clear()
    with closing(behind(write, iter(range(9)))) as found:
        next(found)
    assert kept == list(range(len(kept)))
    assert 1 <= len(kept) <= DEPTH + 2


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
