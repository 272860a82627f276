"""One HDF5 file of an index and its parts, or of several files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from odeddim.jobs.work import Outcome, Progress, silent
from odeddim.storage.atomic import check_place
from odeddim.storage.hdf5 import SUFFIXES, opened
from odeddim.storage.resumable import finish
from odeddim.storage.row_files import columns_of, joined, make_real, settings_of
from odeddim.types import InputError


def merge(
    files: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Make one HDF5 file of an index and the parts beside it, or of several files, row after row.

    Args:
        files: One file that is still an index, or several that were made in the same way.
        output: The one file; None: in place of the first of `files`.
        overwrite: Whether to replace what is there.
        progress: Shown while the job works.

    Returns:
        What became of it; `print` it for a line of words.

    Raises:
        InputError: For files that do not belong together, or a place where something else is.
    """
    paths = [Path(path) for path in files]
    if output is None:
        if len(paths) > 1:
            raise InputError("give -o z.h5: several files are not made one in place")
        rows = finish(paths[0])
        return Outcome(paths[0], rows, rows, f"{rows} rows in {paths[0]}")
    output = Path(output)
    for i, path in enumerate(paths):
        if any(path.exists() and other.exists() and path.samefile(other) for other in paths[:i]):
            raise InputError(f"{path} is given twice: its rows would be there twice")
    check_place(output, *paths, suffixes=SUFFIXES)
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already: give another name, or overwrite=True")
    total, settings = 0, []
    for path in paths:
        with opened(path, "a file that odeddim wrote") as file:
            settings.append(settings_of(file, path))
            total += len(file["crc32"]) if "crc32" in columns_of(file) else 0
    with progress(total, "merging", 0) as advance:
        make_real(paths, output, joined(paths, settings, total), advance=advance)
    return Outcome(output, total, total, f"{total} rows in {output}")
