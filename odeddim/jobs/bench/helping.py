"""Helpers of a bench: further processes that make the same call, and share its cells through their locks.

A helper writes no table and shows nothing. What it does not finish, whatever ends it, the bench measures itself.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar, cast

from odeddim.bench.tables import Table
from odeddim.jobs.bench.workbench import Workbench
from odeddim.jobs.machine import Machine
from odeddim.runs.starting import begin, follow_parent
from odeddim.types import InputError

Bench = TypeVar("Bench", bound=Callable[..., Table])


def helped(bench: Bench) -> Bench:
    """A bench for which `Machine.workers` start helpers. None that measures seconds, which they would disturb."""

    @functools.wraps(bench)
    def call(workbench: Workbench, *arguments: Any, **how: Any) -> Table:
        machine = workbench.machine or Machine()
        if machine.engine == "ray":
            raise InputError("benches are shared by processes on one disk: leave out engine='ray'")
        count = machine.count - 1
        alone = replace(workbench, machine=replace(machine, workers=None, engine=None))
        if count and workbench.overwrite:
            raise InputError(
                "overwrite=True cannot be used with several processes, because each would start again: run one first"
            )
        with _helpers(count, bench, (alone, *arguments), how):
            return bench(alone, *arguments, **how)

    return cast(Bench, call)


@contextlib.contextmanager
def _helpers(
    count: int, bench: Callable[..., Table], arguments: tuple[Any, ...], how: dict[str, Any]
) -> Iterator[None]:
    """A context in which so many helpers make a call."""
    silent = replace(arguments[0], progress=False, delivers=False)
    target = ({**os.environ}, bench.__module__, bench.__name__, (silent, *arguments[1:]), how)
    started: list[multiprocessing.process.BaseProcess] = []
    try:
        for _ in range(count):
            helper: multiprocessing.process.BaseProcess = begin().Process(target=_help, args=target, daemon=True)
            helper.start()
            started.append(helper)
        yield
    finally:
        for helper in started:
            helper.terminate()
        for helper in started:
            helper.join()


def _help(environment: dict[str, str], module: str, name: str, arguments: tuple[Any, ...], how: dict[str, Any]) -> None:
    """What a helper does."""
    follow_parent(environment)
    warnings.simplefilter("ignore")
    # The bench meets the same error when it comes to those rows.
    with contextlib.suppress(Exception):
        getattr(import_module(module), name)(*arguments, **how)
