"""One page with the tables and figures of a folder."""

from __future__ import annotations

from pathlib import Path

from odeddim.bench import defaults
from odeddim.bench import report as bench


def report(
    folder: str | Path = defaults.FOLDER, output: str | Path = defaults.PAGE, *, overwrite: bool = False
) -> list[str]:
    """Make one page of all tables and figures that the benches have left in a folder. Nothing is measured.

    The page needs nothing but itself: it opens offline, in a light or a dark window, on a phone and on paper.

    Args:
        folder: The folder of the tables. They may be of different models; the page says so.
        output: The page, NAME.html.
        overwrite: Whether to replace a file that is not the page of this folder.

    Returns:
        The names of the tables, in the order of the page.

    Raises:
        InputError: For a folder without tables, a table that is damaged, and a place that cannot be written to.

    Example:
        >>> import odeddim, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> bench = odeddim.jobs.bench.Workbench("exact-mixture", folder=folder)
        >>> table = odeddim.jobs.bench.reconstruction(bench, count=1, solvers=["euler"], steps=[3])
        >>> odeddim.jobs.bench.report(folder, folder / "report.html")
        ['reconstruction']
    """
    return bench.report(Path(folder), Path(output), overwrite=overwrite)
