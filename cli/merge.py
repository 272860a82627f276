"""`odeddim merge`: one file of an index and its parts, or of several files."""

from __future__ import annotations

from pathlib import Path

import click

from odeddim.cli import options


@click.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="The file to write.  [default: the file given]",
)
@options.overwrite
def command(files: tuple[Path, ...], output: Path | None, overwrite: bool) -> None:
    """Make one HDF5 file of an index and the parts beside it, or of several FILES, row after row.

    While `odeddim encode` runs, it keeps its batches in the folder z.h5.parts, and z.h5 is an index of them. At the
    end it makes one file of them. Where that failed, for example on a full disk, this command does it. With -o it also
    writes the finished rows of a run that was stopped, or combines files that were made in the same way, for example
    on several machines.

    \b
    Examples:
      odeddim merge z.h5
      odeddim merge unfinished.h5 -o some.h5
      odeddim merge monday.h5 tuesday.h5 -o z.h5
    """
    from odeddim import jobs
    from odeddim.cli.progress import bar

    options.tell(jobs.merge(files, output, overwrite=overwrite, progress=bar))
