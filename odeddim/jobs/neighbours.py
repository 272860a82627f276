"""The nearest latents of each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from odeddim.jobs.combining import Drawing, check_combinable, check_same_model
from odeddim.jobs.work import Progress
from odeddim.latents.arithmetic import join, nearest
from odeddim.latents.group import Group
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.workers import cut
from odeddim.types import InputError, State

QUERIES = 8  # unless given
AT_ONCE = 64  # queries held while the file goes by: of more, it goes by again


class Neighbour(NamedTuple):
    """A latent, by its number in its file and where it comes from, and its distance to what it is a neighbour of."""

    number: int
    name: str
    distance: float


@dataclass(frozen=True)
class Neighbourhood:
    """A latent, by its number in its file and where it comes from, and its nearest, the nearest first."""

    number: int
    name: str
    neighbours: tuple[Neighbour, ...]


class _Place(NamedTuple):
    """A latent of a file, and how far from its query it is."""

    file: LatentFile
    row: int
    distance: float

    @property
    def name(self) -> str:
        """Where the latent comes from."""
        return self.file.names[self.row]


class _Places(list[_Place]):
    """Latents of files, read as they are asked for, with their distances as a report."""

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1."""
        some = self[start:stop]
        distances = torch.tensor([place.distance for place in some], dtype=torch.float64)
        state = join([place.file.pick(place.row) for place in some])
        return replace(state, report={"distance": distances})


def neighbours(
    latents: str | Path,
    of: Sequence[int] | None = None,
    count: int = 5,
    among: str | Path | None = None,
    *,
    to: Drawing | None = None,
) -> list[Neighbourhood]:
    """Find the nearest neighbours of latents, in their file or among those of another.

    Args:
        latents: The latent file, z.h5.
        of: Which latents, by index; the first 8 unless given.
        count: Neighbours of each.
        among: The file where to search; None for the others in `latents`.
        to: The file that each latent and then its neighbours are written to, the sheet that they are drawn on.

    Returns:
        For each latent its neighbours. Distances are rms in units of x_T: those of independent noise are √2 apart.

    Raises:
        InputError: For what cannot be used, before anything is written.
    """
    latents, among, to = Path(latents), None if among is None else Path(among), to or Drawing()
    to.check(latents, among)
    with contextlib.ExitStack() as stack:
        file = pool = stack.enter_context(LatentFile(latents))
        if among is not None and not (among.exists() and os.path.samefile(latents, among)):
            pool = stack.enter_context(LatentFile(among))
            check_same_model(file, pool)
        if pool is not file and (to.output is not None or to.sheet is not None):
            check_combinable(file, pool)
            if file.dtype != pool.dtype:
                raise InputError(
                    f"{among} holds {pool.dtype} latents, {latents} {file.dtype}: leave out output=... and sheet=..."
                )
        drawn = stack.enter_context(to.of(file))
        group = Group.of(of if of is not None else range(min(QUERIES, len(file))))
        group.check(len(file), file.path)
        rows = _search(file, group, pool, count, to.progress)
        places = _Places(place for row in rows for place in row)
        source = {"path": str(latents), "sha256": file.fingerprint, "indices": str(group), "neighbours": count}
        if pool is not file:
            source["among"] = {"path": str(pool.path), "sha256": pool.fingerprint}
        details = {**file.provenance.details, "of": source}
        made = replace(file.provenance, made_by="neighbours", details=details)
        if to.output is not None or to.sheet is not None:
            drawn.make(places, [place.name for place in places], made, count + 1)
        return [
            Neighbourhood(query.row, query.name, tuple(Neighbour(it.row, it.name, it.distance) for it in near))
            for query, *near in rows
        ]


def _search(file: LatentFile, queries: Group, pool: LatentFile, count: int, progress: Progress) -> list[list[_Place]]:
    """For each latent itself, and then its nearest in the pool, but not itself once more."""
    inside = int(pool is file)
    if count > len(pool) - inside:
        held = f"{len(pool) - 1} other" if inside else f"{len(pool)}"
        raise InputError(f"{pool.path} holds {held} latents: there are no {count} nearest, give a lower count=...")
    rows: list[list[_Place]] = []
    passes = range(0, len(queries), AT_ONCE)
    with progress(len(passes) * len(pool), "comparing", 0) as advance:

        def batches() -> Iterator[tuple[int, State]]:
            for start, stop in cut([(0, len(pool))], CHUNK):
                yield start, pool.read(start, stop)
                advance(stop - start)

        for at in passes:
            some = queries[at : at + AT_ONCE]
            # One more where each finds itself; of equal latents, it need not be the first.
            found = nearest(join([file.pick(query) for query in some]), batches(), count + inside)
            for query, distances, numbers in zip(some, *(part.tolist() for part in found), strict=True):
                near = [_Place(pool, number, apart) for number, apart in zip(numbers, distances, strict=True)]
                others = [place for place in near if not (inside and place.row == query)]
                rows.append([_Place(file, query, 0.0), *others[:count]])
    return rows
