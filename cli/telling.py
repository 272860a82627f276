"""What a command says beside its result: remarks, warnings and errors on standard error, and the same as JSON lines.

Of several processes, as torchrun starts them, the first one tells; the others tell only what goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import time
from datetime import datetime, timezone
from typing import Any

import click

from odeddim.cli.words import in_options
from odeddim.storage.atomic import printable
from odeddim.types import InputError

log = logging.getLogger("odeddim")


class Telling:
    """How a command tells what it does. There is one, `telling`, and each command begins it anew.

    Attributes:
        quiet: Whether it says nothing but its result and errors.
        log_json: Where JSON lines go: a file, "-" for standard error, which they then have for themselves; None for
            nowhere.
        figures: What the last of the JSON lines says of the result.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, for another command."""
        self.quiet = False
        self.log_json: str | None = None
        self.figures: dict[str, Any] = {}
        self.began = time.monotonic()
        self.ended = False

    @property
    def shows(self) -> bool:
        """Whether remarks and progress are shown to people."""
        return not self.quiet and self.log_json != "-"

    def say(self, line: str) -> None:
        """A remark."""
        if _rank() == 0:
            self.write("remark", message=line)
            if self.shows:
                click.echo(printable(line), err=True)

    def warn(self, line: str) -> None:
        """A warning."""
        self.write("warning", message=line)
        if self.shows:
            click.echo(printable(f"warning: {line}"), err=True)

    def fail(self, line: str, code: int) -> None:
        """The error that ends the command."""
        self.end(code, line)
        if self.log_json != "-":
            rank = _rank()
            click.echo(printable(f"Error: {line if rank == 0 else f'(process {rank}) {line}'}"), err=True)

    def end(self, code: int, message: str = "") -> None:
        """The last of the JSON lines: what the command has made, or the error that ended it."""
        if not self.ended:
            what = self.figures if code == 0 else {"message": message, "code": code}
            seconds = round(time.monotonic() - self.began, 3)
            self.write("error" if code else "finish", seconds=seconds, **what)
        self.ended = True

    def write(self, event: str, **values: Any) -> None:
        """One of the JSON lines."""
        if self.log_json is None:
            return
        rank = _rank()
        if rank > 0 and event not in ("warning", "error"):
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        process = {"process": rank} if rank else {}
        line = json.dumps({"time": now, "event": event, **process, **values}) + "\n"
        with contextlib.suppress(OSError):  # a full disk must not end the work
            if self.log_json == "-":
                sys.stderr.write(line)
                sys.stderr.flush()
            else:
                with open(self.log_json, "a", encoding="utf-8") as file:  # one write, for several processes
                    file.write(line)


telling = Telling()


class Told(logging.Handler):
    """What the library says of a run under way, as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        telling.say(in_options(record.getMessage(), sys.argv[1:]))


def _rank() -> int:
    """The number of this process, as torchrun sets it; what is wrong with it is told by those who share work."""
    from odeddim.storage.workers import rank

    with contextlib.suppress(InputError):
        return rank()[0]
    return 0


def _quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        telling.quiet = True
        log.setLevel(logging.ERROR)


def _verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        if telling.quiet:
            raise click.UsageError("-q and -v exclude each other: give only one of them")
        log.setLevel(logging.DEBUG)


def _log_json(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if value != "-":
        _check_log(value)
    telling.log_json = value
    telling.write("start", command=["odeddim", *sys.argv[1:]])


def _check_log(path: str) -> None:
    """Raise an InputError unless JSON lines can be added to a file."""
    try:
        with open(path, "ab") as file:
            plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if plain:
            with open(path, "rb") as file:
                if file.read(1) not in (b"", b"{"):
                    raise InputError(
                        f"log_json={path!r}: the file is there, and it holds no JSON lines: give another name"
                    )
    except OSError as error:
        raise InputError(f"log_json={path!r} cannot be written ({error.strerror}): give another name") from error


OPTIONS = (
    click.Option(
        ["-q", "--quiet"], is_flag=True, expose_value=False, is_eager=True, callback=_quiet,
        help="Say nothing but the result and errors: no progress, no warnings.",
    ),
    click.Option(
        ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_verbose,
        help="Say what is done: model, plan, device, batches.",
    ),
    click.Option(
        ["--log-json"], metavar="FILE|-", default=None, expose_value=False, callback=_log_json,
        help="Add JSON lines to FILE: start, progress, warnings, and finish with its figures or the error. - is "
        "standard error, in place of all that people read there.",
    ),
)  # fmt: skip
"""The options of all commands that work for long."""
