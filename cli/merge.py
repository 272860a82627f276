"""`odeddim merge`: one file of an index and its parts, or of several files."""

from __future__ import annotations

from pathlib import Path

import click

from odeddim.cli import options


@click.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="The one file.  [default: FILES]")
@options.overwrite
def command(files: tuple[Path, ...], output: Path | None, overwrite: bool) -> None:
    """Make one HDF5 file of an index and the parts beside it, or of several FILES, row after row.

    While it runs, `encode` keeps its batches in z.h5.parts, and z.h5 shows them. At the end it makes one file of them
    itself; where that went wrong, on a full disk say, this command does it. With -o it takes what there is of an
    unfinished run, or puts together files that were made in the same way, on several machines say.

    \b
    Examples:
      odeddim merge z.h5
      odeddim merge unfinished.h5 -o some.h5
      odeddim merge monday.h5 tuesday.h5 -o z.h5
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    options.echo(jobs.merge(files, output, overwrite=overwrite, progress=bar).words)
