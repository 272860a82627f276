"""Engines: who does the work on the images of a run, a range of them at a time.

A job reads images and writes results; what lies between, the work, is one object. `over` has it done here, or by a
team: processes of this machine (`odeddim.runs.processes`), or actors of Ray (`odeddim.runs.on_ray`). Each member of a
team gets the work once, with the model in it, and then ranges of images. What comes back is the same, in the same
order, whoever did it, because image i depends on its index and not on its company. No member reads or writes a file.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch

from odeddim.ode.field import VectorField
from odeddim.runs.memory import keep_memory
from odeddim.types import InputError

Given = TypeVar("Given", contravariant=True)
Made = TypeVar("Made", covariant=True)
Span = tuple[int, int]
COUNTS = ("nfe", "rows", "filled")
"""What a field counts of its evaluations."""
AHEAD = 3
"""So many ranges for each member are handed out before the first of them has come back."""


class Work(Protocol[Given, Made]):
    """The work on images. A team pickles it, so it holds no open file.

    Attributes:
        model: The field whose evaluations are counted.
    """

    @property
    def model(self) -> VectorField: ...

    def __call__(self, start: int, stop: int, given: Given, /) -> Made:
        """The results of the images start, ..., stop-1, given what the job has read of them."""


class Team(Protocol):
    """Those who share the work of a run. They know nothing of each other.

    Attributes:
        size: How many they are.
    """

    size: int

    def free(self) -> bool:
        """Whether a member waits for work."""

    def send(self, number: int, packed: bytes) -> None:
        """Give a member that waits something to do."""

    def take(self) -> tuple[int, bytes]:
        """Wait for a result, whichever comes first: its number, and what the member packed."""


Gather = Callable[[bytes, int], contextlib.AbstractContextManager[Team]]
"""gather(packed work, threads): a team, ready to be given ranges. It ends with the context."""


def over(
    work: Work[Given, Made], batches: Iterable[tuple[Span, Given]], gather: Gather | None = None
) -> Generator[tuple[Span, Made], None, None]:
    """Have work done on batches, and yield the results in the order of the batches.

    A caller that may stop early must close the generator, which ends the team.

    Args:
        work: The work.
        batches: What the job has read of each range of images, with the range.
        gather: Who does the work; None for this process.

    Yields:
        The range and the result of each batch.

    Raises:
        InputError, BudgetExceeded, ...: What the work raises, in whichever process, at its place in the order.
    """
    if gather is None:
        for span, given in batches:
            yield span, work(*span, given)
        return
    with gather(_packed(work), torch.get_num_threads()) as team:
        yield from _by(team, work, iter(batches))


def _by(
    team: Team, work: Work[Given, Made], todo: Iterator[tuple[Span, Given]]
) -> Generator[tuple[Span, Made], None, None]:
    """Hand work out to a team, and yield what comes back in order."""
    sent: list[Span] = []
    came: dict[int, bytes] = {}
    at = 0
    while True:
        while team.free() and len(sent) - at < AHEAD * team.size and (batch := next(todo, None)) is not None:
            team.send(len(sent), pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))
            sent.append(batch[0])
        if at == len(sent):
            return
        if at not in came:
            number, packed = team.take()
            came[number] = packed
        else:
            yield sent[at], _opened(came.pop(at), work.model)
            at += 1


class Member:
    """One of a team: the work, unpacked once, and done range by range.

    Args:
        packed: The work.
        threads: The number of threads of torch. The last digits of a result depend on it, so it is the job's.
    """

    def __init__(self, packed: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work: Work[Any, Any] = pickle.loads(packed)
        if (self.work.model.device or torch.device("cpu")).type == "cpu":
            keep_memory()

    @torch.no_grad()
    def __call__(self, packed: bytes) -> bytes:
        """The result of a range, packed with what was counted and said meanwhile, or with the error that ended it."""
        (start, stop), given = pickle.loads(packed)
        model = self.work.model
        model.reset()
        made, error = None, None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                made = self.work(start, stop, given)
            except Exception as problem:
                error = problem
        words = [str(it.message) for it in said if it.category is UserWarning]
        counts = [getattr(model, name) for name in COUNTS]
        return pickle.dumps((made, counts, words, _portable(error)), pickle.HIGHEST_PROTOCOL)


def _packed(work: Any) -> bytes:
    """Work, pickled; an InputError if a part of it cannot be."""
    try:
        return pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
    except InputError:
        raise
    except Exception as error:  # whatever the part's own code raises
        words = " ".join(str(error).split())[:200]
        raise InputError(f"other processes cannot be given this work ({words}): leave out workers=...") from error


def _opened(packed: bytes, model: VectorField) -> Any:
    """The result in what a member packed; what it counted and said is counted and said here."""
    made, counts, words, error = pickle.loads(packed)
    for name, count in zip(COUNTS, counts, strict=True):
        setattr(model, name, getattr(model, name) + count)
    for line in words:
        warnings.warn(line, stacklevel=2)
    if error is not None:
        raise error
    return made


def _portable(error: Exception | None) -> Exception | None:
    """An error as it can be pickled: itself, or what it says."""
    try:
        return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]
    except Exception:  # of a class that cannot be made from its words
        return RuntimeError(f"{type(error).__name__}: {error}")


def cores(threads: int) -> int:
    """How many members a machine has room for, at least 1, if each takes so many threads."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // threads)


def ended(code: int | None) -> str:
    """How a process has ended, in words."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with code {code}"
