"""`odeddim shift`: latents moved along the difference of the means of two groups."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import click

from odeddim.cli import options

if TYPE_CHECKING:
    from odeddim.latents.latent_file import LatentFile, Provenance
    from odeddim.types import State

Spans = list[tuple[int, int]]
"""Indices of latents as (start, stop), one after the other; none of them twice."""

MEANS = ("mean of --from", "mean of --to", "difference")  # the rows of a stored direction
MOST = 1000.0  # shifts: beyond, nothing but the direction would be left


class Group(click.ParamType[Spans]):
    """Indices and ranges of them, ends included: 0-9,12,20-29."""

    name = "group"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Spans:
        if isinstance(value, list):
            return value
        spans: Spans = []
        for item in str(value).split(","):
            match = re.fullmatch(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?", item)
            if match is None:
                self.fail(f"{item.strip()!r} is no index and no range: give a group as in 0-9,12,20-29", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"the range {first}-{last} runs backwards: give {last}-{first}", param, ctx)
            # Neighbours make one span, which is read at once.
            start = spans.pop()[0] if spans and spans[-1][1] == first else first
            spans.append((start, last + 1))
        for one, other in itertools.pairwise(sorted(spans)):
            if other[0] < one[1]:
                self.fail(f"latent {other[0]} is given twice", param, ctx)
        return spans


def words(spans: Spans) -> str:
    """A group as it is given: 0-9,12."""
    return ",".join(f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in spans)


def indices(file: LatentFile, spans: Spans) -> list[int]:
    """The indices of a group, in its order; an InputError if the file does not hold them."""
    from odeddim.types import InputError

    last = max(stop for _, stop in spans) - 1
    if last >= len(file):
        raise InputError(f"{file.path} holds latents 0 to {len(file) - 1}: there is no {last}")
    return [index for span in spans for index in range(*span)]


class ShiftedNames(Sequence[str]):
    """cat.png shifted by 1.5 is cat+1.5.png, with a suffix at the end, for `decode` drops one; made as asked for."""

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


@click.command("shift")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option("--from", "start", type=Group(), default=None, metavar="GROUP", help="Where the direction begins.")
@click.option("--to", "goal", type=Group(), default=None, metavar="GROUP", help="Where it leads.")
@click.option(
    "--along", type=click.Path(path_type=Path), default=None, help="A stored direction, instead of --from and --to."
)
@click.option(
    "--of", type=Group(), default=None, metavar="GROUP", help="What is moved.  [default: --from; with --along, all]"
)
@click.option(
    "--by",
    type=options.Items(click.FloatRange(-MOST, MOST)),
    default="-1,0,1,2",
    show_default=True,
    metavar="LIST",
    help="How far: 1 is from one mean to the other.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Latent file, shifted.h5.")
@click.option("--sheet", type=click.Path(path_type=Path), default=None, help="Decode and draw them, a row each.")
@click.option(
    "--direction", "kept", type=click.Path(path_type=Path), default=None, help="Store means and direction, d.h5."
)
@options.for_sheet
def command(
    latents: Path,
    start: Spans | None,
    goal: Spans | None,
    along: Path | None,
    of: Spans | None,
    by: list[float],
    output: Path | None,
    sheet: Path | None,
    kept: Path | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Move LATENTS along the difference of the means of two groups of them; each keeps its norm.

    A GROUP is a list of indices and ranges, ends included: 0-9,12,20-29. How far apart the means are is printed, and
    how far those of two such groups of noise would be: where that is as far, the direction says nothing.

    --direction stores both means and their difference as three rows, for --along. They are no noise, and what they
    decode to need not be images.

    \b
    Examples:
      odeddim shift z.h5 --from 0-9 --to 10-19
      odeddim shift z.h5 --from 0-9 --to 10-19,25 --of 3 --by 0,0.5,1 -o shifted.h5 --sheet shifted.png
      odeddim shift z.h5 --from 0-9 --to 10-19 --direction d.h5
      odeddim shift other.h5 --along d.h5 --of 0-7 --sheet other.png
    """
    import dataclasses

    from odeddim.cli.running import check_combinable, check_places, combined, draw, field_of, machine, write_latents
    from odeddim.latents.arithmetic import Shifted, join, rms
    from odeddim.latents.latent_file import LatentFile, LatentRun
    from odeddim.types import InputError

    if (start is None, goal is None) != (along is not None, along is not None):
        raise click.UsageError("give --from GROUP and --to GROUP, or --along d.h5")
    if along is not None and kept is not None:
        raise click.UsageError("--along takes a stored direction, and --direction stores one: give one of them")
    if kept is not None and output is not None and os.path.realpath(kept) == os.path.realpath(output):
        raise click.UsageError("--direction and --output name the same file")
    check_places(output, sheet, latents, along)
    check_places(kept, None, latents)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(LatentFile(latents))
        where = machine(device, dtype, file)
        moved = of or start or [(0, len(file))]
        every = indices(file, moved)
        source: dict[str, Any] = {"path": str(latents), "sha256": file.fingerprint}
        if along is not None:
            stored = stack.enter_context(LatentFile(along))
            if stored.provenance.made_by != "direction" or len(stored) != len(MEANS):
                raise InputError(f"{along} holds no direction: make one with `odeddim shift --direction`")
            check_combinable(file, stored)
            way = stored.pick(2)
            through: dict[str, Any] = {"along": {"path": str(along), "sha256": stored.fingerprint}}
            options.echo(f"the direction is {float(rms(way.x)):.4g} long (rms, in units of x_T)")
        else:
            assert start is not None
            assert goal is not None
            rows = _means(file, start, goal)
            way = rows[2]
            through = {"from": words(start), "to": words(goal)}

        shifted = Shifted(file, every, way, by)

        def provenance(made_by: str, **more: Any) -> Provenance:
            details = {**file.provenance.details, "of": {**source, **through, **more}}
            return dataclasses.replace(file.provenance, made_by=made_by, details=details)

        # The model comes first: without it, nothing is to be written.
        field = None if sheet is None else field_of(file, model, where)
        if kept is not None:
            with LatentRun(kept, MEANS, provenance("direction"), file.nodes, overwrite=overwrite) as run:
                for first, last in run.batches(len(MEANS)):
                    run.write(first, last, join(rows))
            options.echo(f"both means and their difference in {kept}")
        names = ShiftedNames([name for span in moved for name in file.names[slice(*span)]], by)
        made = provenance("shift", indices=words(moved), by=by)
        if output is not None:
            write_latents(output, shifted, names, *combined(file, made), batch_size, overwrite)
            options.echo(f"{len(shifted)} latents in {output}")
        if sheet is not None and field is not None:
            draw(
                sheet, shifted, names, file, field, where, made, batch_size, network_batch, threads,
                columns=len(by), overwrite=overwrite,
            )  # fmt: skip
            options.echo(f"{len(shifted)} images in {sheet}")


def _means(file: LatentFile, start: Spans, goal: Spans) -> list[State]:
    """The means of two groups and their difference, in the file's dtype; says how long that is."""
    import torch

    from odeddim.latents.arithmetic import apart_by_chance, direction, mean, rms, rounded
    from odeddim.storage.hdf5 import CHUNK
    from odeddim.storage.workers import cut
    from odeddim.types import InputError

    first, second = (set(indices(file, spans)) for spans in (start, goal))
    if first == second:
        raise InputError("--from and --to are the same latents: their means are not apart, give two groups")
    means = [mean(file.read(*span) for span in cut(spans, CHUNK)) for spans in (start, goal)]
    # Rounded as it is stored, so that --along does the same.
    rows = [rounded(state, getattr(torch, file.dtype)) for state in (*means, direction(*means))]
    chance, spread = apart_by_chance(len(first), len(second), len(first & second), rows[2].xbar.numel())
    options.echo(
        f"the means of {len(first)} and {len(second)} latents are {float(rms(rows[2].x)):.4g} apart, "
        f"those of such groups of noise would be {chance:.4g} ± {spread:.1g} (rms, in units of x_T)"
    )
    return rows
