"""Parts of a run: each is an HDF5 file with the rows of a batch, named after them, in the folder `OUTPUT.parts`.

A part is written beside its place and renamed into it when it is whole. After that it never changes. Where 16 parts of
about one size lie side by side they are made one, so that there are never many.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from odeddim.storage.hdf5 import CHUNK, add_rows, escaped, nothing, opened, text, words, writing
from odeddim.storage.row_files import Columns, check_part, checksums, columns_of, copy_head, look_at, read_rows
from odeddim.storage.workers import cut
from odeddim.types import InputError

NOTE, LOCK = "run.json", "lock"
REPLACES = "overwrite"
"""A file of this name lies in the folder if the run may replace an output that is not its own."""
TOGETHER = 16
"""So many parts side by side become one."""

_PART = re.compile(r"(\d{9,})-(\d{9,})\.h5")
_LARGEST = 1 << 30  # bytes of parts that still become one
_LARGEST_HELD = 1 << 26  # bytes of batches that are written as one part


class Rows(NamedTuple):
    """The rows start, ..., stop-1 of a run, before they are written.

    Attributes:
        start: The first row.
        stop: The row after the last.
        columns: The rows.
        notes: What is true of all rows, the same in every part.
    """

    start: int
    stop: int
    columns: Columns
    notes: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The bytes of the rows."""
        return sum(values.nbytes for values in self.columns.values())

    def precedes(self, other: Rows) -> bool:
        """Whether other rows of the same kind follow these."""
        kinds = [{name: (v.dtype, v.shape[1:]) for name, v in rows.columns.items()} for rows in (self, other)]
        return self.stop == other.start and kinds[0] == kinds[1] and self.notes == other.notes


def neighbours(batches: Iterable[Rows]) -> Iterator[list[Rows]]:
    """Batches of rows, those together that follow each other and become one part."""
    group: list[Rows] = []
    for rows in batches:
        if group and not (group[-1].precedes(rows) and sum(it.size for it in group) + rows.size <= _LARGEST_HELD):
            yield group
            group = []
        group.append(rows)
    if group:
        yield group


def as_one(group: Sequence[Rows]) -> Rows:
    """Rows that follow each other as one batch."""
    if len(group) == 1:
        return group[0]
    columns = {name: np.concatenate([rows.columns[name] for rows in group]) for name in group[0].columns}
    return Rows(group[0].start, group[-1].stop, columns, group[0].notes)


class Part(NamedTuple):
    """A file with the rows start, ..., stop-1."""

    start: int
    stop: int
    path: Path


def part_of(folder: Path, start: int, stop: int) -> Part:
    """The part with the rows start, ..., stop-1 in a folder, whether its file is there or not."""
    return Part(start, stop, folder / f"{start:09d}-{stop:09d}.h5")


def parts_in(folder: Path, total: int) -> list[Part]:
    """The parts in a folder that are not contained in others, rising; none if there is no folder.

    Raises:
        InputError: A part has rows beyond `total`, or two parts overlap.
    """
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            if match := _PART.fullmatch(item.name):
                part = Part(int(match[1]), int(match[2]), Path(item.path))
                if not part.start < part.stop <= total:
                    raise InputError(f"{part.path} is not a part of {total} rows: delete it and go on")
                found.append(part)
    found.sort(key=lambda part: (part.start, -part.stop))
    shown: list[Part] = []
    for part in found:
        if not shown or part.start >= shown[-1].stop:
            shown.append(part)
        elif part.stop > shown[-1].stop:
            raise InputError(f"{shown[-1].path} and {part.path.name} overlap: delete one of them")
        # A part within another was made part of it, by a process that was killed before it could delete it.
    return shown


def write_part(part: Part, temporary: Path, run: str, rows: Rows) -> None:
    """Write rows as a part.

    Args:
        part: The part.
        temporary: Where its file lies until it is whole.
        run: The hash of the run's settings (`row_files.run_of`).
        rows: The rows.

    Raises:
        InputError: The disk does not take the file.
    """
    with writing(part.path, temporary) as file:
        # Parts that were mixed up would fit their checksums, so each records its run and its rows.
        for key, value in {**rows.notes, "run": run, "rows": part.path.stem}.items():
            file.attrs[key] = text(value) if isinstance(value, str) else value
        for key, values in {**rows.columns, "crc32": checksums(rows.columns)}.items():
            add_rows(file, key, part.stop - part.start, values)[:] = values
        file.commit()


def head_of_part(name: str) -> Callable[[h5py.File, h5py.File], None]:
    """What a part of this name holds besides rows, as the other parts of its run hold it."""

    def head(source: h5py.File, target: h5py.File) -> None:
        copy_head(source, target)
        target.attrs["rows"] = text(name)

    return head


def notes_of(part: h5py.File) -> dict[str, Any]:
    """What `write_part` has noted in a part."""
    return {key: words(value) if isinstance(value, bytes) else value for key, value in part.attrs.items()}


def check_rows(part: Part, run: str, output: Path) -> None:
    """Raise an InputError unless a part belongs to a run and all of its rows fit their checksums.

    Args:
        part: The part.
        run: The hash of the run's settings.
        output: What the user named, for the message.
    """
    try:
        check_part(part.path, run)
        _read_through(part)
    except InputError as error:
        reason = str(error).removeprefix(f"{part.path}: ").removeprefix(f"{part.path} ")
        raise InputError(
            f"{part.path} is damaged ({reason}): delete that file, and what makes {output} makes its rows "
            f"{part.start} to {part.stop - 1} again; nothing else is lost"
        ) from error


def check_finished(part: Part) -> None:
    """Raise an InputError unless all rows of a finished file, which a longer run continues, fit their checksums."""
    try:
        _read_through(part)
    except InputError as error:
        raise InputError(f"{error}; overwrite=True starts anew") from error


def _read_through(part: Part) -> None:
    """Raise an InputError unless a file has the rows of a part, and they fit their checksums."""
    with opened(part.path, "a part") as file:
        columns = look_at(file, part.path)
        if any(column.shape[0] != part.stop - part.start for column in columns.values()):
            raise InputError(f"{part.path} does not hold {part.stop - part.start} rows")
        for start, stop in cut([(0, part.stop - part.start)], CHUNK):
            read_rows(file, columns, start, stop, part.path)


def pieces_of(parts: Sequence[Part], *, backwards: bool = False) -> Iterator[Columns]:
    """All rows of parts, some at a time, each compared with its checksum. backwards: the last pieces first."""
    for part in reversed(parts) if backwards else parts:
        with opened(part.path, "a part") as file:
            names = columns_of(file)
            spans = list(cut([(0, part.stop - part.start)], CHUNK))
            for start, stop in reversed(spans) if backwards else spans:
                yield read_rows(file, names, start, stop, part.path)


def show(file: h5py.File, parts: Sequence[Part], first: h5py.File) -> None:
    """Have a new file show the rows of parts as one, through virtual datasets.

    Args:
        file: The file that is being written, beside the folder of the parts.
        parts: The parts, rising.
        first: The first of them, opened.
    """
    count = sum(part.stop - part.start for part in parts)
    for name in columns_of(first):
        like = first[name]
        layout, at = h5py.VirtualLayout((count, *like.shape[1:]), like.dtype), 0
        for start, stop, path in parts:
            shape = (stop - start, *like.shape[1:])
            source = h5py.VirtualSource(escaped(f"{path.parent.name}/{path.name}"), name, shape, like.dtype)
            layout[at : (at := at + stop - start)] = source
        file.create_virtual_dataset(name, layout, fillvalue=nothing(like.dtype))


def side_by_side(parts: Sequence[Part]) -> list[Part]:
    """The first 16 parts of about one size that touch each other and are not too large together, or none."""
    group: list[Part] = []
    for part in parts:
        if group and (part.start != group[-1].stop or _tier(part) != _tier(group[0])):
            group = []
        group.append(part)
        if len(group) == TOGETHER:
            if sum(part.path.stat().st_size for part in group) <= _LARGEST:
                return group
            group = []
    return []


def _tier(part: Part) -> int:
    return int(math.log(part.stop - part.start, TOGETHER) + 1e-9)


def is_of_a_run(name: str) -> bool:
    """Whether a run makes files of this name in its folder of parts."""
    return bool(_PART.fullmatch(name)) or name.endswith(".tmp") or name in (NOTE, LOCK, REPLACES)


def remove(folder: Path, *, whole: bool = False, keep_lock: bool = False) -> None:
    """Delete a folder of parts.

    A kill in the middle leaves either a run that can continue or an output that is seen to be whole. Therefore the
    parts go first and the note that says whose they are goes last. Files that cannot be deleted stay, without an
    error: on network disks that happens while somebody has them open.

    Args:
        folder: The folder.
        whole: Whether the parts have become one file. Then the note goes first.
        keep_lock: Keep the folder with the lock file, for other processes may wait for that.
    """
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder), key=lambda name: (name == LOCK, (name == NOTE) != whole)):
            if is_of_a_run(name) and not (keep_lock and name == LOCK):
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()
