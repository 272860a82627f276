"""A team of processes on this machine. They end with the process that started them, however that ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.connection import Connection

from odeddim.runs.engines import Gather, Member, ended
from odeddim.types import InputError

READY = b"ready"


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

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.size = count
        self._idle: list[Connection] = []
        self._busy: dict[Connection, int] = {}
        # Fresh interpreters: a fork would copy the threads' locks of torch and of HDF5 as they happen to be.
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[Connection, multiprocessing.process.BaseProcess] = {}

    def begin(self, packed: bytes, threads: int) -> None:
        """Start all, and wait until each has its model."""
        for number in range(self.size):
            here, there = self._context.Pipe()
            with _gpu_of(number):
                member = self._context.Process(target=_serve, args=(there, threads), daemon=True)
                self._members[here] = member
                member.start()
            there.close()
        for pipe in self._members:
            with contextlib.suppress(OSError):  # it has ended already, which `_receive` tells
                pipe.send_bytes(packed)
        for pipe in self._members:
            if (answer := self._receive(pipe)) != READY:
                raise InputError(
                    f"the processes that share the work cannot load the model ({answer.decode()[:200]}): define it in "
                    "a module, or leave out workers=..."
                )
            self._idle.append(pipe)

    def free(self) -> bool:
        """As of `Team`."""
        return bool(self._idle)

    def send(self, number: int, packed: bytes) -> None:
        """As of `Team`."""
        pipe = self._idle.pop()
        self._busy[pipe] = number
        with contextlib.suppress(OSError):  # it has ended, which `take` finds
            pipe.send_bytes(packed)

    def take(self) -> tuple[int, bytes]:
        """As of `Team`.

        Raises:
            InputError: A process has ended.
        """
        pipe = connection.wait(list(self._busy))[0]
        assert isinstance(pipe, Connection)
        packed = self._receive(pipe)
        self._idle.append(pipe)
        return self._busy.pop(pipe), packed

    def _receive(self, pipe: Connection) -> bytes:
        try:
            return pipe.recv_bytes()
        except (EOFError, OSError) as error:
            member = self._members[pipe]
            member.join(10)
            if pipe in self._busy:
                raise InputError(
                    f"one of the {self.size} processes that share the work was ended {ended(member.exitcode)}, perhaps "
                    "for lack of memory: the same call goes on from what is finished; fewer workers=... take less"
                ) from error
            raise InputError(
                f"the processes that share the work cannot start (one ended {ended(member.exitcode)}): in a script, "
                "call this under `if __name__ == '__main__':`, and define models in modules; or leave out workers=..."
            ) from error

    def end(self) -> None:
        """End all at once: what they were at is not needed, or is done."""
        for pipe, member in self._members.items():
            pipe.close()
            if member.pid is not None:
                member.terminate()
        for member in self._members.values():
            if member.pid is not None:
                member.join()


@contextlib.contextmanager
def _gpu_of(number: int) -> Iterator[None]:
    """A context in which a process is started that sees one GPU of several, its own as long as there are enough."""
    import torch

    if (count := torch.cuda.device_count()) < 2:
        yield
        return
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    seen = before.split(",") if before else [str(i) for i in range(count)]
    os.environ[name] = seen[number % len(seen)]
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


def _serve(pipe: Connection, threads: int) -> None:
    """What a process does: take the work, and answer ranges until the pipe is closed."""
    follow_parent()
    with contextlib.suppress(EOFError, OSError):
        try:
            member = Member(pipe.recv_bytes(), threads)
        except Exception as error:  # whatever a class of the model's raises
            pipe.send_bytes(" ".join(f"{error}".split()).encode())
            return
        pipe.send_bytes(READY)
        while True:
            pipe.send_bytes(member(pipe.recv_bytes()))


def follow_parent() -> None:
    """End this process when the one that started it ends, and leave Ctrl-C, which reaches both, to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
