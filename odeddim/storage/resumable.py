"""Runs that may be killed at any moment: every batch is a file of its own until all of them are one.

    z.h5                                 an index of the rows done so far (HDF5 virtual datasets); at last one real file
    z.h5.parts/run.json                  the settings of the run: model, solver, images
    z.h5.parts/000000032-000000064.h5    the rows 32, ..., 63 (see `odeddim.storage.parts`)
    z.h5.parts/lock                      who works on what (see `odeddim.storage.workers`)
    z.h5.parts/overwrite                 there if the run may replace a file at z.h5 that is not its own

A batch is done when its part has its name, and not before. The folder's listing says what is missing. So the same
command goes on where it was stopped, with any batch size and any number of processes, and the last process to finish
makes the parts one file.

A run of more rows goes on where a finished run of fewer has ended: the rows of the finished file are its first rows,
and the file stays as it is until the longer one replaces it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from odeddim.storage.atomic import check_own, check_place, plain_text, sync_folder
from odeddim.storage.hdf5 import opened, parts_beside, writing
from odeddim.storage.parts import (
    LOCK,
    NOTE,
    REPLACES,
    TOGETHER,
    Part,
    Rows,
    as_one,
    check_finished,
    check_rows,
    head_of_part,
    is_of_a_run,
    neighbours,
    notes_of,
    part_of,
    parts_in,
    pieces_of,
    remove,
    show,
    side_by_side,
    write_part,
)
from odeddim.storage.row_files import (
    OF_CERTIFICATES,
    Column,
    Columns,
    check_opened,
    check_same,
    comparable,
    copy_head,
    is_index,
    make_real,
    note_settings,
    settings_of,
)
from odeddim.storage.workers import GO_ON, MEMBER, OUTPUT, Claims, OfFirst, SharedRun, begin_together, end_together
from odeddim.types import InputError

Head = Callable[[h5py.File, Mapping[str, Any]], None]
"""head(file, notes): writes all that a file holds besides its rows. notes: those given with every part."""

_IDLE = 20.0  # an index is written again after so many times what it took the last time


class Run(SharedRun):
    """A run whose rows become one HDF5 file, or whatever `finish` makes of the parts.

    An output that exists is left alone: if it holds this run's rows, `done` is `total`; anything else is an error,
    unless `overwrite`.

    Args:
        output: The file that the user named.
        total: How many rows there are.
        settings: What the run is, as JSON can hold it.
        head: Writes what the file holds besides rows.
        overwrite: Begin anew, whatever is there.
        index: Whether the output shows what is done so far.
        own: Whether an output is this run's, where it shows nothing.
        finish: Makes the parts one, once all are there.
        together: Whether the processes of torchrun begin the run at the same time, as they must with `overwrite`.
        of_first: The settings that a run of only the first rows has. With it, the run continues such a one.

    Raises:
        InputError: The output, or what was begun under its name, belongs to another run (the message names the
            settings that differ), or a part is damaged.
    """

    def __init__(
        self,
        output: Path,
        total: int,
        settings: Mapping[str, Any],
        head: Head = lambda file, notes: None,
        *,
        overwrite: bool = False,
        index: bool = True,
        own: Callable[[Run], bool] = lambda run: True,
        finish: Callable[[Run], None] | None = None,
        together: bool = True,
        of_first: OfFirst | None = None,
    ) -> None:
        check_place(output)
        self.output, self.place = output, Path(os.path.realpath(output))
        self.folder = parts_beside(output)
        if index and plain_text(self.place.name) != self.place.name:
            raise InputError(
                f"{plain_text(str(output))}: HDF5 cannot show the parts of a file whose name is not UTF-8: give "
                "another name"
            )
        self._head, self._index, self._finish = head, index, finish or Run.make_one
        self._next_index, self._committed, self._whole, self._own = 0.0, 0, False, own
        self._held: list[Rows] = []
        self._finished: Part | None = None  # the output, where it holds the first rows of this run
        if together:
            begin_together(lambda: self._make_room(overwrite))
        else:
            self._make_room(overwrite)
        self._overwrite = overwrite or (self.folder / REPLACES).exists()
        super().__init__(output, total, settings, self.folder / NOTE, self.folder / LOCK, of_first, together)

    # The beginning.

    def _make_room(self, overwrite: bool) -> None:
        """Make the folder of the parts; with `overwrite` without what another run has left in it."""
        if self.folder.exists():
            if not self.folder.is_dir():
                raise InputError(
                    f"{self.folder} is a file, but the parts of {self.output} need a folder there: move it away"
                )
            if other := [item.name for item in os.scandir(self.folder) if not is_of_a_run(item.name)]:
                raise InputError(f"{self.folder} holds {other[0]!r}, which is not odeddim's: give another output name")
            if overwrite:
                with contextlib.closing(Claims(self.folder / LOCK)) as claims:
                    if not claims.take_all():
                        raise InputError(f"another process is making {self.output}: stop it before you begin anew")
                    remove(self.folder, keep_lock=True)
                    with contextlib.suppress(InputError, OSError), opened(self.place, "an index") as file:
                        if is_index(file):  # of parts that are gone
                            self.place.unlink()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:  # also for the run that continues this one without it
                (self.folder / REPLACES).touch()
        except OSError as error:
            raise InputError(
                f"the folder {self.folder} cannot be made ({error.strerror}): give another output name"
            ) from error
        sync_folder(self.folder.parent)

    def _settle(self, where: Path) -> None:
        if not self._first:  # the first process has settled it
            if self._overwrite or not self._index or not self._is_there():
                super()._settle(where)
            return
        if not self._note.exists() and self.parts():
            if self._index and self._is_there():  # killed while it deleted the parts of what was whole
                return
            if self._finished is None:
                raise InputError(f"{self._note} is missing, but parts of its run are there: overwrite=True starts anew")
        if not self._index:
            try:
                check_own(self.output, lambda _: self._own(self), overwrite=self._overwrite)
            except InputError:
                self._leave_nothing()
                raise
        if self._overwrite or not self._index or not self._is_there():
            if self._finished is not None and not self._note.exists():
                self._follow()
            super()._settle(where)

    def _follow(self) -> None:
        """Delete what the finished run has left of its parts, once its processes have ended."""
        self._claims.take(MEMBER, MEMBER + 1, wait=True)
        remove(self.folder, keep_lock=True)
        if not (self.folder / LOCK).exists():
            raise InputError(f"another process has just finished {self.output}: give the same command again")

    def _is_there(self) -> bool:
        """Whether the output is this run's, and whole. Another's is an InputError, unless it may be replaced."""
        self._finished = None
        if not self.place.exists():
            return False
        try:
            rows = self._look()
        except InputError:
            if self._overwrite:
                return False
            self._leave_nothing()
            raise
        self._whole = rows == self.total
        if 0 < rows < self.total:
            self._finished = Part(0, rows, self.place)
        return self._whole

    def _look(self) -> int:
        """How many rows of this run the output holds itself; 0 if it only shows parts.

        Raises:
            InputError: The output belongs to another run, or shows parts that are missing.
        """
        try:
            with opened(self.output, "a file that odeddim wrote") as file:
                there, shown = settings_of(file, self.output), is_index(file)
        except InputError as error:
            raise InputError(f"{error}: give another name, or overwrite=True to replace it") from error
        if shown and not self._note.exists():
            raise InputError(f"{self.output} shows parts that are gone: overwrite=True starts anew")
        if shown:
            return 0
        added = [key for key in OF_CERTIFICATES if key not in self.settings.get("details", {})]
        added = [key for key in added if there.get("details", {}).pop(key, None)]  # certificates, by `verify`
        rows, settings = self.total, self.settings
        if self._of_first is not None and there["total"] < self.total and not self._overwrite:
            rows = there["total"]
            settings = comparable(rows, self._of_first(rows))
        check_same(there, settings, f"{self.output} is there already and was made")
        if rows < self.total and "certified" in added:
            raise InputError(
                f"{self.output} holds certificates of its {rows} latents: give certify=True for those of the others too"
            )
        return int(rows)

    def _leave_nothing(self) -> None:
        if not self._made():
            remove(self.folder)

    def _check(self) -> None:
        """Refuse a damaged part of a run that continues.

        While other processes are at work nothing is checked: they have checked what they found.
        """
        if self._whole or not self._claims.take(0, self.total):
            return
        self.leave(0, self.total)
        with self._claims.waiting_for(OUTPUT):  # nobody makes one part of several meanwhile
            if self._finished is not None:
                check_finished(self._finished)
            for part in self._made():
                check_rows(part, self._run, self.output)

    # The rows.

    def parts(self) -> list[Part]:
        """The files that hold the rows that are done, rising: parts, and before them the output of a shorter run."""
        first = self._finished
        return self._made() if first is None else [first, *(part for part in self._made() if part.start >= first.stop)]

    def _made(self) -> list[Part]:
        """The parts that this run has made, rising."""
        return parts_in(self.folder, self.total)

    def spans(self) -> list[tuple[int, int]]:
        """The rows that are done, as rising spans (start, stop)."""
        return [(0, self.total)] if self._gone() else [(part.start, part.stop) for part in self.parts()]

    def commit(self, start: int, stop: int, columns: Columns, **notes: Any) -> None:
        """Write a batch; when this returns its rows are done, whatever happens to the process.

        Within `together` they are done when that ends, and batches that follow each other become one part.

        Args:
            start: The first row.
            stop: The row after the last.
            columns: The rows.
            **notes: What is true of all rows of the run, the same with every batch.

        Raises:
            InputError: The disk does not take the part; the rows done before are safe.
        """
        with self.together():
            self._held.append(Rows(start, stop, columns, notes))

    def _write_held(self) -> None:
        held, self._held = self._held, []
        for group in neighbours(held):
            rows = as_one(group)
            part = part_of(self.folder, rows.start, rows.stop)
            try:
                write_part(part, self.temporary(part.path.stem), self._run, rows)
            except InputError as error:
                raise InputError(f"{error}; {self.done} of {self.total} rows are done and safe: {GO_ON}") from error
            for batch in group:
                self.leave(batch.start, batch.stop)
            self._committed += 1
            if self._committed % TOGETHER == 0 and self._first:
                self._gather()
        if held and self._index and time.monotonic() >= self._next_index:
            self._show()

    def _gather(self) -> None:
        """Make one part of 16 wherever so many of about one size lie side by side, if no other process does so."""
        if not self._claims.take(OUTPUT, OUTPUT + 1):
            return
        group: list[Part] = []
        try:
            while self._note.exists() and (group := side_by_side(self._made())):
                one = part_of(self.folder, group[0].start, group[-1].stop)
                paths, name = [part.path for part in group], one.path.stem
                make_real(paths, one.path, None, temporary=self.temporary(name), head=head_of_part(name))
                if self._index:
                    self.write_index()  # before the parts that the present index shows are gone
                for path in paths:
                    path.unlink(missing_ok=True)
        except InputError:
            for part in group:
                check_rows(part, self._run, self.output)
            # All of them are good, so the disk is full, say: the run continues with the parts as they are.
        finally:
            self._claims.leave(OUTPUT, OUTPUT + 1)

    def pieces(self, *, backwards: bool = False) -> Iterator[Columns]:
        """All rows, some at a time, each compared with its checksum. backwards: the last pieces first."""
        return pieces_of(self.parts(), backwards=backwards)

    # The output.

    def _show(self) -> None:
        """Have the output show what is done, if no other process does so. A full disk does not end the run."""
        if not self._index or not self._first or not self._claims.take(OUTPUT, OUTPUT + 1):
            return
        began = time.monotonic()
        if self._note.exists():  # otherwise another process has made it whole, and it must stay so
            with contextlib.suppress(InputError):
                self.write_index()
        self._claims.leave(OUTPUT, OUTPUT + 1)
        now = time.monotonic()
        self._next_index = now + _IDLE * (now - began)

    def write_index(self) -> None:
        """Have the output show all parts as one, through virtual datasets; not in the place of a finished file."""
        parts = self._made()
        if not parts or self._finished is not None:
            return
        with writing(self.place, self.temporary("index")) as file, opened(parts[0].path, "a part") as first:
            note_settings(file, self.settings)
            show(file, parts, first)
            self._head(file, notes_of(first))

    def make_one(self) -> None:
        """Write all rows to one real file under the name that the user gave.

        Raises:
            InputError: A part is damaged, or the disk has no room; the parts stay.
        """
        if self._finished is not None and self._is_there():  # by a process that was killed after that
            return
        if self.done < self.total:
            raise InputError(f"{self.output} has been changed while rows were added to it: {GO_ON}")
        made, paths = self._made(), [part.path for part in self.parts()]
        try:
            with opened(made[0].path, "a part") as first:
                notes = notes_of(first)
            make_real(
                paths,
                self.place,
                self.settings,
                temporary=self.temporary("whole"),
                head=lambda _, target: self._head(target, notes),
                check=self._check_own,
            )
        except InputError as error:
            if self._index:
                with contextlib.suppress(InputError):
                    self.write_index()
            raise InputError(
                f"{error}; the parts of all {self.total} rows are in {self.folder}: with room on the disk, and those "
                f"that are damaged deleted, {GO_ON}"
            ) from error

    def _check_own(self, file: h5py.File, path: Path, columns: Mapping[str, Column]) -> None:
        if path != self.place:  # the finished file that this run continues
            check_opened(file, path, self._run, columns)

    def temporary(self, name: str) -> Path:
        """A place for a file that is not whole yet. On disks without locks two processes may write the same file."""
        return self.folder / f"{name}.{socket.gethostname()}-{os.getpid()}.tmp"

    # The end.

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._by_rank and kind is None:
                end_together(self._end_for_all)
                self._whole, finished = True, False
            else:
                finished = self._end(kind)
        finally:
            self._claims.close()
        if finished:
            remove(self.folder)

    def _end_for_all(self) -> None:
        """Make the output, once all processes of torchrun have done their rows."""
        self._until_all_are_done()
        if self._end(None):
            remove(self.folder)

    def _end(self, kind: type[BaseException] | None) -> bool:
        """Make the output if all rows are done, and show it otherwise; whether to delete the folder of the parts."""
        if self._gone():
            return self._is_mine()  # left by a run that was killed while it deleted the folder
        if self.done == self.total and kind is None:
            with self._claims.waiting_for(OUTPUT):
                # Since the parts were counted another process may have made them one, and deleted them.
                if not self._gone() and self.done == self.total:
                    self._finish(self)
                    self._whole = True
                    remove(self.folder, whole=self._index)  # while nobody can take some of the parts for all
        elif self._made():
            self._show()
        elif not self._by_rank:  # nothing was done, so nothing stays, unless another process takes part
            return self._claims.take_all()
        return False

    def _is_mine(self) -> bool:
        """Whether the folder is this run's and not, say, that of a run that adds certificates to its file."""
        try:
            return not self._note.exists() or json.loads(self._note.read_text(encoding="utf-8")) == self.settings
        except (OSError, ValueError):
            return False

    def _gone(self) -> bool:
        """Whether the run is whole: it was so from the beginning, or another process has made it so."""
        if not self._whole and not self._note.exists():
            if not (self.place.exists() if not self._index else self._is_there()):
                raise InputError(f"{self.folder} has been removed while {self.output} was being made: begin again")
            self._whole = True
        return self._whole


def finish(path: Path) -> int:
    """Make an index and its parts one file.

    Args:
        path: The index.

    Returns:
        How many rows there are.

    Raises:
        InputError: Some of the rows are missing, or the file is one already.
    """
    with opened(path, "a file that odeddim wrote") as old:
        settings = settings_of(old, path)
        if not is_index(old):
            raise InputError(f"{path} is one file already: there is nothing to merge")
        with Run(path, settings["total"], settings, lambda file, notes: copy_head(old, file)) as run:
            if run.done < run.total:
                raise InputError(
                    f"{path} is unfinished, {run.done} of {run.total} rows are there: run what makes it again, "
                    "or give output=... for a file of those"
                )
    return run.total
