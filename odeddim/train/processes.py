"""The processes of a training run, as torchrun starts them: each takes a share of every batch.

The first one alone reads and writes the run's folder. torch's DistributedDataParallel is not used: it adds gradients up
in an order that depends on the number of processes. `Processes.total` does it as `odeddim.train.gradients` says.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from odeddim.storage.workers import rank
from odeddim.types import InputError

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # the others wait while the first process draws samples and measures


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    Attributes:
        rank: Which one it is, from 0.
        count: How many there are.
        direct: Whether they exchange tensors from GPU to GPU; otherwise through the CPU.
    """

    rank: int = 0
    count: int = 1
    direct: bool = False

    def share(self, number: int) -> slice:
        """Return which of `number` things in order are this process's; `count` divides the number."""
        each = number // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return in every process what `make` returns in the first, which alone calls it.

        Raises:
            InputError: What `make` raises; or the first process has ended.
        """
        if self.count == 1:
            return make()
        told: list[tuple[T | None, str | None]] = [(None, None)]
        if self.rank == 0:
            try:
                told = [(make(), None)]
            except InputError as error:
                told = [(None, str(error))]
        with _exchanging():
            torch.distributed.broadcast_object_list(told, src=0)
        made, problem = told[0]
        if problem is not None:
            raise InputError(problem)
        return made  # type: ignore[return-value]  # T may itself be None

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process. All processes wait for each other."""
        if self.count == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int64)
        with _exchanging():
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return [bool(number) for number in numbers]

    def total(self, vector: Tensor) -> Tensor:
        """Return the sum of the processes' vectors, the same bits in each.

        If their number is a power of two, neighbours are added first, as in `odeddim.train.gradients.TreeSum`.
        """
        if self.count == 1:
            return vector
        mine = vector if self.direct else vector.cpu()
        with _exchanging():
            if self.count & (self.count - 1):
                torch.distributed.all_reduce(mine)
                return mine.to(vector.device)
            span = 1
            while span < self.count:
                mine = mine + _swapped(mine, self.rank ^ span)
                span *= 2
        return mine.to(vector.device)


ALONE = Processes()


def _swapped(mine: Tensor, other: int) -> Tensor:
    """Return the tensor of another process, which gets this one."""
    import torch.distributed as network

    theirs = torch.empty_like(mine)
    both = [network.P2POp(network.isend, mine, other), network.P2POp(network.irecv, theirs, other)]
    for request in network.batch_isend_irecv(both):
        request.wait()
    return theirs


@contextlib.contextmanager
def joined(place: torch.device) -> Iterator[Processes]:
    """Meet the other processes of torchrun for the block. Without torchrun, and within another such block, do nothing.

    Args:
        place: The device of this process.

    Raises:
        InputError: The processes cannot reach each other.
    """
    here, count = rank()
    if count == 1:
        yield Processes()
        return
    gpus = torch.cuda.device_count() if place.type == "cuda" else 0
    direct = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE") or count)  # two processes on one GPU cannot use NCCL
    mine = not torch.distributed.is_initialized()
    if mine:
        try:
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if direct else "gloo", timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the {count} processes of torchrun cannot reach each other ({error!s:.100}): start them again"
            ) from error
    try:
        yield Processes(here, count, direct)
    finally:
        if mine:
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this run has ended, and may have said why: the same command goes on from the last "
            f"checkpoint ({' '.join(str(error).split())[:100]})"
        ) from error
