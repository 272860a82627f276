"""Tables of measurements: columns with a meaning and a unit, rows, the conventions they were made under, and sheets.

NAME.h5     everything: /rows, a compound; /sheets; /table, what NAME.json has. `load` reads it. Its attribute `files`
            has the hashes of what is written beside it, by which a later run knows these files as its own
NAME.json   all but the sheets; NAME.csv: the rows
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from odeddim.storage.atomic import check_own, replacing
from odeddim.storage.hdf5 import dataset, opened, text, words, writing
from odeddim.storage.png import to_bytes
from odeddim.types import InputError

FORMAT = "odeddim bench"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its key in files.
        heading: Its heading.
        meaning: What its values are, with the unit.
        form: The format of its figures, such as ".2e"; "s" for words.
    """

    name: str
    heading: str
    meaning: str = ""
    form: str = ""

    @property
    def words(self) -> bool:
        """Whether it holds words, and not figures."""
        return self.form == "s"

    def show(self, value: Any) -> str:
        """A value as a table shows it."""
        if value is None or value == "":
            return ""
        return format(value, self.form)


@dataclass(frozen=True)
class Sheet:
    """Images in rows and columns, (R, K, H, W, C) uint8 with C = 1 or 3, with a title and labels."""

    title: str
    images: np.ndarray[Any, Any]
    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What a bench has found.

    Attributes:
        bench: The name of the bench.
        title: What was measured, in words.
        settings: The model and the conventions, JSON-able.
        columns: The columns.
        rows: A value for each column: a number, words, or None where there is none.
        notes: Sentences that belong below the table.
        group: The columns that identify a line of the figure.
        sheets: Sheets of images.
        files: The files that hold the table and its figures, once they are written.
    """

    bench: str
    title: str
    settings: Mapping[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    sheets: tuple[Sheet, ...] = field(default=(), compare=False)
    files: tuple[Path, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = {column.name for column in self.columns}
        rows = tuple({key: _plain(value) for key, value in row.items()} for row in self.rows)
        object.__setattr__(self, "settings", _plain(self.settings))
        for row in rows:
            if set(row) != names:
                raise ValueError(f"a row has {sorted(row)}, the columns are {sorted(names)}")
        object.__setattr__(self, "rows", rows)

    def lines(self) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
        """The rows by the values of the columns of `group`."""
        found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(tuple(row[name] for name in self.group), []).append(row)
        return found

    def to_json(self) -> str:
        """Everything but the sheets as JSON."""
        content = {key: value for key, value in vars(self).items() if key not in ("sheets", "files")}
        content["columns"] = [asdict(column) for column in self.columns]
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """The rows as CSV, with a header line."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [column.name for column in self.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def save(self, folder: Path, beside: Mapping[str, bytes] | None = None) -> list[Path]:
        """Write NAME.h5, NAME.json, NAME.csv and the files that belong to the table into a folder.

        What is there under these names is replaced; `check_files` refuses files of others before.

        Args:
            folder: The folder.
            beside: Other files, name -> content.

        Returns:
            The paths of the files.
        """
        path, written = folder / f"{self.bench}.h5", {f"{self.bench}.json": f"{self.to_json()}\n".encode()}
        written |= {f"{self.bench}.csv": self.to_csv().encode(), **(beside or {})}
        hashes = {name: [_hash(content)] for name, content in written.items()}
        for name, known in (_written(path) or {}).items():  # killed now, they are still what was written before
            hashes[name] = [*hashes.get(name, []), *(one for one in known if one == _hash_of(folder / name))]
        with writing(path) as file:
            file.attrs["format"], file.attrs["files"] = text(FORMAT), text(json.dumps(hashes))
            file.create_dataset("table", data=text(self.to_json()))
            kinds = [(column.name, _kind([row[column.name] for row in self.rows])) for column in self.columns]
            values = [tuple(_filled(row[name], kind) for name, kind in kinds) for row in self.rows]
            held = file.create_dataset("rows", data=np.array(values, dtype=kinds))
            for column in self.columns:
                held.attrs[column.name] = text(column.meaning or column.heading)
            for i, sheet in enumerate(self.sheets):
                data = file.create_dataset(f"sheets/{i}", data=sheet.images, fletcher32=True, chunks=sheet.images.shape)
                data.attrs["labels"] = text(json.dumps([sheet.title, sheet.rows, sheet.columns], ensure_ascii=False))
            file.commit()
        for name, content in written.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        return [path, *(folder / name for name in written)]


def check_files(folder: Path, bench: str, also: Sequence[str] = ()) -> None:
    """Raise an InputError where `Table.save` would replace a file that it has not written itself with NAME.h5.

    also: names of files other than those of the table and its figures.
    """
    written = _written(folder / f"{bench}.h5")
    if written is None or not folder.is_dir():
        return
    known = written
    names = re.compile(rf"{re.escape(bench)}(\.(json|csv)|(-sheet\d*)?\.(svg|png))")
    for path in sorted(folder.iterdir()):
        if names.fullmatch(path.name) or path.name in also:
            check_own(path, lambda path: _hash_of(path) in known.get(path.name, ()))


def table_of(path: Path) -> Path | None:
    """The NAME.h5 that notes a file beside it as written with it; None if there is none, or the file has changed."""
    its_own = _hash_of(path)
    beside = (table for table in sorted(path.parent.glob("*.h5")) if path.name.startswith(table.stem))
    return next((table for table in beside if its_own in (_written(table) or {}).get(path.name, ())), None)


def _written(path: Path) -> dict[str, list[str]] | None:
    """The hashes that each file beside a NAME.h5 may have; None where NAME.h5 notes no hashes."""
    try:
        with opened(path, "a table") as file:
            if words(file.attrs.get("format", "")) != FORMAT:
                return {}
            return dict(json.loads(words(file.attrs["files"]))) if "files" in file.attrs else None
    except InputError:
        return {}


def _hash_of(path: Path) -> str:
    return _hash(path.read_bytes()) if path.is_file() else ""


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def telling(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], optional: Collection[str]
) -> tuple[tuple[Column, ...], tuple[dict[str, Any], ...]]:
    """Columns and rows without the columns of `optional` that are empty."""
    kept = [c for c in columns if c.name not in optional or any(row[c.name] not in (None, "") for row in rows)]
    return tuple(kept), tuple({column.name: row[column.name] for column in kept} for row in rows)


def counted(count: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def sheet(title: str, images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Sheet:
    """A sheet of images (R, K, C, H, W) in [-1, 1]; of more than 3 channels the first is shown."""
    down, across, channels, height, width = images.shape
    flat = to_bytes(images.nan_to_num(-1).reshape(-1, channels, height, width)[:, : 3 if channels == 3 else 1])
    pixels = flat.permute(0, 2, 3, 1).reshape(down, across, height, width, -1)
    return Sheet(title, pixels.numpy(), tuple(rows), tuple(columns))


def load(path: Path) -> Table:
    """The table that a NAME.h5 holds; an InputError for any other file."""
    with opened(path, "a table that `odeddim bench` wrote") as file:
        if words(file.attrs.get("format", "")) != FORMAT:
            raise InputError(f"{path} is an HDF5 file, but not a table of `odeddim bench`")
        content = json.loads(words(np.asarray(dataset(file, "table", path)[()])))
        kinds = {"bench": str, "title": str, "settings": dict, "rows": list, "notes": list, "group": list}
        if wrong := [name for name, kind in kinds.items() if not isinstance(content[name], kind)]:
            raise ValueError(f"{wrong[0]} is not what odeddim writes")
        sheets = []
        for i in range(len(file.get("sheets", ()))):
            held = dataset(file, f"sheets/{i}", path)
            title, down, across = json.loads(words(held.attrs["labels"]))
            sheets.append(Sheet(title, held[:], tuple(down), tuple(across)))
        columns = tuple(Column(**column) for column in content.pop("columns"))
        listed = {name: tuple(content.pop(name)) for name in ("rows", "notes", "group")}
        return Table(**{**content, **listed}, columns=columns, sheets=tuple(sheets))


def _plain(value: Any) -> Any:
    """A value as JSON has it: Python's own, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(values: list[Any]) -> np.dtype[Any]:
    """The type of a column in HDF5: text of a fixed length, or a double, which has NaN for None."""
    if any(isinstance(value, str) for value in values):
        return np.dtype(f"S{max(len(str(value or '').encode()) for value in values) or 1}")
    whole = all(isinstance(value, int) for value in values) and values
    return np.dtype("i8") if whole else np.dtype("f8")


def _filled(value: Any, kind: np.dtype[Any]) -> Any:
    if kind.kind == "S":
        return str(value or "").encode()
    return np.nan if value is None else value
