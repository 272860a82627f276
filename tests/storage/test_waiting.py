"""Jobs that wait for a latent file which another process is still writing."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from odeddim import jobs
from odeddim.jobs import waiting
from odeddim.storage.resumable import Run
from odeddim.storage.standing import standing
from odeddim.types import InputError

Command = Callable[..., tuple[int, str, str]]
HOW: dict[str, Any] = {"model": "exact-mixture", "solver": "bdia", "steps": 2}
SMALL = jobs.Machine(batch_size=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK", 0.01)
    monkeypatch.setattr(waiting, "AGAIN", 0.2)


@pytest.fixture
def writer() -> Iterator[Callable[..., int]]:
    """Begins a process that encodes to z.h5, and after each batch waits until a file `go` is there."""
    begun = []

    def begin(count: int, slowly: bool = True, **more: Any) -> int:
        process = os.fork()
        if process:
            begun.append(process)
            return process
        commit = Run.commit

        def held(self: Run, *arguments: Any, **notes: Any) -> None:
            within, self._within = self._within, 0
            commit(self, *arguments, **notes)  # alone
            self._within = within
            while slowly and not Path("go").exists():
                time.sleep(0.01)

        Run.commit = held  # type: ignore[method-assign]
        try:
            jobs.encode(None, "z.h5", count=count, machine=SMALL, **HOW, **more)
        finally:
            os._exit(0)

    yield begin
    for process in begun:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def letting_go(monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """The writer goes on once the waiting job has looked so often."""
    sleep, left = time.sleep, [looks]

    def slept(seconds: float) -> None:
        left[0] -= 1
        if not left[0]:
            Path("go").touch()
        sleep(seconds)

    monkeypatch.setattr(waiting.time, "sleep", slept)


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """By caplog, even after another test has run the command line, which keeps remarks to itself."""
    monkeypatch.setattr(logging.getLogger("odeddim"), "propagate", True)


def test_decode_waits_for_the_whole_file(
    here: Path, writer: Callable[..., int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer(6)
    until(lambda: Path("z.h5").exists())
    assert standing(Path("z.h5")).at_work
    letting_go(monkeypatch, 3)
    with caplog.at_level(logging.INFO, "odeddim"):
        made = jobs.decode("z.h5", "out", wait=True)
    assert (made.done, made.total) == (6, 6)
    assert "waiting for z.h5, which is unfinished: 2 of 6 latents are there" in caplog.text


def test_a_file_that_does_not_exist_yet(
    here: Path, writer: Callable[..., int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sleep = time.sleep
    first = []

    def slept(seconds: float) -> None:
        if not first:
            first.append(writer(6, slowly=False))
        sleep(seconds)

    monkeypatch.setattr(waiting.time, "sleep", slept)
    with caplog.at_level(logging.INFO, "odeddim"):
        assert jobs.decode("z.h5", "out", wait=True).done == 6
    assert "waiting for z.h5, which has not been begun yet\n" in caplog.text
    monkeypatch.setattr(waiting, "BEGIN", 0.1)
    with pytest.raises(InputError, match=r"never\.h5 does not exist, and no process has begun it within 0\.1 seconds"):
        jobs.decode("never.h5", "out", wait=True)


def test_a_process_that_has_begun_and_is_not_yet_at_work(
    here: Path, writer: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long nothing was there, who has made the folder is given the time to take it."""
    sleep, now, looks, ahead = time.sleep, time.monotonic, itertools.count(1), [0.0]

    def slept(seconds: float) -> None:
        looked = next(looks)
        if looked == 2:
            Path("z.h5.parts").mkdir()
            ahead[0] = 1000.0  # this look is made after 1000 seconds without a file
        if looked == 4:
            writer(6, slowly=False)
        sleep(seconds)

    monkeypatch.setattr(waiting, "BEGIN", 1e6)
    monkeypatch.setattr(waiting, "AGAIN", 500.0)
    monkeypatch.setattr(waiting.time, "sleep", slept)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now() + ahead[0])
    assert jobs.decode("z.h5", "out", wait=True).done == 6
    assert next(looks) > 4


def test_a_writer_that_dies(here: Path, writer: Callable[..., int]) -> None:
    process = writer(6)
    until(lambda: Path("z.h5").exists())
    os.kill(process, signal.SIGKILL)
    with pytest.raises(
        InputError, match=r"z\.h5 is unfinished \(2 of 6 latents are there\), and no process is at work"
    ):
        jobs.verify("z.h5", wait=True)
    assert not standing(Path("z.h5")).at_work
    assert len(list(Path("z.h5.parts").iterdir())) == 3  # looking has left nothing, and taken nothing
    jobs.encode(None, "z.h5", count=6, **HOW)
    assert not Path("z.h5.parts").exists()


def test_a_file_that_is_extended_or_replaced(here: Path, writer: Callable[..., int], run: Command) -> None:
    jobs.encode(None, "z.h5", count=3, **HOW)
    for count, more in ((6, {}), (3, {"overwrite": True})):
        shutil.copy("z.h5", "kept.h5")
        process = writer(count, **more)
        until(lambda: bool(list(Path("z.h5.parts").glob("*-*.h5"))))
        now = standing(Path("z.h5"))
        assert (now.whole, now.at_work, now.total) == (False, True, count)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(InputError, match="no process is at work on it"):
            jobs.interpolate("z.h5", (0, 1), to=jobs.Drawing(Path("path.h5")), wait=True)
        shutil.rmtree("z.h5.parts")
        shutil.copy("kept.h5", "z.h5")
    for command in (
        ("decode", "z.h5", "-o", "out"),
        ("verify", "z.h5"),
        ("interpolate", "z.h5", "--pair", 0, 1, "-o", "p.h5"),
        ("shift", "z.h5", "--from", 0, "--to", 1, "-o", "s.h5"),
        ("neighbours", "z.h5", "-k", 1),
    ):
        assert run(*command, "--wait")[0] == 0  # whole: nothing to wait for


def test_certificates_that_are_added_are_not_waited_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.encode(None, "z.h5", count=3, **HOW)
    looked = []
    commit = Run.commit

    def looking(self: Run, *arguments: Any, **notes: Any) -> None:
        commit(self, *arguments, **notes)
        looked.append(standing(Path("z.h5")).whole)

    monkeypatch.setattr(Run, "commit", looking)
    jobs.verify("z.h5")
    assert looked == [True]
