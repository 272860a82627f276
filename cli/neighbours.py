"""`odeddim neighbours`: the nearest latents of each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from odeddim.cli import options
from odeddim.cli.shift import Group, Spans, indices, words

if TYPE_CHECKING:
    from odeddim.latents.latent_file import LatentFile
    from odeddim.types import State

QUERIES = 8  # unless given
AT_ONCE = 64  # queries held while the file goes by: of more, it goes by again


class Place(NamedTuple):
    """A latent of a file, and how far from its query it is."""

    file: LatentFile
    row: int
    distance: float

    @property
    def name(self) -> str:
        """Where the latent comes from."""
        return self.file.names[self.row]


class Places(list[Place]):
    """Latents of files, read as they are asked for, with their distances as a report."""

    def read(self, start: int, stop: int) -> State:
        """Latents start, ..., stop-1."""
        from dataclasses import replace

        import torch

        from odeddim.latents.arithmetic import join

        some = self[start:stop]
        distances = torch.tensor([place.distance for place in some], dtype=torch.float64)
        state = join([place.file.pick(place.row) for place in some])
        return replace(state, report={"distance": distances})


@click.command("neighbours")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option(
    "--of", type=Group(), default=None, metavar="GROUP", help=f"Which latents.  [default: the first {QUERIES}]"
)
@click.option("-k", "--count", type=click.IntRange(1), default=5, show_default=True, help="Neighbours of each.")
@click.option(
    "--among", type=click.Path(path_type=Path), default=None, help="Where to search.  [default: the others in LATENTS]"
)
@options.as_json
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Latent file of them, near.h5.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Decode and draw them, a row each.")
@options.for_sheet
def command(
    latents: Path,
    of: Spans | None,
    count: int,
    among: Path | None,
    as_json: bool,
    output: Path | None,
    sheet: Path | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Find the nearest neighbours of LATENTS, in the file itself or --among those of another.

    A GROUP is a list of indices and ranges, ends included: 0-9,12,20-29. Distances are rms in units of x_T: those of
    independent noise are √2 = 1.414 apart. -o and --sheet hold, for each latent, itself and then its neighbours; in the
    file, `report/distance` says how far they are.

    \b
    Examples:
      odeddim neighbours z.h5
      odeddim neighbours z.h5 --of 3,7 -k 9 --sheet near.png
      odeddim neighbours samples.h5 --among z.h5 -o near.h5 --json
    """
    import dataclasses

    from odeddim.cli.running import (
        check_combinable,
        check_places,
        check_same_model,
        combined,
        draw,
        field_of,
        machine,
        write_latents,
    )
    from odeddim.latents.latent_file import LatentFile
    from odeddim.types import InputError

    check_places(output, sheet, latents, among)
    with contextlib.ExitStack() as stack:
        file = pool = stack.enter_context(LatentFile(latents))
        if among is not None and not (among.exists() and os.path.samefile(latents, among)):
            pool = stack.enter_context(LatentFile(among))
            check_same_model(file, pool)
        if pool is not file and (output is not None or sheet is not None):
            check_combinable(file, pool)
            if file.dtype != pool.dtype:
                raise InputError(
                    f"{among} holds {pool.dtype} latents, {latents} {file.dtype}: leave out -o and --sheet"
                )
        where = machine(device, dtype, file)
        # The model comes first: without it, nothing is to be written.
        field = None if sheet is None else field_of(file, model, where)
        spans = of or [(0, min(QUERIES, len(file)))]
        rows = _search(file, spans, pool, count)
        if as_json:
            _print_json(rows)
        else:
            _print(rows)
        places = Places(place for row in rows for place in row)
        names = [place.name for place in places]
        source = {"path": str(latents), "sha256": file.fingerprint, "indices": words(spans), "neighbours": count}
        if pool is not file:
            source["among"] = {"path": str(pool.path), "sha256": pool.fingerprint}
        made = dataclasses.replace(
            file.provenance, made_by="neighbours", details={**file.provenance.details, "of": source}
        )
        if output is not None:
            write_latents(output, places, names, *combined(file, made), batch_size, overwrite)
            options.echo(f"{len(places)} latents in {output}", err=True)
        if sheet is not None and field is not None:
            draw(
                sheet, places, names, file, field, where, made, batch_size, network_batch, threads,
                columns=count + 1, overwrite=overwrite,
            )  # fmt: skip
            options.echo(f"{len(places)} images in {sheet}", err=True)


def _search(file: LatentFile, spans: Spans, pool: LatentFile, count: int) -> list[list[Place]]:
    """For each latent itself, and then its nearest in the pool, but not itself once more."""
    from odeddim.cli.running import progress
    from odeddim.latents.arithmetic import join, nearest
    from odeddim.storage.hdf5 import CHUNK
    from odeddim.storage.workers import cut
    from odeddim.types import InputError

    queries = indices(file, spans)
    inside = int(pool is file)
    if count > len(pool) - inside:
        held = f"{len(pool) - 1} other" if inside else f"{len(pool)}"
        raise InputError(f"{pool.path} holds {held} latents: there are no {count} nearest, give a lower -k")
    rows: list[list[Place]] = []
    passes = range(0, len(queries), AT_ONCE)
    with progress(len(passes) * len(pool), "comparing") as advance:

        def batches() -> Iterator[tuple[int, State]]:
            for start, stop in cut([(0, len(pool))], CHUNK):
                yield start, pool.read(start, stop)
                advance(stop - start)

        for at in passes:
            some = queries[at : at + AT_ONCE]
            # One more where each finds itself; of equal latents, it need not be the first.
            found = nearest(join([file.pick(query) for query in some]), batches(), count + inside)
            for query, distances, numbers in zip(some, *(part.tolist() for part in found), strict=True):
                near = [Place(pool, number, apart) for number, apart in zip(numbers, distances, strict=True)]
                others = [place for place in near if not (inside and place.row == query)]
                rows.append([Place(file, query, 0.0), *others[:count]])
    return rows


def _print(rows: list[list[Place]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    table = Table(caption="rms, in units of x_T; independent noise: √2 = 1.414")
    for name in ("latent", "name", "neighbour", "its name", "distance"):
        table.add_column(name, justify="left" if "name" in name else "right", overflow="fold")
    for query, *near in rows:
        table.add_section()
        for i, place in enumerate(near):
            first = ("", "") if i else (str(query.row), Text(printable(query.name)))
            table.add_row(*first, str(place.row), Text(printable(place.name)), f"{place.distance:.4f}")
    Console().print(table)


def _print_json(rows: list[list[Place]]) -> None:
    import json

    found = [
        {
            "latent": query.row,
            "name": query.name,
            "neighbours": [{"latent": it.row, "name": it.name, "distance": it.distance} for it in near],
        }
        for query, *near in rows
    ]
    options.echo_json(json.dumps(found, indent=1, ensure_ascii=False))
