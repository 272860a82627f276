"""How the command line shows progress: as the library does, unless it is told to be quiet, and as JSON lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from odeddim.cli.telling import telling
from odeddim.runs.progress import FIRST, Advance, Display, Lines

errors = Console(stderr=True)


class Bar(Display):
    """A bar in a terminal and lines elsewhere, and JSON lines if they are asked for."""

    @contextlib.contextmanager
    def __call__(self, total: float, unit: str, done: float = 0) -> Iterator[Advance]:
        with contextlib.ExitStack() as stack:
            displays: list[Advance] = []
            if telling.shows:
                displays.append(stack.enter_context(super().__call__(total, unit, done)))
            if telling.log_json is not None:
                displays.append(stack.enter_context(Events(total, unit, done).ticking(still=self.still)))

            def advance(count: float) -> None:
                for move in displays:
                    move(count)

            yield advance


class Events(Lines):
    """Progress as JSON lines, every ten seconds, and at the end."""

    def __init__(self, total: float, unit: str, done: float = 0, **how: Any) -> None:
        super().__init__(total, unit, done, **how)
        self.longest, self.last = FIRST, True

    def _write(self) -> None:
        spent, made = self.clock() - self.began, self.done - self.begun_at
        rate = made / spent if spent > 0 else 0.0
        left = {"left": round((self.total - self.done) / rate, 1)} if rate > 0 else {}
        telling.write(
            "progress", unit=self.unit, done=round(self.done, 3), total=self.total, seconds=round(spent, 3),
            rate=float(f"{rate:.4g}"), **left,
        )  # fmt: skip


bar = Bar()
