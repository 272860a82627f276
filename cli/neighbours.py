"""`odeddim neighbours`: the nearest latents of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from odeddim.cli import options, pictures
from odeddim.cli.kinds import Indices

if TYPE_CHECKING:
    from odeddim.jobs import Drawing
    from odeddim.jobs.neighbours import Neighbourhood
    from odeddim.latents.group import Group


@click.command("neighbours")
@click.argument("latents", type=click.Path(path_type=Path))
@click.option(
    "--of",
    type=Indices(),
    default=None,
    metavar="GROUP",
    help="The latents whose neighbours are found.  [default: the first 8]",
)
@click.option(
    "-k", "--count", type=click.IntRange(1), default=5, show_default=True, help="How many neighbours of each."
)
@click.option(
    "--among", type=click.Path(path_type=Path), default=None, help="The latent file to search.  [default: LATENTS]"
)
@options.as_json
@options.wait
@pictures.drawing("The latent file to write, near.h5.", "Decode and draw them, near.png: a row for each latent.")
def command(
    latents: Path,
    of: Group | None,
    count: int,
    among: Path | None,
    as_json: bool,
    to: Drawing,
    wait: bool,
) -> None:
    """Find the nearest neighbours of LATENTS among the other latents of the file, or among those of another file.

    A GROUP is a list of indices and of ranges with both ends: 0-9,12,20-29. Distances are rms in units of x_T; two
    latents of independent noise are √2 = 1.414 apart. The latent file and the sheet hold each latent and then its
    neighbours. The dataset report/distance of the file holds the distances.

    \b
    Examples:
      odeddim neighbours z.h5
      odeddim neighbours z.h5 --of 3,7 -k 9 --sheet near.png
      odeddim neighbours samples.h5 --among z.h5 -o near.h5 --json
    """
    from odeddim import jobs

    found = jobs.neighbours(latents, of, count, among, to=to, wait=wait)
    if as_json:
        _print_json(found)
    else:
        _print(found)
    rows = sum(1 + len(each.neighbours) for each in found)
    for path, what in ((to.output, "latents"), (to.sheet, "images")):
        if path is not None:
            options.echo(f"{rows} {what} in {path}", err=True)


def _print(found: list[Neighbourhood]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    table = Table(caption="rms, in units of x_T; independent noise: √2 = 1.414")
    for name in ("latent", "name", "neighbour", "its name", "distance"):
        table.add_column(name, justify="left" if "name" in name else "right", overflow="fold")
    for query in found:
        table.add_section()
        for i, near in enumerate(query.neighbours):
            first = ("", "") if i else (str(query.number), Text(printable(query.name)))
            table.add_row(*first, str(near.number), Text(printable(near.name)), f"{near.distance:.4f}")
    Console().print(table)


def _print_json(found: list[Neighbourhood]) -> None:
    import json

    rows = [
        {
            "latent": query.number,
            "name": query.name,
            "neighbours": [
                {"latent": near.number, "name": near.name, "distance": near.distance} for near in query.neighbours
            ],
        }
        for query in found
    ]
    options.echo_json(json.dumps(rows, indent=1, ensure_ascii=False))
