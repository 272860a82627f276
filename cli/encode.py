"""`odeddim encode`: images to a latent file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from odeddim.cli import options


@click.command("encode")
@click.argument("images", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The latent file, z.h5.")
@click.option("-n", "--count", type=click.IntRange(1), default=None, help="Only the first so many images.")
@options.run
@options.machine
def command(
    images: Path | None,
    output: Path,
    count: int | None,
    model: str,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    end: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    **settings: Any,
) -> None:
    """Encode IMAGES to latents by integrating the ODE from the image up to σ_T.

    IMAGES is a folder, an image file, .npz, .npy, IDX (MNIST's format, gzip or not) or HDF5; without it, the 256
    sample images of the package. The file holds all that decoding needs.

    \b
    Examples:
      odeddim encode -o z.h5                              the sample images, the built-in model
      odeddim encode photos/ -o z.h5 --model MODEL
      odeddim encode -o z.h5 --solver euler --grid linear --steps 100     DDIM, as in the paper
      odeddim encode -o z.h5 --solver dopri5 --rtol 1e-5
    """
    from odeddim.api import check_encodes, encode, plan
    from odeddim.cli.running import (
        BATCH,
        Reports,
        batches,
        field_on,
        images_for,
        machine,
        progress,
        warn_of_grid,
        warn_of_range,
    )
    from odeddim.files import check_place
    from odeddim.hdf5 import SUFFIXES
    from odeddim.latents.store import provenance_of, write_latents

    check_place(output, images, suffixes=SUFFIXES)
    where = machine(device, dtype)
    field = field_on(model, where)
    row, nodes = plan(field.schedule, solver or options.SOLVER, steps, grid, end, settings)
    warn_of_grid(grid, field, row)
    check_encodes(row)
    source = images_for(field, images)
    total = min(count or len(source), len(source))
    provenance = provenance_of(
        field,
        solver=row.name,
        grid=grid or row.grid,
        nodes=nodes,
        made_by="encode",
        settings=settings,
        dtype=where.dtype_name,
        batch_size=batch_size or BATCH,
    )
    reports, rms = Reports(), 0.0
    began = time.perf_counter()
    with write_latents(output, provenance, nodes, total) as writer, progress(total, "encoding") as advance:
        for start, stop in batches(total, batch_size, row):
            x_0 = source[start:stop].to(where.state)
            state = encode(x_0, row, model=field, grid=nodes)
            writer.append(state, source.names[start:stop])
            reports.add(state, source.names[start:stop])
            rms = max(rms, float(state.x.square().mean().sqrt()))
            advance(stop - start)
    reports.warn(end)
    warn_of_range(rms, "the latents x_T have rms {:.3g} where 1 is expected")
    click.echo(
        f"{total} latents at σ = {float(nodes[-1]):.6g} in {output}: {row.name}, {provenance.grid} grid, "
        f"{reports.evaluations(field.rows)}, {time.perf_counter() - began:.1f} s"
    )
