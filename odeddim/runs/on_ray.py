"""A team of Ray's actors, on one machine or on many. What becomes of one that is lost, or of its node, is Ray's affair:
it starts another one, which gets the work from the object store, and does again what the lost one was at.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from odeddim.runs.engines import Gather, Member
from odeddim.types import InputError

QUEUED = 2
"""An actor has one range in work, and the next one waits for it there."""


def actors(count: int | None, *, address: str | None, gpu: bool) -> Gather:
    """A team of so many actors.

    Args:
        count: How many; None for as many as the cluster has room for.
        address: As of `ray.init`; None for the cluster that is there already, or one of this machine, which ends with
            the team.
        gpu: Whether each takes a GPU.
    """

    @contextlib.contextmanager
    def gather(packed: bytes, threads: int) -> Iterator[Actors]:
        with _cluster(address, None if count is None or address else count * threads) as ray:
            room = ray.cluster_resources()
            fit = int(room.get("GPU", 0) if gpu else room.get("CPU", 0) // threads)
            if fit < (count or 1):
                what = "GPUs" if gpu else f"times {threads} CPUs"
                raise InputError(f"the cluster of Ray has room for {fit} workers ({what}): give fewer workers=...")
            team = Actors(ray, count or fit)
            try:
                team.begin(packed, threads, gpu)
                yield team
            finally:
                team.end()

    return gather


@contextlib.contextmanager
def _cluster(address: str | None, cpus: int | None) -> Iterator[Any]:
    """A context in which this process is connected to a cluster: the module of Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what is done here
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # errors reach this process; a warning there is about `_work`
    try:
        import ray
    except ImportError as error:
        raise InputError("engine='ray' needs Ray: pip install 'odeddim[ray]'") from error
    if joined := ray.is_initialized():
        yield ray
        return
    try:
        ray.init(
            address, num_cpus=cpus, include_dashboard=False if address is None else None,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(f"there is no cluster of Ray at {address or 'this machine'!r} ({words})") from error
    try:
        yield ray
    finally:
        if not joined:
            ray.shutdown()


class Actors:
    """Actors of a cluster.

    Args:
        ray: The module, connected to the cluster.
        count: How many.
    """

    def __init__(self, ray: Any, count: int) -> None:
        self.size, self._ray = count, ray
        self._work: Any = None  # the store keeps it as long as somebody here refers to it
        self._members: list[Any] = []
        self._load: list[int] = [0] * count
        self._busy: dict[Any, tuple[int, int]] = {}

    def begin(self, packed: bytes, threads: int, gpu: bool) -> None:
        """Start all. The work lies in the object store once, where an actor that is started again finds it."""
        self._work = self._ray.put(packed)
        kind = self._ray.remote(Member).options(
            num_cpus=threads, num_gpus=int(gpu), max_restarts=-1, max_task_retries=-1
        )
        self._members = [kind.remote(self._work, threads) for _ in range(self.size)]

    def free(self) -> bool:
        """As of `Team`."""
        return min(self._load) < QUEUED

    def send(self, number: int, packed: bytes) -> None:
        """As of `Team`."""
        member = self._load.index(min(self._load))
        self._load[member] += 1
        self._busy[self._members[member].__call__.remote(packed)] = number, member

    def take(self) -> tuple[int, bytes]:
        """As of `Team`.

        Raises:
            InputError: An actor cannot be started anywhere.
        """
        (first, *_), _ = self._ray.wait(list(self._busy))
        number, member = self._busy.pop(first)
        self._load[member] -= 1
        try:
            return number, self._ray.get(first)
        except self._ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            raise InputError(
                f"Ray has given up a part of the work ({words}): the same call goes on from there"
            ) from error

    def end(self) -> None:
        """End all at once: what they were at is not needed, or is done."""
        for member in self._members:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                self._ray.kill(member)
