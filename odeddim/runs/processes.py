"""A team of processes on this machine. They end with the process that started them, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.connection import Connection

from odeddim.runs.engines import Gather, Member, ended
from odeddim.runs.starting import begin, follow_parent
from odeddim.types import InputError

READY = b"ready"
GPUS = "CUDA_VISIBLE_DEVICES"
LOST = 2
"""Where so many processes have ended at one range, it is their work that ends them."""


def processes(count: int) -> Gather:
    """A team of so many processes, each with the work's model in its memory."""

    @contextlib.contextmanager
    def gather(packed: bytes, threads: int) -> Iterator[Processes]:
        team = Processes(count)
        try:
            team.begin(packed, threads)
            yield team
        finally:
            team.end()

    return gather


class Processes:
    """Processes and the pipes to them. One that waits is given a range, and has no other until its result has come.

    One that is killed is replaced, and its range is done by whichever has time for it first.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.size = count
        self._idle: list[Connection] = []
        self._busy: dict[Connection, tuple[int, bytes]] = {}
        self._starting: list[Connection] = []
        self._lost: list[tuple[int, bytes]] = []  # ranges whose process has ended
        self._ended: Counter[int] = Counter()  # by range: the processes that have ended there
        self._context = begin()
        self._members: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
        self._work, self._threads = b"", 1

    def begin(self, packed: bytes, threads: int) -> None:
        """Start all, and wait until each has its model."""
        self._work, self._threads = packed, threads
        for number in range(self.size):
            self._start(number)
        for pipe in self._starting:
            self._send(pipe, packed)
        while self._starting:
            self._hear(self._starting[0])

    def _start(self, number: int) -> Connection:
        here, there = self._context.Pipe()
        member = self._context.Process(target=_serve, args=(there, self._threads, _environment(number)), daemon=True)
        self._members[here] = number, member
        member.start()
        there.close()
        self._starting.append(here)
        return here

    @staticmethod
    def _send(pipe: Connection, packed: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended already, which `_hear` finds
            pipe.send_bytes(packed)

    def free(self) -> bool:
        """As of `Team`."""
        return len(self._idle) > len(self._lost)

    def send(self, number: int, packed: bytes) -> None:
        """As of `Team`."""
        pipe = self._idle.pop()
        self._busy[pipe] = number, packed
        self._send(pipe, packed)

    def take(self) -> tuple[int, bytes]:
        """As of `Team`.

        Raises:
            InputError: Processes end again and again, or cannot be started.
        """
        while True:
            while self._lost and self._idle:
                self.send(*self._lost.pop())
            pipe = connection.wait([*self._busy, *self._starting])[0]
            assert isinstance(pipe, Connection)
            if (result := self._hear(pipe)) is not None:
                return result

    def _hear(self, pipe: Connection) -> tuple[int, bytes] | None:
        """What a process answers: the result of a range. None if it has its model now, or was replaced."""
        try:
            answer = pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self._replace(pipe, error)
            return None
        if pipe in self._busy:
            self._idle.append(pipe)
            return self._busy.pop(pipe)[0], answer
        if answer != READY:
            raise InputError(
                f"the processes that share the work cannot load the model ({answer.decode()[:200]}): define it in "
                "a module, or leave out workers=..."
            )
        self._starting.remove(pipe)
        self._idle.append(pipe)
        return None

    def _replace(self, pipe: Connection, error: Exception) -> None:
        """Have another process in the place of one that has ended, and its range done again."""
        place, member = self._members[pipe]
        member.join(10)
        how = ended(member.exitcode)
        if pipe in self._starting:
            raise InputError(
                f"the processes that share the work cannot start (one ended {how}): in a script, call this under "
                "`if __name__ == '__main__':`, and define models in modules; or leave out workers=..."
            ) from error
        number, packed = self._busy.pop(pipe)
        self._ended[number] += 1
        if self._ended[number] == LOST:
            raise InputError(
                f"{LOST} of the processes that share the work were ended at the same images, the last one {how}, "
                "perhaps for lack of memory: the same call goes on from what is finished; fewer workers=... take less"
            ) from error
        warnings.warn(
            f"one of the {self.size} processes that share the work was ended {how}: another one takes its place",
            stacklevel=2,
        )
        self._lost.append((number, packed))
        del self._members[pipe]
        pipe.close()
        self._send(self._start(place), self._work)

    def end(self) -> None:
        """End all at once: what they were at is not needed, or is done."""
        for pipe, (_, member) in self._members.items():
            pipe.close()
            if member.pid is not None:
                member.terminate()
        for _, member in self._members.values():
            if member.pid is not None:
                member.join()


def _environment(number: int) -> dict[str, str]:
    """The environment of a process, which sees one GPU of several, its own as long as there are enough."""
    import torch

    if (count := torch.cuda.device_count()) < 2:
        return {**os.environ}
    seen = os.environ.get(GPUS) or ",".join(map(str, range(count)))
    return {**os.environ, GPUS: seen.split(",")[number % count]}


def _serve(pipe: Connection, threads: int, environment: dict[str, str]) -> None:
    """What a process does: take the work, and answer ranges until the pipe is closed."""
    follow_parent(environment)
    with contextlib.suppress(EOFError, OSError):
        try:
            member = Member(pipe.recv_bytes(), threads)
        except Exception as error:  # whatever a class of the model's raises
            pipe.send_bytes(" ".join(f"{error}".split()).encode())
            return
        pipe.send_bytes(READY)
        while True:
            pipe.send_bytes(member(pipe.recv_bytes()))
