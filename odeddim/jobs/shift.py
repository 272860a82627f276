"""The job that moves latents along the difference of the means of two groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch

from odeddim.jobs.combining import Drawing, check_combinable
from odeddim.jobs.waiting import wait_for
from odeddim.jobs.work import Outcome
from odeddim.latents.arithmetic import Shifted, apart_by_chance, direction, join, mean, rms
from odeddim.latents.group import Group
from odeddim.latents.latent_file import LatentFile, LatentRun
from odeddim.latents.provenance import Provenance
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import CHUNK, SUFFIXES
from odeddim.storage.sheets import Captions, title_of
from odeddim.storage.workers import cut
from odeddim.types import InputError, State

MEANS = ("mean of --from", "mean of --to", "difference")  # the rows of a stored direction


class ShiftedNames(Sequence[str]):
    """The names of shifted latents, made when they are needed: cat.png shifted by 1.5 is cat+1.5.png.

    They always have a suffix, because `decode` drops one.
    """

    def __init__(self, names: Sequence[str], by: Sequence[float]) -> None:
        self._names, self._by = names, by

    def __len__(self) -> int:
        return len(self._names) * len(self._by)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[row] for row in range(len(self))[i]]
        place, amount = divmod(range(len(self))[i], len(self._by))
        stem, suffix = os.path.splitext(self._names[place])
        return f"{stem}{self._by[amount]:+g}{suffix or '.png'}"


@dataclass(frozen=True)
class Direction:
    """The direction of a shift: from the mean of one group of latents to that of another, or a stored direction.

    Attributes:
        start: The group at whose mean the direction starts, by index.
        goal: The group at whose mean the direction ends, by index.
        along: The file of a stored direction, in place of both groups.
        keep: The file, d.h5, where both means and their difference are stored; None for none.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Direction(start=range(0, 4), goal=[4, 7])
        Direction(start=range(0, 4), goal=[4, 7], along=None, keep=None)
    """

    start: Sequence[int] | None = None
    goal: Sequence[int] | None = None
    along: Path | None = None
    keep: Path | None = None

    def check(self, to: Drawing, latents: Path) -> None:
        """Raise an InputError unless it is either two groups or a stored direction, and its files can be written."""
        if (self.start is None, self.goal is None) != (self.along is not None, self.along is not None):
            raise InputError("give two groups, start=... and goal=..., or a stored direction, along=...")
        if self.along is not None and self.keep is not None:
            raise InputError("along=... takes a stored direction, but keep=... stores a new one: give one of the two")
        if self.keep is None:
            return
        if to.output is not None and os.path.realpath(self.keep) == os.path.realpath(to.output):
            raise InputError("keep=... and output=... name the same file: give two different files")
        check_place(self.keep, latents, suffixes=SUFFIXES)


@torch.no_grad()
def shift(
    latents: str | Path,
    direction: Direction,
    of: Sequence[int] | None = None,
    by: Sequence[float] = (-1.0, 0.0, 1.0, 2.0),
    *,
    to: Drawing,
    wait: bool = False,
) -> Outcome:
    """Move latents of a file along the difference of the means of two groups of latents. Each latent keeps its norm.

    Args:
        latents: The latent file, z.h5.
        direction: The two groups, or a stored direction.
        of: The latents to move, by index; by default those of the first group, or all along a stored direction.
        by: The amounts; 1 is the way from one mean to the other.
        to: The file that the shifted latents are written to, and the sheet that they are drawn on.
        wait: Whether to wait for a latent file that another process is still writing.

    Returns:
        The outcome. Its words give the distance of the means, and the distance that the means of two such groups of
        noise would have: if the two are about equal, the direction has no meaning.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> made = odeddim.jobs.encode(None, folder / "z.h5", model="exact-samples", count=4, steps=4)
        >>> way, to = odeddim.jobs.Direction(start=[0, 1], goal=[2, 3]), odeddim.jobs.Drawing(folder / "moved.h5")
        >>> odeddim.jobs.shift(folder / "z.h5", way, by=[0.5, 1.0], to=to).total
        4
    """
    latents = Path(latents)
    direction.check(to, latents)
    to.check(latents, direction.along)
    if wait:
        wait_for(latents)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(LatentFile(latents))
        drawn = to.of(file)
        moved = Group.of(of if of is not None else direction.start or range(len(file)))
        moved.check(len(file), file.path)
        source: dict[str, Any] = {"path": str(latents), "sha256": file.fingerprint}
        rows, through, lines = _means(file, direction, stack)
        shifted = Shifted(file, moved, rows[-1], by)

        def provenance(made_by: str, **more: Any) -> Provenance:
            details = {**file.provenance.details, "of": {**source, **through, **more}}
            return replace(file.provenance, made_by=made_by, details=details)

        if direction.keep is not None:
            with LatentRun(direction.keep, MEANS, provenance("direction"), file.nodes, overwrite=to.overwrite) as run:
                for first, last in run.batches(len(MEANS)):
                    run.write(first, last, join(rows))
            lines.append(f"both means and their difference in {direction.keep}")
        originals = [name for span in moved.spans for name in file.names[slice(*span)]]
        names = ShiftedNames(originals, by)
        made = provenance("shift", indices=str(moved), by=list(by))
        drawn.make(shifted, names, made, _captions(originals, by))
        lines += [f"{len(shifted)} latents in {to.output}"] if to.output else []
        lines += [f"{len(shifted)} images in {place}" for place in to.drawn_at]
    return Outcome([*to.places, direction.keep or latents][0], len(shifted), len(shifted), "\n".join(lines))


def _captions(originals: Sequence[str], by: Sequence[float]) -> Captions:
    """What a sheet says: how far each column is moved, and which latent each row is."""

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        row, column = divmod(i, len(by))
        return [title_of(originals[row])] if column == 0 else []

    return Captions(under, heads=[f"{amount:+g}" if amount else "0" for amount in by], columns=len(by))


def _means(
    file: LatentFile, way: Direction, stack: contextlib.ExitStack
) -> tuple[list[State], dict[str, Any], list[str]]:
    """Both means and the direction, or a stored direction alone; its part of the provenance; its length in words."""
    if way.along is not None:
        stored = stack.enter_context(LatentFile(way.along))
        if stored.provenance.made_by != "direction" or len(stored) != len(MEANS):
            raise InputError(f"{way.along} holds no direction: make one with `odeddim shift --direction`")
        check_combinable(file, stored)
        rows = [stored.pick(2)]
        told = {"along": {"path": str(way.along), "sha256": stored.fingerprint}}
        return rows, told, [f"the direction is {float(rms(rows[0].x)):.4g} long (rms, in units of x_T)"]
    groups = [Group.of(indices) for indices in (way.start or (), way.goal or ())]
    for group in groups:
        group.check(len(file), file.path)
    first, second = (set(group) for group in groups)
    if first == second:
        raise InputError("start=... and goal=... are the same latents, so their means are equal: give two groups")
    means = [mean(file.read(*span) for span in cut(group.spans, CHUNK)) for group in groups]
    # Rounded to the dtype in which it is stored, so that along=... gives the same latents.
    rows = [state.to(getattr(torch, file.dtype)) for state in (*means, direction(*means))]
    chance, spread = apart_by_chance(len(first), len(second), len(first & second), rows[2].xbar.numel())
    line = (
        f"the means of {len(first)} and {len(second)} latents are {float(rms(rows[2].x)):.4g} apart, "
        f"those of such groups of noise would be {chance:.4g} ± {spread:.1g} (rms, in units of x_T)"
    )
    return rows, {"from": str(groups[0]), "to": str(groups[1])}, [line]
