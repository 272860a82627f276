"""`odeddim sample`: new images from noise."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from odeddim import defaults
from odeddim.cli import options


@click.command("sample")
@click.option(
    "-n", "--count", type=click.IntRange(1, options.MOST_NEW), default=64, show_default=True, help="How many images."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A sheet.png, a file.h5 or a folder for PNGs.",
)
@options.seed
@click.option(
    "--eta", type=click.FloatRange(0), default=None, help="DDIM's η, of euler (0: the ODE) and ddim-eta (0.5)."
)
@options.size
@options.run(f"{defaults.SAMPLE}; with --eta {defaults.SAMPLE_WITH_ETA}")
@options.preset
@options.machine
@options.network_batch
@options.overwrite
def command(
    count: int,
    output: Path,
    seed: int,
    eta: float | None,
    size: str | None,
    model: str,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    end: str,
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
    network_batch: int | None,
    threads: int | None,
    overwrite: bool,
    preset: Any,
    **settings: Any,
) -> None:
    """Sample images from noise. Image i depends on the seed and i only, whatever the count or the batch size.
    A run that was stopped goes on with the same command.

    \b
    Examples:
      odeddim sample -o sheet.png
      odeddim sample -n 1000 --seed 1 -o images.h5 --solver dpmpp-2m --grid karras --steps 20
      odeddim sample -o ddpm.png --solver ddpm --steps 100
      odeddim sample -o half.png --eta 0.5
    """
    from dataclasses import asdict

    from odeddim.api import plan, sample, with_noise
    from odeddim.cli.running import (
        Numbered,
        at_once,
        check_amount,
        details_of,
        evaluated,
        field_on,
        in_blocks,
        lasting,
        machine,
        of_all,
        progress,
        shape_for,
        so_far,
        warn_of_grid,
        warn_of_preset,
        warn_of_range,
    )
    from odeddim.latents.latent_file import provenance_of
    from odeddim.storage.outputs import open_output

    where = machine(device, dtype)
    field = field_on(model, where)
    name = solver or defaults.for_sampling(eta)
    shape = shape_for(field, size)
    check_amount(output, count, 4 * math.prod(shape if field.codec is None else field.codec.image_shape), "images")
    row, nodes = plan(field.schedule, name, steps, grid, end, settings)
    warn_of_grid(grid, field, row)
    warn_of_preset(preset, field)
    row = with_noise(row, eta=eta, seed=seed)
    in_blocks(field, row, where, network_batch, threads)
    size_at_once = at_once(field, row, batch_size)
    made = provenance_of(
        field,
        solver=row.name,
        grid=grid or row.grid,
        nodes=nodes,
        made_by="sample",
        settings=lasting(settings, row),
        seed=seed,
        eta=eta,
        size=list(shape),
        **details_of(field, row, where, size_at_once),
    )
    began, largest, here = time.perf_counter(), 0.0, 0
    with (
        open_output(output, Numbered(f"sample-{seed}-", count), asdict(made), overwrite=overwrite) as out,
        progress(count, "sampling", out.done) as advance,
    ):
        for start, stop in out.batches(size_at_once):
            images = sample(stop - start, row, seed=seed, start=start, model=field, grid=nodes, shape=shape)
            out.write(start, stop, images)
            largest, here = max(largest, float(images.abs().max())), here + stop - start
            advance(stop - start)
    warn_of_range(largest)
    options.echo(
        f"{so_far(out.done, count)} images in {output}{of_all(out.done, count, here)}: {row.name}, seed {seed}, "
        f"{evaluated(here, field)}, {time.perf_counter() - began:.1f} s"
    )
