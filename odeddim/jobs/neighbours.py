"""The job that finds the nearest neighbours of latents."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from odeddim.jobs.combining import Drawing, check_combinable, check_same_model
from odeddim.jobs.waiting import wait_for
from odeddim.jobs.work import Progress, shown
from odeddim.latents.arithmetic import join, nearest
from odeddim.latents.group import Group
from odeddim.latents.latent_file import LatentFile
from odeddim.storage.hdf5 import CHUNK
from odeddim.storage.sheets import Captions, title_of
from odeddim.storage.workers import cut
from odeddim.types import InputError, State

QUERIES = 8  # the number of queries by default
AT_ONCE = 64  # the queries held while the file is read: for more, it is read again


class Neighbour(NamedTuple):
    """A latent and its distance to the one whose neighbour it is.

    Attributes:
        number: The index of the latent in its file.
        name: Where the latent comes from.
        distance: The distance, rms in units of x_T.
    """

    number: int
    name: str
    distance: float


@dataclass(frozen=True)
class Neighbourhood:
    """A latent and its nearest neighbours.

    Attributes:
        number: The index of the latent in its file.
        name: Where the latent comes from.
        neighbours: Its neighbours, the nearest first.
    """

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
    """Latents of files, read when they are needed, with their distances as a report."""

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1."""
        some = self[start:stop]
        distances = torch.tensor([place.distance for place in some], dtype=torch.float64)
        state = join([place.file.pick(place.row) for place in some])
        return replace(state, report={"distance": distances})


@torch.no_grad()
def neighbours(
    latents: str | Path,
    of: Sequence[int] | None = None,
    count: int = 5,
    among: str | Path | None = None,
    *,
    to: Drawing | None = None,
    wait: bool = False,
) -> list[Neighbourhood]:
    """Find the nearest neighbours of latents, in their file or among those of another.

    Args:
        latents: The latent file, z.h5.
        of: The latents whose neighbours are searched, by index; by default the first 8.
        count: The number of neighbours of each.
        among: The latent file to search in; None for the other latents in `latents`.
        to: The file that each latent and its neighbours are written to, and the sheet that they are drawn on.
        wait: Whether to wait for latent files that another process is still writing.

    Returns:
        The neighbours of each latent. Distances are rms in units of x_T: latents of independent noise are √2 apart.

    Raises:
        InputError: If an argument cannot be used. Nothing is written then.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "z.h5")
        >>> made = odeddim.jobs.encode(None, path, model="exact-samples", count=4, steps=4)
        >>> found = odeddim.jobs.neighbours(path, of=[0], count=2)
        >>> found[0].number, len(found[0].neighbours)
        (0, 2)
    """
    latents, among, to = Path(latents), None if among is None else Path(among), to or Drawing()
    to.check(latents, among)
    for path in (latents, among):
        if wait and path is not None:
            wait_for(path)
    with contextlib.ExitStack() as stack:
        file = pool = stack.enter_context(LatentFile(latents))
        if among is not None and not (among.exists() and os.path.samefile(latents, among)):
            pool = stack.enter_context(LatentFile(among))
            check_same_model(file, pool)
        if pool is not file and to.places:
            check_combinable(file, pool)
            if file.dtype != pool.dtype:
                raise InputError(
                    f"{among} holds {pool.dtype} latents, {latents} {file.dtype}: leave out output=... and sheet=..."
                )
        drawn = to.of(file)
        group = Group.of(of if of is not None else range(min(QUERIES, len(file))))
        group.check(len(file), file.path)
        rows = _search(file, group, pool, count, to.progress)
        places = _Places(place for row in rows for place in row)
        source = {"path": str(latents), "sha256": file.fingerprint, "indices": str(group), "neighbours": count}
        if pool is not file:
            source["among"] = {"path": str(pool.path), "sha256": pool.fingerprint}
        details = {**file.provenance.details, "of": source}
        made = replace(file.provenance, made_by="neighbours", details=details)
        if to.places:
            drawn.make(places, [place.name for place in places], made, _captions(places, count))
        return [
            Neighbourhood(query.row, query.name, tuple(Neighbour(it.row, it.name, it.distance) for it in near))
            for query, *near in rows
        ]


def _captions(places: Sequence[_Place], count: int) -> Captions:
    """What a sheet says: the name of each latent, and how far each neighbour is."""

    def under(i: int, known: Mapping[str, float]) -> list[str]:
        title = title_of(places[i].name)
        return [title, f"{places[i].distance:.4f}"] if i % (count + 1) else [title]

    heads = ["latent", "nearest", *(str(number) for number in range(2, count + 1))]
    return Captions(under, lines=2, heads=heads, columns=count + 1)


def _search(file: LatentFile, queries: Group, pool: LatentFile, count: int, progress: Progress) -> list[list[_Place]]:
    """Each latent, followed by its nearest in the pool without itself."""
    inside = int(pool is file)
    if count > len(pool) - inside:
        held = f"{len(pool) - 1} other" if inside else f"{len(pool)}"
        raise InputError(f"{pool.path} holds {held} latents, so there are no {count} nearest: give a lower count=...")
    rows: list[list[_Place]] = []
    passes = range(0, len(queries), AT_ONCE)
    with shown(progress, len(passes) * len(pool), "comparing", 0) as advance:

        def batches() -> Iterator[tuple[int, State]]:
            for start, stop in cut([(0, len(pool))], CHUNK):
                yield start, pool.read(start, stop)
                advance(stop - start)

        for at in passes:
            some = queries[at : at + AT_ONCE]
            # One more if each finds itself, which need not be the first of several equal latents.
            found = nearest(join([file.pick(query) for query in some]), batches(), count + inside)
            for query, distances, numbers in zip(some, *(part.tolist() for part in found), strict=True):
                near = [_Place(pool, number, apart) for number, apart in zip(numbers, distances, strict=True)]
                others = [place for place in near if not (inside and place.row == query)]
                rows.append([_Place(file, query, 0.0), *others[:count]])
    return rows
