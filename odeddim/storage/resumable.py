"""Runs that may be killed at any moment: every batch is a file of its own until all of them are one.

    z.h5                                 an index of the rows done so far (HDF5 virtual datasets); at last one real file
    z.h5.parts/run.json                  what the run is: model, settings, images; the parts of another are not touched
    z.h5.parts/000000032-000000064.h5    rows 32, ..., 63: written beside, synced, renamed into place, never changed
    z.h5.parts/lock                      who works on what: byte i stands for row i
    z.h5.parts/overwrite                 there if the run may replace what somebody else has put at z.h5

A batch counts as done when its part has its name, and not before. What is missing is found by listing the folder, so
the same command goes on where it was stopped, with any batch size and any number of processes: they share the rows
through locks that the system takes back from a process that dies, and the last one to finish makes the parts one file.
Wherever 16 parts of about one size lie side by side they are made one on the way, so that there are never many.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py

from odeddim.storage.atomic import check_own, check_place, mark_of, plain_text, replacing, sync_folder
from odeddim.storage.hdf5 import CHUNK, add_rows, escaped, nothing, reading, text, words, writing
from odeddim.storage.row_files import (
    OF_CERTIFICATES,
    Columns,
    check_part,
    check_same,
    checksums,
    columns_of,
    comparable,
    copy_head,
    is_index,
    look_at,
    make_real,
    note_settings,
    read_rows,
    run_of,
    settings_of,
)
from odeddim.types import InputError

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None  # type: ignore[assignment]

Head = Callable[[h5py.File, Mapping[str, Any]], None]
"""head(file, notes): writes all that a file holds besides its rows; notes: those given with every part."""

_PART = re.compile(r"(\d{9,})-(\d{9,})\.h5")
_REPLACES = "overwrite"  # the name of a file that is there where the run may replace what is no run's
_SETUP, _OUTPUT = (2**62 + i for i in range(2))  # bytes of the lock file that stand for no row
_TOGETHER = 16  # parts side by side become one,
_LARGEST = 1 << 30  # as long as it has no more bytes than this
_IDLE = 20.0  # an index is written again after this many times what it took the last time


GO_ON = "the same command goes on from there"
W = TypeVar("W", bound="Work")


class Part(NamedTuple):
    """A file with the rows start, ..., stop-1."""

    start: int
    stop: int
    path: Path


class Claims:
    """Which rows which process works on, told through a lock file. A process that dies gives its claims back."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})") from error

    def take(self, start: int, stop: int, *, wait: bool = False) -> bool:
        """Claim the rows start, ..., stop-1; False if another process has some of them."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), stop - start, start)
        except OSError as error:
            # A disk without locks: one process at a time is what it can do.
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def leave(self, start: int, stop: int) -> None:
        """Give the rows back."""
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, stop - start, start)

    @contextlib.contextmanager
    def waiting_for(self, byte: int) -> Iterator[None]:
        """Hold one byte, after whoever has it."""
        self.take(byte, byte + 1, wait=True)
        try:
            yield
        finally:
            self.leave(byte, byte + 1)

    def close(self) -> None:
        """Give back everything."""
        self._file.close()


class Work:
    """Rows 0, ..., total-1 of which some are done, shared out among processes: what `Run` and folders have in common.

    settings: what the run is, JSON-able; note: the file that says so; lock: the lock file. Use as a context manager.
    mark: what a file that is no HDF5 carries if it is the run's.
    Errors: InputError if the note is of another run, naming the differences. where: what the user named.
    """

    def __init__(self, where: Path, total: int, settings: Mapping[str, Any], note: Path, lock: Path) -> None:
        self.total = total
        self.settings = comparable(total, settings)
        self.mark = mark_of(run_of(self.settings))
        self._note = note
        self._claims = Claims(lock)
        self._rank, self._ranks = rank()
        # Handed out and not done: of its own claims the system tells a process nothing.
        self._taken: set[tuple[int, int]] = set()
        try:
            with self._claims.waiting_for(_SETUP):
                self._settle(where)
            self._check()
        except BaseException:
            self._claims.close()
            raise

    def _check(self) -> None:
        """Refuse what counts as done and is not whole, or not this run's."""

    def _settle(self, where: Path) -> None:
        if not self._note.exists():
            with replacing(self._note) as temporary:
                temporary.write_text(json.dumps(self.settings, indent=1, ensure_ascii=False), encoding="utf-8")
            return
        try:
            began = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            began = None
        if not isinstance(began, dict):
            raise InputError(f"{self._note} is damaged: --overwrite starts anew")
        check_same(began, self.settings, f"{where} was begun")

    def spans(self) -> list[tuple[int, int]]:
        """The rows done, as rising spans (start, stop)."""
        raise NotImplementedError

    @property
    def done(self) -> int:
        """How many rows are on the disk, by whichever process."""
        return sum(stop - start for start, stop in self.spans())

    def batches(self, size: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the batches that remain, each claimed by this process as it is handed out.

        Several processes begin at different places, and then help out where others have not begun.
        """
        some = True
        while some:  # what another process had, and did not finish, is found in the next round
            some = False
            missing = list(cut(gaps(self.spans(), self.total), size))
            mine = missing[self._rank :: self._ranks]
            for start, stop in (*mine, *sorted(set(missing) - set(mine))):
                if any(a < stop and start < b for a, b in tuple(self._taken)) or not self._claims.take(start, stop):
                    continue
                some = True
                if self.is_done(start, stop):  # by another process, a moment ago
                    self._claims.leave(start, stop)
                else:
                    self._taken.add((start, stop))
                    yield start, stop

    def is_done(self, start: int, stop: int) -> bool:
        """Whether some of the rows start, ..., stop-1 are done; of rows that are done one by one, whether all are."""
        return any(a < stop and start < b for a, b in self.spans())

    def leave(self, start: int, stop: int) -> None:
        """Give back what `batches` has handed out."""
        self._taken.discard((start, stop))
        self._claims.leave(start, stop)

    def __enter__(self: W) -> W:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._claims.close()


class Run(Work):
    """Rows that become one HDF5 file, or whatever `finish` makes of them.

    output: what the user named. head: writes what the file holds besides rows. overwrite: begin anew, whatever is
    there. index: whether `output` shows what is done so far. own: whether an output that shows nothing is this run's.
    finish: what makes the parts one, once all are there. together: whether the processes of torchrun begin it at the
    same time, as they must with `overwrite`.

    An output that is there already is left alone: if it holds this run's rows `done` is `total`, otherwise, and without
    `overwrite`, it is an InputError with what is different. So is a part that is damaged.
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
    ) -> None:
        check_place(output)
        self.output, self.place = output, Path(os.path.realpath(output))
        self.folder = Path(f"{self.place}.parts")
        if index and plain_text(self.place.name) != self.place.name:
            raise InputError(f"{plain_text(str(output))}: HDF5 cannot show the parts of a file whose name is not UTF-8")
        self._head, self._index, self._finish = head, index, finish or Run.make_one
        self._next_index, self._committed, self._whole, self._own = 0.0, 0, False, own
        if together:
            begin_together(lambda: self._make_room(overwrite))
        else:
            self._make_room(overwrite)
        self._overwrite = overwrite or (self.folder / _REPLACES).exists()
        super().__init__(output, total, settings, self.folder / "run.json", self.folder / "lock")

    def _check(self) -> None:
        """Refuse a damaged part of a run that goes on, if nobody else is at it: they have looked at what they found."""
        if self._whole or not self._claims.take(0, self.total):
            return
        self.leave(0, self.total)
        with self._claims.waiting_for(_OUTPUT):  # nobody makes one of several meanwhile
            for part in self.parts():
                self._check_part(part)

    def _check_part(self, part: Part) -> None:
        try:
            check_part(part.path, run_of(self.settings))
            with reading(part.path, "a part") as file:
                columns = look_at(file, part.path)
                if any(column.shape[0] != part.stop - part.start for column in columns.values()):
                    raise InputError(f"it does not hold {part.stop - part.start} rows")
                for start, stop in cut([(0, part.stop - part.start)], CHUNK):
                    read_rows(file, columns, start, stop, part.path)
        except InputError as error:
            reason = str(error).removeprefix(f"{part.path}: ").removeprefix(f"{part.path} ")
            raise InputError(
                f"{part.path} is damaged ({reason}): delete that file, and what makes {self.output} makes its rows "
                f"{part.start} to {part.stop - 1} again; nothing else is lost"
            ) from error

    def _make_room(self, overwrite: bool) -> None:
        if self.folder.exists():
            if not self.folder.is_dir():
                raise InputError(f"{self.folder} is a file, where the parts of {self.output} are to be: move it away")
            if other := [item.name for item in os.scandir(self.folder) if not _is_ours(item.name)]:
                raise InputError(f"{self.folder} holds {other[0]!r}, which is not odeddim's: give another output name")
            if overwrite:
                with contextlib.closing(Claims(self.folder / "lock")) as claims:
                    if not claims.take(0, 2**61):
                        raise InputError(f"another process is making {self.output}: stop it before you begin anew")
                _remove(self.folder)
                with contextlib.suppress(InputError, OSError), reading(self.place, "an index") as file:
                    if is_index(file):  # of what is gone
                        self.place.unlink()
        try:
            self.folder.mkdir(exist_ok=True)
            if overwrite:  # also when the run goes on without it
                (self.folder / _REPLACES).touch()
        except OSError as error:
            raise InputError(f"the folder {self.folder} cannot be made ({error.strerror})") from error
        sync_folder(self.folder.parent)

    def _settle(self, where: Path) -> None:
        if self.parts() and not self._note.exists():
            if self._index and self._is_there():  # killed while it deleted the parts of what was whole
                return
            raise InputError(f"{self._note} is gone, but not what was done under it: --overwrite starts anew")
        if not self._index:
            try:
                check_own(self.output, lambda _: self._own(self), overwrite=self._overwrite)
            except InputError:
                self._leave_nothing()
                raise
        if self._overwrite or not self._index or not self._is_there():
            super()._settle(where)

    def _is_there(self) -> bool:
        """Whether the output is this run's, and whole. Another's is an InputError, unless it may be replaced."""
        if not self.place.exists():
            return False
        try:
            shown = self._look()
        except InputError:
            if self._overwrite:
                return False
            self._leave_nothing()
            raise
        self._whole = not shown
        return self._whole

    def _look(self) -> bool:
        """Whether the output only shows parts. Errors: InputError if it is another's."""
        try:
            with reading(self.output, "a file that odeddim wrote") as file:
                there, shown = settings_of(file, self.output), is_index(file)
        except InputError as error:
            raise InputError(f"{error}: give another name, or --overwrite to replace it") from error
        if shown and not self._note.exists():
            raise InputError(f"{self.output} shows parts that are gone: --overwrite starts anew")
        if not shown:
            for key in OF_CERTIFICATES:  # `odeddim verify` may have been there since
                if key not in self.settings.get("details", {}):
                    there.get("details", {}).pop(key, None)
            check_same(there, self.settings, f"{self.output} is there already and was made")
        return shown

    def _leave_nothing(self) -> None:
        if not self.parts():
            _remove(self.folder)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        finished = False
        try:
            if self._gone():
                finished = self._is_mine()  # of a run that was killed between its last two breaths
            elif self.done == self.total and kind is None:
                with self._claims.waiting_for(_OUTPUT):
                    # Another process may have made it whole, and be gone with the parts, since they were counted.
                    if not self._gone() and self.done == self.total:
                        self._finish(self)
                        self._whole = True
                        _remove(self.folder, whole=self._index)  # while nobody can take some of the parts for all
            elif self.done:
                self._show()
            else:  # nothing was done: it leaves nothing, if nobody else is at it
                finished = self._claims.take(0, self.total)
        finally:
            self._claims.close()
        if finished:
            _remove(self.folder)

    def _is_mine(self) -> bool:
        """Whether the folder is this run's and not, say, that of a run that adds certificates to its file."""
        try:
            return not self._note.exists() or json.loads(self._note.read_text(encoding="utf-8")) == self.settings
        except (OSError, ValueError):
            return False

    def _gone(self) -> bool:
        """Whether the run is whole: it was so from the beginning, or another process has made it one."""
        if not self._whole and not self._note.exists():
            if not (self.place.exists() if not self._index else self._is_there()):
                raise InputError(f"{self.folder} has been removed while {self.output} was being made: begin again")
            self._whole = True
        return self._whole

    def parts(self) -> list[Part]:
        """The parts that are there, rising."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as items:
            for item in items:
                if match := _PART.fullmatch(item.name):
                    part = Part(int(match[1]), int(match[2]), Path(item.path))
                    if not part.start < part.stop <= self.total:
                        raise InputError(f"{part.path} is no part of {self.total} rows: delete it and go on")
                    found.append(part)
        found.sort(key=lambda part: (part.start, -part.stop))
        shown: list[Part] = []
        for part in found:
            if not shown or part.start >= shown[-1].stop:
                shown.append(part)
            elif part.stop > shown[-1].stop:
                raise InputError(f"{shown[-1].path} and {part.path.name} overlap: delete one of them")
            # One that lies within another was made part of it, by a process that was killed before it could delete it.
        return shown

    def spans(self) -> list[tuple[int, int]]:
        return [(0, self.total)] if self._gone() else [(part.start, part.stop) for part in self.parts()]

    def commit(self, start: int, stop: int, columns: Columns, **notes: Any) -> None:
        """Write rows; notes: what is true of all of them, the same in every part."""
        name = f"{start:09d}-{stop:09d}"
        try:
            with writing(self.folder / f"{name}.h5", self.temporary(name)) as file:
                # Parts that were mixed up would fit their checksums: each says of which run it is, and which rows.
                for key, value in {**notes, "run": run_of(self.settings), "rows": name}.items():
                    file.attrs[key] = text(value) if isinstance(value, str) else value
                for key, values in {**columns, "crc32": checksums(columns)}.items():
                    add_rows(file, key, stop - start, values)[:] = values
                file.commit()
        except InputError as error:
            raise InputError(f"{error}; {self.done} of {self.total} rows are done and safe: {GO_ON}") from error
        self.leave(start, stop)
        self._committed += 1
        if self._committed % _TOGETHER == 0:
            self._gather()
        if self._index and time.monotonic() >= self._next_index:
            self._show()

    def _gather(self) -> None:
        """Make one part of 16 wherever so many of about one size lie side by side, if nobody else is at it."""
        if not self._claims.take(_OUTPUT, _OUTPUT + 1):
            return
        group: list[Part] = []
        try:
            while self._note.exists() and (group := _side_by_side(self.parts())):
                start, stop = group[0].start, group[-1].stop
                name = f"{start:09d}-{stop:09d}"
                paths = [part.path for part in group]
                make_real(
                    paths, self.folder / f"{name}.h5", None, temporary=self.temporary(name), head=_head_of_part(name)
                )
                if self._index:
                    self.write_index()  # before what the one there is now shows is gone
                for path in paths:
                    path.unlink(missing_ok=True)
        except InputError:
            for part in group:
                self._check_part(part)
            # Otherwise the disk is full, say: the parts are as good as they were.
        finally:
            self._claims.leave(_OUTPUT, _OUTPUT + 1)

    def _show(self) -> None:
        """Have the output show what is done, if nobody else is at it. A full disk does not end the run."""
        if not self._index or not self._claims.take(_OUTPUT, _OUTPUT + 1):
            return
        began = time.monotonic()
        if self._note.exists():  # otherwise another process has made it one, and it must stay so
            with contextlib.suppress(InputError):
                self.write_index()
        self._claims.leave(_OUTPUT, _OUTPUT + 1)
        now = time.monotonic()
        self._next_index = now + _IDLE * (now - began)

    def write_index(self) -> None:
        """Have the output show all parts as one, through virtual datasets."""
        parts = self.parts()
        if not parts:
            return
        with writing(self.place, self.temporary("index")) as file, reading(parts[0].path, "a part") as first:
            note_settings(file, self.settings)
            count = sum(part.stop - part.start for part in parts)
            for name in columns_of(first):
                like = first[name]
                layout, at = h5py.VirtualLayout((count, *like.shape[1:]), like.dtype), 0
                for start, stop, path in parts:
                    shape = (stop - start, *like.shape[1:])
                    source = h5py.VirtualSource(escaped(f"{self.folder.name}/{path.name}"), name, shape, like.dtype)
                    layout[at : (at := at + stop - start)] = source
                file.create_virtual_dataset(name, layout, fillvalue=nothing(like.dtype))
            self._head(file, _notes(first))

    def make_one(self) -> None:
        """All rows in one real file under the name that the user gave."""
        paths = [part.path for part in self.parts()]
        try:
            for path in paths:
                check_part(path, run_of(self.settings))
            make_real(
                paths,
                self.place,
                self.settings,
                temporary=self.temporary("whole"),
                head=lambda first, target: self._head(target, _notes(first)),
            )
        except InputError as error:
            if self._index:
                with contextlib.suppress(InputError):
                    self.write_index()
            raise InputError(
                f"{error}; the parts of all {self.total} rows are in {self.folder}: with room on the disk, and those "
                f"that are damaged deleted, {GO_ON}"
            ) from error

    def temporary(self, name: str) -> Path:
        """A place for a file that is not whole yet: on disks without locks, two processes may be at the same one."""
        return self.folder / f"{name}.{socket.gethostname()}-{os.getpid()}.tmp"


def _notes(part: h5py.File) -> dict[str, Any]:
    return {key: words(value) if isinstance(value, bytes) else value for key, value in part.attrs.items()}


def _head_of_part(name: str) -> Callable[[h5py.File, h5py.File], None]:
    """What a part of this name has besides rows, as others of its run have it."""

    def head(source: h5py.File, target: h5py.File) -> None:
        copy_head(source, target)
        target.attrs["rows"] = text(name)

    return head


def finish(path: Path) -> int:
    """Make an index and its parts one file, if all rows are there; their number. Errors: InputError if some are not."""
    with reading(path, "a file that odeddim wrote") as old:
        settings = settings_of(old, path)
        if not is_index(old):
            raise InputError(f"{path} is one file already: there is nothing to merge")
        with Run(path, settings["total"], settings, lambda file, notes: copy_head(old, file)) as run:
            if run.done < run.total:
                raise InputError(
                    f"{path} is unfinished, {run.done} of {run.total} rows are there: run what makes it again, "
                    "or give -o for a file of those"
                )
    return run.total


def _side_by_side(parts: Sequence[Part]) -> list[Part]:
    """The first 16 parts of about one size that touch each other and are not too large together, or none."""
    group: list[Part] = []
    for part in parts:
        if group and (part.start != group[-1].stop or _tier(part) != _tier(group[0])):
            group = []
        group.append(part)
        if len(group) == _TOGETHER:
            if sum(part.path.stat().st_size for part in group) <= _LARGEST:
                return group
            group = []
    return []


def _tier(part: Part) -> int:
    return int(math.log(part.stop - part.start, _TOGETHER) + 1e-9)


def gaps(spans: Sequence[tuple[int, int]], total: int) -> Iterator[tuple[int, int]]:
    """What rising spans leave of 0, ..., total-1."""
    at = 0
    for start, stop in (*spans, (total, total)):
        if at < start:
            yield at, start
        at = max(at, stop)


def cut(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Spans in batches that begin at multiples of `size`, or where a span does."""
    for start, stop in spans:
        while start < stop:
            end = min((start // size + 1) * size, stop)
            yield start, end
            start = end


def rank() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun says it; (0, 1) without it."""
    try:
        if all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        pass
    return 0, 1


def begin_together(action: Callable[[], None]) -> None:
    """Do something once for all processes of torchrun, before any of them goes on; an InputError is everybody's."""
    here, ranks = rank()
    if ranks == 1:
        return action()
    import torch.distributed

    if not torch.distributed.is_initialized():
        try:
            torch.distributed.init_process_group("gloo")
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the {ranks} processes of torchrun do not find each other ({error!s:.100})") from error
        atexit.register(torch.distributed.destroy_process_group)
    problem: list[str | None] = [None]
    if here == 0:
        try:
            action()
        except InputError as error:
            problem = [str(error)]
    torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise InputError(problem[0])


def _is_ours(name: str) -> bool:
    """Whether a file of this name, in a folder of parts, is one that a run makes there."""
    return bool(_PART.fullmatch(name)) or name.endswith(".tmp") or name in ("run.json", "lock", _REPLACES)


def _remove(folder: Path, *, whole: bool = False) -> None:
    """Delete the parts, and then what says whose they are; the other way round where they have become one file.

    So that what remains after a kill is a run that goes on, or is seen to be whole. What cannot be deleted stays,
    without a word: on network disks a file that somebody has open cannot.
    """
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder), key=lambda name: (name == "lock", (name == "run.json") != whole)):
            if _is_ours(name):
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()
