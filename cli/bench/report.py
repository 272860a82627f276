"""`odeddim bench report`: one page with the tables and figures of a folder."""

from __future__ import annotations

from pathlib import Path

import click

from odeddim.bench import defaults
from odeddim.cli import options


@click.command("report")
@click.argument("folder", default=defaults.FOLDER, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=defaults.PAGE,
    show_default=True,
    metavar="FILE.html",
    help="The page.",
)
@options.replace
def command(folder: Path, output: Path, overwrite: bool) -> None:
    """Make one page of all tables and figures in FOLDER, where the other benches left them.  [default: bench]

    The page needs nothing but itself: it opens offline, in a light or a dark window, on a phone and on paper. A click
    on a column's name sorts its table, and below each table is said how it was measured. The tables in FOLDER may be
    of different models; the page says so. Nothing is measured: run the benches first.

    \b
    Examples:
      odeddim bench report
      odeddim bench report results/ -o results/report.html
    """
    from odeddim import jobs

    names = jobs.bench.report(folder, output, overwrite=overwrite)
    options.echo(f"{output}: {', '.join(names)} (open it in a browser)")
