"""What is shown on standard error while a job works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from odeddim.storage.workers import rank

errors = Console(stderr=True)


@contextlib.contextmanager
def bar(total: int, unit: str, done: int = 0, *, still: bool = False) -> Iterator[Callable[[int], Any]]:
    """A progress bar on stderr, begun at `done`; yields a function that moves it on by so many.

    still: it is drawn when it is moved on, and not by a thread besides.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not errors.is_terminal or rank()[0] > 0
    with Progress(*columns, console=errors, transient=True, disable=hidden, auto_refresh=not still) as bars:
        task = bars.add_task(unit, total=total, completed=done)
        yield lambda count: bars.update(task, advance=count, refresh=still)
