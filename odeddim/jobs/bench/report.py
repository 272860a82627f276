"""One page with the tables and figures of a folder."""

from __future__ import annotations

from pathlib import Path

from odeddim.bench import defaults
from odeddim.bench import report as bench


def report(
    folder: str | Path = defaults.FOLDER, output: str | Path = defaults.PAGE, *, overwrite: bool = False
) -> list[str]:
    """Make one page of all tables and figures in a folder of benches. Nothing is measured.

    The page is a single file that opens offline. It has a light and a dark version, and also fits a phone and paper.

    Args:
        folder: The folder of the tables. They may be of different models; the page says so.
        output: The page, NAME.html.
        overwrite: Whether to replace a file that is not a page of this folder.

    Returns:
        The names of the tables, in the order of the page.

    Raises:
        InputError: If the folder holds no table, if a table is damaged, or if the page cannot be written.

    Example:
        >>> import odeddim, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=folder)
        >>> table = odeddim.jobs.bench.reconstruction(bench, count=1, solvers=["euler"], steps=[3])
        >>> odeddim.jobs.bench.report(folder, folder / "report.html")
        ['reconstruction']
    """
    return bench.report(Path(folder), Path(output), overwrite=overwrite)
