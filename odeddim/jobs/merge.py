"""The job that makes one HDF5 file of an index and its parts, or of several files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from odeddim.jobs.work import Outcome, Progress, shown
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
    progress: Progress = False,
) -> Outcome:
    """Make one HDF5 file of an index and the parts beside it, or of several files, row after row.

    Args:
        files: One file that is still an index, or several files that were made in the same way.
        output: The new file; None to replace the index by it.
        overwrite: Whether to replace what is at `output`.
        progress: What shows progress: True, a function, or a display; see `odeddim.runs.progress.Progress`.

    Returns:
        The outcome; `print` it for one line.

    Raises:
        InputError: If the files do not belong together, or another file is at `output`.

    Example:
        >>> import odeddim, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("a.h5", "b.h5"):
        ...     made = odeddim.jobs.encode(None, folder / name, model="exact-samples", count=2, steps=4)
        >>> odeddim.jobs.merge([folder / "a.h5", folder / "b.h5"], folder / "both.h5").total
        4
    """
    paths = [Path(path) for path in files]
    if output is None:
        if len(paths) > 1:
            raise InputError("several files are not merged in place: give output=...")
        rows = finish(paths[0])
        return Outcome(paths[0], rows, rows, f"{rows} rows in {paths[0]}")
    output = Path(output)
    for i, path in enumerate(paths):
        if any(path.exists() and other.exists() and path.samefile(other) for other in paths[:i]):
            raise InputError(f"{path} is given twice: give each file once")
    check_place(output, *paths, suffixes=SUFFIXES)
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already: give another name, or overwrite=True to replace it")
    total, settings = 0, []
    for path in paths:
        with opened(path, "a file that odeddim wrote") as file:
            settings.append(settings_of(file, path))
            total += len(file["crc32"]) if "crc32" in columns_of(file) else 0
    with shown(progress, total, "merging", 0) as advance:
        make_real(paths, output, joined(paths, settings, total), advance=advance)
    return Outcome(output, total, total, f"{total} rows in {output}")
