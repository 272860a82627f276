"""A condition for each image of a run: labels and prompts from a list, a column of a CSV, or the names of folders."""

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
from odeddim.ode.conditions import Condition
from odeddim.ode.field import VectorField
from odeddim.types import InputError, Solver, State, pick

FOLDER = "folder"
"""Where a label or prompt is the name of the image's folder."""
NAMES = ("file", "name", "filename", "image", "path")
"""Columns of a CSV that may name the images, the first one that is there."""
DETAIL, COLUMN = "conditions", "condition"  # of the provenance, and of the report
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
    def of(cls, labels: Labels, prompts: Prompts, names: Sequence[str]) -> Each | None:
        """The conditions that a user gives; None for none.

        Args:
            labels: A list of a class for each image, "file.csv:column", or "folder": the names of the images' folders,
                which are numbers, or are numbered from 0 in the order of the alphabet.
            prompts: A list of a text for each image, "file.csv:column", or "folder".
            names: The names of the images.

        Raises:
            InputError: If both are given, or an image has none.
        """
        if labels is None and prompts is None:
            return None
        if labels is not None and prompts is not None:
            raise InputError("a model takes labels or prompts, not both: give labels_from=... or prompts_from=...")
        if prompts is not None:
            rows = [{"prompt": text} for text in _column(prompts, names, "prompts_from")]
        else:
            assert labels is not None
            found = _column(labels, names, "labels_from")
            rows = [{"label": label} for label in _numbers(found, names, numbered=str(labels) == FOLDER)]
        places: dict[tuple[tuple[str, Any], ...], int] = {}
        which = [places.setdefault(tuple(row.items()), len(places)) for row in rows]
        return cls(tuple(dict(key) for key in places), torch.tensor(which, dtype=torch.int64))

    @property
    def details(self) -> dict[str, Any]:
        """What the provenance says of them."""
        return {DETAIL: [dict(it) for it in self.distinct]}

    @property
    def words(self) -> str:
        """How many there are, for the last line of a job."""
        return f", {len(self.distinct)} condition{'s' if len(self.distinct) > 1 else ''}"

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
    kept = file.provenance.details.get(DETAIL)
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


def _column(source: str | Path | Sequence[Any], names: Sequence[str], what: str) -> list[Any]:
    """A value for each image."""
    if not isinstance(source, (str, Path)):
        if len(source) != len(names):
            raise InputError(f"{what}=... has {len(source)} values for {len(names)} images: give one for each")
        return list(source)
    if str(source) == FOLDER:
        found = [PurePosixPath(str(name).replace(os.sep, "/")).parent.name for name in names]
        if missing := [name for name, it in zip(names, found, strict=True) if not it]:
            raise InputError(f"{what}='folder' takes the name of each image's folder, and {missing[0]!r} lies in none")
        return found
    path, _, column = str(source).rpartition(":")
    if not path or not column:
        raise InputError(f"{what}={str(source)!r} must be file.csv:column, or 'folder'")
    return _of_csv(Path(path), column, names, what)


def _of_csv(path: Path, column: str, names: Sequence[str], what: str) -> list[str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, head = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    pick(column, head, f"column of {path}")
    by = next((name for name in NAMES if name in head and name != column), None)
    if by is None:
        if len(rows) != len(names):
            raise InputError(
                f"{path} has {len(rows)} rows for {len(names)} images, and no column that names them "
                f"({', '.join(NAMES)}): add one, or a row for each image in their order"
            )
        found = [row[column] for row in rows]
    else:
        known = {row[by]: row[column] for row in rows}
        if missing := [name for name in names if name not in known]:
            raise InputError(f"{path} has no row for the image {missing[0]!r} in its column {by!r} ({what}=...)")
        found = [known[name] for name in names]
    if None in found:
        raise InputError(f"{path} has a row without a value in the column {column!r}: fill it in")
    return found


def _numbers(found: Sequence[Any], names: Sequence[str], *, numbered: bool) -> list[int]:
    """Classes. numbered: words are numbered in the order of the alphabet, as torchvision's ImageFolder does."""
    if numbered and not all(str(it).isdecimal() for it in found):
        order = {word: i for i, word in enumerate(sorted(set(found)))}
        return [order[word] for word in found]
    for name, it in zip(names, found, strict=True):
        if isinstance(it, bool) or not str(it).strip().isdecimal():
            raise InputError(f"the label of the image {name!r} must be a whole number, not {it!r:.50}")
    return [int(it) for it in found]
