"""A condition for each image of a run: labels and prompts from a list, a CSV, a text, or the names of folders."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from odeddim.api import Model
from odeddim.jobs.naming import Subject
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import CONDITIONS, WHICH, sha256_of
from odeddim.ode.conditions import Classes, Condition
from odeddim.ode.field import VectorField
from odeddim.types import InputError, Solver, State, pick

FOLDER = "folder"
"""Where a label or prompt is the name of the image's folder."""
NAMES = ("file", "name", "filename", "image", "path")
"""Columns of a CSV that may name the images, the first one that is there."""
COLUMN = "condition"  # of the report, and of the figures of images
OWN = ("label", "prompt")

Labels = str | Path | Sequence[int] | None
Prompts = str | Path | Sequence[str] | None


@dataclass(frozen=True)
class Each:
    """The condition of each image.

    Attributes:
        distinct: The conditions that there are, as `Condition` takes them: {"label": 3} or {"prompt": "a cat"}.
        which: For each image the place of its own among them, (N,) int64.
    """

    distinct: tuple[Mapping[str, Any], ...]
    which: Tensor

    @classmethod
    def of(cls, labels: Labels, prompts: Prompts, names: Sequence[str] | None, what: str = "") -> Each | None:
        """The conditions that a user gives; None for none.

        Args:
            labels: A list of a class for each image, "file.csv:column", "file.txt" with a line for each, or "folder":
                the names of the images' folders, which are numbers, or are numbered from 0 in the order of the
                alphabet.
            prompts: A list of a text for each image, "file.csv:column", "file.txt", or "folder".
            names: The names of the images; None for new images, one for each row.
            what: The argument of the job that they come from, if it is not that of `odeddim.jobs.encode`.

        Raises:
            InputError: If both are given, or an image has none.
        """
        if labels is None and prompts is None:
            return None
        if labels is not None and prompts is not None:
            raise InputError("a model takes labels or prompts, not both: give labels_from=... or prompts_from=...")
        if prompts is not None:
            rows = [{"prompt": text} for text in _column(prompts, names, what or "prompts_from")]
        else:
            assert labels is not None
            found = _column(labels, names, what or "labels_from")
            rows = [{"label": label} for label in _numbers(found, names, numbered=str(labels) == FOLDER)]
        places: dict[tuple[tuple[str, Any], ...], int] = {}
        which = [places.setdefault(tuple(row.items()), len(places)) for row in rows]
        return cls(tuple(dict(key) for key in places), torch.tensor(which, dtype=torch.int64))

    def first(self, count: int) -> Each:
        """The conditions of the first images."""
        which = self.which[:count]
        return Each(self.distinct[: int(which.max()) + 1 if count else 0], which)

    @property
    def details(self) -> dict[str, Any]:
        """What the provenance says of them: what they are, and a hash of which image has which."""
        return {CONDITIONS: [dict(it) for it in self.distinct], WHICH: sha256_of(str(self.which.tolist()))}

    @property
    def words(self) -> str:
        """How many there are, for the last line of a job."""
        return f", {len(self.distinct)} condition{'s' if len(self.distinct) > 1 else ''}"

    def under(self, field: VectorField) -> VectorField:
        """A field that is to run under these conditions, before it is known which images come first.

        Args:
            field: The model; its guidance holds for all of them.

        Raises:
            InputError: If the model does not take one of the labels, or no prompts.
        """
        shared = replace(field.condition, label=None, prompt=None)
        all_of_them = [replace(shared, **it) for it in self.distinct]
        tried = all_of_them if isinstance(field.conditions, Classes) else all_of_them[:1]
        return field.conditioned_each(tried).conditioned_each([])

    def on(self, field: VectorField, which: Tensor) -> VectorField:
        """A field under the conditions of some images, whatever label or prompt it has.

        Args:
            field: The model; its guidance holds for all of them.
            which: For each image the place of its condition, (B,).
        """
        shared = replace(field.condition, label=None, prompt=None)
        return field.conditioned_each([replace(shared, **self.distinct[int(i)]) for i in which])

    def report(self, state: State, which: Tensor) -> State:
        """Latents whose report says which condition each has."""
        return replace(state, report={**state.report, COLUMN: which})


def told_first(model: Model | Subject, labels: Labels, prompts: Prompts) -> Model | Subject:
    """The model, under any condition that it takes, where each image has one of its own.

    Raises:
        InputError: If a condition for all images is given too.
    """
    if (labels is None and prompts is None) or isinstance(model, VectorField):
        return model
    said = model if isinstance(model, Subject) else Subject(model)
    if both := [name for name in OWN if name in said.condition]:
        raise InputError(f"{both[0]}=... holds for all images, but each has its own: leave out one of the two")
    return Subject(said.name, {**said.condition, **({} if labels is None else {"label": 0})}, said.allow_pickle)


def check_together(row: Solver, **others: Any) -> None:
    """Raise an InputError unless a run keeps the images of a batch together.

    Args:
        row: The solver.
        **others: Arguments of the job that take images out of their batch, with their values.
    """
    if wanted := [name for name, value in others.items() if value]:
        raise InputError(
            "labels_from=... and prompts_from=... need the images of a batch together, unlike "
            f"{wanted[0]}=...: leave out one of the two"
        )
    if row.queued or row.one_by_one:
        raise InputError(
            f"solver {row.name!r} takes the images of a batch apart, and each has a condition of its own: give a "
            "solver with fixed steps, such as 'belm' or 'unipc-2'"
        )


def kept_in(file: LatentFile) -> Each | None:
    """The conditions that a latent file keeps; None if all its latents have one."""
    kept = file.provenance.details.get(CONDITIONS)
    if not isinstance(kept, list) or not kept:
        return None
    known = {it.name for it in fields(Condition)}
    if not all(isinstance(it, dict) and set(it) <= known for it in kept):
        raise InputError(f"{file.path}: its conditions cannot be read: give label=... or prompt=... for all latents")
    return Each(tuple(kept), torch.empty(0, dtype=torch.int64))


def kept_for(file: LatentFile, field: VectorField) -> Each | None:
    """The conditions under which the latents of a file are decoded; None if the field has one for all of them.

    Args:
        file: The latent file.
        field: The model of `odeddim.jobs.subject.subject_of`.
    """
    return None if any(getattr(field.condition, name) is not None for name in OWN) else kept_in(file)


def for_batch(each: Each | None, field: VectorField, state: State) -> VectorField:
    """The field that decodes latents, each under its own condition if they have some.

    Args:
        each: The conditions of `kept_for`.
        field: The model.
        state: The latents, with their report.
    """
    if each is None:
        return field
    which = state.report.get(COLUMN)
    if which is None or not bool(((which >= 0) & (which < len(each.distinct))).all()):
        raise InputError("the latents do not say which condition they have: give label=... or prompt=... for all")
    return each.on(field, which)


def _column(source: str | Path | Sequence[Any], names: Sequence[str] | None, what: str) -> list[Any]:
    """A value for each image; names: None for as many as there are values."""
    if not isinstance(source, (str, Path)):
        _check_count(len(source), names, f"{what}=... has {{}} values", "give one for each")
        return list(source)
    if str(source) == FOLDER:
        if names is None:
            raise InputError(f"{what}='folder' is for images that lie in folders: give file.csv:column or file.txt")
        found = [PurePosixPath(str(name).replace(os.sep, "/")).parent.name for name in names]
        if missing := [name for name, it in zip(names, found, strict=True) if not it]:
            raise InputError(f"{what}='folder' takes the name of each image's folder, and {missing[0]!r} lies in none")
        return found
    if str(source).lower().endswith(".txt"):
        return _of_lines(Path(source), names)
    path, _, column = str(source).rpartition(":")
    if not path or not column:
        raise InputError(f"{what}={str(source)!r} must be file.csv:column, file.txt, or 'folder'")
    return _of_csv(Path(path), column, names, what)


def _of_lines(path: Path, names: Sequence[str] | None) -> list[str]:
    """The lines of a text, without empty ones at its end."""
    try:
        found = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    found = [] if found == [""] else found
    _check_count(len(found), names, f"{path} has {{}} lines", "give a line for each, in their order")
    return found


def _check_count(count: int, names: Sequence[str] | None, found: str, remedy: str) -> None:
    """Raise an InputError unless there are as many values as images."""
    if names is not None and count != len(names):
        raise InputError(f"{found.format(count)} for {len(names)} images: {remedy}")


def _of_csv(path: Path, column: str, names: Sequence[str] | None, what: str) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, head = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    pick(column, head, f"column of {path}")
    by = next((name for name in NAMES if name in head and name != column), None)
    if by is None or names is None:
        _check_count(
            len(rows), names, f"{path} has {{}} rows",
            f"add a column that names them ({', '.join(NAMES)}), or give a row for each, in their order",
        )  # fmt: skip
        found = [row[column] for row in rows]
    else:
        known = {row[by]: row[column] for row in rows}
        if missing := [name for name in names if name not in known]:
            raise InputError(f"{path} has no row for the image {missing[0]!r} in its column {by!r} ({what}=...)")
        found = [known[name] for name in names]
    if None in found:
        raise InputError(f"{path} has a row without a value in the column {column!r}: fill it in")
    return found


def _numbers(found: Sequence[Any], names: Sequence[str] | None, *, numbered: bool) -> list[int]:
    """Classes. numbered: words are numbered in the order of the alphabet, as torchvision's ImageFolder does."""
    if numbered and not all(str(it).isdecimal() for it in found):
        order = {word: i for i, word in enumerate(sorted(set(found)))}
        return [order[word] for word in found]
    for i, it in enumerate(found):
        if isinstance(it, bool) or not str(it).strip().isdecimal():
            where = f"row {i + 1}" if names is None else f"the image {names[i]!r}"
            raise InputError(f"the label of {where} must be a whole number, not {it!r:.50}")
    return [int(it) for it in found]
