"""Files with a row for each image: columns of one length, a checksum of each row, and how the rows were made.

/NAME          (N, *) a column; text is UTF-8 of a fixed length
/crc32         (N,) uint32, a checksum of each row over all columns, so that a row is known to belong together
/provenance    JSON with its checksum: what the rows are and how they were made; `total` is how many there will be
/nodes         noise levels, which have no row for each image
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from odeddim.storage.atomic import plain_text
from odeddim.storage.errors import short
from odeddim.storage.hdf5 import CHUNK, add_rows, dataset, items, opened, text, unescaped, words, writing
from odeddim.types import InputError

Columns = Mapping[str, "np.ndarray[Any, Any]"]
"""The rows of a batch: the name of a dataset -> (B, *); text is bytes of a fixed length."""

_HEAD = ("provenance", "nodes")  # the datasets that have no row for each image
OF_CERTIFICATES = ("certified", "fingerprint")  # details that describe certificates, and not the rows
_READ = 1 << 23  # bytes of rows that are copied together
_MOST_SETTINGS = 4_000_000  # bytes; a schedule of 10,000 levels takes 0.2 MB
_SHOWN = 5  # differences named in a message
_OTHERS = {
    "sha256": "other weights or settings of the model",
    "schedule": "another schedule of the model",
    "nodes": "other noise levels",
    "images": "other images",
    "latents": "other latents",
    "encoded": "latents encoded in another way",
    "source": "another model or other noise levels to encode",
    "of": "made of other latents",
    "ladder": "other steps for tol=... to try",
    "conditions": "other conditions of the images",
    "condition_of_each": "other conditions of the images",
}
"""What a message says of settings whose values mean nothing to a user."""
_CALLED = {"total": "number of images", "made_by": "command", "certified": "certify"}
"""The names of settings that users know, where they differ."""


class Column(NamedTuple):
    """The shape (N, *) and the type of a column, and whether its rows lie in parts."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    virtual: bool


Check = Callable[[h5py.File, Path, Mapping[str, Column]], Any]
"""check(file, path, columns) raises an InputError for a file that does not belong where its rows are to go."""


def make_real(
    sources: Sequence[Path],
    place: Path,
    settings: Mapping[str, Any] | None,
    *,
    temporary: Path | None = None,
    head: Callable[[h5py.File, h5py.File], None] | None = None,
    advance: Callable[[int], Any] = lambda count: None,
    check: Check = lambda file, path, columns: None,
) -> None:
    """Copy the rows of files, one after the other, into one real file, and compare each row with its checksum.

    One source is open at a time.

    Args:
        sources: The files.
        place: The file to be made.
        settings: Recorded in the file, if given.
        temporary: Where the file lies until it is whole; see `odeddim.storage.atomic.replacing`.
        head: head(source, target) writes everything but rows and settings; without it as the first source has it.
        advance: Called with the number of rows after each copy.
        check: Called for each source.

    Raises:
        InputError: A source is damaged, the rows of the sources are not of one kind, or the disk has no room.
    """
    columns = _alike(sources, check, attributes=head is None)
    counts = [its["crc32"].shape[0] for its in columns]
    with writing(place, temporary) as target:
        if settings is not None:
            note_settings(target, settings)
        into, at, row = {}, 0, 0
        for name, (shape, *_) in columns[0].items():
            dtype = max((its[name].dtype for its in columns), key=lambda dtype: dtype.itemsize)
            into[name] = add_rows(target, name, sum(counts), np.empty((0, *shape[1:]), dtype))
            row += dtype.itemsize * math.prod(shape[1:])
        size = CHUNK * max(1, _READ // (CHUNK * row))
        for path, count in zip(sources, counts, strict=True):
            with opened(path, "a file that odeddim wrote") as file:
                if path is sources[0]:
                    (head or copy_head)(file, target)
                for start in range(0, count, size):
                    stop = min(start + size, count)
                    for name, values in read_rows(file, into, start, stop, path).items():
                        into[name][at : at + stop - start] = values
                    target.commit()
                    at += stop - start
                    advance(stop - start)


def _alike(sources: Sequence[Path], check: Check, *, attributes: bool) -> list[dict[str, Column]]:
    """The columns of each source; an InputError unless the rows of all are of one kind and belong here."""
    kinds, columns = [], []
    for path in sources:
        with opened(path, "a file that odeddim wrote") as file:
            columns.append(look_at(file, path))
            kinds.append(_kind(file, columns[-1], attributes))
            check(file, path, columns[-1])
            if any(column.virtual for column in columns[-1].values()):
                check_parts(file, path, settings_of(file, path))
        if kinds[-1] != kinds[0]:
            raise InputError(f"{path} holds rows of another kind than {sources[0]}: make one file of each kind")
    return columns


def joined(paths: Sequence[Path], settings: Sequence[Mapping[str, Any]], total: int) -> dict[str, Any]:
    """The settings of files that are put together.

    Args:
        paths: The files.
        settings: The settings of each.
        total: How many rows they have together.

    Raises:
        InputError: The files differ in more than what they were made of.
    """
    # In the details:
    of_their_own = ("images", "latents", "fingerprint", "merged", "made_on", "condition_of_each")
    shared = []
    for one in settings:
        details = {key: value for key, value in one.get("details", {}).items() if key not in of_their_own}
        shared.append({**one, "total": total, "details": details})
    for path, other in zip(paths, shared, strict=True):
        check_same(shared[0], other, f"{path} cannot follow {paths[0]}, which was made", advice="")
    return {**shared[0], "details": {**shared[0]["details"], "merged": [str(path) for path in paths]}}


def look_at(file: h5py.File, path: Path) -> dict[str, Column]:
    """The columns of a file; raises an InputError if one cannot be read."""
    found = {name: dataset(file, name, path) for name in columns_of(file)}
    return {name: Column(data.shape, data.dtype, data.is_virtual) for name, data in found.items()}


def read_rows(
    file: h5py.File, names: Iterable[str], start: int, stop: int, path: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Read the rows start, ..., stop-1 of a file, and compare them with their checksums.

    Args:
        file: The file.
        names: All of its columns.
        start: The first row.
        stop: The row after the last.
        path: The path of the file, for messages.

    Raises:
        InputError: The rows cannot be read, or do not fit their checksums.
    """
    try:
        # Opened anew each time: an open virtual dataset keeps every part open that has been read, and once the system
        # allows no more open files HDF5 gives fill values for further rows, without an error.
        rows = {name: np.asarray(file[name][start:stop]) for name in names}
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: rows {start} to {stop - 1} cannot be read: {short(error)}") from error
    right = rows["crc32"] == checksums(rows)
    if not bool(right.all()):
        raise InputError(
            f"{path}: row {start + int(right.argmin())} was changed, or its columns were mixed up: make it anew"
        )
    return rows


def columns_of(file: h5py.File) -> list[str]:
    """The names of the datasets that have a row for each image, sorted."""
    return [name for name, item in items(file, depth=2) if isinstance(item, h5py.Dataset) and name not in _HEAD]


def checksums(columns: Columns) -> np.ndarray[Any, Any]:
    """The CRC-32 of each row over all columns, in the order of their names; (B,) uint32."""
    names = sorted(set(columns) - {"crc32"})
    sums = np.zeros(len(columns[names[0]]), np.uint32)
    for name in names:
        values = np.ascontiguousarray(columns[name])
        for i, value in enumerate(values):  # of text without its filling: its width may change
            sums[i] = zlib.crc32(bytes(value) + b"\0" if values.dtype.kind == "S" else value.tobytes(), int(sums[i]))
    return sums


def text_column(names: Sequence[str], width: int) -> np.ndarray[Any, Any]:
    """Names as (B,) bytes of a fixed width, in UTF-8."""
    return np.array([plain_text(name).encode() for name in names], f"S{max(width, 1)}")


def width_of(names: Sequence[str]) -> int:
    """The bytes of the longest of many names, which are read in slices."""
    starts = range(0, len(names), 4096)
    return max((len(plain_text(name).encode()) for i in starts for name in names[i : i + 4096]), default=1)


def note_settings(file: h5py.File, settings: Mapping[str, Any]) -> None:
    """Record what the rows of a file are, and how they were made."""
    written = text(json.dumps(settings, indent=1, ensure_ascii=False))
    file.create_dataset("provenance", data=written).attrs["sha256"] = text(_digest(written.tobytes()))


def settings_of(file: h5py.File, path: Path) -> dict[str, Any]:
    """What `note_settings` has recorded; raises an InputError if nothing was, or if it has changed since."""
    if "provenance" not in file:
        raise InputError(f"{path} is an HDF5 file, but odeddim did not write it: give one that it wrote")
    data = dataset(file, "provenance", path)
    if data.shape != () or data.dtype.itemsize > _MOST_SETTINGS:
        raise InputError(f"{path}: 'provenance' is not a JSON text of a possible size: it is damaged")
    written = np.asarray(data[()])
    if _digest(written.tobytes()) != words(data.attrs["sha256"]):  # HDF5 has no checksum of a single text
        raise InputError(f"{path}: its provenance does not fit its checksum: it is damaged or was edited")
    settings = json.loads(words(written))
    if not isinstance(settings, dict) or not isinstance(settings.get("total"), int):
        raise InputError(f"{path}: odeddim did not write its provenance: give a file that it wrote")
    return settings


def is_index(file: h5py.File) -> bool:
    """Whether a file only shows rows that lie in parts."""
    return any(file[name].is_virtual for name in columns_of(file))


def run_of(settings: Mapping[str, Any]) -> str:
    """A hash of settings. It is the same for settings between which `check_same` finds no difference."""
    return _digest(json.dumps(_essence(comparable(settings["total"], settings)), sort_keys=True).encode())


def _essence(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    passing = _passing(value)
    return {key: _essence(item) for key, item in value.items() if key not in passing and item is not None}


def _passing(value: Mapping[str, Any]) -> set[str]:
    """The keys whose values may change: Python's version, the machine of portable runs, names of what is hashed."""
    return {"python", "made_on", "model", "path"} if value.get("sha256") else {"python", "made_on"}


def check_parts(file: h5py.File, path: Path, settings: Mapping[str, Any]) -> None:
    """Raise an InputError unless every part that an index shows belongs to its run and has the rows of its name."""
    run = run_of(settings)
    for source in sorted({source.file_name for name in columns_of(file) for source in file[name].virtual_sources()}):
        check_part(path.resolve().parent / unescaped(source), run)


def check_part(path: Path, run: str) -> None:
    """Raise an InputError unless a file is a part of a run, has the rows of its name, and holds them itself.

    The checksums of rows do not say that: parts that were mixed up would fit them.

    Args:
        path: The part.
        run: The hash of the run's settings (`run_of`).
    """
    with opened(path, "the part of that name, or overwrite=True to start anew") as part:
        check_opened(part, path, run, look_at(part, path))


def check_opened(part: h5py.File, path: Path, run: str, columns: Mapping[str, Column]) -> None:
    """`check_part` of a file that is open, with these columns."""
    if [words(part.attrs.get(key, "")) for key in ("run", "rows")] != [run, path.stem]:
        raise InputError(f"{path} is of another run or other rows than its name says: delete it, and go on")
    if any(column.virtual for column in columns.values()):
        raise InputError(f"{path} holds no rows of its own: delete it, and go on")


def comparable(total: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the number of rows, as they come back from a file."""
    loaded: dict[str, Any] = json.loads(json.dumps({**settings, "total": total}))
    return loaded


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    what: str,
    advice: str = ": give those, another name, or overwrite=True to start anew",
) -> None:
    """Raise an InputError if settings differ; it names the differences.

    Args:
        before: The settings on record.
        now: The settings of now.
        what: How the message begins, such as "z.h5 was begun".
        advice: How it ends.
    """
    differences = list(dict.fromkeys(_differences(before, now)))
    # Other noise levels follow from any other difference.
    differences = [words for words in differences if words != _OTHERS["nodes"]] or differences
    if differences:
        shown = ", ".join(differences[:_SHOWN]) + (
            f" and {len(differences) - _SHOWN} more" if differences[_SHOWN:] else ""
        )
        raise InputError(f"{what} with other settings ({shown}){advice}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that differs, in words."""
    for key in sorted({*before, *now} - (_passing(before) & _passing(now))):
        was, becomes = before.get(key), now.get(key)
        if _essence(was) == _essence(becomes):
            continue
        if key == "sha256" and before.get("model") != now.get("model"):  # the names of the models say more
            key, was, becomes = "model", before.get("model"), now.get("model")
        if key in _OTHERS:
            yield _OTHERS[key]
        elif isinstance(was, dict) or isinstance(becomes, dict):
            yield from _differences(*(value if isinstance(value, dict) else {} for value in (was, becomes)))
        else:
            yield f"{_CALLED.get(key, key.replace('_', '-'))}: {_brief(was)} then, {_brief(becomes)} now"


def _brief(value: Any) -> str:
    words = "none" if value is None else str(value)
    return words if len(words) <= 40 else f"{words[:12]}..."


def _kind(file: h5py.File, columns: Mapping[str, Column], attributes: bool) -> dict[str, Any]:
    """What files must have in common if their rows are put together: columns, shapes and types, and attributes."""
    kind: dict[str, Any] = {
        name: (column.shape[1:], "text" if column.dtype.kind == "S" else column.dtype.str)
        for name, column in columns.items()
    }
    if attributes:
        kind["/"] = {key: value for key, value in _attributes(file).items() if key != "rows"}
        kind["attributes"] = {name: _attributes(item) for name, item in items(file, depth=2) if name not in _HEAD}
    return kind


def _attributes(item: h5py.Group | h5py.Dataset) -> dict[str, str]:
    return {key: repr(value) for key, value in item.attrs.items()}


def copy_head(source: h5py.File, target: h5py.File) -> None:
    """Copy everything but rows and settings, with all attributes."""
    for name in _HEAD:
        if name in source and name not in target:
            source.copy(name, target)

    def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
        for key, value in item.attrs.items():
            target[name].attrs[key] = value

    copy("/", source)
    for name, item in items(source, depth=2):
        if name not in _HEAD:
            copy(name, item)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
