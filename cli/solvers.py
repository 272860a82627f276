"""`odeddim solvers`: the table of solvers. Loads neither torch nor anything else that is slow."""

from __future__ import annotations

import click

from odeddim.cli import options
from odeddim.solvers import SOLVERS

COLUMNS = ("name", "family", "order", "evaluations", "grid", "reference")


@click.command("solvers")
@options.as_json
def command(as_json: bool) -> None:
    """Print the table of solvers: order, evaluations per step, recommended grid, reference.

    \b
    Examples:
      odeddim solvers
      odeddim solvers --json
    """
    rows = [cells(name) for name in SOLVERS]
    if as_json:
        import json

        options.echo_json(
            json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=1, ensure_ascii=False)
        )
        return
    texts = [COLUMNS, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(COLUMNS))]
    for row in texts:
        options.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def cells(name: str) -> tuple[str, str, int, str, str, str]:
    """A row as the table prints it, in the order of `COLUMNS`."""
    row = SOLVERS[name]
    if row.nfe is None:
        evaluations = "adaptive" if row.adaptive else "as needed"
    else:
        evaluations = f"{row.nfe} per step" + (f" + {sum(row.warmup)}" if row.warmup else "")
    return row.name, row.family, row.order, evaluations, row.grid, row.reference
