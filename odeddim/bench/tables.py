"""Tables of measurements: columns with their meaning and unit, rows, the conventions of the measurement, and sheets.

NAME.h5     everything, for `load`: /rows, a compound; /sheets; /table, the content of NAME.json. The attribute `files`
            holds the hashes of the files beside it, by which a later run recognises them as its own
NAME.json   everything except the sheets
NAME.csv    the rows
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
        name: The key of the column in files.
        heading: The heading.
        meaning: The meaning of the values, with the unit.
        form: The format of the numbers, such as ".2e"; "s" for words.
    """

    name: str
    heading: str
    meaning: str = ""
    form: str = ""

    @property
    def words(self) -> bool:
        """Whether the column holds words, not numbers."""
        return self.form == "s"

    def show(self, value: Any) -> str:
        """Return a value as a table shows it."""
        if value is None or value == "":
            return ""
        return format(value, self.form)


@dataclass(frozen=True)
class Sheet:
    """A sheet of images in rows and columns.

    Attributes:
        title: The title.
        images: The images (R, K, H, W, C), uint8, with C = 1 or 3.
        rows: The labels of the R rows.
        columns: The labels of the K columns.
    """

    title: str
    images: np.ndarray[Any, Any]
    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The result of a bench.

    Attributes:
        bench: The name of the bench.
        title: The title, which says what was measured.
        settings: The model and the conventions, JSON-able.
        columns: The columns.
        rows: The rows, each with a value for each column: a number, words, or None for an empty cell.
        notes: The sentences below the table.
        group: The names of the columns that identify a line of the figure.
        sheets: The sheets of images.
        files: The files of the table and its figures, once they are written.

    Raises:
        ValueError: If a row has other keys than the columns.
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
        """Return the rows of each line, by the values in the columns of `group`."""
        found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(tuple(row[name] for name in self.group), []).append(row)
        return found

    def to_json(self) -> str:
        """Return everything except the sheets as JSON."""
        content = {key: value for key, value in vars(self).items() if key not in ("sheets", "files")}
        content["columns"] = [asdict(column) for column in self.columns]
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """Return the rows as CSV, with a header line."""
        out = io.StringIO()
        writer = csv.DictWriter(out, [column.name for column in self.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def save(self, folder: Path, beside: Mapping[str, bytes] | None = None) -> list[Path]:
        """Write NAME.h5, NAME.json, NAME.csv and other files of the table to a folder.

        Existing files with these names are replaced. Call `check_files` first to protect foreign files.

        Args:
            folder: The folder.
            beside: The other files, name -> content.

        Returns:
            The paths of the files.
        """
        path, written = folder / f"{self.bench}.h5", {f"{self.bench}.json": f"{self.to_json()}\n".encode()}
        written |= {f"{self.bench}.csv": self.to_csv().encode(), **(beside or {})}
        hashes = {name: [_hash(content)] for name, content in written.items()}
        for name, known in (_written(path) or {}).items():  # if killed from here on, the files are still the old ones
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
    """Check that `Table.save` would replace only files that it wrote itself.

    Args:
        folder: The folder.
        bench: The name of the table.
        also: The names of further files that will be written, besides those of the table and its figures.

    Raises:
        InputError: If another file has one of these names.
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
    """Return the hashes that each file beside a NAME.h5 may have; None if NAME.h5 holds no hashes."""
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
    """Return columns and rows without those columns of `optional` that are empty."""
    kept = [c for c in columns if c.name not in optional or any(row[c.name] not in (None, "") for row in rows)]
    return tuple(kept), tuple({column.name: row[column.name] for column in kept} for row in rows)


def counted(count: int, what: str) -> str:
    """Return a number with its noun, such as "1 image" or "2 images"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def sheet(title: str, images: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Sheet:
    """Make a sheet.

    Args:
        title: The title.
        images: The images (R, K, C, H, W) in [-1, 1]. If C is neither 1 nor 3, the sheet shows the first channel.
        rows: The labels of the R rows.
        columns: The labels of the K columns.

    Returns:
        The sheet.
    """
    down, across, channels, height, width = images.shape
    flat = to_bytes(images.nan_to_num(-1).reshape(-1, channels, height, width)[:, : 3 if channels == 3 else 1])
    pixels = flat.permute(0, 2, 3, 1).reshape(down, across, height, width, -1)
    return Sheet(title, pixels.numpy(), tuple(rows), tuple(columns))


def load(path: Path) -> Table:
    """Read the table in a NAME.h5.

    Args:
        path: The file.

    Returns:
        The table.

    Raises:
        InputError: If the file cannot be read, is damaged, or is of another kind.
    """
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
    """Return a value as JSON represents it, with Python's own types, and None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(values: list[Any]) -> np.dtype[Any]:
    """Return the type of a column in HDF5: text of a fixed length, an integer, or a double, where NaN means None."""
    if any(isinstance(value, str) for value in values):
        return np.dtype(f"S{max(len(str(value or '').encode()) for value in values) or 1}")
    whole = all(isinstance(value, int) for value in values) and values
    return np.dtype("i8") if whole else np.dtype("f8")


def _filled(value: Any, kind: np.dtype[Any]) -> Any:
    if kind.kind == "S":
        return str(value or "").encode()
    return np.nan if value is None else value
