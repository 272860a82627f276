"""Who works on what: several processes share the rows of one run through a lock file.

Byte i of the lock file stands for row i, and a few bytes beyond all rows stand for the steps of a run that one process
at a time may do. The operating system takes a lock back when its process ends, however it ends. So a killed process
blocks nobody, and the rows that it had not finished are handed out again.

The processes of torchrun need no locks, which a network disk may grant to everybody: each has rows of its own, by its
rank, and the first one alone begins the run, merges parts and makes the output, once all have done theirs.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from odeddim.storage.atomic import mark_of, replacing
from odeddim.storage.row_files import check_same, comparable, run_of
from odeddim.types import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks: one process at a time
    fcntl = None  # type: ignore[assignment]

# Bytes of the lock file that stand for no row.
SETUP = 2**62
"""Held while a process looks at what is there, and says what the run is."""
OUTPUT = SETUP + 1
"""Held while a process writes the output, or makes one part of several."""
MEMBER = SETUP + 2
"""Shared by all processes of a run, from its beginning to its end."""

LISTED = 60.0
"""Seconds until a network disk shows the files that another machine has written."""
GO_ON = "the same command goes on from there"
OfFirst = Callable[[int], Mapping[str, Any]]
"""of_first(n): the settings that a run has if it makes only the first n rows of another."""
S = TypeVar("S", bound="SharedRun")


class Claims:
    """Which process works on which rows, told through a lock file. A process that ends gives its claims back.

    Args:
        path: The lock file.
        make: Whether to make it if it is missing.

    Raises:
        InputError: The lock file cannot be written.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        try:
            self._file = open(path, "a+b" if make else "r+b")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another place") from error

    def take(self, start: int, stop: int, *, wait: bool = False, shared: bool = False) -> bool:
        """Claim the rows start, ..., stop-1.

        Args:
            start: The first row.
            stop: The row after the last.
            wait: Wait for other processes to give the rows back.
            shared: Let other processes share the claim; only a claim that is not shared excludes it.

        Returns:
            False if another process has claimed some of the rows.
        """
        if fcntl is None:
            return True
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(self._file, kind, stop - start, start)
        except OSError as error:
            # A disk without locks refuses in another way. It can serve one process at a time, so the claim holds.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def take_all(self) -> bool:
        """Claim all rows and all steps; False if any other process takes part in the run."""
        return self.take(0, MEMBER + 1)

    def leave(self, start: int, stop: int) -> None:
        """Give the rows start, ..., stop-1 back."""
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, stop - start, start)

    @contextlib.contextmanager
    def waiting_for(self, byte: int) -> Iterator[None]:
        """Hold one byte during the block, and wait for it if another process has it."""
        self.take(byte, byte + 1, wait=True)
        try:
            yield
        finally:
            self.leave(byte, byte + 1)

    def close(self) -> None:
        """Give everything back."""
        self._file.close()


def in_use(lock: Path) -> bool:
    """Whether a process takes part in the run of a lock file. Without locks (Windows) every run counts."""
    if fcntl is None or not lock.exists():
        return lock.exists()
    try:
        with contextlib.closing(Claims(lock, make=False)) as claims, claims.waiting_for(SETUP):  # so that nobody joins
            return not claims.take(MEMBER, MEMBER + 1)
    except InputError:  # it has been deleted, or belongs to another user
        return lock.exists()


class SharedRun:
    """A run over rows 0, ..., total-1 that several processes share; some of the rows may be done already.

    `odeddim.storage.resumable.Run` and `odeddim.storage.outputs.Folder` are such runs: they say where rows that are
    done lie. Use it as a context manager.

    Args:
        where: What the user named, for messages.
        total: How many rows there are.
        settings: What the run is, as JSON can hold it.
        note: The file that records the settings.
        lock: The lock file.
        of_first: The settings of runs that make only the first rows, for what does not depend on their number.
        together: Whether the processes of torchrun make the run together; otherwise they share it by locks.

    Attributes:
        mark: What a file that is not HDF5 carries to show that it belongs to this run.

    Raises:
        InputError: The note records another run; the message names the settings that differ.
    """

    def __init__(
        self,
        where: Path,
        total: int,
        settings: Mapping[str, Any],
        note: Path,
        lock: Path,
        of_first: OfFirst | None = None,
        together: bool = True,
    ) -> None:
        self.total = total
        self.settings = comparable(total, settings)
        self._of_first = of_first
        self._run = run_of(self.settings)
        self.mark = mark_of(self._run)
        self._rank, self._ranks = rank()
        self._note = note
        self._claims = Claims(lock)
        self._by_rank = together and self._ranks > 1
        self._first = self._rank == 0 or not self._by_rank
        """Whether this process may do what one process at a time does."""
        # Batches handed out and not done: the system does not tell a process about its own claims.
        self._taken: set[tuple[int, int]] = set()
        self._within = 0  # contexts of `together`

        def begin() -> None:
            with self._claims.waiting_for(SETUP):
                self._settle(where)
                self._claims.take(MEMBER, MEMBER + 1, shared=True)
            if self._first:
                self._check()

        try:
            if self._by_rank:
                begin_together(begin)
            if not self._by_rank or not self._first:
                begin()
        except BaseException:
            self._claims.close()
            raise

    def _check(self) -> None:
        """Refuse rows that count as done and are damaged, or belong to another run."""

    def _settle(self, where: Path) -> None:
        """Record the settings, or compare them with those on record. Only one process at a time does so."""
        if self._note.exists():
            check_same(self._noted(), self.settings, f"{where} was begun")
        elif self._first:
            self._record()

    def _record(self) -> None:
        """Record the settings."""
        with replacing(self._note) as temporary:
            temporary.write_text(json.dumps(self.settings, indent=1, ensure_ascii=False), encoding="utf-8")

    def _noted(self) -> dict[str, Any]:
        """The settings on record."""
        try:
            began = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            began = None
        if not isinstance(began, dict):
            raise InputError(f"{self._note} is damaged: overwrite=True starts anew")
        return began

    def spans(self) -> list[tuple[int, int]]:
        """The rows that are done, as rising spans (start, stop)."""
        raise NotImplementedError

    @property
    def done(self) -> int:
        """How many rows are done, by whichever process."""
        return sum(stop - start for start, stop in self.spans())

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """The batches (start, stop) that remain, each claimed for this process when it is handed out.

        Several processes begin at different batches. A process whose own batches are done helps with the others, unless
        each has its own by its rank.
        """
        some = True
        while some:  # the next round finds what another process had claimed and did not finish
            some = False
            missing = list(cut(gaps(self.spans(), self.total), size))
            if self._by_rank:  # by where they lie, and not by what is missing, which each may see otherwise
                mine, others = [it for it in missing if it[0] // size % self._ranks == self._rank], []
            else:
                mine = missing[self._rank :: self._ranks]
                others = sorted(set(missing) - set(mine))
            for start, stop in (*mine, *others):
                if self.claim(start, stop):
                    some = True
                    yield start, stop

    def claim(self, start: int, stop: int) -> bool:
        """Claim a batch for this process, as `batches` does; False if it is done, or in work here or elsewhere."""
        if any(a < stop and start < b for a, b in tuple(self._taken)):
            return False
        if not self._claims.take(start, stop) and not self._by_rank:
            return False
        if self.is_done(start, stop):  # by another process, a moment ago
            self._claims.leave(start, stop)
            return False
        self._taken.add((start, stop))
        return True

    def holds(self, start: int, stop: int) -> bool:
        """Whether a batch is in work here."""
        return (start, stop) in self._taken

    def is_done(self, start: int, stop: int) -> bool:
        """Whether some of the rows start, ..., stop-1 are done. Where rows are done one by one: whether all are."""
        return any(a < stop and start < b for a, b in self.spans())

    def leave(self, start: int, stop: int) -> None:
        """Give back a batch that was claimed."""
        self._taken.discard((start, stop))
        self._claims.leave(start, stop)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context: batches that are written in it are done when it ends, and share files or syncs."""
        self._within += 1
        try:
            yield
        finally:
            self._within -= 1
            if not self._within:
                self._write_held()

    def _write_held(self) -> None:
        """Write the batches that were held back by `together`, and sync them."""
        raise NotImplementedError

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._claims.close()

    def _until_all_are_done(self) -> None:
        """Wait until the rows of all processes of torchrun show on this machine, which all have done theirs.

        Raises:
            InputError: Some do not.
        """
        until = time.monotonic() + LISTED
        while self.done < self.total:
            if time.monotonic() > until:
                raise InputError(f"only {self.done} of {self.total} rows are on this machine's disk: {GO_ON}")
            time.sleep(0.5)


class Together:
    """Runs over the same rows, each of which is computed once for all of them.

    Args:
        runs: The runs; they are entered already.
    """

    def __init__(self, runs: Sequence[SharedRun]) -> None:
        self._all = runs

    @property
    def done(self) -> int:
        """How many rows are in every output."""
        return min(run.done for run in self._all)

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """The batches that some output lacks, as of `SharedRun.batches`.

        Each is claimed for all outputs that lack it when it is handed out: who reads ahead must not get it twice.
        """
        for run in self._all:
            for start, stop in run.batches(size):
                for other in self._all:
                    if other is not run:
                        other.claim(start, stop)
                yield start, stop

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """The context of `SharedRun.together` for all of them."""
        with contextlib.ExitStack() as stack:
            for run in self._all:
                stack.enter_context(run.together())
            yield


def gaps(spans: Sequence[tuple[int, int]], total: int) -> Iterator[tuple[int, int]]:
    """The spans of 0, ..., total-1 that rising spans leave free."""
    at = 0
    for start, stop in (*spans, (total, total)):
        if at < start:
            yield at, start
        at = max(at, stop)


def cut(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Spans cut into batches that begin at multiples of `size`, or where a span begins."""
    for start, stop in spans:
        while start < stop:
            end = min((start // size + 1) * size, stop)
            yield start, end
            start = end


def rank() -> tuple[int, int]:
    """The number of this process and the number of processes, as torchrun sets them; (0, 1) without torchrun.

    Raises:
        InputError: RANK or WORLD_SIZE is not a number that torchrun would set.
    """
    if not all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")):
        return 0, 1
    here, processes = _count("RANK"), _count("WORLD_SIZE")
    if here >= processes:
        raise InputError(
            f"the environment variable RANK is {here} and WORLD_SIZE is {processes}, but RANK counts from 0 to "
            "WORLD_SIZE - 1: unset both, or start the processes with torchrun"
        )
    return here, processes


def local_rank() -> int:
    """The number of this process among those on this machine, as torchrun sets it; 0 without torchrun.

    Raises:
        InputError: LOCAL_RANK is not a number that torchrun would set.
    """
    return _count("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else 0


def _count(name: str) -> int:
    """An environment variable that counts processes."""
    value = os.environ[name]
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InputError(
            f"the environment variable {name} is {value[:40]!r}, which is not a number of processes: unset it, or "
            "start the processes with torchrun"
        )
    return int(value)


def begin_together(action: Callable[[], None]) -> None:
    """Do something once for all processes of torchrun, before any of them continues.

    Args:
        action: What to do. The first process does it, and the others wait.

    Raises:
        InputError: From `action`, in every process; or the processes cannot reach each other.
    """
    here, ranks = rank()
    if ranks == 1:
        return action()
    import torch.distributed

    problem: list[str | None] = [None]
    with _meeting(ranks) as group:
        if here == 0:
            try:
                action()
            except InputError as error:
                problem = [str(error)]
        torch.distributed.broadcast_object_list(problem, src=0, group=group)
    if problem[0] is not None:
        raise InputError(problem[0])


def end_together(action: Callable[[], None]) -> None:
    """Do something once for all processes of torchrun, after all of them have come here, however long that takes.

    Args:
        action: What to do. The first process does it, and the others wait.

    Raises:
        InputError: From `action`, in every process; or another process has ended.
    """
    ranks = rank()[1]
    if ranks > 1:
        import torch.distributed

        with _meeting(ranks) as group:
            torch.distributed.barrier(group=group)
    begin_together(action)


_groups: list[Any] = []


@contextlib.contextmanager
def _meeting(ranks: int) -> Iterator[Any]:
    """A context in which the processes of torchrun wait for each other, and the group of them."""
    import torch.distributed

    try:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
            atexit.register(torch.distributed.destroy_process_group)
        if not _groups:  # by default a process waits for another one half an hour only
            _groups.append(torch.distributed.new_group(backend="gloo", timeout=timedelta(days=30)))
        yield _groups[0]
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the {ranks} processes of torchrun cannot reach each other, or one has ended ({error!s:.100}): start them "
            "again"
        ) from error
