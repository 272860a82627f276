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
    help="Where the page goes.",
)
@options.replace
def command(folder: Path, output: Path, overwrite: bool) -> None:
    """Make one page of all tables and figures in FOLDER, the output folder of the other benches.  [default: bench]

    The page is a single file that opens offline. It has a light and a dark version, and it also fits a phone and paper.
    A click on a column's name sorts the table. Below each table, the page tells how it was measured. The page warns if
    the tables in FOLDER are of different models. This command measures nothing: run the other benches first.

    \b
    Examples:
      odeddim bench report
      odeddim bench report results/ -o results/report.html
    """
    from odeddim import jobs

    names = jobs.bench.report(folder, output, overwrite=overwrite)
    options.echo(f"{output}: {', '.join(names)} (open it in a browser)")
