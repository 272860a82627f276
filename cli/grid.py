"""`odeddim grid`: a grid computed from the model's own error, as a file for --grid."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from odeddim import defaults
from odeddim.cli import options

SUFFIXES = (".txt",)


@click.command("grid")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The grid file, grid.txt.")
@click.option("-n", "--count", type=click.IntRange(1), default=16, show_default=True, help="How many images.")
@options.model
@options.solver(defaults.ENCODE)
@options.steps
@options.end
@options.machine
@options.replace
def command(
    images: Path | None,
    output: Path,
    count: int,
    model: str,
    solver: str | None,
    steps: int | None,
    end: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    overwrite: bool,
) -> None:
    """Compute the noise levels on which a solver with so many steps errs least, and write them to a file.

    The steps' own errors are measured on a few of IMAGES, the last ones (`odeddim bench` takes the first; without
    IMAGES, the package's sample images); then round trips refine the grid. The file serves --grid of every command,
    to encode and to decode, with that solver and model. Printed: what was measured on these images, on the solver's
    own grid and on the computed one.

    \b
    Examples:
      odeddim grid --solver dpmpp-2m --steps 20 -o grid.txt
      odeddim encode -o z.h5 --solver dpmpp-2m --grid grid.txt
      odeddim bench --solvers dpmpp-2m,dpmpp-2m@grid.txt --steps 20
    """
    from odeddim.cli.running import BATCH, field_on, images_for, machine, progress, warn_of_count
    from odeddim.fitting.grid_search import compute, most_evaluations, own_grid
    from odeddim.ode.grids import STEPS, write_nodes
    from odeddim.storage.atomic import check_own, check_place, has_mark, mark_of

    check_place(output, images, suffixes=SUFFIXES)
    where = machine(device, dtype)
    field = field_on(model, where)
    row, nodes = own_grid(field, solver or defaults.ENCODE, steps or STEPS, end)
    source = images_for(field, images)
    x_0 = source[max(0, len(source) - count) : len(source)].to(where.state)
    warn_of_count(count, len(source), images)
    notes: dict[str, Any] = {
        "odeddim grid": "noise levels σ from the image up, of dx̄/dσ = ε(x̄, σ)",
        "model": field.name,
        "sha256": field.sha256,
        **({"condition": field.condition.words} if field.condition.words else {}),
        "solver": row.name,
        "steps": len(nodes) - 1,
        "end": end,
        "images": f"the last {len(x_0)} of {images or 'the sample images'}",
    }
    notes["run"] = mark = mark_of(notes)
    check_own(output, lambda path: has_mark(path, mark), overwrite=overwrite)
    began = time.perf_counter()
    with progress(most_evaluations(row, nodes), "evaluations") as advance:
        found = compute(field, x_0, row, len(nodes) - 1, end=end, batch_size=batch_size or BATCH, advance=advance)
    notes |= {
        "made by": f"local errors of {row.name} on these images, refined by round trips (odeddim grid)",
        "round trip": f"{found.best.round_trip:.3e} (on the {row.grid} grid {found.own.round_trip:.3e})",
        "latent": f"{found.best.latent:.3e} (on the {row.grid} grid {found.own.latent:.3e})",
    }
    write_nodes(output, found.best.nodes, notes)
    _print(found, row.grid, f"{field.title}: {row.name}, {len(nodes) - 1} steps, {len(x_0)} images, end at {end}")
    if found.best is found.own:
        options.echo(f"nothing better than the {row.grid} grid was found: the file holds that one", err=True)
    options.echo(
        f"grid of {len(nodes) - 1} steps in {output}: {found.evaluations} evaluations per image, "
        f"{time.perf_counter() - began:.1f} s"
    )


def _print(found: Any, own: str, title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from odeddim.storage.atomic import printable

    caption = "round trip: rms over pixels in [-1, 1]; latent: rms distance to the true latent / σ_T"
    shown = Table(title=Text(printable(title)), caption=caption)
    for name in ("grid", "round trip", "latent"):
        shown.add_column(name, justify="left" if name == "grid" else "right")
    for name, measured in ((own, found.own), ("computed", found.best)):
        shown.add_row(name, f"{measured.round_trip:.2e}", f"{measured.latent:.2e}")
    Console().print(shown)
