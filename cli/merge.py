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
    from odeddim.cli.running import progress
    from odeddim.storage.atomic import check_place
    from odeddim.storage.hdf5 import SUFFIXES, opened
    from odeddim.storage.resumable import finish
    from odeddim.storage.row_files import columns_of, joined, make_real, settings_of

    if output is None:
        if len(files) > 1:
            raise click.UsageError("give -o z.h5: several files are not made one in place")
        options.echo(f"{finish(files[0])} rows in {files[0]}")
        return
    for i, path in enumerate(files):
        if any(path.exists() and other.exists() and path.samefile(other) for other in files[:i]):
            raise click.UsageError(f"{path} is given twice: its rows would be there twice")
    check_place(output, *files, suffixes=SUFFIXES)
    if output.exists() and not overwrite:
        raise click.UsageError(f"{output} is there already: give another name, or --overwrite")
    total, settings = 0, []
    for path in files:
        with opened(path, "a file that odeddim wrote") as file:
            settings.append(settings_of(file, path))
            total += len(file["crc32"]) if "crc32" in columns_of(file) else 0
    with progress(total, "merging") as advance:
        make_real(files, output, joined(files, settings, total), advance=advance)
    options.echo(f"{total} rows in {output}")
