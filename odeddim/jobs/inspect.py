"""The job that says what a file or a folder is: a model, or anything that odeddim writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from odeddim.bench import tables
from odeddim.bench.harness import CELLS
from odeddim.checks.scores import FORMAT as REFERENCE
from odeddim.checks.scores import Reference
from odeddim.jobs.density import FORMAT as DENSITIES
from odeddim.jobs.score import FORMAT as SCORES
from odeddim.latents import latent_file, trajectory_file
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.trajectory_file import TrajectoryFile
from odeddim.models import BUILT_IN, SUFFIXES, format_of, hub, load, summary
from odeddim.plans import FORMAT as PLAN
from odeddim.plans import Plan
from odeddim.storage import clips, image_runs
from odeddim.storage.atomic import found_mark
from odeddim.storage.hdf5 import PARTS, is_hdf5, opened, parts_beside, words
from odeddim.storage.hdf5 import SUFFIXES as HDF5
from odeddim.storage.names import NOTE
from odeddim.storage.outputs import FORMATS
from odeddim.storage.parts import is_of_a_run
from odeddim.storage.png import MARK, notes_of, size_of
from odeddim.storage.row_files import look_at, read_rows, settings_of
from odeddim.storage.standing import note_of, standing
from odeddim.train.checkpoint import CHECKPOINT, saved_settings, saved_step
from odeddim.train.log import HEAD, MEASURED, Log
from odeddim.types import InputError, pick

Facts = dict[str, Any]
_NAMED = 5  # the first names of a file that are told
_LARGEST = 1 << 24  # bytes of a JSON file of ours
_NUMBERED = re.compile(r"-(\d{9})$")

KINDS = {
    ".html": "a page", ".htm": "a page", ".gif": "an animation", ".mp4": "an animation",
    ".webp": "an image or an animation",
    ".csv": "a table", ".jpg": "an image", ".npz": "a file of images",
}  # fmt: skip
"""What files with a mark and without a layout of their own are, by their suffix."""


def inspect(what: str | Path, *, allow_pickle: bool = False) -> Facts:
    """Say what a file or a folder is and what it holds: a model, or anything that odeddim writes.

    It knows latent files, images in HDF5, folders of images, sheets and single images, plans, references and files of
    scores, models, training runs, the tables, figures, measurements and pages of benches, and the parts of runs that
    are not finished.

    Args:
        what: The path, or the name of a built-in model.
        allow_pickle: Whether to read models whose files run the code in them.

    Returns:
        What is known, by name: values that JSON can hold. The first, "kind", says what it is.

    Raises:
        InputError: If there is no such file, it cannot be read, or it is nothing that odeddim writes or reads as a
            model.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> made = odeddim.jobs.encode(None, path, model="exact-samples", count=2, steps=4)
        >>> facts = odeddim.jobs.inspect(path)
        >>> facts["kind"], facts["latents"]
        ('a latent file', 2)
    """
    path = Path(what)
    if str(what) in BUILT_IN or hub.is_named(what):
        return _model(str(what), allow_pickle)
    if not os.path.exists(path):
        if os.path.isdir(parts_beside(path)):
            return _unfinished(path)
        pick(str(what), BUILT_IN, "model (and there is no such file)")
    facts = _folder(path) if path.is_dir() else _file(path)
    if facts is None and (path.suffix.lower() in SUFFIXES or format_of(path) is not None):
        facts = _model(path, allow_pickle)
    if facts is None:
        raise InputError(
            f"{path} is nothing that odeddim writes, nor a model of a format that it knows: give a latent file, an "
            "output of another command, or a model"
        )
    return facts


def _model(model: str | Path, allow_pickle: bool) -> Facts:
    return {"kind": "a model", **summary(load(model, allow_pickle=allow_pickle))}


# Folders.


def _folder(path: Path) -> Facts | None:
    if path.name.endswith(PARTS) and all(is_of_a_run(name) for name in os.listdir(path)):
        return _unfinished(path.with_name(path.name.removesuffix(PARTS)))
    if (settings := note_of(path, NOTE)) != {}:
        named = str(settings.get("format"))  # which images in PNGs do not have
        files = path.rglob(f"*{(FORMATS | clips.SUFFIXES).get(named, '.png')}")
        there = len({file.parent if named == "png" else file for file in files})
        what = "videos" if named == "png" or "fps" in settings else "images"
        return {"kind": f"a folder of {what}", what: _amount(there, settings["total"]), **_told(settings)}
    if (path / CHECKPOINT).is_file():
        return _training(path)
    found = {table.stem: _title(table) for table in sorted(path.glob("*.h5")) if _title(table)}
    measured = len(list((path / CELLS).glob("*.h5")))
    if found or measured:
        return {"kind": "a folder of benches", "tables": found, "measurements": measured}
    return None


def _unfinished(path: Path) -> Facts:
    """A run of which there are only parts so far, or that extends or replaces the file."""
    told = _told(note_of(parts_beside(path)))
    return {"kind": "the parts of an unfinished run", "makes": str(path), **_run(path), **told}


def _run(path: Path) -> Facts:
    """How far the run is that makes a file; nothing where it is finished."""
    now = standing(path)
    if now.whole or not now.begun:
        return {}
    who = "a process is at work" if now.at_work else "no process is at work: the same command goes on"
    return {"run": f"{now.done} of {now.total or 'unknown'} rows are done; {who}"}


def _training(path: Path) -> Facts:
    """A training run, by its folder."""
    settings = saved_settings(path)
    facts: Facts = {"kind": "a training run", "step": saved_step(path), "steps": settings.steps}
    head, *rows = Log(path).rows() or [list(HEAD)]
    if rows := [row for row in rows if len(row) == len(head)]:
        facts["log"] = dict(zip(head, rows[-1], strict=True))
    facts["training"] = vars(settings)
    if format_of(path) is not None:  # there is none before the first checkpoint
        facts["holds"] = summary(load(path))
    return facts


def _title(path: Path) -> str:
    """The title of a table of a bench; "" of another file."""
    try:
        return tables.load(path).title
    except InputError:
        return ""


# Files.


def _file(path: Path) -> Facts | None:
    if path.suffix.lower() in HDF5 or is_hdf5(path):
        return _hdf5(path)
    if path.name == CHECKPOINT:
        return {**_training(path.parent), "kind": "the checkpoint of a training run"}
    if (table := tables.table_of(path)) is not None:
        return {"kind": f"a file of the bench {table.stem}", "table": str(table), "title": _title(table)}
    if path.suffix.lower() == ".json" and (facts := _json(path)) is not None:
        return facts
    if path.suffix.lower() == ".png":
        return _png(path)
    if path.suffix.lower() == ".csv" and (rows := _log_rows(path)):
        return {"kind": "the log of a training run", "rows": len(rows) - 1, "last": rows[-1]}
    if mark := found_mark(path):
        return {"kind": f"{KINDS.get(path.suffix.lower(), 'a file')} that odeddim wrote", "mark": mark}
    return None


def _hdf5(path: Path) -> Facts:
    with opened(path, "a file that odeddim wrote") as file:
        form = words(file.attrs.get("format", ""))
        if form == latent_file.FORMAT:
            with LatentFile(path) as latents:
                kind = {"direction": "a direction between latents"}.get(latents.provenance.made_by, "a latent file")
                return {"kind": kind, **_run(path), **latents.summary()}
        if form == trajectory_file.FORMAT:
            return {"kind": "a trajectory file", **_run(path), **TrajectoryFile(path).summary()}
        if form == tables.FORMAT:
            table = tables.load(path)
            names = [column.heading for column in table.columns]
            return {"kind": f"the table of the bench {table.bench}", "title": table.title, "rows": len(table.rows),
                    "columns": names, "sheets": len(table.sheets), **table.settings}  # fmt: skip
        if "run" in file.attrs and "rows" in file.attrs:
            first, _, stop = words(file.attrs["rows"]).partition("-")
            what = _columns(file, path)
            return {"kind": "a part of an unfinished run", "rows": f"{int(first)} to {int(stop) - 1}", **what}
        settings = settings_of(file, path)
        rows = _amount(look_at(file, path)["crc32"].shape[0], settings["total"])
        if form == image_runs.FORMAT:
            return {"kind": "a file of images", "images": rows, **_run(path), **_columns(file, path), **_told(settings)}
        if form == SCORES:
            return {"kind": "a file of scores", "images": rows, **_run(path), **_columns(file, path), **_told(settings)}
        if form == DENSITIES:
            return {"kind": "a file of log densities", "images": rows, **_run(path), **_columns(file, path),
                    **_told(settings)}  # fmt: skip
        what = {"kind": "measurements of a bench", "rows": rows, **_run(path)}
        return {**what, **_columns(file, path), **_told(settings)}


def _columns(file: h5py.File, path: Path) -> Facts:
    """What the columns of a file hold, and its first names."""
    columns = look_at(file, path)
    told = {
        name: f"{'×'.join(map(str, column.shape[1:]))} {column.dtype}".strip()
        for name, column in columns.items()
        if name not in ("crc32", "names")
    }
    facts: Facts = {"columns": told}
    if "names" in columns:
        first = read_rows(file, columns, 0, min(_NAMED, columns["names"].shape[0]), path)["names"]
        facts["first names"] = [name.decode(errors="replace") for name in first.tolist()]
    return facts


def _json(path: Path) -> Facts | None:
    try:
        content = json.loads(path.read_bytes()[:_LARGEST])
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    if content.get("format") == PLAN:
        plan = Plan.load(path)
        facts = {"kind": "a plan", "plan": str(plan), "evaluations": plan.evaluations}
        return {**facts, "nodes": plan.nodes.tolist(), **({"notes": dict(plan.notes)} if plan.notes else {})}
    if content.get("format") == REFERENCE:
        kept = Reference.load(path)
        facts = {"kind": "a reference for scores", "images": len(kept), "plan": str(kept.plan)}
        told = {"threshold": kept.threshold, "false positives": kept.false_positives}
        return {**facts, **told, "notes": dict(kept.plan.notes)}
    if content.get("format") == SCORES:
        listed = len(content.get("images", ()))
        return {"kind": "a file of scores", "images": listed, **{k: content.get(k) for k in ("model", "threshold")}}
    if path.name == NOTE and "made_by" in content and (folder := _folder(path.parent)) is not None:
        return folder
    return None


def _png(path: Path) -> Facts | None:
    notes = notes_of(path)
    if MARK not in notes:
        return None
    mark = notes.pop(MARK)
    size = "×".join(map(str, size_of(path)))
    number = _NUMBERED.search(mark)
    if number is None:
        return {"kind": "a sheet of images", "size": size, "mark": mark, **notes}
    facts = {"kind": "an image of a run", "number": int(number[1]), "size": size, **notes}
    note = next((above for above in path.absolute().parents if (above / NOTE).is_file()), None)
    return facts if note is None else {**facts, "in": str(note), **_told(note_of(note, NOTE))}


def _log_rows(path: Path) -> list[list[str]]:
    """The rows of the log of a training run; none of another file."""
    try:
        rows = Log(path.parent).rows() if path.name == "log.csv" else []
    except InputError:
        return []
    return rows if rows and tuple(rows[0]) in (HEAD, MEASURED) else []


# Words.


def _amount(there: int, total: int) -> int | str:
    return there if there == total else f"{there} of {total} so far"


def _told(settings: Mapping[str, Any]) -> Facts:
    """The settings of a run, without what is empty and without long lists of levels."""
    facts = {key.replace("_", " "): value for key, value in settings.items() if value not in ("", {}, None)}
    facts.pop("total", None)
    schedule = facts.get("schedule")
    if isinstance(schedule, dict):
        facts["schedule"] = {
            key: f"{len(value)} values" if isinstance(value, list) else value for key, value in schedule.items()
        }
    return facts
